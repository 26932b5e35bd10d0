"""Simulated acquisitions: data from a finer grid, and the model a scanner would hand over with them."""

from .base import (
    Acquisition,
    CleanImage,
    Scan,
    ScanContext,
    ScanResult,
    block_mean,
    keyed_generator,
)
from .ct import ParallelCT
from .mr import CartesianMR

__all__ = [
    "Acquisition",
    "CartesianMR",
    "CleanImage",
    "ParallelCT",
    "Scan",
    "ScanContext",
    "ScanResult",
    "block_mean",
    "keyed_generator",
]
