"""Which format a file has; its content decides, a suffix only where the format has no mark of its own."""

from __future__ import annotations

import os
from pathlib import Path

import h5py

from .castor import is_castor
from .checks import existing_file, open_hdf5, refusal
from .dicom import is_dicom
from .exchange import is_exchange
from .interfile import interfile_kind
from .interfile_header import is_interfile, read_header
from .ismrmrd import find_ismrmrd
from .matlab import is_matlab73
from .nifti import nifti_version
from .npy import is_npy

__all__ = ["FORMATS", "detect_format"]

#: name -> what it is
FORMATS = {
    "measurement": "multirecon measurement",
    "nifti": "NIfTI image",
    "dicom": "DICOM series",
    "ismrmrd": "ISMRMRD raw data",
    "fastmri": "fastMRI k-space",
    "array": "plain array (NumPy or HDF5)",
    "data_exchange": "Data Exchange projections",
    "matlab": "MATLAB array",
    "interfile_image": "Interfile image",
    "interfile_sinogram": "Interfile sinogram",
    "castor": "CASToR PET events",
}


def detect_format(path: str | os.PathLike[str]) -> str:
    """Return the format of a file or of a folder of DICOM files: a key of :data:`FORMATS`.

    Args:
        path: file or folder.

    Raises:
        ValueError: if there is no such file, or it is none of these.
    """
    root = Path(path)
    if root.is_dir():
        if any(p.is_file() and p.stat().st_size >= 132 and is_dicom(p) for p in sorted(root.rglob("*"))):
            return "dicom"
        raise refusal("path", "a file, or a folder with DICOM files", f"a folder without: {str(path)!r}")
    file = existing_file(root)
    if h5py.is_hdf5(file):
        return _hdf5_kind(file)
    if is_npy(file):
        return "array"
    if is_dicom(file):
        return "dicom"
    if nifti_version(file):
        return "nifti"
    if is_interfile(file):
        return f"interfile_{interfile_kind(read_header(file))}"
    if is_castor(file):
        return "castor"
    with file.open("rb") as stream:
        start = stream.read(16)
    # version 4 has no mark: only there the suffix has a say
    if start.startswith(b"MATLAB 5.0") or file.suffix.lower() == ".mat":
        return "matlab"
    raise refusal("path", f"one of: {', '.join(FORMATS.values())}", f"another format in {str(path)!r}")


def _hdf5_kind(file: Path) -> str:
    if is_matlab73(file):
        return "matlab"
    with open_hdf5(file, "an HDF5 file") as opened:
        if opened.attrs.get("format") == "multirecon-measurement":
            return "measurement"
        if is_exchange(opened):
            return "data_exchange"
        if "kspace" in opened and ("ismrmrd_header" in opened or "acquisition" in opened.attrs):
            return "fastmri"
        return "ismrmrd" if find_ismrmrd(opened) else "array"
