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

from .base import LinearOperator
from .geometry import ParallelGeometry, check_grid
from .pet_blur import GaussianBlur
from .pet_tof import TOFGeometry
from .projector import MatrixProjector, view_angles

__all__ = ["PETProjector"]


class PETProjector(LinearOperator):
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
        plain = ParallelGeometry(*lines)
        geometry = TOFGeometry(*lines, tof_bins, float(tof_spacing_mm), float(tof_fwhm_mm)) if tof_bins else plain
        projector = MatrixProjector(geometry, channels=channels, backend=backend)
        super().__init__(projector.domain_shape, projector.range_shape)
        self.projector = projector
        self.blur = GaussianBlur(self.domain_shape, spacing, fwhm_mm=psf_fwhm_mm) if psf_fwhm_mm else None
        self._turn = {"arc": float(arc), "start": float(start), "angles": None if angles is None else list(theta)}
        self._efficiency = efficiency if isinstance(efficiency, Tensor) else float(efficiency)
        #: the attenuation map in 1/cm the operator was built with
        self.attenuation = attenuation
        weight = self._as_weight(efficiency)
        if attenuation is not None:
            weight = weight * self._attenuation_factors(attenuation, plain)
        self.weight: Tensor
        self.register_buffer("weight", weight.float(), persistent=False)

    @property
    def angles(self) -> tuple[float, ...]:
        """View angles in radians."""
        return self._lines.angles

    @property
    def _lines(self) -> ParallelGeometry:
        geometry = self.projector.geometry
        assert isinstance(geometry, ParallelGeometry)
        return geometry

    def _as_weight(self, efficiency: float | Tensor) -> Tensor:
        value = torch.as_tensor(efficiency, dtype=torch.float32)
        if not bool((torch.isfinite(value) & (value >= 0)).all()):
            raise ValueError("efficiency: expected finite values >= 0")
        value = value.reshape((1,) * (1 + len(self.range_shape) - value.ndim) + tuple(value.shape))
        trailing = zip(value.shape[1:], self.range_shape, strict=False)
        if value.ndim != 1 + len(self.range_shape) or any(n not in (1, m) for n, m in trailing):
            raise ValueError(f"efficiency: expected a shape that broadcasts against (B, {self.range_shape}), "
                             f"got {tuple(value.shape)}")  # fmt: skip
        return value

    def _attenuation_factors(self, attenuation: Tensor, lines: ParallelGeometry) -> Tensor:
        """Return ``exp(-P mu)``, shaped to multiply the data."""
        mu = attenuation.detach()
        if mu.ndim == 2:
            mu = mu[None]
        if mu.ndim == 3:
            mu = mu[None]
        if mu.ndim != 4 or tuple(mu.shape[2:]) != lines.shape or mu.shape[1] not in (1, self.domain_shape[0]):
            raise ValueError(f"attenuation: expected (H, W), (C, H, W) or (B, C, H, W), grid {lines.shape}, C = 1 or "
                             f"{self.domain_shape[0]}, got {tuple(attenuation.shape)}")  # fmt: skip
        if mu.is_complex() or not bool((torch.isfinite(mu) & (mu >= 0)).all()):
            raise ValueError("attenuation: expected real, finite values >= 0 in 1/cm")
        factors = torch.exp(-MatrixProjector(lines, channels=mu.shape[1], backend=self.projector.backend)(mu))
        return factors.unsqueeze(2) if len(self.range_shape) == 4 else factors

    def forward(self, x: Tensor) -> Tensor:
        """Return the expected counts without background, ``(B, channels, [tof_bins,] views, bins)``."""
        blurred = self.check_domain(x) if self.blur is None else self.blur(x)
        y: Tensor = self.projector(blurred)
        return self.weight.to(y.real.dtype) * y

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``G^T P^T`` of the weighted data, ``(B, channels, H, W)``."""
        self.check_range(y)
        weight = self.weight.to(torch.promote_types(y.real.dtype, torch.float32))
        x = self.projector.adjoint(weight * y)
        return x if self.blur is None else self.blur.adjoint(x)

    def subset(self, index: int, count: int) -> PETProjector:
        """Return the operator of the views ``index, index + count, ...`` (an ordered subset).

        Raises:
            ValueError: unless ``0 <= index < count <= views``.
        """
        if not 0 <= index < count <= len(self.angles):
            raise ValueError(f"index, count: expected 0 <= index < count <= {len(self.angles)}, got {index}, {count}")
        arguments = self.arguments()
        efficiency = arguments["efficiency"]
        if isinstance(efficiency, Tensor) and efficiency.ndim >= 2 and efficiency.shape[-2] > 1:
            arguments["efficiency"] = efficiency[..., index::count, :]
        angles = list(self.angles[index::count])
        return type(self)(**{**arguments, "angles": angles, "views": len(angles)}).to(self.weight)

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
            "efficiency": self._efficiency,
            "psf_fwhm_mm": 0.0 if self.blur is None else self.blur.fwhm_mm[0],
            "tof_bins": tof[0],
            "tof_spacing_mm": tof[1],
            "tof_fwhm_mm": tof[2],
            "channels": self.projector.channels,
            "backend": self.projector.backend,
        }
