"""The reverse diffusion every sampler shares: DDPM, DDIM, gradient guidance and correction of the clean estimate."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Literal

import torch
from torch import Tensor

from .denoiser import Denoiser, predicted_noise
from .schedules import NoiseSchedule

__all__ = ["SampleNoise", "reverse_diffusion"]

Correction = Callable[[Tensor, float], Tensor]
"""``correct(x0, sigma)``: a clean estimate that agrees with data, in the range of the prior."""
Guide = Callable[[Tensor], Tensor]
"""``guide(x0)``: a differentiable misfit per sample ``(B,)``."""


class SampleNoise:
    """White noise with a random stream of its own for every sample: a batch draws what its samples draw one by one.

    Args:
        shape: ``(B, C, *spatial)``.
        generator: where the seed of each sample comes from, one number a sample.
        like: tensor whose device and dtype the noise takes.

    Example:
        >>> batch = SampleNoise((2, 1, 3), torch.Generator().manual_seed(0), like=torch.zeros(()))()
        >>> generator = torch.Generator().manual_seed(0)
        >>> single = [SampleNoise((1, 1, 3), generator, like=torch.zeros(()))() for _ in range(2)]
        >>> torch.equal(batch, torch.cat(single))
        True
    """

    def __init__(self, shape: tuple[int, ...], generator: torch.Generator, *, like: Tensor) -> None:
        self.shape = shape
        self.like = like
        seeds = [torch.randint(2**62, (), generator=generator, device=generator.device) for _ in range(shape[0])]
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def __call__(self) -> Tensor:
        """Return noise of unit variance, ``shape``; drawn on the CPU, so that every device sees the same."""
        return self._draw(self.shape[1:]).to(self.like)

    def beside(self, data: Tensor) -> Tensor:
        """Return noise shaped like data ``(B, ...)``; complex data get unit variance in each of the two parts."""
        if not data.is_complex():
            return self._draw(data.shape[1:]).to(data)
        return torch.view_as_complex(self._draw((*data.shape[1:], 2))).to(data)

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])


def reverse_diffusion(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: SampleNoise,
    *,
    steps: int | Tensor,
    eta: float = 0.0,
    noise_split: Literal["ddim", "dds"] = "ddim",
    order: Literal[1, 2] = 1,
    correct: Correction | None = None,
    guide: Guide | None = None,
    guidance: float | Tensor | Callable[[float], float | Tensor] = 1.0,
    start: Tensor | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    r"""Run the reverse process and return the clean image it ends at.

    In terms of ``z_t = x_t / sqrt(abar_t) = x0 + sigma_t n`` a step from noise level ``sigma_t`` to ``sigma_s`` is

    .. math::
        \hat x_0 = D(z_t, \sigma_t), \quad \hat n = (z_t - \hat x_0) / \sigma_t, \quad
        z_s = \tilde x_0 + \sqrt{\sigma_s^2 - \gamma^2}\, \hat n + \gamma\, \xi, \quad
        \gamma^2 = \eta^2 \sigma_s^2 (1 - \sigma_s^2 / \sigma_t^2),

    which is DDIM with ``eta``, and ancestral DDPM sampling for ``eta = 1``. ``x0~`` is ``correct(x0^, sigma)`` where
    given (decomposed sampling, MDS and DDS), else ``x0^``; the noise stays the network's own. With a ``guide`` the
    gradient of its misfit through the denoiser is subtracted, ``x_s <- x_s - guidance * grad_{x_t} misfit`` (posterior
    sampling, MPS and DPS). The last step returns ``x0~``.

    Args:
        denoiser: the prior, in its own range.
        schedule: its noise schedule.
        noise: random numbers; its shape is that of the result.
        steps: number of times kept, evenly spread over the schedule, or the times themselves, ascending.
        eta: 0 deterministic to 1 ancestral.
        noise_split: ``"dds"`` splits noise as ``sigma_s (sqrt(1 - eta^2) n + eta xi)`` instead.
        order: 2 extrapolates clean estimates linearly in ``log sigma`` from the step before (multistep solver).
        correct: agreement with data in the clean domain.
        guide: misfit of a clean estimate, per sample.
        guidance: weight of its gradient, a number or ``(B,)``, or its value as a function of the noise level.
        start: image ``(B, C, *shape)`` that the first, largest time in ``steps`` starts from (warm start); by default
            pure noise.
        callback: called as ``callback(k, clean estimate)`` after each step.

    Returns:
        ``(B, C, *shape)`` in the range of the prior.

    Raises:
        ValueError: on times that are not ascending inside the schedule, or settings outside their range.

    References:
        ho2020, song2021ddim, chung2023dps, chung2024dds, lu2022
    """
    times = schedule.kept_steps(steps) if isinstance(steps, int) else torch.as_tensor(steps)
    if times.ndim != 1 or not len(times) or bool((times[1:] <= times[:-1]).any()):
        raise ValueError(f"steps: expected ascending times, got {times.tolist()}")
    if not 0 <= eta <= 1 or noise_split not in ("ddim", "dds") or order not in (1, 2):
        raise ValueError(f"eta, noise_split, order: expected 0 to 1, 'ddim' or 'dds', 1 or 2, "
                         f"got {eta}, {noise_split!r}, {order}")  # fmt: skip
    sigmas = schedule.sigma(times.double().flip(0)).tolist()
    # x_T is white noise of unit variance: z_T is that over sqrt(abar_T)
    z = (1 + sigmas[0] ** 2) ** 0.5 * noise() if start is None else start + sigmas[0] * noise()
    previous: tuple[Tensor, Tensor] | None = None
    for k, sigma in enumerate(sigmas):
        last = k + 1 == len(sigmas)
        following = 0.0 if last else sigmas[k + 1]
        shift: Tensor | float = 0.0
        if guide is None:
            with torch.no_grad():
                estimate, direction = predicted_noise(denoiser, z, sigma)
        else:
            estimate, direction, gradient = _guided(denoiser, z, sigma, guide)
            both = ((1 + sigma**2) * (1 + following**2)) ** 0.5  # the step is taken in x_t, z_t is that over its scale
            here = guidance(sigma) if callable(guidance) else guidance
            weight = torch.as_tensor(here, dtype=z.dtype, device=z.device).reshape(-1, *[1] * (z.ndim - 1))
            shift = weight * both * gradient
        clean = estimate if correct is None else correct(estimate, sigma)
        if callback is not None:
            callback(k, clean)
        if last:
            return clean - shift
        mean = clean
        if order == 2:
            if previous is not None:
                # extrapolation over a step longer than the one before is bounded: it would overshoot at the end
                share = 0.5 * min(log(sigma / following) / log(sigmas[k - 1] / sigma), 1.0)
                mean = clean + share * (clean - previous[0])
                direction = direction - share / sigma * (estimate - previous[1])
            previous = (clean, estimate)
        if noise_split == "dds":
            kept, fresh = following * (1 - eta**2) ** 0.5, following * eta
        else:
            fresh = eta * following * (1 - (following / sigma) ** 2) ** 0.5
            kept = (following**2 - fresh**2) ** 0.5
        z = mean + kept * direction - shift
        if fresh > 0:
            z = z + fresh * noise()
    raise AssertionError("unreachable")


def _guided(denoiser: Denoiser, z: Tensor, sigma: float, guide: Guide) -> tuple[Tensor, Tensor, Tensor]:
    """Return clean estimate, noise direction and the gradient of the misfit with respect to the noisy image."""
    with torch.enable_grad():
        noisy = z.detach().requires_grad_()
        estimate, direction = predicted_noise(denoiser, noisy, sigma)
        # samples do not mix in the network: the gradient of the sum is that of each
        (gradient,) = torch.autograd.grad(guide(estimate).sum(), noisy)
    return estimate.detach(), direction.detach(), gradient
