"""Smooth fields: what a background looks like, and how well it is known."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor
from torch.nn.functional import conv1d

from ..operators.pet_blur import gaussian_kernel

__all__ = ["blur_bins", "smooth_field", "wrongly_known"]


def smooth_field(shape: Sequence[int], generator: torch.Generator, *, order: int = 2) -> Tensor:
    """Return a random field of low-order cosines with mean zero and root mean square one.

    Args:
        shape: ``(views, bins)`` or any other sizes.
        generator: source of randomness (on the CPU).
        order: highest number of half waves along each axis.

    Returns:
        float32 field of ``shape``.
    """
    field = torch.zeros(tuple(shape), dtype=torch.float64)
    for waves in torch.cartesian_prod(*[torch.arange(order + 1)] * len(shape)).tolist():
        if not any(waves):
            continue
        term = torch.randn((), generator=generator, dtype=torch.float64)
        for axis, (size, count) in enumerate(zip(shape, waves, strict=True)):
            place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
            term = term * torch.cos(pi * count * place).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        field = field + term
    return (field / field.square().mean().sqrt().clamp_min(1e-12)).float()


def wrongly_known(expected: Tensor, error: float, generator: torch.Generator) -> Tensor:
    """Return ``expected * exp(error * field)``: a background known up to a smooth relative error.

    Args:
        expected: true expected counts ``(..., views, bins)``.
        error: root mean square of the relative error; 0 returns the truth and draws nothing.
        generator: source of randomness (on the CPU).
    """
    if error == 0:
        return expected
    field = smooth_field(expected.shape[-2:], generator).to(expected)
    return expected * torch.exp(error * field)


def blur_bins(data: Tensor, *, fwhm_mm: float, pitch_mm: float) -> Tensor:
    """Return data ``(..., bins)`` blurred along the detector by a Gaussian; the edge values go on outside.

    Args:
        data: intensities or counts.
        fwhm_mm: full width at half maximum in mm, 0 for none.
        pitch_mm: bin width in mm.
    """
    if fwhm_mm == 0:
        return data
    kernel = gaussian_kernel(fwhm_mm, pitch_mm).to(data)
    radius = len(kernel) // 2
    rows = data.reshape(-1, 1, data.shape[-1])
    ends = rows[..., :1].expand(-1, -1, radius), rows[..., -1:].expand(-1, -1, radius)
    return conv1d(torch.cat([ends[0], rows, ends[1]], -1), kernel[None, None]).reshape(data.shape)
