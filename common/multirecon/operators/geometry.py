"""Plain descriptions of 2D scan geometries: which lines are measured, in which order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Geometry2D", "ParallelGeometry"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Geometry2D:
    """A 2D image grid and an ordered family of lines, ``views`` by ``bins``.

    Args:
        shape: image size ``(H, W)``.
        spacing_mm: pixel size in mm along axis 0 and axis 1.
    """

    shape: tuple[int, int]
    spacing_mm: tuple[float, float]

    @property
    def size(self) -> tuple[int, int]:
        """``(views, bins)`` of one sinogram."""
        raise NotImplementedError

    def rays(self) -> tuple[Array, Array]:
        """Return points and unit directions ``(views * bins, 2)`` of all lines, mm, bins fastest."""
        raise NotImplementedError

    def key(self) -> str:
        """Return the hash that names the matrix of this geometry in a cache."""
        plain: dict[str, Any] = {"geometry": type(self).__name__, **asdict(self)}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ParallelGeometry(Geometry2D):
    """Parallel lines: see :class:`~multirecon.operators.radon.ParallelBeam` for the convention.

    Args:
        shape: image size ``(H, W)``.
        spacing_mm: pixel size in mm along axis 0 and axis 1.
        angles: view angles in radians.
        bins: number of detector bins.
        pitch_mm: detector bin width in mm.
        offset_bins: displacement of the detector centre in bins.
    """

    angles: tuple[float, ...]
    bins: int
    pitch_mm: float
    offset_bins: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """``(views, bins)``."""
        return len(self.angles), self.bins

    @property
    def positions(self) -> Array:
        """``(bins,)`` signed distances of the bin centres from the rotation axis in mm."""
        return np.asarray((np.arange(self.bins) - (self.bins - 1) / 2 + self.offset_bins) * self.pitch_mm, np.float64)

    def rays(self) -> tuple[Array, Array]:
        """Return points and directions of all lines."""
        theta = np.asarray(self.angles)
        axis = np.stack([np.cos(theta), np.sin(theta)], axis=-1)
        normal = np.stack([-np.sin(theta), np.cos(theta)], axis=-1)
        points = axis[:, None, :] * self.positions[None, :, None]
        directions = np.broadcast_to(normal[:, None, :], points.shape)
        return points.reshape(-1, 2), directions.reshape(-1, 2)


def check_grid(shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return a valid 2D shape and spacing as plain tuples.

    Raises:
        ValueError: if they are not two positive numbers each.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape: expected two positive sizes (H, W), got {tuple(shape)}")
    if len(spacing_mm) != 2 or min(spacing_mm) <= 0:
        raise ValueError(f"spacing_mm: expected two positive numbers, got {tuple(spacing_mm)}")
    return (int(shape[0]), int(shape[1])), (float(spacing_mm[0]), float(spacing_mm[1]))
