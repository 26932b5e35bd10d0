"""NumPy arrays on disk, checked before anything is allocated; pickles are never opened."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import existing_file, reading, refusal

__all__ = ["is_npy", "read_npy"]

_MAGIC = b"\x93NUMPY"


def is_npy(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a ``.npy`` file does."""
    with open(path, "rb") as stream:
        return stream.read(6) == _MAGIC


def read_npy(path: str | os.PathLike[str], argument: str = "path") -> NDArray[Any]:
    """Read one array of numbers from a ``.npy`` file.

    Args:
        path: the file.
        argument: what errors call it.

    Returns:
        The array, in C order and in the byte order of this machine.

    Raises:
        ValueError: if it is no such file, holds Python objects (a pickle) or records, or is shorter than it declares.
    """
    file = existing_file(path, argument)
    if not is_npy(file):
        raise refusal(argument, "a NumPy array (.npy, no pickle, no archive)", f"another format in {str(path)!r}")
    with reading(path, "a NumPy array (.npy)"):
        with file.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(stream)
            start = stream.tell()
        if dtype.hasobject:
            raise refusal(argument, "numbers", f"Python objects (a pickle) in {str(path)!r}")
        if dtype.kind not in "biufc":
            raise refusal(argument, "numbers", f"dtype {dtype} in {str(path)!r}")
        declared = int(np.prod(shape, dtype=object)) * dtype.itemsize
        present = file.stat().st_size - start
        if min((1, *shape)) < 0 or declared != present:
            raise refusal(argument, f"{declared} bytes of data for shape {shape}", f"{present} in {str(path)!r}")
        array = np.load(file, allow_pickle=False)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
