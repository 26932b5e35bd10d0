"""Readers and writers of the formats that scanners, tomographs and other packages use."""

from .bids import bids_name, write_bids
from .castor import CastorEvents, read_castor, write_castor
from .checks import FormatError
from .detect import FORMATS, detect_format
from .dicom import DicomSeries, read_dicom, scan_dicom
from .dicom_write import write_dicom
from .exchange import read_data_exchange
from .fastmri import read_fastmri
from .interfile import (
    direct_planes,
    read_interfile_image,
    read_interfile_sinogram,
    write_interfile_image,
    write_interfile_sinogram,
)
from .ismrmrd import read_ismrmrd
from .kspace import KSpace, read_kspace_array
from .matlab import read_matlab, read_matlab_sinogram
from .nifti import read_nifti, write_nifti
from .npy import read_npy
from .rotation_axis import estimate_axis
from .sinogram import Projections, Sinogram
from .volume import Volume

__all__ = [
    "FORMATS",
    "CastorEvents",
    "DicomSeries",
    "FormatError",
    "KSpace",
    "Projections",
    "Sinogram",
    "Volume",
    "bids_name",
    "detect_format",
    "direct_planes",
    "estimate_axis",
    "read_castor",
    "read_data_exchange",
    "read_dicom",
    "read_fastmri",
    "read_interfile_image",
    "read_interfile_sinogram",
    "read_ismrmrd",
    "read_kspace_array",
    "read_matlab",
    "read_matlab_sinogram",
    "read_nifti",
    "read_npy",
    "scan_dicom",
    "write_bids",
    "write_castor",
    "write_dicom",
    "write_interfile_image",
    "write_interfile_sinogram",
    "write_nifti",
]
