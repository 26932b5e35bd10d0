"""One-parameter networks of the classical bundles: what is tuned there is a network, trained like any other."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["GaussianSmoothing", "RegularisationWeight"]


class RegularisationWeight(nn.Module):
    r"""``R x = w x`` with one learned positive weight ``w = exp(log_weight)``: the gradient of ``(w / 2) |x|^2``.

    Args:
        initial: starting weight, dimensionless (relative to the squared norm of the operator).

    Example:
        >>> RegularisationWeight(0.5)(torch.ones(1, 1, 2, 2)).sum().item()
        2.0
    """

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        if not initial > 0:
            raise ValueError(f"initial: expected > 0, got {initial}")
        self.log_weight = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return ``w * image`` for an image ``(B, C, *shape)``; ``timestep`` is ignored."""
        return torch.exp(self.log_weight) * image


class GaussianSmoothing(nn.Module):
    r"""Separable Gaussian smoothing with a learned width, ``FWHM = exp(log_fwhm)`` voxels.

    After filtered back-projection it acts as a Gaussian apodisation of the ramp filter. The kernel is sampled and
    normalised to sum 1, so that a uniform region keeps its value; borders are replicated.

    Args:
        initial: starting full width at half maximum in voxels.
        radius: half-width of the kernel in voxels.

    Example:
        >>> GaussianSmoothing(1.0)(torch.ones(1, 1, 9, 9)).std().item() < 1e-6
        True
    """

    def __init__(self, initial: float = 1.0, *, radius: int = 6) -> None:
        super().__init__()
        if not initial > 0 or radius < 1:
            raise ValueError(f"initial, radius: expected > 0 and >= 1, got {initial}, {radius}")
        self.log_fwhm = nn.Parameter(torch.tensor(math.log(initial)))
        self.radius = radius

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the smoothed image ``(B, C, *shape)``, two or three axes; ``timestep`` is ignored."""
        return self.smooth(image, [1.0] * (image.ndim - 2))

    def smooth(self, image: Tensor, scale: list[float]) -> Tensor:
        """Return the image smoothed by ``scale`` times the learned width, one factor a spatial axis (0: not at all)."""
        offset = torch.arange(-self.radius, self.radius + 1, device=image.device, dtype=image.dtype)
        for axis, factor in enumerate(scale):
            sigma = (factor * torch.exp(self.log_fwhm) / 2.3548200450309493).clamp_min(1e-3)
            kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
            kernel = (kernel / kernel.sum()).reshape(1, 1, -1)
            rows = image.movedim(2 + axis, -1)
            flat = nn.functional.pad(rows.reshape(-1, 1, rows.shape[-1]), [self.radius, self.radius], mode="replicate")
            image = nn.functional.conv1d(flat, kernel).reshape(rows.shape).movedim(-1, 2 + axis)
        return image
