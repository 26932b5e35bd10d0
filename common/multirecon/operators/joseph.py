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

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

__all__ = ["joseph_matrix"]

_CHUNK = 2_000_000  # line-plane crossings handled at once: bounds the memory of a build to some hundred MB
_DROP = 1e-9  # weights below this fraction of a sample are rounding noise of lines that hit pixel centres

Array = NDArray[np.float64]


def joseph_matrix(
    points: Array, directions: Array, *, shape: tuple[int, int], spacing_mm: tuple[float, float]
) -> csr_array:
    """Return the matrix whose rows integrate an image along lines.

    Args:
        points: ``(R, 2)`` one point of every line, in mm from the centre of the image.
        directions: ``(R, 2)`` unit directions.
        shape: image size ``(H, W)``.
        spacing_mm: pixel size ``(d0, d1)`` in mm.

    Returns:
        ``(R, H * W)`` CSR matrix of float32 lengths in cm with int32 indices, sorted within the rows.

    Raises:
        ValueError: if points and directions are not both ``(R, 2)`` or a direction is not a unit vector.
    """
    if points.ndim != 2 or points.shape[1] != 2 or directions.shape != points.shape:
        raise ValueError(f"points, directions: expected shape (R, 2) twice, got {points.shape} and {directions.shape}")
    if not np.allclose(np.linalg.norm(directions, axis=1), 1.0, atol=1e-9):
        raise ValueError("directions: expected unit vectors")
    rays, planes = len(points), max(shape)
    step = max(1, _CHUNK // planes)
    parts = [_rows(points[i : i + step], directions[i : i + step], shape, spacing_mm) for i in range(0, rays, step)]
    counts = np.concatenate([p[0] for p in parts]) if parts else np.zeros(0, np.int64)
    indptr = np.zeros(rays + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    if indptr[-1] >= 2**31:
        raise ValueError(f"geometry: expected fewer than 2^31 weights, got {indptr[-1]}; use a matrix-free operator")
    matrix = csr_array(
        (np.concatenate([p[2] for p in parts]), np.concatenate([p[1] for p in parts]), indptr.astype(np.int32)),
        shape=(rays, shape[0] * shape[1]),
    )
    matrix.sort_indices()
    return matrix


def _rows(
    points: Array, directions: Array, shape: tuple[int, int], spacing: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Return entries per row, column indices and weights of some lines."""
    size = np.array(shape)
    pitch = np.array(spacing)
    along = np.argmax(np.abs(directions) / pitch, axis=1)  # the axis of the planes; axis 0 on a tie
    across = 1 - along
    rows = np.arange(len(points))
    d_along, d_across = directions[rows, along], directions[rows, across]
    centre = (size - 1) / 2
    plane = np.arange(max(shape))
    u = (plane[None, :] - centre[along][:, None]) * pitch[along][:, None]
    slope = d_across / d_along
    position = (points[rows, across][:, None] + (u - points[rows, along][:, None]) * slope[:, None]) / pitch[across][
        :, None
    ] + centre[across][:, None]
    low = np.floor(position)
    fraction = position - low
    low_index = low.astype(np.int64)
    length = pitch[along] / np.abs(d_along) / 10.0  # mm -> cm
    weights = np.stack([1.0 - fraction, fraction], axis=-1)
    index = np.stack([low_index, low_index + 1], axis=-1)
    keep = (index >= 0) & (index < size[across][:, None, None]) & (plane[None, :, None] < size[along][:, None, None])
    keep &= weights > _DROP
    stride = np.array([shape[1], 1])
    column = plane[None, :, None] * stride[along][:, None, None] + index * stride[across][:, None, None]
    weights *= length[:, None, None]
    return keep.sum(axis=(1, 2)), column[keep].astype(np.int32), weights[keep].astype(np.float32)
