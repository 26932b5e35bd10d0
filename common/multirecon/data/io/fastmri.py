"""fastMRI files: stacks of 2D Cartesian k-space with the ISMRMRD header of the scan."""

from __future__ import annotations

import os
from collections.abc import Sequence

import h5py
import numpy as np

from ...hdf5 import check_numbers, member, read_numbers
from .checks import check_finite, open_hdf5, refusal
from .kspace import KSpace, crop_readout
from .mr_header import Encoding, read_encoding

__all__ = ["count_slices", "read_fastmri"]


def read_fastmri(path: str | os.PathLike[str], *, slices: Sequence[int] | None = None, crop: bool = True) -> KSpace:
    """Read slices of a multi-coil or single-coil fastMRI file.

    The files hold ``kspace`` of ``(slices, coils, readout, phase)`` or ``(slices, readout, phase)``. Columns that are
    zero were not sampled; where the file has a ``mask`` (test sets), it decides. Orientation is not in these files.

    Args:
        path: the HDF5 file.
        slices: numbers of the slices to read; the default is all.
        crop: whether readout oversampling is removed, as the header describes it.

    Raises:
        ValueError: if it is no such file, is damaged, or a slice does not exist.
    """
    with open_hdf5(path, "a fastMRI file") as file:
        if "kspace" not in file:
            raise refusal("path", "a fastMRI file with a dataset 'kspace'", f"{sorted(file)} in {str(path)!r}")
        dataset = member(file, "kspace")
        check_numbers(dataset, f"{path}:kspace", limit=None, kinds="c")
        if dataset.ndim not in (3, 4) or 0 in dataset.shape:
            raise refusal("path", "kspace (slices, [coils,] readout, phase)", f"{dataset.shape} in {str(path)!r}")
        chosen = list(range(dataset.shape[0])) if slices is None else list(slices)
        if not chosen or any(not 0 <= s < dataset.shape[0] for s in chosen):
            raise refusal("slices", f"some of 0 to {dataset.shape[0] - 1}", chosen)
        data = np.stack([read_numbers(dataset, f"{path}:kspace", selection=s, limit=None) for s in chosen])
        columns = _mask(file, path, dataset.shape[-1])
        encoding = _encoding(file, path)
        facts = {name: str(file.attrs[name]) for name in ("acquisition", "patient_id") if name in file.attrs}
    check_finite(data, path)
    with np.errstate(over="ignore"):  # what is too large for complex64 is refused by KSpace
        data = (data if data.ndim == 4 else data[:, None]).astype(np.complex64)
    mask = (data != 0).any(axis=1)
    if columns is not None:
        data = data * columns
        mask = mask & columns
    notes = ["orientation is not in the file: the affine is the centred one"]
    spacing = None
    facts = {"source": os.path.basename(path), "format": "fastmri", **facts}
    if encoding is None:
        notes.append("no ISMRMRD header: voxel size unknown, readout oversampling kept")
        return KSpace(data, mask, None, None, tuple(notes), facts)
    if encoding.matrix[0] != data.shape[-2]:
        notes.append(f"header says {encoding.matrix[0]} readout samples, data have {data.shape[-2]}")
    spacing = (encoding.fov_mm[0] / data.shape[-2], encoding.fov_mm[1] / max(encoding.matrix[1], data.shape[-1]))
    kspace = KSpace(data, mask, spacing, None, tuple(notes), {**facts, **encoding.metadata})
    fitting = crop and encoding.matrix[0] == data.shape[-2]
    return crop_readout(kspace, encoding.readout_size) if fitting else kspace


def count_slices(path: str | os.PathLike[str]) -> int:
    """Return the number of slices of a fastMRI file.

    Raises:
        ValueError: if it is no such file.
    """
    with open_hdf5(path, "a fastMRI file") as file:
        shape = getattr(member(file, "kspace"), "shape", ())
    if not shape:
        raise refusal("path", "a dataset 'kspace' of slices", f"none in {str(path)!r}")
    return int(shape[0])


def _mask(file: h5py.File, path: str | os.PathLike[str], width: int) -> np.ndarray | None:
    if "mask" not in file:
        return None
    mask = read_numbers(member(file, "mask"), f"{path}:mask").astype(bool).reshape(-1)
    if mask.shape != (width,):
        raise refusal("path", f"a mask of {width} columns", f"{mask.shape} in {str(path)!r}")
    return mask


def _encoding(file: h5py.File, path: str | os.PathLike[str]) -> Encoding | None:
    if "ismrmrd_header" not in file:
        return None
    header = member(file, "ismrmrd_header")
    if not isinstance(header, h5py.Dataset) or header.shape != ():
        raise refusal("path", "one ISMRMRD header", f"{header} in {str(path)!r}")
    text = header[()]
    if not isinstance(text, bytes | str):
        raise refusal("path", "a text ISMRMRD header", f"{type(text).__name__} in {str(path)!r}")
    return read_encoding(text, path)
