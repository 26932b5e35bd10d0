"""Measured projections as Measurements: X-ray transmission and PET emission."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..blocks import Blocks
from ..data.io import Projections, Sinogram, direct_planes, estimate_axis
from ..data.io.checks import refusal
from ..likelihoods import BlockLikelihood, Likelihood, Poisson, TransmissionPoisson
from ..measurement import Measurement
from ..operators import BlockDiagonal, LinearOperator, ParallelBeam, PETProjector
from ..space import ImageSpace, Modality

__all__ = [
    "covering_grid",
    "emission_measurement",
    "float_tensor",
    "one_block",
    "projections_measurement",
    "transmission_measurement",
    "view_geometry",
]

_MOST_PIXELS = 256


def projections_measurement(
    projections: Projections,
    *,
    modality: str = "ct",
    axis: float | None = None,
    size: int | None = None,
    bin_spacing_mm: float | None = None,
    every: int = 1,
) -> Measurement:
    r"""Return detector readings as photon counts, :math:`y \sim \mathrm{Poisson}(I_0 e^{-Ax} + s)`, one sample a row.

    Readings, flat and dark fields are divided by the gain; the dark field is the background ``s`` and is not
    subtracted. The field of view is the disc that every view sees.

    Args:
        projections: the readings.
        modality: key of the image, in 1/cm.
        axis: detector column of the rotation axis; by default estimated from the data.
        size: pixels along each side; by default that of one pixel a bin, at most 256.
        bin_spacing_mm: detector pixel in mm, in the place of the file's.
        every: take every n-th view.

    Raises:
        ValueError: if the axis is not on the detector.
    """
    notes = list(projections.notes)
    pitch = _pitch(bin_spacing_mm, projections.bin_spacing_mm, notes)
    column = axis
    if column is None:
        column = estimate_axis(projections.line_integrals(), projections.angles)
        notes.append(f"rotation axis estimated at column {column:.2f}")
    gain = projections.gain
    rows, _, bins = projections.values.shape
    grid, spacing, offset = covering_grid(bins, pitch, column, size)
    angles = projections.angles[::every].tolist()
    operator = ParallelBeam(grid, spacing, views=len(angles), bins=bins, bin_spacing_mm=pitch, angles=angles,
                            offset_bins=offset)  # fmt: skip
    y = float_tensor(projections.values[:, None, ::every] / gain)
    blank = float_tensor((projections.white - projections.dark)[:, None, None] / gain)
    likelihood = TransmissionPoisson(blank, float_tensor(projections.dark[:, None, None] / gain))
    space = _space(modality, "1/cm", grid, spacing, heights=pitch * np.arange(rows), scale=0.2)
    facts = {**projections.metadata, "axis": column, "gain": gain, "every": every, "notes": notes}
    return one_block(modality, y, space, operator, likelihood, facts)


def transmission_measurement(
    sinogram: Sinogram,
    blank: Sinogram,
    *,
    background: Sinogram | None = None,
    modality: str = "ct",
    axis: float | None = None,
    size: int | None = None,
    bin_spacing_mm: float | None = None,
    arc_deg: float | None = None,
    every: int = 1,
) -> Measurement:
    r"""Return transmission counts and their blank scan, :math:`y \sim \mathrm{Poisson}(I_0 e^{-Ax} + s)`.

    Args:
        sinogram: counts with the object, one sample a plane.
        blank: counts without, for the same time; bins without counts are refused (smooth the scan first).
        background: expected background counts.
        modality: key of the image, in 1/cm at the energy of the source.
        axis: radial bin of the rotation axis; the central one by default.
        size: pixels along each side; by default the number of bins, at most 256.
        bin_spacing_mm: bin width in mm, in the place of the file's.
        arc_deg: angle covered by the views, in the place of the file's.
        every: take every n-th view.

    Raises:
        ValueError: if shapes disagree, counts are negative, or a blank bin is empty.
    """
    sinogram, others = _alike(sinogram, {"blank": blank, "background": background})
    if not (others["blank"] > 0).all():
        raise refusal("blank", "counts > 0 in every bin", f"{int((others['blank'] <= 0).sum())} bins without")
    notes, pitch, angles, column = view_geometry(sinogram, bin_spacing_mm, arc_deg, axis)
    grid, spacing, offset = covering_grid(sinogram.values.shape[2], pitch, column, size)
    chosen = angles[::every].tolist()
    operator = ParallelBeam(grid, spacing, views=len(chosen), bins=sinogram.values.shape[2], bin_spacing_mm=pitch,
                            angles=chosen, offset_bins=offset)  # fmt: skip
    y, thinned = _thinned(sinogram, others, every)
    likelihood = TransmissionPoisson(thinned["blank"], thinned.get("background", 0.0))
    space = _space(modality, "1/cm", grid, spacing, heights=_heights(sinogram), scale=0.1)
    facts = {**sinogram.metadata, "every": every, "notes": notes}
    return one_block(modality, y, space, operator, likelihood, facts)


def emission_measurement(
    sinogram: Sinogram,
    *,
    background: Sinogram | None = None,
    efficiency: Sinogram | None = None,
    attenuation: NDArray[np.float32] | None = None,
    modality: str = "pet_fdg",
    size: int | None = None,
    bin_spacing_mm: float | None = None,
    arc_deg: float | None = None,
    every: int = 1,
) -> Measurement:
    r"""Return PET counts, :math:`y \sim \mathrm{Poisson}(n e^{-P\mu} P x + r)`, one sample a direct plane.

    Args:
        sinogram: prompt counts; oblique segments are left out, with a note.
        background: expected randoms and scatter in counts.
        efficiency: ``n``: counts per unit of the activity's line integral (in cm).
        attenuation: ``(H, W)`` or ``(planes, H, W)`` at 511 keV in 1/cm, on the grid of the result.
        modality: key of the image.
        size: pixels along each side; by default the number of bins, at most 256.
        bin_spacing_mm: bin width in mm, in the place of the file's.
        arc_deg: angle covered by the views, in the place of the file's.
        every: take every n-th view.

    Raises:
        ValueError: if shapes disagree or counts are negative.
    """
    sinogram, others = _alike(sinogram, {"background": background, "efficiency": efficiency})
    notes, pitch, angles, column = view_geometry(sinogram, bin_spacing_mm, arc_deg, None)
    planes, _, bins = sinogram.values.shape
    grid, spacing, _ = covering_grid(bins, pitch, column, size)
    mu = None
    if attenuation is not None:
        if (
            attenuation.shape[-2:] != grid
            or attenuation.ndim not in (2, 3)
            or len(attenuation) not in (planes, grid[0])
        ):
            raise refusal("attenuation", f"shape {grid} or ({planes}, {grid[0]}, {grid[1]})", attenuation.shape)
        mu = float_tensor(attenuation if attenuation.ndim == 2 else attenuation[:, None])
    y, thinned = _thinned(sinogram, others, every)
    chosen = angles[::every].tolist()
    operator = PETProjector(grid, spacing, views=len(chosen), bins=bins, bin_spacing_mm=pitch, angles=chosen,
                            attenuation=mu, efficiency=thinned.get("efficiency", 1.0))  # fmt: skip
    if not others:
        notes.append("no background, efficiencies or attenuation given: counts are taken to be nothing but trues")
    space = _space(modality, "1", grid, spacing, heights=_heights(sinogram))
    facts = {**sinogram.metadata, "every": every, "notes": notes}
    return one_block(modality, y, space, operator, Poisson(thinned.get("background", 0.0)), facts)


def _alike(sinogram: Sinogram, others: dict[str, Sinogram | None]) -> tuple[Sinogram, dict[str, NDArray[np.float32]]]:
    """Return direct planes of non-negative values; whatever goes with the counts must have their shape."""
    main = direct_planes(sinogram)
    found = {}
    for name, other in others.items():
        if other is not None:
            values = direct_planes(other).values
            if values.shape != main.values.shape:
                raise refusal(name, f"shape {main.values.shape} as the counts", values.shape)
            found[name] = values
    for name, values in {"path": main.values, **found}.items():
        if values.min() < 0:
            raise refusal(name, "values >= 0", f"{values.min():g}")
    return main, found


def view_geometry(
    sinogram: Sinogram, pitch: float | None, arc_deg: float | None, axis: float | None
) -> tuple[list[str], float, NDArray[np.float64], float]:
    """Return notes, bin width in mm, angles, and the column of the axis (by default the middle)."""
    notes = list(sinogram.notes)
    views, bins = sinogram.values.shape[1:]
    angles = sinogram.angles
    if arc_deg is not None or angles is None:
        if arc_deg is None:
            notes.append("angles unknown: spread evenly over half a turn (arc_deg says otherwise)")
        angles = np.deg2rad(180.0 if arc_deg is None else arc_deg) * np.arange(views) / views
    return notes, _pitch(pitch, sinogram.bin_spacing_mm, notes), angles, (bins - 1) / 2 if axis is None else axis


def _pitch(given: float | None, stated: float | None, notes: list[str]) -> float:
    if given is None and stated is None:
        notes.append("bin width unknown: 1 mm taken (bin_spacing_mm says otherwise), and lengths follow it")
    return float(given or stated or 1.0)


def covering_grid(
    bins: int, pitch: float, column: float, size: int | None
) -> tuple[tuple[int, int], tuple[float, float], float]:
    """Return the image grid over the disc that every view sees, its spacing, and the detector offset in bins."""
    reach = min(column, bins - 1 - column) + 0.5
    if not reach > 1:
        raise refusal("axis", f"a column within the detector, 1 to {bins - 2}", column)
    across = 2 * reach
    n = size or min(2 * ceil(across / 2 - 1e-9), _MOST_PIXELS)
    return (n, n), (across * pitch / n,) * 2, (bins - 1) / 2 - column


def _heights(sinogram: Sinogram) -> NDArray[np.floating]:
    return np.arange(len(sinogram.values)) * (sinogram.plane_spacing_mm or 1.0)


def _thinned(
    sinogram: Sinogram, others: dict[str, NDArray[np.float32]], every: int
) -> tuple[Tensor, dict[str, Tensor]]:
    y = float_tensor(sinogram.values[:, None, ::every])
    return y, {name: float_tensor(values[:, None, ::every]) for name, values in others.items()}


def float_tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _space(
    modality: str, unit: str, grid: tuple[int, ...], spacing: Sequence[float], *, heights: Any, scale: float = 1.0
) -> ImageSpace:
    """Return the space whose samples lie one above the other."""
    space = ImageSpace([Modality(modality, unit=unit, scale=scale)], grid, spacing)
    affines = space.affine.repeat(len(heights), 1, 1)
    affines[:, 2, 3] = torch.as_tensor(np.asarray(heights, np.float64))
    return space.with_affine(affines)


def one_block(
    name: str, y: Tensor, space: ImageSpace, operator: LinearOperator, likelihood: Likelihood, facts: dict[str, Any]
) -> Measurement:
    """Return the Measurement of one block with what is known about it."""
    return Measurement(Blocks({name: y}), BlockDiagonal(space, {name: operator}), BlockLikelihood({name: likelihood}),
                       {**facts, "simulated": False, "arc_deg": _arc(operator)})  # fmt: skip


def _arc(operator: LinearOperator) -> float | None:
    angles = getattr(operator, "angles", None)
    return None if not angles or len(angles) < 2 else float(np.ptp(angles) * len(angles) / (len(angles) - 1) * 180 / pi)
