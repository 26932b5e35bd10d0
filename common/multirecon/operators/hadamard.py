"""Walsh-Hadamard measurements: the patterns of a single-pixel camera."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from .base import LinearOperator

__all__ = ["Hadamard", "sequency_order", "variance_order", "walsh_hadamard"]

_RADIX = 64  # one dense product does six stages of the butterfly


class Hadamard(LinearOperator):
    r"""Chosen coefficients of the orthonormal 2D Walsh-Hadamard transform: ``A x = (H x)[rows]``.

    The rows of ``A`` are orthonormal patterns ``+-1 / sqrt N``, so that the adjoint is also the pseudo-inverse and the
    spectral norm is one.

    Args:
        shape: ``(C, *spatial)`` with sizes that are powers of two; every channel is measured with the same patterns.
        rows: ``(M,)`` distinct indices of patterns, ``row * W + column`` in natural order; see :func:`variance_order`.

    Raises:
        ValueError: if a size is not a power of two, or the indices repeat or lie outside.

    Example:
        >>> A = Hadamard((1, 64, 64), sequency_order((64, 64))[:333])
        >>> A(torch.ones(2, 1, 64, 64)).shape, round(float(A(torch.ones(1, 1, 64, 64)).max()), 3)
        (torch.Size([2, 1, 333]), 64.0)

    References:
        duarte2008
    """

    kind = "hadamard"

    def __init__(self, shape: Sequence[int], rows: Tensor | Sequence[int]) -> None:
        spatial = tuple(int(n) for n in shape[1:])
        _check_powers(spatial, "shape")
        index = torch.as_tensor(rows, dtype=torch.int64)
        size = prod(spatial)
        if index.ndim != 1 or not len(index) or len(index.unique()) != len(index):
            raise ValueError(f"rows: expected a vector of distinct indices, got shape {tuple(index.shape)}")
        if int(index.min()) < 0 or int(index.max()) >= size:
            raise ValueError(f"rows: expected indices in [0, {size}), got [{int(index.min())}, {int(index.max())}]")
        super().__init__(shape, (int(shape[0]), len(index)))
        self.rows: Tensor
        self.register_buffer("rows", index)

    def forward(self, x: Tensor) -> Tensor:
        """Return the measurements ``(B, C, M)`` of ``(B, C, *spatial)``."""
        coefficients = walsh_hadamard(self.check_domain(x), len(self.domain_shape) - 1)
        return coefficients.flatten(2).index_select(-1, self.rows)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the image ``(B, C, *spatial)`` of the measurements, other coefficients taken as zero."""
        spatial = self.domain_shape[1:]
        coefficients = self.check_range(y).new_zeros(*y.shape[:2], prod(spatial)).index_copy(-1, self.rows, y)
        return walsh_hadamard(coefficients.unflatten(-1, spatial), len(spatial))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return the adjoint: the rows are orthonormal."""
        return self.adjoint(y)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"shape": list(self.domain_shape), "rows": self.rows}


def walsh_hadamard(x: Tensor, dims: int = 1) -> Tensor:
    """Return the orthonormal Walsh-Hadamard transform in natural (Sylvester) order along the last axes.

    The transform is symmetric and its own inverse.

    Args:
        x: real tensor ``(..., *spatial)``; the transformed sizes are powers of two.
        dims: number of trailing axes that are transformed.

    Returns:
        Coefficients of the same shape and unit.

    Raises:
        ValueError: if a size is not a power of two.

    Example:
        >>> walsh_hadamard(torch.tensor([1.0, 1.0, 1.0, 1.0])).tolist()
        [2.0, 0.0, 0.0, 0.0]
    """
    _check_powers(x.shape[-dims:], "x")
    for axis in range(-dims, 0):
        x = _along_last(x.movedim(axis, -1)).movedim(-1, axis)
    return x.contiguous()


def variance_order(images: Tensor) -> Tensor:
    """Return the patterns in the order of falling variance of their coefficients over a set of training images.

    Args:
        images: ``(n, *spatial)`` with ``n >= 2``, sizes powers of two.

    Returns:
        Indices ``(prod(spatial),)`` for :class:`Hadamard`; take the first ``M``.

    Raises:
        ValueError: if there are fewer than two images.
    """
    if images.ndim < 2 or len(images) < 2:
        raise ValueError(f"images: expected (n, *spatial) with n >= 2, got {tuple(images.shape)}")
    coefficients = walsh_hadamard(images.double(), images.ndim - 1).flatten(1)
    return torch.sort(coefficients.var(0), descending=True, stable=True).indices


def sequency_order(shape: Sequence[int]) -> Tensor:
    """Return the patterns in the order of rising number of sign changes (summed over the axes), without any data.

    Args:
        shape: spatial sizes, powers of two.

    Returns:
        Indices ``(prod(shape),)`` for :class:`Hadamard`.
    """
    _check_powers(shape, "shape")
    total = torch.zeros((), dtype=torch.int64)
    for axis, size in enumerate(shape):
        signs = _matrix(int(size)).sign()
        changes = (signs[:, 1:] != signs[:, :-1]).sum(1)
        total = total + changes.reshape(-1, *[1] * (len(shape) - 1 - axis))
    return torch.sort(total.flatten(), stable=True).indices


def _along_last(x: Tensor) -> Tensor:
    """Transform the last axis: a Hadamard matrix is the Kronecker product of smaller ones."""
    size = x.shape[-1]
    if size <= _RADIX:
        return x @ _matrix(size).to(x)
    x = x.unflatten(-1, (size // _RADIX, _RADIX)) @ _matrix(_RADIX).to(x)
    return _along_last(x.mT).mT.flatten(-2)


@lru_cache(maxsize=16)
def _matrix(size: int) -> Tensor:
    """Return the symmetric orthonormal Hadamard matrix in natural order (float64, on the CPU)."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix / size**0.5


def _check_powers(sizes: Sequence[int], name: str) -> None:
    if not sizes or any(n < 1 or n & (n - 1) for n in sizes):
        raise ValueError(f"{name}: expected sizes that are powers of two, got {tuple(sizes)}")
