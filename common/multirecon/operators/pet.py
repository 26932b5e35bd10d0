r"""Positron emission tomography: expected counts of a 2D activity image.

.. math:: \bar y = n \odot e^{-P\mu} \odot P G x \; (+\, r)

with line integrals ``P`` in the frame of :mod:`multirecon.operators.radon` (so that PET and CT images agree to the
pixel), resolution ``G``, attenuation :math:`\mu` and detector efficiencies ``n``. The background ``r`` (randoms and
scatter) belongs to the Poisson likelihood, not to the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, pi
from typing import Any

import torch
from torch import Tensor

from .geometry import ParallelGeometry, check_grid
from .pet_tof import TOFGeometry
from .pet_weighted import WeightedProjector
from .projector import MatrixProjector, view_angles

__all__ = ["PETProjector"]


class PETProjector(WeightedProjector):
    r"""Normalised, attenuated, blurred line integrals with their exact adjoint.

    Args:
        shape: image size ``(H, W)``.
        spacing_mm: pixel size ``(d0, d1)`` in mm.
        views: number of view angles.
        bins: number of radial bins.
        bin_spacing_mm: radial bin width in mm; the smaller pixel size by default.
        arc: angle covered by the views in radians (end point excluded).
        start: first angle in radians.
        angles: explicit angles in radians, in place of ``arc`` and ``start``.
        attenuation: linear attenuation at 511 keV in 1/cm on the image grid, ``(H, W)``, ``(channels or 1, H, W)`` or
            one map a sample ``(B, channels or 1, H, W)``; none means no attenuation.
        efficiency: counts per unit of activity line integral: a number or a tensor that broadcasts against the data
            ``(B, channels, [tof_bins,] views, bins)`` (normalisation, calibration, scan time, dead bins as zeros).
        psf_fwhm_mm: resolution (full width at half maximum of a Gaussian) in mm, 0 for none.
        tof_bins: number of time-of-flight bins, 0 without time of flight.
        tof_spacing_mm: width of these bins along the line in mm (speed of light / 2 times the time).
        tof_fwhm_mm: timing resolution (full width at half maximum) along the line in mm.
        channels: number of images projected alike.
        backend: ``"auto"``, ``"folded"`` or ``"full"``, see :class:`~multirecon.operators.projector.MatrixProjector`.

    Raises:
        ValueError: naming the argument that does not fit.

    References:
        joseph1982, shepp1982

    Example:
        >>> mu = torch.full((8, 8), 0.1)  # 1/cm
        >>> A = PETProjector((8, 8), (10.0, 10.0), views=4, bins=12, attenuation=mu)
        >>> float(A(torch.ones(1, 1, 8, 8))[0, 0, 0, 6])  # 8 cm of activity seen through 8 cm of absorber
        3.594...
    """

    kind = "pet"

    def __init__(
        self,
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        *,
        views: int,
        bins: int,
        bin_spacing_mm: float | None = None,
        arc: float = pi,
        start: float = 0.0,
        angles: Sequence[float] | None = None,
        attenuation: Tensor | None = None,
        efficiency: float | Tensor = 1.0,
        psf_fwhm_mm: float = 0.0,
        tof_bins: int = 0,
        tof_spacing_mm: float = 0.0,
        tof_fwhm_mm: float = 0.0,
        channels: int = 1,
        backend: str = "auto",
    ) -> None:
        grid, spacing = check_grid(shape, spacing_mm)
        pitch = min(spacing) if bin_spacing_mm is None else float(bin_spacing_mm)
        theta = view_angles(views, bins, pitch, arc=arc, start=start, angles=angles)
        if tof_bins < 0 or (tof_bins and not (tof_spacing_mm > 0 and tof_fwhm_mm > 0)):
            raise ValueError("tof_bins, tof_spacing_mm, tof_fwhm_mm: expected 0 bins, or bins with a width and a "
                             f"resolution > 0, got {tof_bins}, {tof_spacing_mm} and {tof_fwhm_mm}")  # fmt: skip
        if not psf_fwhm_mm >= 0 or not isfinite(psf_fwhm_mm):
            raise ValueError(f"psf_fwhm_mm: expected >= 0, got {psf_fwhm_mm}")
        lines = (grid, spacing, theta, int(bins), pitch, 0.0)
        geometry = ParallelGeometry(*lines)
        if tof_bins:
            geometry = TOFGeometry(*lines, tof_bins, float(tof_spacing_mm), float(tof_fwhm_mm))
        projector = MatrixProjector(geometry, channels=channels, backend=backend)
        super().__init__(projector.domain_shape, projector.range_shape, spacing_mm=spacing, efficiency=efficiency,
                         psf_fwhm_mm=psf_fwhm_mm)  # fmt: skip
        self.projector = projector
        self._turn = {"arc": float(arc), "start": float(start), "angles": None if angles is None else list(theta)}
        self.attenuate(attenuation)

    @property
    def angles(self) -> tuple[float, ...]:
        """View angles in radians."""
        return self._lines.angles

    @property
    def _lines(self) -> ParallelGeometry:
        geometry = self.projector.geometry
        assert isinstance(geometry, ParallelGeometry)
        return geometry

    def integrate(self, x: Tensor, *, transposed: bool = False) -> Tensor:
        """Return ``P x`` (by time-of-flight bin), or ``P^T x``."""
        return self.projector.adjoint(x) if transposed else self.projector(x)

    def attenuation_factors(self, attenuation: Tensor) -> Tensor:
        """Return ``exp(-P mu)`` of the whole lines."""
        g = self._lines
        whole = ParallelGeometry(g.shape, g.spacing_mm, g.angles, g.bins, g.pitch_mm, 0.0)
        mu = attenuation.expand(-1, -1, *g.shape)
        factors = torch.exp(-MatrixProjector(whole, channels=mu.shape[1], backend=self.projector.backend)(mu))
        return factors.unsqueeze(2) if isinstance(g, TOFGeometry) else factors

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments (plain values and tensors)."""
        g = self._lines
        tof = (g.tof_bins, g.tof_spacing_mm, g.tof_fwhm_mm) if isinstance(g, TOFGeometry) else (0, 0.0, 0.0)
        return {
            "shape": list(g.shape),
            "spacing_mm": list(g.spacing_mm),
            "views": len(g.angles),
            "bins": g.bins,
            "bin_spacing_mm": g.pitch_mm,
            **self._turn,
            "attenuation": self.attenuation,
            "efficiency": self.efficiency,
            "psf_fwhm_mm": 0.0 if self.blur is None else self.blur.fwhm_mm[0],
            "tof_bins": tof[0],
            "tof_spacing_mm": tof[1],
            "tof_fwhm_mm": tof[2],
            "channels": self.projector.channels,
            "backend": self.projector.backend,
        }
