"""Simulated acquisitions: data from a finer grid, and the model a scanner would hand over with them."""

from .base import (
    Acquisition,
    CleanImage,
    InverseCrime,
    Scan,
    ScanContext,
    ScanResult,
    block_mean,
    fine_maps,
    keyed_generator,
)
from .ct import FanCT, ParallelCT
from .misregistration import Misregistered
from .mr import CartesianMR
from .patterns import HadamardCamera
from .pet import PETScan
from .spectral import PolyenergeticCT
from .spectral_slices import CachedSpectralSlices, SpectralSlices
from .volumes import PETScan3D, StackedCT

__all__ = [
    "Acquisition",
    "CachedSpectralSlices",
    "CartesianMR",
    "CleanImage",
    "FanCT",
    "HadamardCamera",
    "InverseCrime",
    "Misregistered",
    "PETScan",
    "PETScan3D",
    "ParallelCT",
    "PolyenergeticCT",
    "Scan",
    "ScanContext",
    "ScanResult",
    "SpectralSlices",
    "StackedCT",
    "block_mean",
    "fine_maps",
    "keyed_generator",
]
