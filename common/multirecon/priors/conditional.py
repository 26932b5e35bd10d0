"""Diffusion of one image given others, with a learned variance: training pairs, variational bound, reverse chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .denoiser import NetworkDenoiser, Parametrisation
from .sampling import Correction, SampleNoise, reverse_diffusion
from .schedules import NoiseSchedule

__all__ = ["ConditionalBatch", "ConditionalDiffusion", "VarianceRange"]

CHAINS = ("ancestral", "ddim", "multistep")
VARIANCES = ("learned", "smallest", "largest")


class VarianceRange:
    r"""Gaussian steps between kept times of a schedule, with variances between those of the posterior and the prior.

    With ``abar'`` at the time kept before, ``beta = 1 - abar / abar'`` and ``beta~ = beta (1 - abar') / (1 - abar)``,
    a network's second output ``v`` in [-1, 1] says

    .. math:: \log\sigma^2 = \tfrac{1 + v}{2} \log\beta + \tfrac{1 - v}{2} \log\tilde\beta .

    All of it belongs to the kept times, so that a chain of 20 steps has a range of its own. ``beta~`` of the first kept
    time would be 0; it takes that of the second.

    Args:
        schedule: noise schedule.
        times: kept times, ascending integers; all of them by default.

    References:
        nichol2021
    """

    def __init__(self, schedule: NoiseSchedule, times: Tensor | None = None) -> None:
        self.times = torch.arange(schedule.num_timesteps) if times is None else times
        self.abar = schedule.abar[self.times]
        self.before = torch.cat([torch.ones(1, dtype=self.abar.dtype), self.abar[:-1]])
        self.beta = 1 - self.abar / self.before
        smallest = self.beta * (1 - self.before) / (1 - self.abar)
        smallest[0] = smallest[1] if len(smallest) > 1 else self.beta[0]
        self.log_smallest, self.log_largest = smallest.log(), self.beta.log()

    def mean(self, x0: Tensor, x_t: Tensor, k: Tensor) -> Tensor:
        """Return the mean of ``q(x at the time before | x_t, x0)``.

        Args:
            x0: clean images ``(B, C, *shape)``.
            x_t: noisy images at the kept times ``k``, variance-preserving.
            k: numbers of kept times ``(B,)``.
        """
        clean = self.beta * self.before.sqrt() / (1 - self.abar)
        noisy = (1 - self.beta).sqrt() * (1 - self.before) / (1 - self.abar)
        return _at(clean, k, x0) * x0 + _at(noisy, k, x_t) * x_t

    def log_variance(self, v: Tensor, k: Tensor) -> Tensor:
        """Return ``log sigma^2`` of the network's interpolation ``v`` ``(B, C, *shape)`` at the kept times ``k``."""
        share = (v + 1) / 2
        return share * _at(self.log_largest, k, v) + (1 - share) * _at(self.log_smallest, k, v)


@dataclass(frozen=True)
class ConditionalBatch:
    """One training batch, as a network sees it and as its loss needs it.

    Args:
        image: input of the network ``(B, 1 + conditions, *shape)``.
        timestep: time in steps ``(B,)``, integers as floats.
        target: what the first output should be ``(B, 1, *shape)``.
        x0: clean target.
        x_t: noisy target, variance-preserving.
    """

    image: Tensor
    timestep: Tensor
    target: Tensor
    x0: Tensor
    x_t: Tensor


class ConditionalDiffusion:
    r"""Diffusion of one image ``x0`` given ``c``: a network ``F, v = N([c_in (x - m), c], t)``.

    ``x = x_t / sqrt(abar_t)`` and ``x0^ = m + c_skip (x - m) + c_out F`` as in
    :class:`~multirecon.priors.Parametrisation`; ``v`` in [-1, 1] interpolates the variance (:class:`VarianceRange`).
    Everything here lives in the network's range, to which :meth:`to_range` leads.

    Args:
        schedule: noise schedule.
        parametrisation: meaning of the first output.
        image_range: where image values 0 and 1 lie for the network, (-1, 1) or as they are (0, 1).
        clamp: range of the clean estimate in sampling, in the network's range, or None.

    Raises:
        ValueError: if a range is not increasing.

    References:
        ho2020, nichol2021

    Example:
        >>> diffusion = ConditionalDiffusion(NoiseSchedule.linear(), parametrisation=Parametrisation("epsilon"))
        >>> batch = diffusion.training_batch(torch.zeros(4, 1, 8, 8), torch.zeros(4, 2, 8, 8),
        ...                                  torch.Generator().manual_seed(0))
        >>> batch.image.shape, sorted(int(t) // 250 for t in batch.timestep)
        (torch.Size([4, 3, 8, 8]), [0, 1, 2, 3])
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        *,
        parametrisation: Parametrisation,
        image_range: Sequence[float] = (-1.0, 1.0),
        clamp: Sequence[float] | None = (-1.0, 1.0),
    ) -> None:
        for name, pair in (("image_range", image_range), ("clamp", clamp)):
            if pair is not None and not (len(pair) == 2 and pair[0] < pair[1]):
                raise ValueError(f"{name}: expected an increasing pair, got {pair}")
        self.schedule = schedule
        self.parametrisation = parametrisation
        self.image_range = (float(image_range[0]), float(image_range[1]))
        self.clamp = None if clamp is None else (float(clamp[0]), float(clamp[1]))
        self.full = VarianceRange(schedule)

    def to_range(self, image: Tensor) -> Tensor:
        """Return the network's values of an image whose bright tissue is about 1."""
        low, high = self.image_range
        return low + (high - low) * image

    def from_range(self, image: Tensor) -> Tensor:
        """Undo :meth:`to_range`."""
        low, high = self.image_range
        return (image - low) / (high - low)

    def denoiser(self, network: Callable[[Tensor, Tensor], Tensor], *, clamp: bool = True) -> NetworkDenoiser:
        """Return the denoiser of ``network(c_in (x - m), t) -> F``."""
        return NetworkDenoiser(
            network,
            schedule=self.schedule,
            parametrisation=self.parametrisation,
            clamp=self.clamp if clamp else None,
        )

    def training_batch(self, x0: Tensor, condition: Tensor, generator: torch.Generator) -> ConditionalBatch:
        """Return a training batch; times are uniform, one in each of ``B`` equal parts of the schedule.

        Args:
            x0: clean targets ``(B, 1, *shape)``.
            condition: what the network is given beside them ``(B, conditions, *shape)``.
            generator: random numbers of times and noise.
        """
        count, device = len(x0), generator.device
        part = (torch.randperm(count, generator=generator, device=device) +
                torch.rand(count, generator=generator, device=device)) / count  # fmt: skip
        timestep = (part * self.schedule.num_timesteps).floor().clamp(max=self.schedule.num_timesteps - 1).to(x0.device)
        noise = torch.randn(x0.shape, generator=generator, device=device).to(x0)
        abar = _at(self.schedule.abar, timestep.long(), x0)
        sigma = self.schedule.sigma(timestep).to(x0)
        image, target, _ = self.denoiser(_none).training_pair(x0, noise, sigma)
        x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        return ConditionalBatch(torch.cat([image, condition], dim=1), timestep, target, x0, x_t)

    def estimate(self, prediction: Tensor, x_t: Tensor, timestep: Tensor) -> Tensor:
        """Return ``x0^`` of the first output at integer times, not clamped.

        Args:
            prediction: ``F`` ``(B, 1, *shape)``.
            x_t: noisy target, variance-preserving.
            timestep: times in steps ``(B,)``.
        """
        scale = _at(self.schedule.abar, timestep.long(), x_t).sqrt()
        sigma = self.schedule.sigma(timestep).to(x_t)
        return self.denoiser(lambda image, time: prediction, clamp=False)(x_t / scale, sigma)

    def variational_bound(self, batch: ConditionalBatch, prediction: Tensor, v: Tensor) -> Tensor:
        r"""Return the term of the variational bound at each sample's time, in bits a pixel, ``(B,)``.

        ``KL(q(x_{t-1} | x_t, x0) | N(mu, sigma^2))``, and at time 0 the negative log-probability of the pixel's bin
        (255 fill the image range). ``mu`` comes from the prediction without its gradient: the term teaches ``v``.

        Args:
            batch: the training batch.
            prediction: first output ``(B, 1, *shape)``.
            v: second output, alike.
        """
        k = batch.timestep.long()
        estimate = self.estimate(prediction.detach(), batch.x_t, batch.timestep)
        mean, true_mean = (self.full.mean(x0, batch.x_t, k) for x0 in (estimate, batch.x0))
        log_variance = self.full.log_variance(v, k)
        difference = _at(self.full.log_smallest, k, v) - log_variance
        kl = 0.5 * (difference.exp() - 1 - difference + (true_mean - mean).square() * (-log_variance).exp())
        decoder = -self._log_bin(batch.x0, mean, 0.5 * log_variance)
        bound = torch.where((k == 0).reshape(-1, *[1] * (v.ndim - 1)), decoder, kl)
        return bound.flatten(1).mean(1) / math.log(2)

    def _log_bin(self, x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        low, high = self.image_range
        half, inverse = (high - low) / 510, (-log_std).exp()
        upper = torch.special.ndtr((x - mean + half) * inverse)
        lower = torch.special.ndtr((x - mean - half) * inverse)
        # the lowest bin reaches to minus infinity; at the top images may go on
        lower = torch.where(x <= low + half, torch.zeros_like(lower), lower)
        return (upper - lower).clamp_min(1e-12).log()

    def sample(
        self,
        network: nn.Module | Callable[[Tensor, Tensor], Tensor],
        condition: Tensor,
        noise: SampleNoise,
        *,
        steps: int,
        chain: str = "ancestral",
        variance: str = "learned",
        eta: float = 0.0,
        correct: Correction | None = None,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw one sample of each image.

        Args:
            network: ``network([c_in (x - m), c], t) -> [F, v]``, channels joined.
            condition: ``c`` ``(B, conditions, *shape)``.
            noise: random numbers, shaped like the result ``(B, 1, *shape)``.
            steps: kept times, from the last of the schedule to 0.
            chain: ``"ancestral"`` (all times: the full chain), ``"ddim"``, or ``"multistep"`` (second order).
            variance: of an ancestral step, ``"learned"`` or one end of its range, ``"smallest"`` or ``"largest"``; over
                few kept times these are far apart.
            eta: noise of ``"ddim"``, 0 to 1.
            correct: ``correct(x0^, sigma)``, agreement with data; only for ``"ddim"`` and ``"multistep"``.
            callback: called as ``callback(k, x0^)`` after each step.

        Raises:
            ValueError: on an unknown chain or variance, or a correction of the ancestral chain.
        """
        if variance not in VARIANCES:
            raise ValueError(f"variance: expected one of {VARIANCES}, got {variance!r}")
        if chain not in CHAINS:
            raise ValueError(f"chain: expected one of {CHAINS}, got {chain!r}")
        second: list[Tensor] = []

        def first(image: Tensor, timestep: Tensor) -> Tensor:
            output = network(torch.cat([image, condition], dim=1), timestep).to(image.dtype)
            second[:] = [output[:, 1:]]
            return output[:, :1]

        denoiser = self.denoiser(first)
        if chain != "ancestral":
            return reverse_diffusion(
                denoiser,
                self.schedule,
                noise,
                steps=steps,
                eta=eta if chain == "ddim" else 0.0,
                order=1 if chain == "ddim" else 2,
                correct=correct,
                callback=callback,
            )
        if correct is not None:
            raise ValueError("correct: expected none for the ancestral chain, got one")
        kept = VarianceRange(self.schedule, self.schedule.kept_steps(steps))
        sigmas = self.schedule.sigma(kept.times.double())
        x_t = noise()
        for count, index in enumerate(reversed(range(steps))):
            with torch.no_grad():
                x0 = denoiser(x_t / float(kept.abar[index]) ** 0.5, float(sigmas[index]))
            if callback is not None:
                callback(count, x0)
            if index == 0:
                return x0
            k = torch.full((len(x_t),), index, device=x_t.device)
            ends = {"smallest": -1.0, "largest": 1.0}
            v = second[0] if variance == "learned" else torch.full_like(x0, ends[variance])
            deviation = (0.5 * kept.log_variance(v, k)).exp()
            x_t = kept.mean(x0, x_t, k) + deviation * noise()
        raise AssertionError("unreachable")


def _none(image: Tensor, timestep: Tensor) -> Any:
    raise AssertionError("a training pair asks no network")


def _at(table: Tensor, k: Tensor, like: Tensor) -> Tensor:
    return table.to(like.device)[k].to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
