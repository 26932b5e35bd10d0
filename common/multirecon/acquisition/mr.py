"""Simulated multi-coil Cartesian MR."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import TypeVar

import torch
from torch import Tensor

from ..likelihoods import Gaussian
from ..operators import MaskedFourier
from ..operators.coils import birdcage_maps, estimate_maps, smooth_phase
from ..operators.fourier import centred_fft
from ..operators.masks import calibration_size, equispaced_mask, poisson_disc_mask, random_mask
from .base import Scan, ScanContext, ScanResult, block_mean

__all__ = ["CartesianMR", "crop_kspace"]

PATTERNS = ("equispaced", "random", "poisson_disc")
MAPS = ("true", "estimated")
MINIMUM_CALIBRATION = 12  # two kernels of the map estimation


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
    unknown is real. The paper's family knows the maps exactly (``maps="true"``, averaged to the method's grid); the
    clinical one estimates them from the calibration lines of these noisy data (``maps="estimated"``).

    A setting that takes a list is drawn from it anew for every sample, evenly (training over a range of scans).

    Args:
        acceleration: spacing of the sampled columns outside the calibration block; for ``"random"`` columns and
            ``"poisson_disc"`` points that of the whole mask. A number or a list.
        coils: number of receive coils (birdcage).
        radius: relative coil radius. A number or a list.
        sigma: noise standard deviation on the real and on the imaginary part of each sample, image scale 1. A number
            or a list.
        center_lines: fully sampled columns around the zero frequency (side of the fully sampled square for
            ``"poisson_disc"``). A number or a list.
        pattern: ``"equispaced"`` or ``"random"`` columns, or ``"poisson_disc"`` points (the slice then lies across the
            readout of a 3D scan, with two phase-encoding axes).
        phase: root mean square of the object's smooth phase in radians; 0 switches it off.
        maps: ``"true"`` or ``"estimated"``. One of them or a list, of which ``"estimated"`` is drawn only where the
            calibration lines drawn allow it.

    Raises:
        ValueError: on an unknown pattern, or estimated maps without enough calibration lines.

    References:
        pruessmann1999, uecker2014, any2all

    Example:
        >>> CartesianMR([3, 4, 6], sigma=[0.005, 0.02], center_lines=24, maps="estimated").coils
        8
    """

    def __init__(
        self,
        acceleration: float | Sequence[float],
        *,
        coils: int = 8,
        radius: float | Sequence[float] = 1.5,
        sigma: float | Sequence[float] = 0.01,
        center_lines: int | Sequence[int] = 0,
        pattern: str = "equispaced",
        phase: float = pi / 3,
        maps: str | Sequence[str] = "true",
    ) -> None:
        if pattern not in PATTERNS:
            raise ValueError(f"pattern: expected one of {PATTERNS}, got {pattern!r}")
        self.maps = (maps,) if isinstance(maps, str) else tuple(maps)
        if not self.maps or not set(self.maps) <= set(MAPS):
            raise ValueError(f"maps: expected one of {MAPS} or a list of them, got {maps!r}")
        self.acceleration = _choices(acceleration, "acceleration")
        if coils < 1:
            raise ValueError(f"coils: expected >= 1, got {coils}")
        self.coils = coils
        self.radius = _choices(radius, "radius")
        self.sigma = _choices(sigma, "sigma")
        self.center_lines = tuple(int(n) for n in _choices(center_lines, "center_lines"))
        self.pattern = pattern
        self.phase = phase
        if self.maps == ("estimated",) and min(self.center_lines) < MINIMUM_CALIBRATION:
            raise ValueError(f"center_lines: expected at least {MINIMUM_CALIBRATION} to estimate maps from, "
                             f"got {list(self.center_lines)}")  # fmt: skip

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Simulate one slice ``(1, 1, *fine)``; returns k-space ``(1, coils, *shape)``."""
        shape, factor = context.space.shape, context.oversample
        radius = _pick(self.radius, context.generator)
        maps = birdcage_maps(self.coils, fine.shape[2:], radius=radius).to(fine.device)
        if self.phase:
            angle = smooth_phase(fine.shape[2:], context.generator, amplitude=self.phase).to(fine.device)
            maps = maps * torch.polar(torch.ones_like(angle), angle)
        kspace = crop_kspace(centred_fft(fine * maps, len(shape)), shape, factor)
        mask = self._mask(shape, context.generator).to(fine.device)
        level = _pick(self.sigma, context.generator)
        sigma: float | Tensor = level
        if len(self.sigma) > 1:  # samples of a batch differ: one value a sample
            sigma = torch.full((1,) * (2 + len(shape)), level, device=fine.device)
        likelihood = Gaussian(sigma, support=mask.reshape(1, 1, *mask.shape))
        y = likelihood.sample(kspace * mask, context.generator)
        possible = [m for m in self.maps if m == "true" or min(calibration_size(mask)) >= MINIMUM_CALIBRATION]
        estimated = _pick(possible or self.maps, context.generator) == "estimated"
        known = self._estimate(y) if estimated else _averaged(maps, factor)
        same = self.pattern == "equispaced" and len(self.acceleration) == len(self.center_lines) == 1
        return ScanResult(y, MaskedFourier(mask if same else mask[None], known[None]), likelihood)

    def describe(self) -> str:
        """Return in a few words what is measured."""
        lines = f", {_listed(self.center_lines)} centre lines" if max(self.center_lines) else ""
        return (f"{_listed(self.acceleration)}x {self.pattern.replace('_', '-')} k-space{lines}, {self.coils} coils, "
                f"noise {_listed(self.sigma)}, {'/'.join(self.maps)} maps")  # fmt: skip

    def mismatch(self) -> tuple[str, ...]:
        """Return what the data hold and the model does not know."""
        return ("maps and phase from the calibration lines",) if "estimated" in self.maps else ()

    @staticmethod
    def _estimate(y: Tensor) -> Tensor:
        """Return the maps ``(coils, *shape)`` that the calibration lines of the data tell, phase absorbed."""
        return estimate_maps(y[0])

    def _mask(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        acceleration = _pick(self.acceleration, generator)
        lines = _pick(self.center_lines, generator)
        if self.pattern == "random":
            return random_mask(shape, acceleration, center_lines=lines, generator=generator)
        if self.pattern == "poisson_disc":
            return poisson_disc_mask(shape, acceleration, generator, calibration=(lines, lines))
        return equispaced_mask(shape, acceleration, center_lines=lines)


Number = TypeVar("Number", int, float)
Choice = TypeVar("Choice", int, float, str)


def _choices(value: Number | Sequence[Number], name: str) -> tuple[Number, ...]:
    choices = (value,) if isinstance(value, (int, float)) else tuple(value)
    if not choices or min(choices) < 0:
        raise ValueError(f"{name}: expected a number >= 0 or a list of such, got {value!r}")
    return choices


def _listed(choices: Sequence[float]) -> str:
    return "/".join(f"{c:g}" for c in choices)


def _pick(choices: Sequence[Choice], generator: torch.Generator) -> Choice:
    """Return one of the choices; a single one draws nothing, so that its noise stays what it was."""
    if len(choices) == 1:
        return choices[0]
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def _averaged(maps: Tensor, factor: int) -> Tensor:
    parts = [block_mean(part[None], factor)[0] for part in (maps.real, maps.imag)]
    return torch.view_as_complex(torch.stack(parts, dim=-1))
