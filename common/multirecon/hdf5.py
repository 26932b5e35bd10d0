"""HDF5 read with suspicion: only numbers stored in the very file, and nothing allocated before its size is believed."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFLATE_RATIO", "MAX_DATASET_BYTES", "check_numbers", "member", "read_numbers"]

MAX_DATASET_BYTES = 4 * 1024**3
#: DEFLATE stores at most 1032 bytes in one: more declared bytes than that were never written.
DEFLATE_RATIO = 1100
_BOUNDED_FILTERS = (None, "gzip", "lzf")


def member(group: h5py.Group, name: str) -> Any:
    """Return a member stored in this very file; soft and external links are refused.

    Args:
        group: an open group.
        name: name of one of its members.

    Raises:
        ValueError: if there is no such member, or it is a link.
    """
    if name not in group:
        raise ValueError(f"{group.name}: expected a member {name!r}, got {sorted(group)}")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{group.name}/{name}: expected data inside the file, got a link")
    return group[name]


def check_numbers(dataset: Any, where: str, *, limit: int | None = MAX_DATASET_BYTES, kinds: str = "biufc") -> int:
    """Return the bytes of a dataset of plain numbers whose declared size is covered by what the file stores.

    Args:
        dataset: an open dataset.
        where: what an error calls it.
        limit: largest size in bytes; ``None`` where the file's own size is limit enough.
        kinds: NumPy kinds of the dtypes that are allowed.

    Raises:
        ValueError: if it is no numeric dataset stored in this file, is too large, or was cut short.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{where}: expected a dataset, got a group")
    if dataset.dtype.kind not in kinds:
        raise ValueError(f"{where}: expected numbers, got dtype {dataset.dtype}")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{where}: expected data inside the file, got an external or virtual dataset")
    size = int(np.prod(dataset.shape, dtype=object)) * dataset.dtype.itemsize
    if limit is not None and size > limit:
        raise ValueError(f"{where}: expected at most {limit} bytes, got {size} declared")
    stored = dataset.id.get_storage_size()
    if size and stored == 0:
        raise ValueError(f"{where}: expected {size} bytes of data, got a declared but empty dataset")
    if dataset.compression in _BOUNDED_FILTERS and size > stored * (1 if dataset.chunks is None else DEFLATE_RATIO):
        raise ValueError(f"{where}: expected {size} bytes of data, got {stored} stored")
    return size


def read_numbers(
    dataset: Any, where: str, *, selection: Any = (), limit: int | None = MAX_DATASET_BYTES
) -> NDArray[Any]:
    """Return a numeric dataset, or a selection of it, as an array in the byte order of this machine.

    Args:
        dataset: an open dataset.
        where: what an error calls it.
        selection: index or slices; the default is everything.
        limit: see :func:`check_numbers`.

    Raises:
        ValueError: as :func:`check_numbers`, or if the data cannot be read.
    """
    check_numbers(dataset, where, limit=limit)
    try:
        array = np.asarray(dataset[selection])
    except OSError as error:
        raise ValueError(f"{where}: cannot be read ({error})") from None
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
