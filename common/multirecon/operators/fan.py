r"""Fan-beam projection.

The frame is that of :mod:`multirecon.operators.radon`. At view angle :math:`\beta` the source is at
:math:`-R\,n_\beta` and the detector's centre at :math:`D\,n_\beta`, so the central ray has the direction
:math:`n_\beta` of the parallel beam at the same angle; bins are counted along :math:`e_\beta`. A flat detector is the
line through its centre along :math:`e_\beta`; a curved one is an arc around the source, its bin width measured along
the arc. As ``R`` grows, the fan beam tends to the parallel beam with the bin width divided by the magnification
``(R + D) / R``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, pi
from typing import Any

from .geometry import FanGeometry, check_grid
from .projector import ViewProjector, view_angles

__all__ = ["FanBeam"]

DETECTORS = ("flat", "curved")


class FanBeam(ViewProjector):
    r"""Fan-beam line integrals with Joseph weights and the exact adjoint.

    Args:
        shape: image size ``(H, W)``.
        spacing_mm: pixel size ``(d0, d1)`` in mm.
        views: number of view angles.
        bins: number of detector bins.
        source_mm: distance ``R`` from the source to the rotation axis in mm.
        detector_mm: distance ``D`` from the rotation axis to the detector in mm.
        bin_spacing_mm: detector bin width in mm; by default the smaller pixel size times the magnification.
        detector: ``"flat"`` or ``"curved"``.
        arc: angle covered by the views in radians (end point excluded), a full turn by default.
        start: first angle in radians.
        angles: explicit angles in radians, in place of ``arc`` and ``start``.
        offset_bins: displacement of the detector centre in bins (a quarter-bin shift is 0.25).
        channels: number of images projected alike.
        backend: ``"auto"``, ``"folded"`` or ``"full"``, see :class:`~multirecon.operators.projector.MatrixProjector`.

    Raises:
        ValueError: on sizes, angles or distances that describe no scan, or a source inside the image.

    References:
        joseph1982, kak1988

    Example:
        >>> import torch
        >>> A = FanBeam((8, 8), (10.0, 10.0), views=8, bins=12, source_mm=400.0, detector_mm=200.0)
        >>> A(torch.ones(1, 1, 8, 8)).shape
        torch.Size([1, 1, 8, 12])
    """

    kind = "fan_beam"
    geometry: FanGeometry

    def __init__(
        self,
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        *,
        views: int,
        bins: int,
        source_mm: float,
        detector_mm: float,
        bin_spacing_mm: float | None = None,
        detector: str = "flat",
        arc: float = 2 * pi,
        start: float = 0.0,
        angles: Sequence[float] | None = None,
        offset_bins: float = 0.0,
        channels: int = 1,
        backend: str = "auto",
    ) -> None:
        grid, spacing = check_grid(shape, spacing_mm)
        if detector not in DETECTORS:
            raise ValueError(f"detector: expected one of {DETECTORS}, got {detector!r}")
        corner = hypot(*(n * d / 2 for n, d in zip(grid, spacing, strict=True)))
        if not source_mm > corner or not detector_mm >= 0:
            raise ValueError(f"source_mm, detector_mm: expected a source beyond the corner ({corner:.4g} mm) and a "
                             f"detector at >= 0 mm, got {source_mm} and {detector_mm}")  # fmt: skip
        pitch = min(spacing) * (source_mm + detector_mm) / source_mm if bin_spacing_mm is None else bin_spacing_mm
        theta = view_angles(views, bins, pitch, arc=arc, start=start, angles=angles)
        geometry = FanGeometry(grid, spacing, theta, int(bins), float(pitch), float(offset_bins),
                               float(source_mm), float(detector_mm), detector == "curved")  # fmt: skip
        super().__init__(
            geometry, arc=arc, start=start, explicit=angles is not None, channels=channels, backend=backend
        )

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments as plain values."""
        g = self.geometry
        own = {
            "source_mm": g.source_mm,
            "detector_mm": g.detector_mm,
            "detector": "curved" if g.curved else "flat",
        }
        return {**super().arguments(), **own}
