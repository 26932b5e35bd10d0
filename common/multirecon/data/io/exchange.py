"""Data Exchange HDF5: projections of synchrotron and laboratory tomographs, with dark and flat fields."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...hdf5 import check_numbers, member, read_numbers
from .checks import check_counts, open_hdf5, refusal
from .sinogram import Projections

__all__ = ["is_exchange", "read_data_exchange"]

_PIXEL = "measurement/instrument/detector/actual_pixel_size_x", "measurement/instrument/detector/pixel_size_x"
_LENGTHS = {"m": 1000.0, "mm": 1.0, "micron": 1e-3, "microns": 1e-3, "um": 1e-3, "µm": 1e-3}


def is_exchange(file: h5py.File) -> bool:
    """Whether an open file has the projections of Data Exchange."""
    return isinstance(file.get("exchange"), h5py.Group) and "data" in file["exchange"]


def read_data_exchange(path: str | os.PathLike[str], *, rows: Sequence[int] | None = None) -> Projections:
    """Read projections, dark and flat fields and angles.

    ``exchange/data`` is ``(views, rows, bins)``. Angles come from ``exchange/theta`` (degrees unless it says radians),
    else they are spread evenly over half a turn, with a note. Without dark fields the dark is taken as zero.

    Args:
        path: the HDF5 file.
        rows: detector rows (slices of the object) to read; the default is all.

    Raises:
        ValueError: if it is no such file, is damaged, holds negative or non-finite readings, or shapes disagree.
    """
    notes: list[str] = []
    with open_hdf5(path, "a Data Exchange file") as file:
        if not is_exchange(file):
            raise refusal("path", "a Data Exchange file with exchange/data", f"{sorted(file)} in {str(path)!r}")
        group = member(file, "exchange")
        dataset = member(group, "data")
        check_numbers(dataset, f"{path}:exchange/data", limit=None, kinds="iuf")
        if dataset.ndim != 3 or 0 in dataset.shape:
            raise refusal("path", "exchange/data (views, rows, bins)", f"{dataset.shape} in {str(path)!r}")
        views, height, bins = dataset.shape
        chosen = list(range(height)) if rows is None else list(rows)
        if not chosen or len(set(chosen)) != len(chosen) or any(not 0 <= r < height for r in chosen):
            raise refusal("slices", f"some of the rows 0 to {height - 1}, each once", chosen)
        values = np.stack([_numbers(dataset, path, (slice(None), r)) for r in chosen])
        white = _frames(group, "data_white", chosen, (height, bins), path)
        dark = _frames(group, "data_dark", chosen, (height, bins), path)
        angles = _angles(group, views, path, notes)
        pitch = _pitch(file, notes)
    if white is None:
        raise refusal("path", "flat fields (exchange/data_white)", f"none in {str(path)!r}")
    if dark is None:
        notes.append("no dark fields: dark taken as zero")
        dark = np.zeros((1, len(chosen), bins), np.float32)
    gain = _gain(white, dark, notes)
    facts = {"source": os.path.basename(path), "format": "data_exchange", "rows": chosen}
    return Projections(values, dark.mean(0), white.mean(0), gain, angles, pitch, tuple(notes), facts)


def _numbers(dataset: Any, path: str | os.PathLike[str], selection: Any) -> NDArray[np.float32]:
    array = read_numbers(dataset, f"{path}:{dataset.name}", selection=selection, limit=None)
    return check_counts(array.astype(np.float32), path)


def _frames(
    group: h5py.Group, name: str, rows: list[int], shape: tuple[int, int], path: str | os.PathLike[str]
) -> NDArray[np.float32] | None:
    """Return reference frames ``(frames, rows, bins)``."""
    if name not in group:
        return None
    dataset = member(group, name)
    check_numbers(dataset, f"{path}:exchange/{name}", limit=None, kinds="iuf")
    if dataset.ndim not in (2, 3) or tuple(dataset.shape[-2:]) != shape or 0 in dataset.shape:
        raise refusal("path", f"exchange/{name} (frames, {shape[0]}, {shape[1]})", f"{dataset.shape} in {str(path)!r}")
    array = _numbers(dataset, path, ())
    return array.reshape(-1, *shape)[:, rows]


def _angles(group: h5py.Group, views: int, path: str | os.PathLike[str], notes: list[str]) -> NDArray[np.float64]:
    if "theta" not in group:
        notes.append("no angles: spread evenly over half a turn")
        return np.arange(views) * np.pi / views
    dataset = member(group, "theta")
    angles = read_numbers(dataset, f"{path}:exchange/theta").astype(np.float64).reshape(-1)
    if angles.shape != (views,) or not np.isfinite(angles).all():
        raise refusal("path", f"{views} finite angles in exchange/theta", f"{angles.shape} in {str(path)!r}")
    unit = _text(dataset.attrs.get("units"))
    if unit.lower().startswith("rad"):
        return angles
    return np.deg2rad(angles)


def _pitch(file: h5py.File, notes: list[str]) -> float | None:
    for name in _PIXEL:
        if name in file and isinstance(file[name], h5py.Dataset) and file[name].size == 1:
            value = float(np.asarray(file[name][()]).reshape(-1)[0])
            unit = _text(file[name].attrs.get("units")).lower()
            if unit in _LENGTHS and 0 < value < np.inf:
                return value * _LENGTHS[unit]
            notes.append(f"pixel size {value:g} in an unknown unit {unit!r} left out")
    return None


def _gain(white: NDArray[np.float32], dark: NDArray[np.float32], notes: list[str]) -> float:
    """Return readings per photon: the variance of the flat fields over their mean, for Poisson counts."""
    if len(white) < 5:
        notes.append(f"{len(white)} flat fields are too few for a gain: readings taken as photon counts")
        return 1.0
    spread = white.astype(np.float64).var(axis=0, ddof=1)
    if len(dark) > 1:
        spread = spread - dark.astype(np.float64).var(axis=0, ddof=1)
    signal = white.mean(axis=0) - dark.mean(axis=0)
    gain = float(np.median(spread / np.maximum(signal, 1e-6)))
    # the median of a variance estimated from n frames is below its mean (chi-square distribution)
    gain /= (1 - 2 / (9 * (len(white) - 1))) ** 3
    if not 0 < gain < np.inf:
        notes.append("flat fields do not vary as counts do: readings taken as photon counts")
        return 1.0
    return gain


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
