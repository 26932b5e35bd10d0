"""What every line projector shares: matrix back ends, batch and channel folding, exact differentiation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import LinearOperator
from .csr import SparsePair
from .geometry import Geometry2D
from .joseph import joseph_matrix

__all__ = ["MatrixProjector"]


class _Product(torch.autograd.Function):
    """``A x`` or ``A^T x``; the derivative of one is the other, to any order."""

    @staticmethod
    def forward(x: Tensor, operator: MatrixProjector, transposed: bool) -> Tensor:
        return operator.apply_matrix(x, transposed=transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, MatrixProjector, bool], output: Tensor) -> None:
        _, ctx.operator, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradient, ctx.operator, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _Product.apply(tangent, ctx.operator, ctx.transposed)


class MatrixProjector(LinearOperator):
    """Line integrals of 2D images by a sparse matrix, slice by slice.

    Images ``(B, channels, H, W)`` become the columns of one dense matrix, so a batch costs little more than its bytes.
    The matrix follows the dtype and device of the input; half precision is computed and returned in float32, complex
    images part by part.

    Args:
        geometry: the lines and the grid.
        channels: number of images projected alike.
        backend: ``"auto"`` or ``"full"``.
    """

    def __init__(self, geometry: Geometry2D, *, channels: int = 1, backend: str = "auto") -> None:
        if channels < 1:
            raise ValueError(f"channels: expected >= 1, got {channels}")
        if backend not in ("auto", "full"):
            raise ValueError(f"backend: expected 'auto' or 'full', got {backend!r}")
        super().__init__((channels, *geometry.shape), (channels, *geometry.size))
        self.geometry = geometry
        self.channels = channels
        self.backend = backend
        self._pairs: dict[tuple[torch.device, torch.dtype], SparsePair] = {}
        self._where: Tensor
        self.register_buffer("_where", torch.empty(0), persistent=False)  # carries dtype and device of the module

    def forward(self, x: Tensor) -> Tensor:
        """Return line integrals ``(B, channels, views, bins)`` of images ``(B, channels, H, W)``."""
        return self._product(self.check_domain(x), transposed=False)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the back projection ``(B, channels, H, W)`` of sinograms ``(B, channels, views, bins)``."""
        return self._product(self.check_range(y), transposed=True)

    def _product(self, x: Tensor, *, transposed: bool) -> Tensor:
        if x.is_complex():
            return torch.complex(
                self._product(x.real, transposed=transposed), self._product(x.imag, transposed=transposed)
            )
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        result: Tensor = _Product.apply(x, self, transposed)
        return result

    def apply_matrix(self, x: Tensor, *, transposed: bool) -> Tensor:
        """Return the product of a real tensor with the matrix or its transpose (no autograd of its own)."""
        pair = self._pair(x.device, x.dtype)
        shape = self.domain_shape if transposed else self.range_shape
        columns = x.reshape(x.shape[0] * self.channels, -1).t()
        return pair.product(columns, transposed=transposed).t().reshape(x.shape[0], *shape)

    def _pair(self, device: torch.device, dtype: torch.dtype) -> SparsePair:
        if (device, dtype) not in self._pairs:
            base = next(iter(self._pairs.values()), None)
            if base is None:
                g = self.geometry
                base = SparsePair.from_scipy(joseph_matrix(*g.rays(), shape=g.shape, spacing_mm=g.spacing_mm))
            self._pairs[device, dtype] = base.to(device, dtype)
        return self._pairs[device, dtype]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the matrix out of copies and pickles: it is rebuilt from the geometry."""
        return {**super().__getstate__(), "_pairs": {}}
