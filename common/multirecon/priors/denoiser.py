"""One convention for every denoising network: ``D(x, sigma) = E[x0 | x0 + sigma n = x]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .haar import haar_analysis, haar_synthesis
from .schedules import NoiseSchedule

__all__ = ["Denoiser", "HaarDomain", "NetworkDenoiser", "Parametrisation", "PixelDomain", "predicted_noise"]


class Denoiser(Protocol):
    r"""Posterior mean of a clean image given a noisy one: the convention that lets any sampler use any network."""

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return ``E[x0 | x]`` for ``x = x0 + sigma n``, ``n`` white with unit variance.

        Args:
            x: noisy image ``(B, C, *shape)`` in the range of the prior. A variance-preserving state ``x_t`` is
                ``sqrt(abar_t) x``, see :class:`~multirecon.priors.NoiseSchedule`.
            sigma: noise level, one number or ``(B,)``.
        """


class PixelDomain:
    """The network works on pixels."""

    bands = 1

    def forward(self, image: Tensor) -> Tensor:
        """Return the image."""
        return image

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients."""
        return coefficients

    def gain(self, ndim: int) -> Tensor:
        """Return the gain of white noise per band, ``(1,)``."""
        return torch.ones(1)


class HaarDomain:
    r"""The network works on Haar coefficients, ``w = g W x``: ``2 ** d`` channels for one, half the size.

    ``W`` is orthonormal, so white noise stays white and diffusion in either domain is the same process. The lowest band
    alone is scaled, ``g = 1 / gain`` of a constant image, back into the range of the image; its noise falls with it.

    Args:
        levels: how often the transform is applied (to all channels: a wavelet packet).
        scale_low: whether the lowest band is scaled by the gain of a constant image, or the number it is divided by.
        axes: transform this many of the spatial axes, the first ones; all by default. With 2, a volume is a stack of
            transformed slices.

    Example:
        >>> HaarDomain().forward(torch.full((1, 1, 2, 2), 0.5)).flatten().tolist()
        [0.5, 0.0, 0.0, 0.0]
    """

    def __init__(self, *, levels: int = 1, scale_low: bool | float = True, axes: int | None = None) -> None:
        if levels < 1 or (axes is not None and axes < 1):
            raise ValueError(f"levels, axes: expected >= 1, got {levels}, {axes}")
        if not isinstance(scale_low, bool) and not scale_low > 0:
            raise ValueError(f"scale_low: expected a truth value or a number > 0, got {scale_low}")
        self.levels = levels
        self.scale_low = scale_low
        self.axes = axes

    def forward(self, image: Tensor) -> Tensor:
        """Return the scaled coefficients ``(B, C * bands, *shape / 2 ** levels)`` of an image ``(B, C, *shape)``."""
        coefficients = image
        for _ in range(self.levels):
            coefficients = haar_analysis(coefficients, self.axes)
        return _times(coefficients, self.gain(image.ndim))

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Return the image ``(B, C, *shape)`` of scaled coefficients."""
        image = _times(coefficients, 1 / self.gain(coefficients.ndim))
        for _ in range(self.levels):
            image = haar_synthesis(image, self.axes)
        return image

    def gain(self, ndim: int) -> Tensor:
        """Return the gain ``g`` per band, ``(bands,)``: the standard deviation of transformed white noise.

        Args:
            ndim: number of axes of the tensors, spatial ones plus two.
        """
        halvings = self.levels * (ndim - 2 if self.axes is None else self.axes)
        gain = torch.ones(2**halvings, dtype=torch.float64)
        if self.scale_low is True:
            gain[0] = 2.0 ** (-halvings / 2)
        elif self.scale_low is not False:
            gain[0] = 1 / self.scale_low
        return gain


Domain = PixelDomain | HaarDomain


