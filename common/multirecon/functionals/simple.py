"""Functionals with a closed-form proximal map."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .base import Functional

__all__ = ["L1", "NonNegativity", "Quadratic", "UnitaryTransform"]


class UnitaryTransform(Protocol):
    """What :class:`L1` asks of a transform: to be callable, and to have an adjoint that is its inverse."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the coefficients."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the image of coefficients."""


class L1(Functional):
    r"""``R(x) = weight sum |T x|``, sparsity of the coefficients of an orthonormal transform.

    The proximal map ``x + T^H (soft(T x) - T x)`` is exact where ``T T^H = I``, that is, for unitary transforms.

    Args:
        weight: factor of the penalty, a number or one a sample.
        transform: orthonormal transform; the identity by default.

    References:
        daubechies2004

    Example:
        >>> L1(weight=1.0).prox(torch.tensor([[[-3.0, 0.5, 2.0]]]))
        tensor([[[-2., 0., 1.]]])
    """

    def __init__(self, weight: float | Tensor = 1.0, *, transform: UnitaryTransform | None = None) -> None:
        super().__init__(weight)
        self.transform = transform

    def value(self, x: Tensor) -> Tensor:
        """Return the weighted sum of absolute coefficients per sample."""
        coefficients = x if self.transform is None else self.transform(x)
        return self._scaled(1.0, x).reshape(-1) * coefficients.abs().flatten(1).sum(1)

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """Return the image with soft-thresholded coefficients."""
        if self.transform is None:
            return _soft(x, self._scaled(step, x))
        coefficients = self.transform(x)
        return x + self.transform.adjoint(_soft(coefficients, self._scaled(step, coefficients)) - coefficients)


class Quadratic(Functional):
    r"""``R(x) = weight / 2 |x - anchor|_D^2`` with a non-negative diagonal ``D``.

    Args:
        weight: factor of the penalty, a number or one a sample.
        anchor: image ``(B, C, *spatial)`` or broadcastable to it; zero by default.
        diagonal: non-negative diagonal broadcastable to the image; one by default.

    Raises:
        ValueError: if the diagonal is negative.

    Example:
        >>> Quadratic(weight=3.0, anchor=torch.ones(1, 1, 2)).prox(torch.zeros(1, 1, 2))
        tensor([[[0.7500, 0.7500]]])
    """

    def __init__(
        self, weight: float | Tensor = 1.0, *, anchor: Tensor | None = None, diagonal: Tensor | None = None
    ) -> None:
        super().__init__(weight)
        if diagonal is not None and bool((diagonal < 0).any()):
            raise ValueError(f"diagonal: expected values >= 0, got {float(diagonal.min())}")
        self.anchor: Tensor | None
        self.diagonal: Tensor | None
        self.register_buffer("anchor", anchor)
        self.register_buffer("diagonal", diagonal)

    def value(self, x: Tensor) -> Tensor:
        """Return the weighted squared distance per sample."""
        square = self._offset(x).abs() ** 2
        square = square if self.diagonal is None else self.diagonal * square
        return self._scaled(1.0, x).reshape(-1) / 2 * square.flatten(1).sum(1)

    def grad(self, x: Tensor) -> Tensor:
        """Return ``weight D (x - anchor)``."""
        return self._factor(1.0, x) * self._offset(x)

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """Return ``(x + step weight D anchor) / (1 + step weight D)``."""
        factor = self._factor(step, x)
        return x - factor / (1 + factor) * self._offset(x)

    def _offset(self, x: Tensor) -> Tensor:
        return x if self.anchor is None else x - self.anchor

    def _factor(self, step: float | Tensor, x: Tensor) -> Tensor:
        scaled = self._scaled(step, x)
        return scaled if self.diagonal is None else scaled * self.diagonal


class NonNegativity(Functional):
    """The indicator of ``x >= 0``: zero there, infinite elsewhere.

    Example:
        >>> NonNegativity().prox(torch.tensor([[[-1.0, 2.0]]]))
        tensor([[[0., 2.]]])
    """

    def value(self, x: Tensor) -> Tensor:
        """Return zero for non-negative samples, infinity for others."""
        outside = (x < 0).flatten(1).any(1)
        return torch.where(outside, torch.inf, 0.0).to(x.dtype)

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """Return ``max(x, 0)``."""
        return x.clamp_min(0)


def _soft(x: Tensor, threshold: Tensor) -> Tensor:
    size = x.abs()
    return x * ((size - threshold).clamp_min(0) / size.clamp_min(torch.finfo(size.dtype).tiny))
