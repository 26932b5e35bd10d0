"""PET sinograms with their oblique segments as one 3D Measurement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..data.io import Sinogram
from ..data.io.checks import refusal
from ..likelihoods import Poisson
from ..measurement import Measurement
from ..operators import PETProjector3D
from ..space import ImageSpace, Modality
from .projections import covering_grid, float_tensor, one_block, view_geometry

__all__ = ["oblique_measurement"]

_SLICES_PER_RING = 2


def oblique_measurement(
    sinogram: Sinogram,
    *,
    background: Sinogram | None = None,
    efficiency: Sinogram | None = None,
    attenuation: NDArray[np.float32] | None = None,
    modality: str = "pet_fdg",
    size: int | None = None,
    bin_spacing_mm: float | None = None,
    arc_deg: float | None = None,
) -> Measurement:
    r"""Return the counts of all segments, :math:`y \sim \mathrm{Poisson}(n e^{-P\mu} P x + r)`, one volume.

    A plane joins two rings: data with axial compression (several ring differences a segment) are refused. Slices lie
    half a ring distance apart. A ring difference is that of the ring in front minus the ring behind, seen along the
    direction in which axis 1 of the image points at the first view; headers count it so.

    Args:
        sinogram: prompt counts with the scanner in its metadata (rings, their distance and radius).
        background: expected randoms and scatter in counts, of the same segments.
        efficiency: ``n``: counts per unit of the activity's line integral (in cm), of the same segments.
        attenuation: ``(H, W, slices)`` at 511 keV in 1/cm, on the grid of the result.
        modality: key of the image.
        size: pixels along each side of a slice; by default the number of bins, at most 256.
        bin_spacing_mm: bin width in mm, in the place of the file's.
        arc_deg: angle covered by the views, in the place of the file's.

    Raises:
        ValueError: if segments are compressed or missing, the header does not describe the scanner, shapes disagree or
            counts are negative.
    """
    scanner = {key: sinogram.metadata.get(key) for key in ("rings", "ring_spacing_mm", "radius_mm")}
    lacking = [key for key, value in scanner.items() if not value]
    if lacking:
        raise refusal("oblique", "a header with number of rings, distance between rings and inner ring diameter",
                      f"none of {lacking}")  # fmt: skip
    rings = int(scanner["rings"] or 0)
    last = _last_difference(sinogram, rings)
    y = _ordered(sinogram, sinogram, last, "path")
    notes, pitch, angles, column = view_geometry(sinogram, bin_spacing_mm, arc_deg, None)
    views, bins = y.shape[1:]
    grid, spacing, _ = covering_grid(bins, pitch, column, size)
    shape = (*grid, _SLICES_PER_RING * (rings - 1) + 1)
    voxel = (*spacing, float(scanner["ring_spacing_mm"] or 0) / _SLICES_PER_RING)
    if attenuation is not None and attenuation.shape != shape:
        raise refusal("attenuation", f"shape {shape}", attenuation.shape)
    factor = 1.0 if efficiency is None else float_tensor(_ordered(efficiency, sinogram, last, "efficiency")[None, None])
    operator = PETProjector3D(
        shape, voxel, views=views, bins=bins, rings=rings, ring_spacing_mm=float(scanner["ring_spacing_mm"] or 0),
        radius_mm=float(scanner["radius_mm"] or 0), max_difference=last, bin_spacing_mm=pitch, angles=angles.tolist(),
        attenuation=None if attenuation is None else float_tensor(attenuation), efficiency=factor,
    )  # fmt: skip
    expected = (
        0.0 if background is None else float_tensor(_ordered(background, sinogram, last, "background")[None, None])
    )
    if background is None and efficiency is None and attenuation is None:
        notes.append("no background, efficiencies or attenuation given: counts are taken to be nothing but trues")
    facts = {**sinogram.metadata, "max_difference": last, "notes": notes}
    space = ImageSpace([Modality(modality)], shape, voxel)
    return one_block(modality, float_tensor(y[None, None]), space, operator, Poisson(expected), facts)


def _last_difference(sinogram: Sinogram, rings: int) -> int:
    """Return the largest ring difference of complete segments without axial compression."""
    differences = []
    for segment in sinogram.metadata.get("segments") or []:
        low, high = segment.get("differences", (None, None))
        if low is None or low != high:
            raise refusal("oblique", "segments of one ring difference each (no axial compression)", segment)
        if segment["planes"] != rings - abs(low):
            raise refusal("oblique", f"{rings - abs(low)} planes of ring difference {low}", segment["planes"])
        differences.append(low)
    last = max(differences, default=0)
    if sorted(differences) != list(range(-last, last + 1)):
        raise refusal("oblique", "segments -n to n", sorted(differences))
    return last


def _ordered(sinogram: Sinogram, like: Sinogram, last: int, argument: str) -> NDArray[np.float32]:
    """Return the planes in the order of the projector: difference 0, 1, -1, 2, -2, ..."""
    segments = sinogram.metadata.get("segments") or []
    if segments != like.metadata.get("segments") or sinogram.values.shape != like.values.shape:
        raise refusal(argument, f"the segments of the counts, {like.values.shape}", sinogram.values.shape)
    if sinogram.values.min() < 0:
        raise refusal(argument, "values >= 0", f"{sinogram.values.min():g}")
    starts = np.cumsum([0, *(s["planes"] for s in segments)])
    parts = {s["differences"][0]: sinogram.values[a:b] for s, a, b in zip(segments, starts, starts[1:], strict=False)}
    return np.concatenate([parts[d] for d in [0, *(sign * n for n in range(1, last + 1) for sign in (1, -1))]])
