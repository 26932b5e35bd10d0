r"""The 3D PET projector: direct and oblique planes with attenuation, efficiencies and resolution."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import Any

import torch
from torch import Tensor

from .geometry import ParallelGeometry, check_grid
from .pet_oblique import ObliqueGeometry, ObliquePlanes, check_cylinder, check_rings
from .pet_weighted import WeightedProjector
from .projector import MatrixProjector, linear_product, view_angles

__all__ = ["PETProjector3D"]


class PETProjector3D(WeightedProjector):
    r"""PET lines between the rings of a cylindrical scanner: :math:`A = \mathrm{diag}(n e^{-P\mu}) P G`.

    The axis of the scanner is the last image axis; ring ``r`` lies in slice ``q r`` with ``q`` the number of slices per
    ring distance. Planes are ordered by ring difference ``0, +1, -1, +2, -2, ...`` and within one difference from the
    lowest ring upwards, see ``planes``. Views cover half a turn; frame and angles are those of
    :mod:`multirecon.operators.radon`.

    Args:
        shape: image size ``(H, W, D)`` with ``D = q (rings - 1) + 1``.
        spacing_mm: voxel size in mm; the ring distance is ``q`` times the last.
        views: number of view angles over ``pi``.
        bins: number of radial bins.
        rings: number of detector rings.
        ring_spacing_mm: distance between rings in mm.
        radius_mm: radius of the detector cylinder in mm.
        max_difference: largest ring difference; all by default.
        bin_spacing_mm: radial bin width in mm; the smaller transaxial pixel size by default.
        angles: explicit angles in radians in place of the even spread over ``pi``.
        attenuation: 1/cm on the image grid, ``(H, W, D)`` or per sample ``(B, 1, H, W, D)``.
        efficiency: a number or a tensor that broadcasts against ``(B, 1, planes, views, bins)``.
        psf_fwhm_mm: Gaussian resolution in mm, one number or one an axis.

    Raises:
        ValueError: naming the argument that does not fit.

    References:
        joseph1982

    Example:
        >>> scanner = {"rings": 3, "ring_spacing_mm": 5.0, "radius_mm": 80.0}
        >>> A = PETProjector3D((8, 8, 3), (4.0, 4.0, 5.0), views=6, bins=12, **scanner)
        >>> A.planes
        ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (1, 0), (2, 1), (0, 2), (2, 0))
        >>> A(torch.ones(1, 1, 8, 8, 3)).shape
        torch.Size([1, 1, 9, 6, 12])
    """

    kind = "pet_3d"

    def __init__(
        self,
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        *,
        views: int,
        bins: int,
        rings: int,
        ring_spacing_mm: float,
        radius_mm: float,
        max_difference: int | None = None,
        bin_spacing_mm: float | None = None,
        angles: Sequence[float] | None = None,
        attenuation: Tensor | None = None,
        efficiency: float | Tensor = 1.0,
        psf_fwhm_mm: float | Sequence[float] = 0.0,
    ) -> None:
        if len(shape) != 3 or len(spacing_mm) != 3 or min(shape) < 1 or min(spacing_mm) <= 0:
            raise ValueError(f"shape, spacing_mm: expected three positive numbers each, got {shape} and {spacing_mm}")
        grid, spacing = check_grid(shape[:2], spacing_mm[:2])
        q = check_rings((*grid, int(shape[2])), (*spacing, float(spacing_mm[2])), rings, ring_spacing_mm)
        last = rings - 1 if max_difference is None else max_difference
        if not 0 <= last < rings:
            raise ValueError(f"max_difference: expected 0 to {rings - 1}, got {max_difference}")
        pitch = min(spacing) if bin_spacing_mm is None else float(bin_spacing_mm)
        theta = view_angles(views, bins, pitch, arc=pi, start=0.0, angles=angles)
        lines = ParallelGeometry(grid, spacing, theta, int(bins), pitch, 0.0)
        check_cylinder(lines, radius_mm)
        signed = [0] + [sign * d for d in range(1, last + 1) for sign in (1, -1)]
        pairs = [(low, low + d) if d >= 0 else (low - d, low) for d in signed for low in range(rings - abs(d))]
        volume = (*spacing, float(spacing_mm[2]))
        super().__init__((1, *grid, int(shape[2])), (1, len(pairs), views, bins), spacing_mm=volume,
                         efficiency=efficiency, psf_fwhm_mm=psf_fwhm_mm)  # fmt: skip
        #: ring pairs ``(r_1, r_2)`` of the planes in the order of the data
        self.planes = tuple(pairs)
        self.lines, self.rings, self.slices_per_ring = lines, rings, q
        self.direct = MatrixProjector(lines)
        scanner = (lines, rings, q, float(ring_spacing_mm), float(radius_mm))
        self.oblique = tuple(ObliquePlanes(ObliqueGeometry(*scanner, d)) for d in range(1, last + 1))
        self._arguments: dict[str, Any] = {
            "shape": [*grid, int(shape[2])],
            "spacing_mm": list(volume),
            "views": views,
            "bins": bins,
            "rings": rings,
            "ring_spacing_mm": float(ring_spacing_mm),
            "radius_mm": float(radius_mm),
            "max_difference": last,
            "bin_spacing_mm": pitch,
            "angles": None if angles is None else list(theta),
            "psf_fwhm_mm": psf_fwhm_mm,
        }
        self.attenuate(attenuation)

    @property
    def angles(self) -> tuple[float, ...]:
        """View angles in radians."""
        return self.lines.angles

    def integrate(self, x: Tensor, *, transposed: bool = False) -> Tensor:
        """Return ``P x`` of all planes, or ``P^T x``."""
        return linear_product(x, self, transposed=transposed)

    def attenuation_factors(self, attenuation: Tensor) -> Tensor:
        """Return ``exp(-P mu)`` of all lines."""
        return torch.exp(-self.integrate(attenuation.expand(-1, *self.domain_shape)))

    def product(self, x: Tensor, *, transposed: bool) -> Tensor:
        """Return the line integrals in cm, or their transpose, of a real tensor (outside autograd)."""
        return self._back(x) if transposed else self._project(x)

    def _project(self, x: Tensor) -> Tensor:
        batch, q = x.shape[0], self.slices_per_ring
        volume = x.reshape(batch, -1, x.shape[-1])  # (B, P, D)
        slices = volume[..., ::q].transpose(1, 2).reshape(batch * self.rings, 1, *self.lines.shape)
        parts = [self.direct.product(slices, transposed=False).reshape(batch, self.rings, -1)]
        pixels_first = volume.permute(1, 2, 0)
        for planes in self.oblique:
            y = planes.forward(pixels_first)  # (L, J, B, 2)
            parts.append(y.permute(2, 3, 1, 0).reshape(batch, -1, len(y)))
        return torch.cat(parts, dim=1).reshape(batch, *self.range_shape)

    def _back(self, y: Tensor) -> Tensor:
        batch, q = y.shape[0], self.slices_per_ring
        data = y.reshape(batch, self.range_shape[1], -1)
        rows = data[:, : self.rings].reshape(batch * self.rings, 1, *self.lines.size)
        direct = self.direct.product(rows, transposed=True).reshape(batch, self.rings, -1).permute(2, 1, 0)
        volume = y.new_zeros(direct.shape[0], self.domain_shape[-1], batch)
        volume[:, ::q] = direct
        at = self.rings
        for planes in self.oblique:
            j = planes.geometry.planes
            both = data[:, at : at + 2 * j].reshape(batch, 2, j, -1).permute(3, 2, 0, 1).contiguous()
            volume += planes.adjoint(both)
            at += 2 * j
        return volume.permute(2, 0, 1).reshape(batch, *self.domain_shape)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments (plain values and tensors)."""
        return {**self._arguments, "attenuation": self.attenuation, "efficiency": self.efficiency}
