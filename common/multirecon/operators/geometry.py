"""Plain descriptions of 2D scans: the image grid, the measured lines and the symmetries they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import pi
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .joseph import joseph_matrix

__all__ = ["DIHEDRAL", "FanGeometry", "Geometry2D", "LineGeometry", "ParallelGeometry", "ViewGeometry", "check_grid"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: The eight symmetries of the square as signed permutation matrices; the identity comes first.
DIHEDRAL: tuple[Index, ...] = tuple(
    np.array(q)
    for q in (
        [[1, 0], [0, 1]],
        [[0, -1], [1, 0]],
        [[-1, 0], [0, -1]],
        [[0, 1], [-1, 0]],
        [[1, 0], [0, -1]],
        [[-1, 0], [0, 1]],
        [[0, 1], [1, 0]],
        [[0, -1], [-1, 0]],
    )
)
_TOLERANCE = 1e-7  # radians: two angles closer than this are the same view


@dataclass(frozen=True)
class Geometry2D:
    """A 2D image grid and an ordered family of lines.

    Args:
        shape: image size ``(H, W)``.
        spacing_mm: pixel size in mm along axis 0 and axis 1.
    """

    shape: tuple[int, int]
    spacing_mm: tuple[float, float]

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of the data of one image."""
        raise NotImplementedError

    def rays(self) -> tuple[Array, Array]:
        """Return points in mm and unit directions of all lines, ``(L, 2)`` each, in the order of the data."""
        raise NotImplementedError

    def ray_permutation(self, Q: Index) -> Index | None:
        """Return ``(L,)``, the line onto which the symmetry ``Q`` maps every line, or None if it is no symmetry."""
        raise NotImplementedError

    def matrix(self, rays: Index | None = None) -> csr_array:
        """Return the weights of all lines, or of the numbered ones, as ``(lines, H * W)`` in cm."""
        points, directions = self.rays()
        if rays is not None:
            points, directions = points[rays], directions[rays]
        return joseph_matrix(points, directions, shape=self.shape, spacing_mm=self.spacing_mm)

    def key(self) -> str:
        """Return the hash that names the matrix of this geometry in a cache."""
        plain: dict[str, Any] = {"geometry": type(self).__name__, **asdict(self)}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]

    def grid_allows(self, Q: Index) -> bool:
        """Whether ``Q`` maps the pixel grid onto itself: exchanging the axes needs equal sizes and spacings."""
        return Q[0, 0] != 0 or (self.shape[0] == self.shape[1] and self.spacing_mm[0] == self.spacing_mm[1])

    def pixel_permutation(self, Q: Index) -> Index:
        """Return ``(H * W,)``, the pixel onto which ``Q`` maps every pixel."""
        size = np.array(self.shape)
        index = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), axis=-1)
        doubled = (2 * index - (size - 1)) @ Q.T  # twice the position in pixels stays an integer
        moved = (doubled + size - 1) // 2
        return np.asarray(moved[..., 0] * self.shape[1] + moved[..., 1]).ravel()


