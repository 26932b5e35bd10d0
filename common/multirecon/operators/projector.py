"""What every matrix projector shares: back ends, batch and channel folding, exact differentiation."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, Self

import torch
from torch import Tensor

from .base import LinearOperator
from .cache import shared, stored_matrix
from .csr import FullMatrix
from .csr_folded import FoldedMatrix, find_fold
from .geometry import Geometry2D, ViewGeometry

__all__ = ["BACKENDS", "MatrixProjector", "ViewProjector", "linear_product", "view_angles"]

BACKENDS = ("auto", "folded", "full")


class _LinearMap(torch.autograd.Function):
    """``A x`` or ``A^T x`` of an operator's ``product``; the derivative of one is the other, to any order."""

    @staticmethod
    def forward(x: Tensor, operator: Any, transposed: bool) -> Tensor:
        """Return the product."""
        result: Tensor = operator.product(x, transposed=transposed)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any, bool], output: Tensor) -> None:
        """Remember the operator: a linear map needs none of its inputs."""
        _, ctx.operator, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Apply the adjoint."""
        return _LinearMap.apply(gradient, ctx.operator, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        """Apply the map itself."""
        result: Tensor = _LinearMap.apply(tangent, ctx.operator, ctx.transposed)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, operator: Any, transposed: bool) -> tuple[Tensor, int]:
        """Join the mapped axis and the batch axis."""
        x = x.movedim(in_dims[0], 0)
        result: Tensor = _LinearMap.apply(x.flatten(0, 1), operator, transposed)
        return result.unflatten(0, x.shape[:2]), 0


def linear_product(x: Tensor, operator: Any, *, transposed: bool) -> Tensor:
    """Return the differentiable product: complex part by part, half precision computed and returned in float32."""
    if x.is_complex():
        parts = (linear_product(part, operator, transposed=transposed) for part in (x.real, x.imag))
        return torch.complex(*parts)
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    result: Tensor = _LinearMap.apply(x, operator, transposed)
    return result


class MatrixProjector(LinearOperator):
    """Line integrals of 2D images by a sparse matrix, slice by slice.

    Images ``(B, channels, H, W)`` become the columns of one dense matrix, so a batch costs little more than its bytes.
    The matrix is made at the first product, in the dtype and on the device of the input, and is shared by all operators
    of the same geometry. It is never part of a state dict, a copy or a pickle.

    Args:
        geometry: the lines and the grid.
        channels: number of images projected alike.
        backend: ``"full"`` stores every weight, ``"folded"`` those of one line per symmetry orbit; ``"auto"`` folds
            where the geometry has a symmetry.

    Raises:
        ValueError: if channels or backend make no sense, or there is no symmetry to fold by.
    """

    def __init__(self, geometry: Geometry2D, *, channels: int = 1, backend: str = "auto") -> None:
        if channels < 1:
            raise ValueError(f"channels: expected >= 1, got {channels}")
        if backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
        super().__init__((channels, *geometry.shape), (channels, *geometry.size))
        self.geometry = geometry
        self.channels = channels
        self.backend = backend
        self._matrices: dict[tuple[torch.device, torch.dtype], FullMatrix | FoldedMatrix] = {}
        self._sums: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._where: Tensor
        self.register_buffer("_where", torch.empty(0), persistent=False)  # carries dtype and device of the module

    def forward(self, x: Tensor) -> Tensor:
        """Return line integrals ``(B, channels, *size)`` of images ``(B, channels, H, W)``."""
        return linear_product(self.check_domain(x), self, transposed=False)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the back projection ``(B, channels, H, W)`` of data ``(B, channels, *size)``."""
        return linear_product(self.check_range(y), self, transposed=True)

    def product(self, x: Tensor, *, transposed: bool) -> Tensor:
        """Return the product of a real tensor with the matrix or its transpose, outside autograd."""
        shape = self.domain_shape if transposed else self.range_shape
        rows = x.reshape(x.shape[0] * self.channels, -1)
        return self.matrix(x.device, x.dtype).product(rows, transposed=transposed).reshape(x.shape[0], *shape)

    def matrix(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> FullMatrix | FoldedMatrix:
        """Return the matrix of this operator on a device (made at the first call)."""
        place = (torch.device(device), dtype)
        if place not in self._matrices:
            key = (self.geometry.key(), self.backend, *place)
            self._matrices[place] = shared(key, lambda: self._build().to(*place))
        return self._matrices[place]

    def sensitivity(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """Return ``(H, W)``, the back projection of ones in cm (computed once)."""
        place = (torch.device(device), dtype)
        if place not in self._sums:
            ones = torch.ones(1, *self.geometry.size, device=device, dtype=dtype).reshape(1, -1)
            self._sums[place] = self.matrix(device, dtype).product(ones, transposed=True).reshape(self.geometry.shape)
        return self._sums[place]

    def _build(self) -> FullMatrix | FoldedMatrix:
        geometry = self.geometry
        fold = find_fold(geometry)
        if fold.order == 1:
            if self.backend == "folded":
                raise ValueError("backend: expected a geometry with a symmetry for 'folded', got none; use 'auto'")
            return FullMatrix.from_scipy(stored_matrix(geometry.key(), geometry.matrix))
        folded = stored_matrix(f"{geometry.key()}-{fold.order}", lambda: geometry.matrix(fold.rays))
        if self.backend == "full":
            return FullMatrix.from_scipy(fold.unfold(folded))
        return FoldedMatrix.from_scipy(folded, fold)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the matrices out of copies and pickles: they are made again from the geometry."""
        return {**super().__getstate__(), "_matrices": {}, "_sums": {}}


class ViewProjector(MatrixProjector):
    """A projector whose lines come view by view from a turning detector.

    Args:
        geometry: the lines and the grid.
        arc: angle covered by the views in radians.
        start: first angle in radians.
        explicit: whether the angles were given one by one.
        channels: number of images projected alike.
        backend: see :class:`MatrixProjector`.
    """

    geometry: ViewGeometry

    def __init__(
        self, geometry: ViewGeometry, *, arc: float, start: float, explicit: bool, channels: int, backend: str
    ) -> None:
        super().__init__(geometry, channels=channels, backend=backend)
        self.arc, self.start, self._explicit = float(arc), float(start), explicit

    @property
    def angles(self) -> tuple[float, ...]:
        """View angles in radians."""
        return self.geometry.angles

    @property
    def bin_spacing_mm(self) -> float:
        """Detector bin width in mm."""
        return self.geometry.pitch_mm

    def subset(self, index: int, count: int) -> Self:
        """Return the operator of the views ``index, index + count, ...`` (an ordered subset).

        Raises:
            ValueError: unless ``0 <= index < count <= views``.
        """
        if not 0 <= index < count <= len(self.angles):
            raise ValueError(f"index, count: expected 0 <= index < count <= {len(self.angles)}, got {index}, {count}")
        angles = self.angles[index::count]
        return type(self)(**{**self.arguments(), "angles": list(angles), "views": len(angles)}).to(self._where)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments as plain values."""
        g = self.geometry
        return {
            "shape": list(g.shape),
            "spacing_mm": list(g.spacing_mm),
            "views": len(g.angles),
            "bins": g.bins,
            "bin_spacing_mm": g.pitch_mm,
            "arc": self.arc,
            "start": self.start,
            "angles": list(g.angles) if self._explicit else None,
            "offset_bins": g.offset_bins,
            "channels": self.channels,
            "backend": self.backend,
        }


def view_angles(
    views: int, bins: int, pitch_mm: float, *, arc: float, start: float, angles: Sequence[float] | None
) -> tuple[float, ...]:
    """Return the view angles in radians after a check of the numbers of a scan.

    Raises:
        ValueError: naming the argument that describes no scan.
    """
    if views < 1 or bins < 1:
        raise ValueError(f"views, bins: expected >= 1, got {views} and {bins}")
    if not pitch_mm > 0 or not isfinite(pitch_mm):
        raise ValueError(f"bin_spacing_mm: expected > 0, got {pitch_mm}")
    if not arc > 0 or not isfinite(arc) or not isfinite(start):
        raise ValueError(f"arc, start: expected a finite angle > 0 and a finite angle, got {arc} and {start}")
    if angles is None:
        return tuple(start + arc * k / views for k in range(views))
    if len(angles) != views:
        raise ValueError(f"angles: expected {views} values (views), got {len(angles)}")
    return tuple(float(a) for a in angles)
