"""What every reader checks, and the one form of its errors."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...hdf5 import DEFLATE_RATIO

__all__ = [
    "FormatError",
    "check_counts",
    "check_finite",
    "check_packed",
    "existing_file",
    "open_hdf5",
    "reading",
    "refusal",
    "require",
]


class FormatError(ValueError):
    """A file is not what its reader expects: one line that names the argument, what was expected and what came."""


def refusal(argument: str, expected: str, got: object) -> FormatError:
    """Return the error ``argument: expected ..., got ...``.

    Example:
        >>> print(refusal("path", "an image", "a sinogram"))
        path: expected an image, got a sinogram
    """
    return FormatError(" ".join(f"{argument}: expected {expected}, got {got}".split()))


def existing_file(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """Return the path of an existing, non-empty file.

    Raises:
        ValueError: if there is none.
    """
    file = Path(path)
    if not file.is_file():
        raise refusal(argument, "an existing file", repr(str(path)))
    if file.stat().st_size == 0:
        raise refusal(argument, "a file with content", f"an empty file {str(path)!r}")
    return file


@contextmanager
def reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged file into one line that names the file.

    Parsers raise nearly everything on damaged bytes: the wide ``except`` is the point.
    """
    try:
        yield
    except FormatError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FormatError(f"path: expected {what}, got damage in {str(path)!r} ({reason})") from error


@contextmanager
def open_hdf5(path: str | os.PathLike[str], what: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; errors come as in :func:`reading`."""
    file = existing_file(path)
    with reading(path, what):
        if not h5py.is_hdf5(file):
            raise refusal("path", f"{what} (HDF5)", f"another format in {str(path)!r}")
        with h5py.File(file, "r") as opened:
            yield opened


def require(module: str, extra: str = "io") -> Any:
    """Import a package of an optional extra.

    Raises:
        ValueError: naming the extra, if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise FormatError(
            f"{module}: expected an installed package, got none; it comes with multirecon[{extra}]"
        ) from None


def check_finite(array: NDArray[Any], path: str | os.PathLike[str], argument: str = "path") -> NDArray[Any]:
    """Return the array if it holds finite numbers and at least one.

    Raises:
        ValueError: if it is empty or holds NaN or Inf.
    """
    if array.size == 0:
        raise refusal(argument, "at least one value", f"shape {array.shape} in {str(path)!r}")
    if not np.isfinite(array).all():
        raise refusal(argument, "finite values", f"NaN or Inf in {str(path)!r}")
    return array


def check_counts(array: NDArray[Any], path: str | os.PathLike[str], argument: str = "path") -> NDArray[Any]:
    """Return the array if it holds finite numbers that are not negative.

    Raises:
        ValueError: if it does not.
    """
    check_finite(array, path, argument)
    lowest = array.min()
    if lowest < 0:
        raise refusal(argument, "counts >= 0", f"{lowest:g} in {str(path)!r}")
    return array


def check_packed(declared: int, path: str | os.PathLike[str], argument: str = "path", *, packed: bool = True) -> int:
    """Return the declared bytes if the file is large enough to hold them, compressed or not.

    Raises:
        ValueError: if the file is too small, or nothing is declared.
    """
    size = os.path.getsize(path)
    if not 0 < declared <= size * (DEFLATE_RATIO if packed else 1):
        raise refusal(argument, f"{declared} bytes as the header says", f"{size} bytes in {str(path)!r}")
    return declared