@dataclass(frozen=True)
class ViewGeometry(Geometry2D):
    """Lines ordered as ``views`` by ``bins`` of a straight or curved detector.

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
    offset_bins: float

    @property
    def size(self) -> tuple[int, ...]:
        """``(views, bins)``."""
        return len(self.angles), self.bins

    @property
    def positions(self) -> Array:
        """``(bins,)`` detector coordinates of the bin centres in mm."""
        return np.asarray((np.arange(self.bins) - (self.bins - 1) / 2 + self.offset_bins) * self.pitch_mm, np.float64)

    def axes(self) -> tuple[Array, Array]:
        """Return the unit vectors ``e`` (along the detector) and ``n`` (towards it), ``(views, 2)`` each."""
        theta = np.asarray(self.angles)
        return np.stack([np.cos(theta), np.sin(theta)], -1), np.stack([-np.sin(theta), np.cos(theta)], -1)

    def match(self, vectors: Array) -> Index:
        """Return ``(views,)``, the view whose ``e`` is each of the vectors, -1 where there is none."""
        theta = np.mod(np.asarray(self.angles) + _TOLERANCE, 2 * pi)
        order = np.argsort(theta)
        wanted = np.mod(np.arctan2(vectors[:, 1], vectors[:, 0]) + _TOLERANCE, 2 * pi)
        at = np.searchsorted(theta[order], wanted - 0.5 * _TOLERANCE) % len(theta)
        found = order[at]
        gap = np.abs(np.mod(theta[found] - wanted + pi, 2 * pi) - pi)
        return np.asarray(np.where(gap < 0.5 * _TOLERANCE, found, -1))

    def flipped_bins(self, flip: NDArray[np.bool_]) -> Index:
        """Return ``(views, bins)`` bin numbers, mirrored in the views that ask for it."""
        b = np.arange(self.bins)
        return np.where(flip[:, None], self.bins - 1 - b, b)


@dataclass(frozen=True)
class ParallelGeometry(ViewGeometry):
    """Parallel lines; the convention is that of :mod:`multirecon.operators.radon`."""

    def rays(self) -> tuple[Array, Array]:
        """Return points and directions of all lines."""
        e, n = self.axes()
        points = e[:, None, :] * self.positions[None, :, None]
        return points.reshape(-1, 2), np.broadcast_to(n[:, None, :], points.shape).reshape(-1, 2)

    def view_permutation(self, Q: Index) -> tuple[Index, NDArray[np.bool_]] | None:
        """Return, per view, the view that ``Q`` leads to and whether its bins are mirrored; None if there is none."""
        if not self.grid_allows(Q):
            return None
        e, _ = self.axes()
        same = self.match(e @ Q.T)
        mirrored = np.full_like(same, -1) if self.offset_bins else self.match(-e @ Q.T)
        view = np.where(same >= 0, same, mirrored)
        if (view < 0).any() or len(np.unique(view)) != len(view):
            return None
        return view, same < 0

    def ray_permutation(self, Q: Index) -> Index | None:
        """Return the line onto which ``Q`` maps every line: the line ``(e, s)`` goes to ``(Q e, s)``."""
        found = self.view_permutation(Q)
        if found is None:
            return None
        view, flip = found
        return (view[:, None] * self.bins + self.flipped_bins(flip)).ravel()


@dataclass(frozen=True)
class FanGeometry(ViewGeometry):
    """Lines from a turning source to a detector; the convention is that of :mod:`multirecon.operators.fan`.

    Args:
        shape: image size ``(H, W)``.
        spacing_mm: pixel size in mm along axis 0 and axis 1.
        angles: view angles in radians.
        bins: number of detector bins.
        pitch_mm: bin width on the detector in mm.
        offset_bins: displacement of the detector centre in bins.
        source_mm: distance from the source to the rotation axis in mm.
        detector_mm: distance from the rotation axis to the detector in mm.
        curved: whether the detector is an arc around the source.
    """

    source_mm: float
    detector_mm: float
    curved: bool

    def rays(self) -> tuple[Array, Array]:
        """Return points (the source) and directions of all lines."""
        e, n = self.axes()
        reach = self.source_mm + self.detector_mm
        gamma = self.positions / reach if self.curved else np.arctan2(self.positions, reach)
        direction = n[:, None] * np.cos(gamma)[None, :, None] + e[:, None] * np.sin(gamma)[None, :, None]
        points = np.broadcast_to(-self.source_mm * n[:, None], direction.shape)
        return points.reshape(-1, 2), direction.reshape(-1, 2)

    def ray_permutation(self, Q: Index) -> Index | None:
        """Return the line onto which ``Q`` maps every line; a reflection mirrors the detector."""
        reflection = round(float(np.linalg.det(Q))) < 0
        if not self.grid_allows(Q) or (reflection and self.offset_bins):
            return None
        e, _ = self.axes()
        view = self.match((-e if reflection else e) @ Q.T)
        if (view < 0).any() or len(np.unique(view)) != len(view):
            return None
        return (view[:, None] * self.bins + self.flipped_bins(np.full(len(view), reflection))).ravel()


@dataclass(frozen=True)
class LineGeometry(Geometry2D):
    """Any list of lines through pairs of points.

    Args:
        shape: image size ``(H, W)``.
        spacing_mm: pixel size in mm along axis 0 and axis 1.
        starts: one point of every line in mm from the image centre.
        ends: another point of every line in mm.
    """

    starts: tuple[tuple[float, float], ...]
    ends: tuple[tuple[float, float], ...]

    @property
    def size(self) -> tuple[int, ...]:
        """``(lines,)``."""
        return (len(self.starts),)

    def rays(self) -> tuple[Array, Array]:
        """Return points and directions of all lines."""
        starts, ends = np.asarray(self.starts, np.float64), np.asarray(self.ends, np.float64)
        step = ends - starts
        return starts, step / np.linalg.norm(step, axis=1, keepdims=True)

    def ray_permutation(self, Q: Index) -> Index | None:
        """Return the identity for the identity: a list is taken as it is."""
        return np.arange(len(self.starts)) if np.array_equal(Q, np.eye(2)) else None


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
