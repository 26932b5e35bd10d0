r"""Joseph's line weights on a 2D grid, as rows of a sparse matrix.

Frame shared by every projector: pixel ``(i, j)`` of an image ``(H, W)`` with spacing ``(d0, d1)`` mm has its centre at

.. math:: u = ((i - (H - 1) / 2)\, d_0,\; (j - (W - 1) / 2)\, d_1) \quad \text{mm},

so the origin is the centre of the image for odd and even sizes alike, and axis 0 comes first as in
:class:`~multirecon.space.ImageSpace`. A line is given by a point and a unit direction in that frame. It is followed
plane by plane along the axis in which it advances fastest (in pixels); on every plane the image is interpolated
linearly along the other axis, and the sample stands for the length of line between two planes. Lengths are in **cm**.

References:
    joseph1982
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

__all__ = ["joseph_matrix", "slab_matrix"]

_CHUNK = 1_000_000  # line-plane crossings handled at once: bounds the memory of a build to some hundred MB
_DROP = 1e-9  # interpolation weights below this are rounding noise of lines that hit pixel centres

Array = NDArray[np.float64]
Index = NDArray[np.int64]
#: Maps a range of lines and positions ``t`` along them in mm, ``(lines, ...)``, to an array of the same shape.
AlongLine = Callable[[slice, Array], Array]
_Rows = tuple[Index, NDArray[np.int32], NDArray[np.float32]]


def joseph_matrix(
    points: Array,
    directions: Array,
    *,
    shape: tuple[int, int],
    spacing_mm: tuple[float, float],
    profile: AlongLine | None = None,
) -> csr_array:
    """Return the matrix whose rows integrate an image along lines.

    Args:
        points: ``(L, 2)`` one point of every line, in mm from the centre of the image.
        directions: ``(L, 2)`` unit directions.
        shape: image size ``(H, W)``.
        spacing_mm: pixel size ``(d0, d1)`` in mm.
        profile: sensitivity along the lines as a function of the distance from their points (time of flight).

    Returns:
        ``(L, H * W)`` CSR matrix of float32 lengths in cm with int32 indices, sorted within the rows.

    Raises:
        ValueError: if points and directions are not both ``(L, 2)`` or a direction is not a unit vector.
    """

    def rows(part: slice) -> _Rows:
        column, weight, _ = _crossings(points[part], directions[part], shape, spacing_mm)
        if profile is not None:
            # at the pixels' own positions, so that the two ways to follow a diagonal line give the same weights
            pixel = np.stack([column // shape[1], column % shape[1]], axis=-1)
            u = (pixel - (np.array(shape) - 1) / 2) * np.array(spacing_mm) - points[part][:, None, None]
            weight = weight * profile(part, (u * directions[part][:, None, None]).sum(-1))
        keep = weight > 0
        return keep.sum(axis=(1, 2)), column[keep].astype(np.int32), weight[keep].astype(np.float32)

    _check(points, directions)
    return _assemble(rows, len(points), max(shape), shape[0] * shape[1])


def slab_matrix(
    points: Array,
    directions: Array,
    *,
    shape: tuple[int, int],
    spacing_mm: tuple[float, float],
    slices: int,
    height: AlongLine,
    secant: Array,
) -> csr_array:
    """Return the matrix whose rows integrate a slab of slices along tilted lines.

    Args:
        points: ``(L, 2)`` one point of every line's transaxial projection, in mm from the centre of the image.
        directions: ``(L, 2)`` unit directions of the projections.
        shape: slice size ``(H, W)``.
        spacing_mm: pixel size ``(d0, d1)`` in mm.
        slices: number of slices ``S`` of the slab.
        height: fractional slice number as a function of the transaxial distance from the points.
        secant: ``(L,)`` length of line per transaxial length.

    Returns:
        ``(L, H * W * S)`` CSR matrix (slices fastest) of float32 lengths in cm with int32 indices.
    """

    def rows(part: slice) -> _Rows:
        column, weight, t = _crossings(points[part], directions[part], shape, spacing_mm)
        z = height(part, t)
        low = np.floor(z)
        upper = z - low
        level = np.stack([low, low + 1], axis=-1).astype(np.int64)
        share = np.stack([1.0 - upper, upper], axis=-1)
        share[(level < 0) | (level >= slices) | (share <= _DROP)] = 0.0
        full = column[..., :, None] * slices + level[..., None, :]
        weights = weight[..., :, None] * share[..., None, :] * secant[part][:, None, None, None]
        keep = weights > 0
        return keep.sum(axis=(1, 2, 3)), full[keep].astype(np.int32), weights[keep].astype(np.float32)

    _check(points, directions)
    return _assemble(rows, len(points), 2 * max(shape), shape[0] * shape[1] * slices)


def _check(points: Array, directions: Array) -> None:
    if points.ndim != 2 or points.shape[1] != 2 or directions.shape != points.shape:
        raise ValueError(f"points, directions: expected shape (L, 2) twice, got {points.shape} and {directions.shape}")
    if not np.allclose(np.linalg.norm(directions, axis=1), 1.0, atol=1e-9):
        raise ValueError("directions: expected unit vectors")


def _assemble(rows: Callable[[slice], _Rows], lines: int, planes: int, columns: int) -> csr_array:
    """Return the matrix of the rows that a function makes for a range of lines."""
    step = max(1, _CHUNK // planes)
    parts = [rows(slice(i, min(i + step, lines))) for i in range(0, lines, step)]
    indptr = np.zeros(lines + 1, np.int64)
    np.cumsum(np.concatenate([p[0] for p in parts]), out=indptr[1:])
    if max(int(indptr[-1]), columns) >= 2**31:
        raise ValueError(f"geometry: expected fewer than 2^31 weights, got {indptr[-1]}; use a matrix-free operator")
    data, indices = np.concatenate([p[2] for p in parts]), np.concatenate([p[1] for p in parts])
    matrix = csr_array((data, indices, indptr.astype(np.int32)), shape=(lines, columns))
    matrix.sort_indices()
    return matrix


def _crossings(
    points: Array, directions: Array, shape: tuple[int, int], spacing: tuple[float, float]
) -> tuple[Index, Array, Array]:
    """Return pixels and weights ``(lines, planes, 2)`` and positions along the lines in mm ``(lines, planes)``.

    Weights are zero where a neighbour lies outside the image.
    """
    size, pitch = np.array(shape), np.array(spacing)
    centre = (size - 1) / 2
    along = np.argmax(np.abs(directions) / pitch, axis=1)  # the axis of the planes; axis 0 on a tie
    across = 1 - along
    line = np.arange(len(points))
    d_along, d_across = directions[line, along, None], directions[line, across, None]
    plane = np.arange(max(shape))
    u = (plane - centre[along][:, None]) * pitch[along][:, None]
    t = (u - points[line, along, None]) / d_along
    position = (points[line, across, None] + t * d_across) / pitch[across][:, None] + centre[across][:, None]
    low = np.floor(position)
    upper = position - low
    index = np.stack([low, low + 1], axis=-1).astype(np.int64)
    weight = np.stack([1.0 - upper, upper], axis=-1)
    outside = (index < 0) | (index >= size[across][:, None, None]) | (plane[:, None] >= size[along][:, None, None])
    weight[outside | (weight <= _DROP)] = 0.0
    stride = np.array([shape[1], 1])
    column = plane[:, None] * stride[along][:, None, None] + index * stride[across][:, None, None]
    length = pitch[along] / np.abs(d_along[:, 0]) / 10.0  # mm -> cm
    return column, weight * length[:, None, None], t