class Parametrisation:
    r"""What a network is fed with and what its output ``F`` means, for each coefficient with noise level ``s``:

    .. math:: \hat x_0 = m + c_{skip} (x - m) + c_{out} F\big(c_{in} (x - m), t\big)

    * ``"epsilon"``: ``F`` is the noise; ``c_skip = 1``, ``c_out = -s``, ``c_in = alpha``;
    * ``"sample"``: ``F`` is the clean image; ``c_skip = 0``, ``c_out = 1``, ``c_in = alpha``;
    * ``"velocity"``: ``F = alpha n - sqrt(1 - alpha^2) x0``; ``c_skip = alpha^2``, ``c_out = -s alpha``,
      ``c_in = alpha``;
    * ``"preconditioned"``: input and target have unit variance for data of mean ``m`` and standard deviation ``d``;
      ``c_skip = d^2 / (s^2 + d^2)``, ``c_out = s d / sqrt(s^2 + d^2)``, ``c_in = 1 / sqrt(s^2 + d^2)``,

    with ``alpha = 1 / sqrt(1 + sigma^2)``; ``m`` is 0 but in the last.

    Args:
        kind: one of the four.
        mean: ``m`` per coefficient channel, only for ``"preconditioned"``.
        std: ``d`` per coefficient channel, only for ``"preconditioned"``.

    Raises:
        ValueError: if the kind is unknown, or the statistics are missing, superfluous or not positive.

    References:
        ho2020, salimans2022, karras2022
    """

    KINDS = ("epsilon", "sample", "velocity", "preconditioned")

    def __init__(self, kind: str, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        if kind not in self.KINDS:
            raise ValueError(f"kind: expected one of {list(self.KINDS)}, got {kind!r}")
        if (kind == "preconditioned") != (mean is not None and std is not None):
            raise ValueError(f"mean, std: expected for 'preconditioned' and only there, got kind {kind!r}")
        self.kind = kind
        self.mean = torch.zeros(1) if mean is None else torch.tensor(_flat(mean))
        self.std = torch.ones(1) if std is None else torch.tensor(_flat(std))
        if len(self.mean) != len(self.std) or not (self.std > 0).all():
            raise ValueError(f"mean, std: expected equal lengths and positive std, got {len(self.mean)}, {self.std}")

    def coefficients(self, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(c_in, c_skip, c_out)``, each ``(B, channels)`` or ``(B, 1)``.

        Args:
            sigma: noise level of the image ``(B, 1)``.
            noise: noise level ``s`` of each coefficient channel ``(B, channels)``.
        """
        alpha = (1 + sigma**2) ** -0.5
        if self.kind == "epsilon":
            return alpha, torch.ones_like(noise), -noise
        if self.kind == "sample":
            return alpha, torch.zeros_like(noise), torch.ones_like(noise)
        if self.kind == "velocity":
            return alpha, (alpha**2).expand_as(noise), -noise * alpha
        d = self.std.to(noise)[None]
        total = torch.hypot(noise, d)
        return 1 / total, (d / total) ** 2, noise * d / total


class NetworkDenoiser:
    r"""The denoiser that a network is: domain, parametrisation and time conversion around ``network(image, timestep)``.

    Args:
        network: ``(B, C', *shape'), (B,) -> (B, C', *shape')`` on the domain's coefficients.
        schedule: converts the noise level to the network's time.
        parametrisation: what the network predicts.
        domain: where it works.
        clamp: range of the estimate in the image domain, one pair (low, high) or one for every channel, or None.
        autocast: dtype of mixed precision inside the network, or None.

    Example:
        >>> zero = lambda image, timestep: torch.zeros_like(image)
        >>> D = NetworkDenoiser(zero, schedule=NoiseSchedule.cosine(), parametrisation=Parametrisation("epsilon"))
        >>> D(torch.full((1, 1, 2, 2), 3.0), 0.5).max().item()
        1.0
    """

    def __init__(
        self,
        network: nn.Module | Any,
        *,
        schedule: NoiseSchedule,
        parametrisation: Parametrisation,
        domain: Domain | None = None,
        clamp: Sequence[float] | Sequence[Sequence[float]] | None = (-1.0, 1.0),
        autocast: torch.dtype | None = None,
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.parametrisation = parametrisation
        self.domain = domain or PixelDomain()
        self.clamp = clamp_table(clamp)
        self.autocast = autocast

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return ``E[x0 | x]``; see :class:`Denoiser`."""
        sigma = level(sigma, x)
        w, mean, (c_in, c_skip, c_out) = self.precondition(x, sigma)
        timestep = self.schedule.timestep(sigma)
        with torch.autocast(x.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            prediction = self.network(c_in * (w - mean), timestep)
        estimate = self.domain.inverse(mean + c_skip * (w - mean) + c_out * prediction.to(x.dtype))
        if self.clamp is None:
            return estimate
        low, high = self.clamp.to(estimate).reshape(2, 1, -1, *[1] * (x.ndim - 2))
        return torch.minimum(torch.maximum(estimate, low), high)

    def training_pair(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the network is fed with, what it should answer, and its time.

        Args:
            x0: clean image ``(B, C, *shape)`` in the range of the prior.
            noise: white noise of unit variance, alike.
            sigma: noise levels ``(B,)``.

        Returns:
            input ``(B, C', *shape')``, target of the same shape, timestep ``(B,)``.
        """
        return self.regression_pair(x0 + expand(level(sigma, x0), x0) * noise, x0, sigma)

    def regression_pair(self, x: Tensor, clean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the network is fed with, its answer for which the denoiser returns ``clean``, and its time.

        Args:
            x: noisy image ``(B, C, *shape)`` in the range of the prior.
            clean: what should become of it, alike.
            sigma: noise levels ``(B,)``.

        Returns:
            as :meth:`training_pair`.
        """
        sigma = level(sigma, x)
        w, mean, (c_in, c_skip, c_out) = self.precondition(x, sigma)
        target = (self.domain.forward(clean) - mean - c_skip * (w - mean)) / c_out
        return c_in * (w - mean), target, self.schedule.timestep(sigma)

    def precondition(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return coefficients, mean and ``(c_in, c_skip, c_out)`` shaped to multiply the coefficients."""
        w = self.domain.forward(x)
        p = self.parametrisation
        if p.kind == "preconditioned" and len(p.mean) != w.shape[1]:
            raise ValueError(f"x: expected {len(p.mean)} coefficient channels as in mean and std, got {w.shape[1]}")
        gain = self.domain.gain(x.ndim).to(x).repeat(x.shape[1])
        tail = [1] * (x.ndim - 2)
        factors = p.coefficients(sigma[:, None], sigma[:, None] * gain[None])
        c_in, c_skip, c_out = (c.reshape(*c.shape, *tail) for c in factors)
        return w, p.mean.to(x).reshape(1, -1, *tail), (c_in, c_skip, c_out)


def predicted_noise(denoiser: Denoiser, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return ``(x0, n)`` with ``x = x0 + sigma n``: the estimate and the noise that goes with it.

    Args:
        denoiser: any denoiser.
        x: noisy image ``(B, C, *shape)``.
        sigma: noise level, one number or ``(B,)``, positive.
    """
    estimate = denoiser(x, sigma)
    return estimate, (x - estimate) / expand(level(sigma, x), x)


def clamp_table(clamp: Sequence[float] | Sequence[Sequence[float]] | Tensor | None) -> Tensor | None:
    """Return the bounds as ``(2, 1)`` or ``(2, C)``.

    Raises:
        ValueError: if they are not increasing pairs.
    """
    if clamp is None:
        return None
    table = torch.as_tensor(clamp, dtype=torch.float32).reshape(-1, 2).T
    if not (table[0] < table[1]).all():
        raise ValueError(f"clamp: expected pairs (low, high) with low < high, got {clamp}")
    return table


def level(sigma: Tensor | float, like: Tensor) -> Tensor:
    """Return noise levels as a vector ``(B,)`` beside ``like``.

    Raises:
        ValueError: if they are neither one number nor one a sample, or not positive.
    """
    vector = torch.as_tensor(sigma, dtype=like.dtype, device=like.device).reshape(-1)
    if len(vector) not in (1, len(like)) or not (vector > 0).all():
        raise ValueError(f"sigma: expected one or {len(like)} positive numbers, got {sigma}")
    return vector.expand(len(like))


def expand(vector: Tensor, like: Tensor) -> Tensor:
    """Give a vector ``(B,)`` the trailing axes of ``like``."""
    return vector.reshape(-1, *[1] * (like.ndim - 1))


def _times(coefficients: Tensor, gain: Tensor) -> Tensor:
    channels = coefficients.shape[1] // len(gain)
    return coefficients * gain.to(coefficients).repeat(channels).reshape(1, -1, *[1] * (coefficients.ndim - 2))


def _flat(values: Any) -> list[float]:
    return [v for row in values for v in _flat(row)] if isinstance(values, list | tuple) else [float(values)]
