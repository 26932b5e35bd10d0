"""Simulated multi-coil Cartesian MR."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor

from ..likelihoods import Gaussian
from ..operators import MaskedFourier
from ..operators.coils import birdcage_maps, smooth_phase
from ..operators.fourier import centred_fft
from ..operators.masks import equispaced_mask, random_mask
from .base import Scan, ScanContext, ScanResult, block_mean

__all__ = ["CartesianMR", "crop_kspace"]


def crop_kspace(fine: Tensor, shape: Sequence[int], oversample: int) -> Tensor:
    r"""Return the k-space that the coarse grid calls its own, from the orthonormal k-space of the refined grid.

    The centre ``shape`` of the fine k-space is kept (same field of view, less bandwidth) and scaled by
    ``oversample ** (-d / 2)``. A coarse pixel's centre lies ``(1 - 1/oversample) / 2`` pixels beyond that of its first
    fine pixel; the phase ramp accounts for it, so that no sub-pixel shift is hidden in the data.

    Args:
        fine: ``(..., *fine_shape)`` complex k-space, zero frequency at ``N // 2``.
        shape: coarse grid.
        oversample: refinement of the fine grid along every axis.

    Returns:
        ``(..., *shape)`` complex k-space.
    """
    dims = len(shape)
    out = fine
    for axis, size in zip(range(-dims, 0), shape, strict=True):
        start = out.shape[axis] // 2 - size // 2
        out = out.narrow(axis, start, size)
        frequency = torch.arange(size, dtype=torch.float64, device=fine.device) - size // 2
        # Position of fine pixel m relative to the coarse origin is (m - m0) / oversample + shift, in coarse pixels.
        origin = fine.shape[axis] // 2 / oversample + 0.5 / oversample - (size // 2 + 0.5)
        ramp = torch.exp(-2j * pi * frequency * origin / size).to(fine.dtype)
        out = out * ramp.reshape([-1 if a == axis else 1 for a in range(-dims, 0)])
    return out * float(oversample) ** (-dims / 2)


class CartesianMR(Scan):
    r"""Undersampled multi-coil k-space: ``y = M F S (x e^{i phi}) + n``, simulated on the finer grid.

    The object carries a smooth random phase; the operator handed over has the phase absorbed in its maps, so that the
    unknown is real. The paper's family knows the maps exactly (``maps="true"``, averaged to the method's grid).

    Args:
        acceleration: spacing of the sampled columns outside the calibration block.
        coils: number of receive coils (birdcage).
        radius: relative coil radius.
        sigma: noise standard deviation on the real and on the imaginary part of each sample, image scale 1.
        center_lines: fully sampled columns around the zero frequency.
        pattern: ``"equispaced"`` or ``"random"`` columns.
        phase: root mean square of the object's smooth phase in radians; 0 switches it off.

    References:
        Pruessmann1999, any2all
    """

    def __init__(
        self,
        acceleration: int,
        *,
        coils: int = 8,
        radius: float = 1.5,
        sigma: float = 0.01,
        center_lines: int = 0,
        pattern: str = "equispaced",
        phase: float = pi / 3,
    ) -> None:
        if pattern not in ("equispaced", "random"):
            raise ValueError(f"pattern: expected 'equispaced' or 'random', got {pattern!r}")
        self.acceleration = acceleration
        self.coils = coils
        self.radius = radius
        self.sigma = sigma
        self.center_lines = center_lines
        self.pattern = pattern
        self.phase = phase

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Simulate one slice ``(1, 1, *fine)``; returns k-space ``(1, coils, *shape)``."""
        shape, factor = context.space.shape, context.oversample
        maps = birdcage_maps(self.coils, fine.shape[2:], radius=self.radius).to(fine.device)
        if self.phase:
            angle = smooth_phase(fine.shape[2:], context.generator, amplitude=self.phase).to(fine.device)
            maps = maps * torch.polar(torch.ones_like(angle), angle)
        kspace = crop_kspace(centred_fft(fine * maps, len(shape)), shape, factor)
        mask = self._mask(shape, context.generator).to(fine.device)
        likelihood = Gaussian(self.sigma, support=mask.reshape(1, 1, *mask.shape))
        y = likelihood.sample(kspace * mask, context.generator)
        coarse_maps = torch.view_as_complex(
            torch.stack([block_mean(part[None], factor)[0] for part in (maps.real, maps.imag)], dim=-1)
        )
        return ScanResult(y, MaskedFourier(mask, coarse_maps[None]), likelihood)

    def _mask(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        if self.pattern == "random":
            return random_mask(shape, self.acceleration, center_lines=self.center_lines, generator=generator)
        return equispaced_mask(shape, self.acceleration, center_lines=self.center_lines)
