r"""Cone-beam projection of volumes, without a matrix.

The frame is that of :mod:`multirecon.operators.radon` with the rotation axis along the last image axis, its origin at
the centre of the volume. At view angle :math:`\beta` the source is at :math:`-R\,n_\beta` and the centre of the flat
detector at :math:`D\,n_\beta`; bins are counted along :math:`e_\beta`, rows along the rotation axis. The central row of
a detector with an odd number of rows is the flat fan beam of :mod:`multirecon.operators.fan`.

Joseph's method in 3D: a ray is followed along the axis in which it advances fastest, with bilinear interpolation on
every plane. The planes are sampled one after another for all rays that share the axis, so memory stays at a few numbers
a ray; the adjoint spreads the same weights back and is exact to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, pi
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .base import LinearOperator
from .cache import shared
from .projector import linear_product, view_angles

__all__ = ["ConeBeam"]

_CHUNK = 1 << 17  # rays sampled at once: their coordinates and sums stay in the cache
_CHUNK_GPU = 1 << 23


@dataclass(frozen=True, eq=False)
class _Rays:
    """The rays that advance along one axis: sampling coordinates ``start + k * step`` on plane ``k``.

    Args:
        axis: axis of the planes.
        index: ``(n,)`` numbers of the rays.
        start: ``(n, 2)`` coordinates on plane 0 in ``grid_sample``'s normalised units, last image axis first.
        step: ``(n, 2)`` change from plane to plane.
        length: ``(n,)`` length of ray between two planes in cm.
    """

    axis: int
    index: Tensor
    start: Tensor
    step: Tensor
    length: Tensor


@dataclass(frozen=True, eq=False)
class _RaySet:
    groups: tuple[_Rays, ...]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for g in self.groups for t in (g.index, g.start, g.step, g.length))


class ConeBeam(LinearOperator):
    r"""Cone-beam line integrals with Joseph weights and the exact adjoint, matrix-free.

    Args:
        shape: image size ``(H, W, D)``; the rotation axis is the last.
        spacing_mm: voxel size in mm.
        views: number of view angles.
        rows: number of detector rows (along the rotation axis).
        bins: number of detector bins in a row.
        source_mm: distance ``R`` from the source to the rotation axis in mm.
        detector_mm: distance ``D`` from the rotation axis to the detector in mm.
        bin_spacing_mm: detector bin width in mm; by default the smaller transaxial pixel size times the magnification.
        row_spacing_mm: detector row height in mm; by default the slice thickness times the magnification.
        arc: angle covered by the views in radians (end point excluded), a full turn by default.
        start: first angle in radians.
        angles: explicit angles in radians, in place of ``arc`` and ``start``.
        offset_bins: displacement of the detector centre along the bins, in bins.
        offset_rows: displacement of the detector centre along the rows, in rows.
        channels: number of volumes projected alike.

    Raises:
        ValueError: on sizes, angles or distances that describe no scan.

    References:
        joseph1982

    Example:
        >>> scan = {"views": 4, "rows": 6, "bins": 10, "source_mm": 200.0, "detector_mm": 100.0}
        >>> A = ConeBeam((8, 8, 6), (2.0, 2.0, 2.0), **scan)
        >>> A(torch.ones(1, 1, 8, 8, 6)).shape
        torch.Size([1, 1, 4, 6, 10])
    """

    kind = "cone_beam"

    def __init__(
        self,
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        *,
        views: int,
        rows: int,
        bins: int,
        source_mm: float,
        detector_mm: float,
        bin_spacing_mm: float | None = None,
        row_spacing_mm: float | None = None,
        arc: float = 2 * pi,
        start: float = 0.0,
        angles: Sequence[float] | None = None,
        offset_bins: float = 0.0,
        offset_rows: float = 0.0,
        channels: int = 1,
    ) -> None:
        if len(shape) != 3 or len(spacing_mm) != 3 or min(shape) < 1 or min(spacing_mm) <= 0:
            raise ValueError(f"shape, spacing_mm: expected three positive numbers each, got {shape} and {spacing_mm}")
        corner = hypot(shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]) / 2
        if not source_mm > corner or not detector_mm >= 0:
            raise ValueError(f"source_mm, detector_mm: expected a source beyond the corner ({corner:.4g} mm) and a "
                             f"detector at >= 0 mm, got {source_mm} and {detector_mm}")  # fmt: skip
        if rows < 1 or channels < 1:
            raise ValueError(f"rows, channels: expected >= 1, got {rows} and {channels}")
        magnification = (source_mm + detector_mm) / source_mm
        pitch = min(spacing_mm[:2]) * magnification if bin_spacing_mm is None else float(bin_spacing_mm)
        height = spacing_mm[2] * magnification if row_spacing_mm is None else float(row_spacing_mm)
        if not height > 0:
            raise ValueError(f"row_spacing_mm: expected > 0, got {row_spacing_mm}")
        theta = view_angles(views, bins, pitch, arc=arc, start=start, angles=angles)
        super().__init__((channels, *shape), (channels, views, rows, bins))
        self.angles = theta
        self._explicit = angles is not None
        self._plain: dict[str, Any] = {
            "shape": [int(n) for n in shape],
            "spacing_mm": [float(d) for d in spacing_mm],
            "views": views,
            "rows": rows,
            "bins": bins,
            "source_mm": float(source_mm),
            "detector_mm": float(detector_mm),
            "bin_spacing_mm": pitch,
            "row_spacing_mm": height,
            "arc": float(arc),
            "start": float(start),
            "offset_bins": float(offset_bins),
            "offset_rows": float(offset_rows),
            "channels": channels,
        }
        self._rays: dict[tuple[torch.device, torch.dtype], _RaySet] = {}
        self._where: Tensor
        self.register_buffer("_where", torch.empty(0), persistent=False)  # carries dtype and device of the module

    def forward(self, x: Tensor) -> Tensor:
        """Return line integrals ``(B, channels, views, rows, bins)`` of volumes ``(B, channels, H, W, D)``."""
        return linear_product(self.check_domain(x), self, transposed=False)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the back projection ``(B, channels, H, W, D)`` of data ``(B, channels, views, rows, bins)``."""
        return linear_product(self.check_range(y), self, transposed=True)

    def product(self, x: Tensor, *, transposed: bool) -> Tensor:
        """Return ``A x`` or ``A^T x`` of a real tensor, outside autograd."""
        batch, channels = x.shape[0], self.domain_shape[0]
        if transposed:
            return self._back(x.reshape(batch * channels, -1)).reshape(batch, *self.domain_shape)
        volumes = x.reshape(batch * channels, *self.domain_shape[1:])
        return self._project(volumes).reshape(batch, *self.range_shape)

    def _project(self, volumes: Tensor) -> Tensor:
        data = volumes.new_zeros(len(volumes), int(np.prod(self.range_shape[1:])))
        for group in self._ray_set(volumes.device, volumes.dtype).groups:
            planes = volumes.movedim(group.axis + 1, 0).contiguous()  # (planes, K, n_b, n_c)
            for part in self._chunks(group):
                start, step = group.start[part], group.step[part]
                total = volumes.new_zeros(1, len(volumes), len(start), 1)
                for k, plane in enumerate(planes):
                    grid = torch.add(start, step, alpha=k)[None, :, None]
                    total += F.grid_sample(plane[None], grid, align_corners=False)
                data[:, group.index[part]] = total[0, :, :, 0] * group.length[part]
        return data

    def _back(self, data: Tensor) -> Tensor:
        volumes = data.new_zeros(len(data), *self.domain_shape[1:])
        for group in self._ray_set(data.device, data.dtype).groups:
            target = volumes.movedim(group.axis + 1, 0)
            like = torch.empty_like(target[0], memory_format=torch.contiguous_format)[None]
            for part in self._chunks(group):
                start, step = group.start[part], group.step[part]
                values = (data[:, group.index[part]] * group.length[part])[None, :, :, None].contiguous()
                for k in range(len(target)):
                    grid = torch.add(start, step, alpha=k)[None, :, None]
                    # the transpose of grid_sample with bilinear weights (0) and zeros outside (0)
                    spread = torch.ops.aten.grid_sampler_2d_backward(values, like, grid, 0, 0, False, (True, False))[0]
                    target[k] += spread[0]
        return volumes

    @staticmethod
    def _chunks(group: _Rays) -> list[slice]:
        size = _CHUNK if group.index.device.type == "cpu" else _CHUNK_GPU
        return [slice(i, i + size) for i in range(0, len(group.index), size)]

    def _ray_set(self, device: torch.device, dtype: torch.dtype) -> _RaySet:
        place = (device, dtype)
        if place not in self._rays:
            self._rays[place] = shared(("cone", repr(self._plain), self.angles, *place), lambda: self._trace(*place))
        return self._rays[place]

    def _trace(self, device: torch.device, dtype: torch.dtype) -> _RaySet:
        """Return the sampling coordinates of all rays, grouped by the axis in which they advance fastest."""
        p = self._plain
        theta = np.asarray(self.angles)
        e = np.stack([np.cos(theta), np.sin(theta), 0 * theta], -1)
        n = np.stack([-np.sin(theta), np.cos(theta), 0 * theta], -1)
        s = (np.arange(p["bins"]) - (p["bins"] - 1) / 2 + p["offset_bins"]) * p["bin_spacing_mm"]
        h = (np.arange(p["rows"]) - (p["rows"] - 1) / 2 + p["offset_rows"]) * p["row_spacing_mm"]
        reach = p["source_mm"] + p["detector_mm"]
        direction = reach * n[:, None, None] + s[None, None, :, None] * e[:, None, None]
        direction = direction + h[None, :, None, None] * np.array([0.0, 0.0, 1.0])
        source = np.broadcast_to(-p["source_mm"] * n[:, None, None], direction.shape).reshape(-1, 3)
        direction = direction.reshape(-1, 3)
        direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
        size, pitch = np.array(p["shape"]), np.array(p["spacing_mm"])
        fastest = np.argmax(np.abs(direction) / pitch, axis=1)
        groups = []
        for axis in range(3):
            index = np.flatnonzero(fastest == axis)
            if not len(index):
                continue
            others = [b for b in range(3) if b != axis][::-1]  # grid_sample wants the last image axis first
            d, o = direction[index], source[index]
            slope = pitch[axis] / d[:, axis, None] * d[:, others]  # mm from plane to plane
            first = (-(size[axis] - 1) / 2 * pitch[axis] - o[:, axis, None]) / d[:, axis, None] * d[:, others] + o[
                :, others
            ]
            start = (
                2 * first / (size[others] * pitch[others])
            )  # a position in mm from the centre, normalised to [-1, 1]
            step = 2 * slope / (size[others] * pitch[others])
            length = pitch[axis] / np.abs(d[:, axis]) / 10.0  # mm -> cm
            move = lambda a: torch.from_numpy(a).to(device, dtype)  # noqa: E731
            groups.append(_Rays(axis, torch.from_numpy(index).to(device), move(start), move(step), move(length)))
        return _RaySet(tuple(groups))

    def subset(self, index: int, count: int) -> ConeBeam:
        """Return the operator of the views ``index, index + count, ...`` (an ordered subset).

        Raises:
            ValueError: unless ``0 <= index < count <= views``.
        """
        if not 0 <= index < count <= len(self.angles):
            raise ValueError(f"index, count: expected 0 <= index < count <= {len(self.angles)}, got {index}, {count}")
        angles = list(self.angles[index::count])
        return type(self)(**{**self._plain, "angles": angles, "views": len(angles)}).to(self._where)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments as plain values."""
        return {**self._plain, "angles": list(self.angles) if self._explicit else None}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the ray coordinates out of copies and pickles: they are made again."""
        return {**super().__getstate__(), "_rays": {}}
