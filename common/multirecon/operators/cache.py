"""Projection matrices kept in memory and, when they are large, in a cache folder of the user.

The folder is the value of the environment variable ``MULTIRECON_CACHE``, else the platform's cache folder; the value
``off`` keeps nothing on disk. A file is written under a temporary name and moved into place, so that processes may
share the folder without locks: at worst two of them build the same matrix. A file that cannot be read is built again.
Nothing there is needed: the folder may be deleted at any time.
"""

from __future__ import annotations

import warnings
import weakref
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
from scipy.sparse import csr_array

from ..files import atomic_path, cache_folder

__all__ = ["shared", "stored_matrix"]

_VERSION = 1  # raise it when the weights of any geometry change
_MIN_WEIGHTS = 1_000_000  # smaller matrices are built faster than a file is worth (about 0.1 s)
_KEEP_BYTES = 512 * 2**20  # the most recent matrices survive their last operator up to this size


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=_Sized)
_alive: weakref.WeakValueDictionary[Hashable, _Sized] = weakref.WeakValueDictionary()
_recent: OrderedDict[Hashable, _Sized] = OrderedDict()


def shared(key: Hashable, make: Callable[[], T]) -> T:
    """Return the object of a key that this process already holds, else make it and remember it.

    Objects live as long as an operator uses them; the most recent ones are kept longer.
    """
    found = _alive.get(key)
    if found is None:
        found = make()
        _alive[key] = found
    _recent[key] = found
    _recent.move_to_end(key)
    while len(_recent) > 1 and sum(m.nbytes for m in _recent.values()) > _KEEP_BYTES:
        _recent.popitem(last=False)
    return cast(T, found)


def stored_matrix(key: str, build: Callable[[], csr_array]) -> csr_array:
    """Return the matrix of a key from the cache folder, else build it (and store it when it is large).

    Args:
        key: hash of everything the weights depend on.
        build: makes the matrix, with float32 weights and int32 indices.
    """
    folder = cache_folder()
    path = None if folder is None else folder / "matrices" / f"v{_VERSION}-{key}.npz"
    if path is not None and path.is_file():
        matrix = _read(path)
        if matrix is not None:
            return matrix
    matrix = build()
    if path is not None and matrix.nnz >= _MIN_WEIGHTS:
        _write(path, matrix)
    return matrix


def _read(path: Path) -> csr_array | None:
    """Return the matrix of a file, or None when the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:  # the archive's checksums are verified while reading
            data, indices, indptr, shape = (file[name] for name in ("data", "indices", "indptr", "shape"))
        matrix = csr_array((data, indices, indptr), shape=tuple(int(n) for n in shape))
        matrix.check_format(full_check=True)
        if (data.dtype, indices.dtype, indptr.dtype) != (np.float32, np.int32, np.int32):
            raise ValueError("unexpected types")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"cached projection matrix {path.name} is damaged ({error}); building it again", stacklevel=3)
        return None
    return matrix


def _write(path: Path, matrix: csr_array) -> None:
    """Store a matrix; a folder that cannot be written costs only the time of the next build."""
    arrays = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}
    try:
        with atomic_path(path) as draft:
            np.savez(draft, shape=np.asarray(matrix.shape, np.int64), **arrays)
    except OSError as error:
        warnings.warn(f"projection matrix not cached in {path.parent}: {error}", stacklevel=3)
