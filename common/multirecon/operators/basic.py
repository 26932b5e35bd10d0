"""Operators without physics: identity, selection of channels, elementwise scaling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..batching import slice_samples
from .base import LinearOperator

__all__ = ["Diagonal", "Identity", "Zero"]


class Identity(LinearOperator):
    """The identity ``A x = x``: a modality that is available as a clean image.

    Args:
        shape: shape ``(C, *spatial)`` of the image.
        dtype: dtype of images and data.

    Example:
        >>> Identity((1, 4, 4)).adjoint(torch.ones(2, 1, 4, 4)).shape
        torch.Size([2, 1, 4, 4])
    """

    kind = "identity"

    def __init__(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(shape, shape, domain_dtype=dtype, range_dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return self.check_domain(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y``."""
        return self.check_range(y)

    def gram(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return ``y``."""
        return self.check_range(y)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"shape": list(self.domain_shape)}


class Diagonal(LinearOperator):
    """Elementwise multiplication ``A x = w x``.

    Args:
        weight: ``(C, *spatial)`` or per-sample ``(B, C, *spatial)`` real or complex weights.
        shape: shape of the image; the default is the weight's without a batch axis, so give it for per-sample weights.

    Raises:
        ValueError: if the weight does not fit the shape.
    """

    kind = "diagonal"

    def __init__(self, weight: Tensor, shape: Sequence[int] | None = None) -> None:
        shape = tuple(weight.shape) if shape is None else tuple(shape)
        if tuple(weight.shape[-len(shape) :]) != shape or weight.ndim > len(shape) + 1:
            raise ValueError(f"weight: expected shape {shape} or (B, {shape}), got {tuple(weight.shape)}")
        super().__init__(shape, shape, domain_dtype=weight.dtype, range_dtype=weight.dtype)
        self.weight: Tensor
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``w x``."""
        return self.weight * self.check_domain(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``conj(w) y``."""
        return self.weight.conj() * self.check_range(y)

    def gram(self, x: Tensor) -> Tensor:
        """Return ``|w|^2 x``."""
        return (self.weight.abs() ** 2).to(x.dtype) * x

    def samples(self, start: int, stop: int) -> LinearOperator:
        """Return the operator with the weights of the samples."""
        return Diagonal(slice_samples(self.weight, len(self.domain_shape) + 1, start, stop), self.domain_shape)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"weight": self.weight, "shape": list(self.domain_shape)}


class Zero(LinearOperator):
    """The zero operator: a datum that says nothing about the image (used in tests and baselines)."""

    kind = "zero"

    def __init__(self, domain_shape: Sequence[int], range_shape: Sequence[int]) -> None:
        super().__init__(domain_shape, range_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros of the range."""
        return 0.0 * self.check_domain(x).sum() + x.new_zeros((x.shape[0], *self.range_shape))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return zeros of the domain."""
        return 0.0 * self.check_range(y).sum() + y.new_zeros((y.shape[0], *self.domain_shape))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return zeros: the minimum-norm solution."""
        return self.adjoint(y)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"domain_shape": list(self.domain_shape), "range_shape": list(self.range_shape)}
