"""Resampling between native grids: an image seen on another grid, through thick slices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import ceil, log, prod
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, vstack
from torch import Tensor

from .base import LinearOperator
from .csr import FullMatrix
from .projector import linear_product

__all__ = ["Resample"]

_NODES_PER_VOXEL = 4  # quadrature nodes of a slice profile for each voxel of the source it covers


class Resample(LinearOperator):
    r"""The image on a target grid: linear interpolation averaged over a slice profile, zero outside the source grid.

    The value of target voxel ``p`` is ``sum_s w_s u(T (p + s))``, where ``u`` is the (bi- or tri-)linear interpolant of
    the source image, ``T`` maps target to source indices through the two affines, and the offsets ``s`` sample the
    profile along the target's axes with weights that sum to one. Where every target axis is parallel to a source axis
    (flips and permutations included) the operator is a product of one small matrix an axis, otherwise one sparse
    matrix; the adjoint is the transpose.

    Args:
        source_shape: ``(C, *spatial)`` of the image.
        target_shape: spatial shape of the other grid, as many axes.
        source_affine: ``(4, 4)`` index-to-RAS matrix in mm, as in :class:`~multirecon.space.ImageSpace`.
        target_affine: the same for the other grid.
        thickness_mm: width of the profile along each target axis in mm, 0 for point samples; the default is the
            target's spacing along axes coarser than the source by more than 1 %, else 0.
        profile: ``"box"``, or ``"gaussian"`` with the width as full width at half maximum.

    Raises:
        ValueError: if shapes or affines do not fit; for 2D, if the two planes differ.

    Example:
        >>> thick = torch.diag(torch.tensor([1.0, 1.0, 4.0, 1.0]))
        >>> A = Resample((1, 4, 4, 8), (4, 4, 2), source_affine=torch.eye(4), target_affine=thick)
        >>> A.thickness_mm, A(torch.ones(1, 1, 4, 4, 8)).shape
        ((0.0, 0.0, 4.0), torch.Size([1, 1, 4, 4, 2]))
    """

    kind = "resample"

    def __init__(
        self,
        source_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        source_affine: Tensor | Sequence[Sequence[float]],
        target_affine: Tensor | Sequence[Sequence[float]],
        thickness_mm: Sequence[float] | None = None,
        profile: str = "box",
    ) -> None:
        channels, *source = (int(n) for n in source_shape)
        target, dims = tuple(int(n) for n in target_shape), len(source)
        if dims not in (2, 3) or len(target) != dims or min(*source, *target) < 1:
            raise ValueError(f"target_shape: expected as many sizes (two or three) as the source has, got {target} for "
                             f"source_shape {tuple(source_shape)}")  # fmt: skip
        if profile not in ("box", "gaussian"):
            raise ValueError(f"profile: expected 'box' or 'gaussian', got {profile!r}")
        super().__init__(source_shape, (channels, *target))
        affines = [torch.as_tensor(a, dtype=torch.float64).cpu() for a in (source_affine, target_affine)]
        for name, matrix in zip(("source_affine", "target_affine"), affines, strict=True):
            if (
                matrix.shape != (4, 4)
                or not torch.isfinite(matrix).all()
                or torch.linalg.det(matrix[:3, :3]).abs() < 1e-12
            ):
                raise ValueError(f"{name}: expected a finite, invertible (4, 4) matrix, got {tuple(matrix.shape)}")
        self._affines, self.profile = (affines[0], affines[1]), profile
        self._transform = _index_map(affines[0], affines[1], dims)
        spacing = torch.linalg.vector_norm(affines[1][:3, :dims], dim=0)
        if thickness_mm is None:
            reach = torch.linalg.vector_norm(self._transform[:, :dims], dim=0)  # source voxels a target step
            self.thickness_mm = tuple(float(s) if r > 1.01 else 0.0 for s, r in zip(spacing, reach, strict=True))
        else:
            self.thickness_mm = tuple(float(t) for t in thickness_mm)
        if len(self.thickness_mm) != dims or min(self.thickness_mm) < 0:
            raise ValueError(f"thickness_mm: expected {dims} numbers >= 0, got {self.thickness_mm}")
        self._widths = tuple(t / float(s) for t, s in zip(self.thickness_mm, spacing, strict=True))
        linear = self._transform[:, :dims]
        tolerance = 1e-6 / max(*source, *target)
        aligned = linear.abs() > tolerance
        self.separable = bool((aligned.sum(0) == 1).all() and (aligned.sum(1) == 1).all())
        # target axis that runs along each source axis
        self._target_axis = aligned.int().argmax(1).tolist() if self.separable else []
        self._matrices: dict[tuple[torch.device, torch.dtype], FullMatrix] = {}
        self._build(torch.device("cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the image ``(B, C, *target_shape)`` on the target grid."""
        self.check_domain(x)
        if not self.separable:
            return linear_product(x, self, transposed=False)
        for axis in range(len(self._target_axis)):
            x = _apply_along(getattr(self, f"_matrix_{axis}"), x, 2 + axis)
        order = [self._target_axis.index(axis) for axis in range(len(self._target_axis))]
        return x.permute(0, 1, *(2 + axis for axis in order)).contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the image ``(B, C, *source)`` that the transposed weights make of ``y``."""
        self.check_range(y)
        if not self.separable:
            return linear_product(y, self, transposed=True)
        y = y.permute(0, 1, *(2 + axis for axis in self._target_axis))
        for axis in range(len(self._target_axis)):
            y = _apply_along(getattr(self, f"_matrix_{axis}").mT, y, 2 + axis)
        return y.contiguous()

    def product(self, x: Tensor, *, transposed: bool) -> Tensor:
        """Return the product of a real tensor with the sparse matrix or its transpose, outside autograd."""
        place = (x.device, x.dtype)
        if place not in self._matrices:
            self._matrices[place] = FullMatrix.from_scipy(self._sparse_matrix()).to(*place)
        shape = self.domain_shape if transposed else self.range_shape
        rows = self._matrices[place].product(x.flatten(2).flatten(0, 1), transposed=transposed)
        return rows.reshape(x.shape[0], *shape)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {
            "source_shape": list(self.domain_shape),
            "target_shape": list(self.range_shape[1:]),
            "source_affine": self._affines[0].tolist(),
            "target_affine": self._affines[1].tolist(),
            "thickness_mm": list(self.thickness_mm),
            "profile": self.profile,
        }

    def _build(self, device: torch.device) -> None:
        """Make the dense matrix of every source axis; the sparse one is made at the first product."""
        for axis, target_axis in enumerate(self._target_axis):
            scale, shift = self._transform[axis, target_axis], self._transform[axis, -1]
            offsets, weights = self._profile(target_axis)
            place = scale * (torch.arange(self.range_shape[1 + target_axis])[:, None] + offsets) + shift
            matrix = torch.zeros(len(place), self.domain_shape[1 + axis], dtype=torch.float64)
            row = torch.arange(len(place))[:, None].expand(place.shape)
            for corner in (0, 1):
                index = place.floor().long() + corner
                value = (1 - (place - index).abs()) * weights
                inside = (index >= 0) & (index < matrix.shape[1])
                matrix.index_put_((row[inside], index[inside]), value[inside], accumulate=True)
            self.register_buffer(f"_matrix_{axis}", matrix.to(device, self.domain_dtype), persistent=False)
        if not self.separable:
            self.register_buffer("_where", torch.empty(0, device=device, dtype=self.domain_dtype), persistent=False)

    def _profile(self, axis: int) -> tuple[Tensor, Tensor]:
        """Return offsets (in target voxels) and weights of the profile along a target axis."""
        width = self._widths[axis]
        if width == 0:
            return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        extent = width if self.profile == "box" else 3 * width
        covered = extent * float(torch.linalg.vector_norm(self._transform[:, axis]))
        nodes = max(3, ceil(_NODES_PER_VOXEL * covered))
        offsets = extent * ((torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes - 0.5)
        weights = torch.exp(-4 * log(2) * (offsets / width) ** 2) if self.profile == "gaussian" else torch.ones(nodes)
        return offsets, (weights / weights.sum()).double()

    def _sparse_matrix(self) -> csr_array:
        source, target = self.domain_shape[1:], self.range_shape[1:]
        profiles = [self._profile(axis) for axis in range(len(target))]
        offsets = torch.cartesian_prod(*[p[0] for p in profiles]).numpy()
        weights = np.prod(torch.cartesian_prod(*[p[1] for p in profiles]).numpy(), axis=1)
        transform = self._transform.numpy()
        strides = np.array([prod(source[axis + 1 :]) for axis in range(len(source))])
        grid = np.stack(np.meshgrid(*[np.arange(n) for n in target], indexing="ij"), -1).reshape(-1, len(target))
        chunk = max(1, 2**21 // (len(offsets) * 2 ** len(source)))
        parts = []
        for start in range(0, len(grid), chunk):
            points = grid[start : start + chunk, None] + offsets
            place = points @ transform[:, :-1].T + transform[:, -1]
            low = np.floor(place).astype(np.int64)
            rows, columns, values = [], [], []
            for corner in itertools.product((0, 1), repeat=len(source)):
                index = low + np.array(corner)
                value = np.prod(1 - np.abs(place - index), axis=-1) * weights
                inside = ((index >= 0) & (index < np.array(source))).all(-1) & (value > 0)
                rows.append(np.broadcast_to(np.arange(len(points))[:, None], inside.shape)[inside])
                columns.append((index @ strides)[inside])
                values.append(value[inside])
            entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
            parts.append(coo_array(entries, shape=(len(points), prod(source))).tocsr())  # sums repeated entries
        return csr_array(vstack(parts, format="csr"))

    def _apply(self, fn: Any, recurse: bool = True) -> Resample:
        super()._apply(fn, recurse)
        self._build(self._reference_tensor().device)  # again, so that a change of precision leaves no rounded weights
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave the sparse matrices out of copies and pickles: they are made again."""
        return {**super().__getstate__(), "_matrices": {}}


def _index_map(source_affine: Tensor, target_affine: Tensor, dims: int) -> Tensor:
    """Return the ``(dims, dims + 1)`` map from target indices to source indices."""
    full = torch.linalg.solve(source_affine, target_affine)
    if dims == 2:
        leaving = full[2, [0, 1, 3]].abs().max()
        if leaving > 1e-4:
            raise ValueError(f"target_affine: expected the plane of source_affine for 2D images, "
                             f"got a plane that leaves it by {float(leaving):.3g} source voxels")  # fmt: skip
    return torch.cat((full[:dims, :dims], full[:dims, 3:]), 1)


def _apply_along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Multiply one axis by a matrix."""
    return (x.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
