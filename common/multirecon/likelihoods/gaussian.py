"""White Gaussian noise, real or complex."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Likelihood

__all__ = ["Gaussian"]


class Gaussian(Likelihood):
    r"""``y = z + n`` with independent Gaussian noise: ``nll = sum |y - z|^2 / (2 sigma^2)``.

    For complex data ``sigma`` is the standard deviation of the real and of the imaginary part each. ``sigma = 0`` marks
    data without noise (a clean image): ``nll`` is then ``0`` at ``z = y`` and infinite elsewhere.

    Args:
        sigma: noise standard deviation in the unit of the data: a number, or a tensor broadcastable to the data
            (``(B, 1, ...)`` for one value a sample).
        support: optional 0/1 tensor with the data's axes, ``(1 or B, ...)``; noise is drawn on its ones only (sampled
            k-space entries).

    Raises:
        ValueError: if sigma is negative or not finite.

    Example:
        >>> Gaussian(2.0).nll(torch.ones(1, 4), torch.zeros(1, 4))
        tensor([0.5000])
    """

    kind = "gaussian"

    def __init__(self, sigma: float | Tensor, support: Tensor | None = None) -> None:
        super().__init__()
        value = torch.as_tensor(sigma, dtype=torch.float32) if not isinstance(sigma, Tensor) else sigma
        if not torch.isfinite(value).all() or (value < 0).any():
            raise ValueError(f"sigma: expected finite values >= 0, got {sigma}")
        self.sigma: Tensor
        self.support: Tensor | None
        self.register_buffer("sigma", value)
        self.register_buffer("support", support)

    def mean(self, z: Tensor) -> Tensor:
        """Return ``z``."""
        return z

    def sample(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``z`` plus noise drawn on the generator's device."""
        if not bool((self.sigma > 0).any()):
            return z
        real = z.real.dtype
        shape = (*z.shape, 2) if z.is_complex() else z.shape
        noise = torch.randn(shape, generator=generator, dtype=real, device=generator.device).to(z.device)
        noise = torch.view_as_complex(noise) if z.is_complex() else noise
        noise = noise * self.sigma.to(z.device, real)
        return z + (noise if self.support is None else noise * self.support.to(z.device, real))

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``sum |y - z|^2 / (2 sigma^2)`` per sample."""
        residual = (z - y).abs() ** 2
        scaled = torch.where(residual > 0, residual / (2 * self.sigma.to(residual.dtype) ** 2), residual)
        return scaled.flatten(1).sum(1)

    def grad(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``(z - y) / sigma^2``."""
        return (z - y) * self.weight(y)

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``1 / sigma^2`` in the shape of ``z``."""
        return self.weight(y).expand(z.shape).clone()

    def weight(self, y: Tensor) -> Tensor:
        """Return ``1 / sigma^2``.

        Raises:
            ValueError: if sigma is zero: a clean block must be replaced, not weighted.
        """
        if bool((self.sigma == 0).any()):
            raise ValueError("sigma: expected > 0 for a weighted data term, got 0 (a clean block)")
        return self.sigma.to(y.real.dtype) ** -2

    @property
    def is_exact(self) -> bool:
        """Whether the data carry no noise at all."""
        return not bool((self.sigma > 0).any())

    def samples(self, start: int, stop: int) -> Likelihood:
        """Return the likelihood with the noise levels of the samples (a tensor with a batch axis of more than one)."""
        sigma = self.sigma[start:stop] if self.sigma.ndim > 1 and self.sigma.shape[0] > 1 else self.sigma
        support = self.support
        if support is not None and support.ndim > 1 and support.shape[0] > 1:
            support = support[start:stop]
        return Gaussian(sigma, support)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"sigma": self.sigma, "support": self.support}
