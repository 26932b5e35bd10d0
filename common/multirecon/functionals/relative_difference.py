"""The relative difference prior of clinical PET reconstruction, plain or guided by an anatomical image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from .base import Functional, per_sample

__all__ = ["RelativeDifference", "bowsher_weights", "half_neighbourhood"]

Offset = tuple[int, ...]


class RelativeDifference(Functional):
    r"""Relative difference prior of a non-negative image.

    ``R(x) = weight sum_j sum_{k in N_j} w_jk (x_j - x_k)^2 / (x_j + x_k + gamma |x_j - x_k| + eps)``

    Neighbours are the ``3^d - 1`` voxels around a voxel, weighted by the inverse of their distance; every pair counts
    twice, from either side. The penalty of a difference falls with activity, and grows linearly beyond a relative
    difference of about ``2 / gamma``, which keeps edges.

    Args:
        weight: factor of the penalty, a number or one a sample.
        gamma: edge preservation, dimensionless.
        eps: small positive activity (unit of the image) that keeps the penalty smooth at zero.
        spacing: grid steps of the spatial axes, for the distances; equal by default.
        pair_weights: weights of the pairs in place of the inverse distances, ``(P, B or 1, C or 1, *spatial)`` for
            the ``P`` offsets of :func:`half_neighbourhood`, for example from :func:`bowsher_weights`.

    Raises:
        ValueError: if ``gamma`` is negative or ``eps`` not positive.

    References:
        nuyts2002

    Example:
        >>> RelativeDifference(gamma=2.0).value(torch.tensor([[[[1.0, 3.0]]]]))  # 2 * 4 / (4 + 2 * 2)
        tensor([1.0000])
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        *,
        gamma: float = 2.0,
        eps: float = 1e-6,
        spacing: Sequence[float] | None = None,
        pair_weights: Tensor | None = None,
    ) -> None:
        super().__init__(weight)
        if gamma < 0 or not eps > 0:
            raise ValueError(f"gamma, eps: expected >= 0 and > 0, got {gamma} and {eps}")
        self.gamma = float(gamma)
        self.eps = float(eps)
        self.spacing = None if spacing is None else tuple(float(h) for h in spacing)
        self.pair_weights: Tensor | None
        self.register_buffer("pair_weights", pair_weights)

    def value(self, x: Tensor) -> Tensor:
        """Return the penalty per sample."""
        total = x.new_zeros(x.shape[0])
        for index, offset in enumerate(half_neighbourhood(x.ndim - 2)):
            a, b = _pair(x, offset)
            difference = a - b
            term = difference**2 / (a + b + self.gamma * difference.abs() + self.eps)
            total = total + (2 * self._pair_weight(index, offset, x) * term).flatten(1).sum(1)
        return self._scaled(1.0, x).reshape(-1) * total

    def grad(self, x: Tensor) -> Tensor:
        """Return the gradient, shaped like ``x``."""
        result = torch.zeros_like(x)
        for index, offset in enumerate(half_neighbourhood(x.ndim - 2)):
            a, b = _pair(x, offset)
            difference = a - b
            size = difference.abs()
            below = a + b + self.gamma * size + self.eps
            factor = 2 * self._pair_weight(index, offset, x) * difference / below**2
            # d/da of d^2 / (a + b + gamma |d| + eps), and the same for b with the sign of d reversed
            _pair(result, offset)[0].add_(factor * (2 * below - difference - self.gamma * size))
            _pair(result, offset)[1].sub_(factor * (2 * below + difference - self.gamma * size))
        return self._scaled(1.0, x) * result

    def curvature(self, x: Tensor) -> Tensor:
        """Return the row sums of the absolute second derivatives: a diagonal that bounds the Hessian at ``x``."""
        result = torch.zeros_like(x)
        for index, offset in enumerate(half_neighbourhood(x.ndim - 2)):
            a, b = _pair(x, offset)
            below = (a + b + self.gamma * (a - b).abs() + self.eps) ** 3
            factor = 2 * self._pair_weight(index, offset, x) * 2 / below
            own, other = 2 * b + self.eps, 2 * a + self.eps
            _pair(result, offset)[0].add_(factor * (own**2 + own * other))
            _pair(result, offset)[1].add_(factor * (other**2 + own * other))
        return self._scaled(1.0, x) * result

    def _pair_weight(self, index: int, offset: Offset, x: Tensor) -> Tensor | float:
        if self.pair_weights is not None:
            return _pair(self.pair_weights[index].to(x), offset)[0]
        steps = self.spacing or (1.0,) * len(offset)
        if len(steps) != len(offset):
            raise ValueError(f"spacing: expected {len(offset)} values, got {list(steps)}")
        lengths = [abs(o) * h for o, h in zip(offset, steps, strict=True)]
        return min(steps) / sum(v**2 for v in lengths) ** 0.5


def half_neighbourhood(dims: int) -> list[Offset]:
    """Return one of every two opposite offsets of the ``3^d - 1`` neighbours, in a fixed order."""
    return [o for o in product((-1, 0, 1), repeat=dims) if o > (0,) * dims]


def bowsher_weights(guide: Tensor, *, neighbours: int = 4) -> Tensor:
    r"""Return pair weights that keep, for every voxel, the neighbours most alike in a guide image.

    Of the ``3^d - 1`` neighbours of a voxel the ``neighbours`` with the smallest ``|guide_j - guide_k|`` get the
    weight one, the others zero. A pair has the mean of its two directions: 0, 1/2 or 1.

    Args:
        guide: anatomical image ``(B, 1, *spatial)`` (or ``(1, 1, *spatial)`` for a whole batch).
        neighbours: number of neighbours kept for each voxel.

    Returns:
        Weights ``(P, B, 1, *spatial)`` for :class:`RelativeDifference`; entry ``p`` at voxel ``j`` belongs to the
        pair of ``j`` and ``j`` + offset ``p``.

    Raises:
        ValueError: if the number of neighbours is out of range.

    References:
        bowsher2004
    """
    dims = guide.ndim - 2
    half = half_neighbourhood(dims)
    if not 1 <= neighbours <= 2 * len(half):
        raise ValueError(f"neighbours: expected 1 to {2 * len(half)}, got {neighbours}")
    distances = torch.full((2 * len(half), *guide.shape), torch.inf, dtype=guide.dtype, device=guide.device)
    for index, offset in enumerate(half):
        a, b = _pair(guide, offset)
        _pair(distances[index], offset)[0].copy_((a - b).abs())
        _pair(distances[index + len(half)], offset)[1].copy_((a - b).abs())
    order = distances.argsort(dim=0, stable=True)
    ranks = torch.empty_like(order).scatter_(0, order, per_sample(torch.arange(len(order)), order).expand_as(order))
    kept = ((ranks < neighbours) & torch.isfinite(distances)).to(guide.dtype)
    weights = kept[: len(half)] / 2
    for index, offset in enumerate(half):
        _pair(weights[index], offset)[0].add_(_pair(kept[index + len(half)], offset)[1] / 2)
    return weights


def _pair(x: Tensor, offset: Offset) -> tuple[Tensor, Tensor]:
    """Return views of all ``x_j`` and ``x_{j + offset}`` that both lie on the grid."""
    near = far = x
    first = x.ndim - len(offset)
    for axis, step in enumerate(offset):
        n = x.shape[first + axis]
        near = near.narrow(first + axis, max(0, -step), n - abs(step))
        far = far.narrow(first + axis, max(0, step), n - abs(step))
    return near, far
