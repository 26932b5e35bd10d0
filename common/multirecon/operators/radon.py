r"""Parallel-beam projection.

Convention (the only one in the library). With ``u`` the position in mm from the centre of the image, axis 0 first (see
:mod:`multirecon.operators.joseph`), view angle :math:`\theta` and detector coordinate ``s``:

.. math:: (A x)(\theta, s) = \int x(s\,e_\theta + t\,n_\theta)\,dt, \quad
          e_\theta = (\cos\theta, \sin\theta),\; n_\theta = (-\sin\theta, \cos\theta).

At :math:`\theta = 0` the detector lies along axis 0 and the rays run along axis 1. Bin ``b`` has its centre at
``s = (b - (bins - 1) / 2 + offset_bins) * bin_spacing_mm``. Image centre, rotation axis and (without an offset)
detector centre coincide for every parity of the sizes. Lengths are in cm, so an image in 1/cm gives dimensionless integrals.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, pi
from typing import Any

from .geometry import ParallelGeometry, check_grid
from .projector import MatrixProjector

__all__ = ["ParallelBeam"]


class ParallelBeam(MatrixProjector):
    r"""Parallel-beam line integrals with Joseph weights and the exact adjoint.

    Args:
        shape: image size ``(H, W)``.
        spacing_mm: pixel size ``(d0, d1)`` in mm.
        views: number of view angles.
        bins: number of detector bins.
        bin_spacing_mm: detector bin width in mm; the smaller pixel size by default.
        arc: angle covered by the views in radians (end point excluded).
        start: first angle in radians.
        angles: explicit angles in radians, in place of ``arc`` and ``start``.
        offset_bins: displacement of the detector centre from the rotation axis in bins.
        channels: number of images projected alike.
        backend: ``"auto"`` or ``"full"``.

    Raises:
        ValueError: on sizes or angles that describe no scan.

    References:
        joseph1982

    Example:
        >>> import torch
        >>> A = ParallelBeam((8, 8), (10.0, 10.0), views=4, bins=12)
        >>> A(torch.ones(1, 1, 8, 8))[0, 0, 0, 6].item()  # 8 pixels of 1 cm
        8.0
    """

    kind = "parallel_beam"

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
        offset_bins: float = 0.0,
        channels: int = 1,
        backend: str = "auto",
    ) -> None:
        grid, spacing = check_grid(shape, spacing_mm)
        pitch = min(spacing) if bin_spacing_mm is None else float(bin_spacing_mm)
        if views < 1 or bins < 1:
            raise ValueError(f"views, bins: expected >= 1, got {views} and {bins}")
        if not pitch > 0 or not arc > 0 or not isfinite(arc):
            raise ValueError(f"bin_spacing_mm, arc: expected > 0, got {bin_spacing_mm} and {arc}")
        if angles is not None and len(angles) != views:
            raise ValueError(f"angles: expected {views} values (views), got {len(angles)}")
        theta = [start + arc * k / views for k in range(views)] if angles is None else [float(a) for a in angles]
        geometry = ParallelGeometry(grid, spacing, tuple(theta), int(bins), pitch, float(offset_bins))
        super().__init__(geometry, channels=channels, backend=backend)
        self.geometry: ParallelGeometry
        self.arc = float(arc)
        self.start = float(start)
        self._explicit = angles is not None

    @property
    def angles(self) -> tuple[float, ...]:
        """View angles in radians."""
        return self.geometry.angles

    @property
    def bin_spacing_mm(self) -> float:
        """Detector bin width in mm."""
        return self.geometry.pitch_mm

    def subset(self, index: int, count: int) -> ParallelBeam:
        """Return the operator of the views ``index, index + count, ...`` (an ordered subset).

        Raises:
            ValueError: unless ``0 <= index < count <= views``.
        """
        if not 0 <= index < count <= len(self.angles):
            raise ValueError(f"index, count: expected 0 <= index < count <= {len(self.angles)}, got {index}, {count}")
        angles = self.angles[index::count]
        arguments = {**self.arguments(), "angles": list(angles), "views": len(angles)}
        return type(self)(**arguments).to(self._where)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments as plain values."""
        g = self.geometry
        return {
            "shape": list(g.shape),
            "spacing_mm": list(g.spacing_mm),
            "views": len(g.angles),
            "bins": g.bins,
            "bin_spacing_mm": g.pitch_mm,
            "arc": self.arc,
            "start": self.start,
            "angles": list(g.angles) if self._explicit else None,
            "offset_bins": g.offset_bins,
            "channels": self.channels,
            "backend": self.backend,
        }
