"""MATLAB arrays: version 4 by SciPy, 5 to 7 by a strict reader of our own, version 7.3 (HDF5) by h5py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from ...hdf5 import DEFLATE_RATIO, read_numbers
from .checks import FormatError, check_finite, existing_file, open_hdf5, reading, refusal
from .kspace import choose_array, find_arrays, member_at, to_axes
from .matlab5 import read_arrays5
from .sinogram import Sinogram

__all__ = ["is_matlab5", "is_matlab73", "matlab_arrays", "read_matlab", "read_matlab_sinogram"]

_ITEM_BYTES = {"double": 8, "single": 4, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4,
               "int64": 8, "uint64": 8, "logical": 1}  # fmt: skip


def is_matlab73(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as MATLAB 7.3 files (HDF5 behind a text block) do."""
    with open(path, "rb") as stream:
        return stream.read(10) == b"MATLAB 7.3"


def is_matlab5(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as MATLAB files of version 5 to 7 do."""
    with open(path, "rb") as stream:
        return stream.read(10) == b"MATLAB 5.0"


def matlab_arrays(path: str | os.PathLike[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return ``name -> (shape as in MATLAB, class)`` of the variables of a file.

    Raises:
        ValueError: if it is no MATLAB file.
    """
    file = existing_file(path)
    if h5py.is_hdf5(file):
        with open_hdf5(file, "a MATLAB file") as opened:
            return {name: (shape[::-1], dtype) for name, (shape, dtype) in find_arrays(opened).items()}
    with reading(path, "a MATLAB file"):
        if is_matlab5(file):
            return {array.name: (array.shape, array.kind) for array in read_arrays5(file)}
        return {name: (tuple(shape), kind) for name, shape, kind in scipy.io.whosmat(str(file), appendmat=False)}


def read_matlab(path: str | os.PathLike[str], *, dataset: str = "") -> NDArray[Any]:
    """Read one numeric array, with its axes as MATLAB shows them.

    Args:
        path: the file.
        dataset: name of the variable; needed only where the file has several of two axes or more.

    Raises:
        ValueError: if it is no such file, is damaged, or the variable is no array of finite numbers.
    """
    file = existing_file(path)
    if h5py.is_hdf5(file):
        with open_hdf5(file, "a MATLAB file") as opened:
            name = choose_array(opened, dataset, path)
            array = read_numbers(member_at(opened, name), f"{path}:{name}", limit=None).T
        return check_finite(array, path)
    found = {n: v for n, v in matlab_arrays(path).items() if v[1] in _ITEM_BYTES and len(v[0]) >= 2}
    if (dataset and dataset not in found) or (not dataset and len(found) != 1):
        raise refusal(
            "dataset", f"one of the numeric variables {sorted(found)} of {str(path)!r}", repr(dataset) or "none"
        )
    name = dataset or next(iter(found))
    if is_matlab5(file):
        with reading(path, "a MATLAB file"):
            array = next(a for a in read_arrays5(file) if a.name == name).values()
        return check_finite(array, path)
    shape, kind = found[name]
    declared = int(np.prod(shape, dtype=object)) * _ITEM_BYTES[kind]
    size = file.stat().st_size
    # a matrix of doubles may be stored in fewer bytes, down to one a value
    if not 0 < declared <= 8 * DEFLATE_RATIO * size:
        raise refusal("path", f"{declared} bytes for {name!r} {shape}", f"{size} in {str(path)!r}")
    with reading(path, "a MATLAB file"):
        array = np.asarray(scipy.io.loadmat(str(file), variable_names=[name], appendmat=False)[name])
        if array.dtype.kind not in "biufc":
            raise refusal("path", "an array of numbers", f"dtype {array.dtype} in {str(path)!r}")
    return check_finite(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")), path)


def read_matlab_sinogram(path: str | os.PathLike[str], *, layout: str = "", dataset: str = "") -> Sinogram:
    """Read sinograms from a MATLAB array.

    Args:
        path: the file.
        layout: meaning of the axes, one letter each: ``b`` radial bin, ``v`` view, ``p`` plane; by default ``bv`` or
            ``bvp``, radial bins first.
        dataset: name of the variable; needed only where the file has several.

    Raises:
        ValueError: as :func:`read_matlab`, or if the layout does not fit.
    """
    array = read_matlab(path, dataset=dataset)
    if np.iscomplexobj(array):
        raise FormatError(f"path: expected real numbers, got {array.dtype} in {str(path)!r}")
    used = layout or {2: "bv", 3: "bvp"}.get(array.ndim, "")
    values = to_axes(array, used, path=path, allowed="pvb", order="pvb")
    facts = {"source": Path(path).name, "format": "matlab", "layout": used, **({"dataset": dataset} if dataset else {})}
    return Sinogram(np.ascontiguousarray(values, np.float32), metadata=facts)
