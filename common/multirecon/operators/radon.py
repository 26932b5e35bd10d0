r"""Parallel-beam projection.

Convention (the only one in the library). With ``u`` the position in mm from the centre of the image, axis 0 first (see
:mod:`multirecon.operators.joseph`), view angle :math:`\theta` and detector coordinate ``s``:

.. math:: (A x)(\theta, s) = \int x(s\,e_\theta + t\,n_\theta)\,dt, \quad
          e_\theta = (\cos\theta, \sin\theta),\; n_\theta = (-\sin\theta, \cos\theta).

At :math:`\theta = 0` the detector lies along axis 0 and the rays run along axis 1. Bin ``b`` has its centre at
``s = (b - (bins - 1) / 2 + offset_bins) * bin_spacing_mm``. Image centre, rotation axis and (without an offset)
detector centre coincide for every parity of the sizes. Lengths are in cm: images in 1/cm give dimensionless integrals.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

from .geometry import ParallelGeometry, check_grid
from .projector import ViewProjector, view_angles

__all__ = ["ParallelBeam"]


class ParallelBeam(ViewProjector):
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
        backend: ``"auto"``, ``"folded"`` or ``"full"``, see :class:`~multirecon.operators.projector.MatrixProjector`.

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
    geometry: ParallelGeometry

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
        theta = view_angles(views, bins, pitch, arc=arc, start=start, angles=angles)
        geometry = ParallelGeometry(grid, spacing, theta, int(bins), pitch, float(offset_bins))
        super().__init__(
            geometry, arc=arc, start=start, explicit=angles is not None, channels=channels, backend=backend
        )
