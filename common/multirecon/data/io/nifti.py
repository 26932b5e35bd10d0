"""NIfTI images: in by nibabel, turned to RAS+; out with units and the whole affine."""

from __future__ import annotations

import gzip
import os
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np

from ...files import atomic_path
from .checks import check_finite, check_packed, existing_file, reading, refusal
from .volume import Volume

__all__ = ["nifti_version", "read_nifti", "write_nifti"]

_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


def read_nifti(path: str | os.PathLike[str], *, unit: str = "1") -> Volume:
    """Read a NIfTI image (1 or 2, packed or not) with its axes turned to RAS+.

    Args:
        path: file ``.nii`` or ``.nii.gz``.
        unit: unit of its values (the format states none).

    Returns:
        The volume; a fourth axis becomes the channels. Lengths in other units become mm.

    Raises:
        ValueError: if it is no such image, is cut short, or holds NaN or Inf.
    """
    file = existing_file(path)
    with reading(path, "a NIfTI image"), _opened(file) as stream:
        kind = nib.Nifti1Image if _version(file) == 1 else nib.Nifti2Image
        loaded = kind.from_stream(stream)
        header = loaded.header
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = header.get_data_dtype()
        if dtype.kind not in "biuf":
            raise refusal("path", "real values", f"dtype {dtype} in {str(path)!r}")
        if not 2 <= len(shape) <= 4 or 0 in shape:
            raise refusal("path", "two to four axes", f"shape {shape} in {str(path)!r}")
        needed = int(np.prod(shape, dtype=object)) * dtype.itemsize + max(int(getattr(loaded.dataobj, "offset", 0)), 0)
        check_packed(needed, file, packed=_is_gzip(file))
        values = np.asarray(loaded.get_fdata(dtype=np.float32))
        factor = _MILLIMETRES[header.get_xyzt_units()[0]]
        affine = np.diag([factor, factor, factor, 1.0]) @ np.asarray(loaded.affine, np.float64)
        has_place = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    check_finite(values, path)
    notes = () if has_place else ("no orientation in the header: axes taken from the voxel sizes alone",)
    values = values.reshape(*shape, *[1] * (3 - len(shape)))
    return Volume(values, affine, unit, notes, {"source": file.name, "format": "nifti"}).reoriented()


def write_nifti(volume: Volume, path: str | os.PathLike[str]) -> Path:
    """Write a volume as a NIfTI-1 image of float32, whole or not at all; a sheared affine is kept (sform).

    Args:
        volume: what to write.
        path: file ``.nii`` or ``.nii.gz``.

    Raises:
        ValueError: on another suffix.
    """
    if not str(path).lower().endswith((".nii", ".nii.gz")):
        raise refusal("path", "a name ending in .nii or .nii.gz", repr(str(path)))
    image = nib.Nifti1Image(volume.values, volume.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = f"unit {volume.unit}".encode("ascii", "replace")[:79]
    image.set_sform(volume.affine, code="scanner")
    image.set_qform(volume.affine, code="unknown")  # a qform cannot hold shear
    with atomic_path(path) as draft:
        nib.save(image, draft)
    return Path(path)


def _opened(file: Path) -> BufferedIOBase:
    return cast(BufferedIOBase, gzip.open(file)) if _is_gzip(file) else file.open("rb")


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def nifti_version(file: str | os.PathLike[str]) -> int:
    """Return 1 or 2 for a NIfTI file in one piece, packed or not, and 0 for anything else; its content decides."""
    path = Path(file)
    try:
        with _opened(path) as stream:
            start = stream.read(348)
    except (OSError, EOFError, zlib.error):
        return 0
    if start[344:348] == b"n+1\0":
        return 1
    return 2 if start[4:8] == b"n+2\0" else 0


def _version(file: Path) -> int:
    version = nifti_version(file)
    if not version:
        raise refusal("path", "a NIfTI image in one file", f"another format in {str(file)!r}")
    return version
