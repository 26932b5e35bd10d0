"""Smooth random fields and Gaussian smoothing on any device, fast enough to draw many per phantom."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["gaussian_smooth", "random_field", "uniform"]


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw one number uniformly from ``[low, high)`` on the CPU."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def gaussian_smooth(x: Tensor, sigma: Sequence[float]) -> Tensor:
    r"""Convolve with a Gaussian of unit sum, truncated at three standard deviations; zero outside.

    Args:
        x: ``(X, Y, Z)`` field, unchanged.
        sigma: standard deviation along each axis in voxels; zero leaves the axis alone.

    Returns:
        ``(X, Y, Z)`` smoothed field.
    """
    for axis, s in enumerate(sigma):
        radius = int(3 * s + 0.5)
        if s <= 0 or radius == 0:
            continue
        weights = [math.exp(-0.5 * (i / s) ** 2) for i in range(radius + 1)]
        total = weights[0] + 2 * sum(weights[1:])
        n = x.shape[axis]
        # shifted sums: twenty times faster than a one-channel conv3d on a CPU
        y = x * (weights[0] / total)
        for i in range(1, min(radius, n - 1) + 1):
            w = weights[i] / total
            y.narrow(axis, i, n - i).add_(x.narrow(axis, 0, n - i), alpha=w)
            y.narrow(axis, 0, n - i).add_(x.narrow(axis, i, n - i), alpha=w)
        x = y
    return x


def random_field(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    sigma_mm: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw a stationary Gaussian random field with mean 0 and standard deviation 1.

    White noise on a grid of half the correlation width is smoothed, then interpolated linearly.

    Args:
        shape: ``(X, Y, Z)`` of the result.
        spacing_mm: voxel size in mm.
        sigma_mm: standard deviation of the smoothing kernel in mm.
        generator: source of the noise; the noise is drawn on its device.
        device: device of the result.

    Returns:
        ``(X, Y, Z)`` float32 field.
    """
    step = [max(sigma_mm / 2, s) for s in spacing_mm]
    sigma = [sigma_mm / s for s in step]
    size = [max(2, math.ceil((n - 1) * s / h) + 1) for n, s, h in zip(shape, spacing_mm, step, strict=True)]
    pad = [int(3 * s + 0.5) for s in sigma]
    noise = torch.randn(
        [n + 2 * p for n, p in zip(size, pad, strict=True)], generator=generator, device=generator.device
    ).to(device)
    field = gaussian_smooth(noise, sigma)[tuple(slice(p, p + n) for p, n in zip(pad, size, strict=True))]
    if list(field.shape) != list(shape):
        field = interpolate(field[None, None], size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]
    return (field - field.mean()) / field.std().clamp_min(1e-6)
