"""Limited-memory BFGS for many small problems at once: every sample has its own directions and its own step length."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LBFGSResult", "lbfgs"]

_ARMIJO = 1e-4
_CURVATURE = 1e-8  # smallest cosine between step and change of the gradient of a pair that is kept


class LBFGSResult(NamedTuple):
    """Result of :func:`lbfgs`.

    Args:
        z: the points ``(B, n)``.
        value: the function there, ``(B,)``.
        evaluations: evaluations of function and gradient.
    """

    z: Tensor
    value: Tensor
    evaluations: int


def lbfgs(
    function: Callable[[Tensor], Tensor],
    z0: Tensor,
    *,
    iterations: int = 10,
    memory: int = 8,
    trials: int = 6,
) -> LBFGSResult:
    r"""Minimise ``f_b(z_b)`` for all samples ``b`` of a batch; no value ever rises.

    Directions are those of limited-memory BFGS, steps are found by backtracking with quadratic interpolation from 1 (in
    the first iteration from ``1 / |gradient|``, at most 1). A sample without a descent in ``trials`` trials stays
    where it is and forgets its memory.

    Args:
        function: ``(B, n) -> (B,)``, differentiable, each value a function of its own row alone.
        z0: starting points ``(B, n)``.
        iterations: number of iterations.
        memory: pairs kept.
        trials: evaluations an iteration at most.

    Raises:
        ValueError: if a number is out of range, or the function is not finite at the start.

    References:
        liu1989

    Example:
        >>> scale = torch.tensor([[1.0, 10.0], [2.0, 3.0]])
        >>> found = lbfgs(lambda z: (scale * (z - 1) ** 2).sum(1), torch.zeros(2, 2), iterations=20)
        >>> torch.allclose(found.z, torch.ones(2, 2), atol=1e-4)
        True
    """
    if iterations < 0 or memory < 1 or trials < 1:
        raise ValueError(f"iterations, memory, trials: expected >= 0, >= 1, >= 1, got {iterations}, {memory}, {trials}")
    evaluations = 0

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += 1
        with torch.enable_grad():
            point = z.detach().requires_grad_(True)
            value = function(point)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient

    z = z0.detach()
    value, gradient = evaluate(z)
    if not torch.isfinite(value).all():
        raise ValueError("function: expected finite values at the start, got NaN or Inf")
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for iteration in range(iterations):
        direction = -_two_loops(gradient, pairs)
        slope = (direction * gradient).sum(1)
        uphill = slope >= 0
        direction = torch.where(uphill[:, None], -gradient, direction)
        slope = torch.where(uphill, -gradient.square().sum(1), slope)
        step = torch.ones_like(value)
        if iteration == 0:
            step = gradient.norm(dim=1).clamp_min(1.0).reciprocal()
        z_new, value_new, gradient_new = z, value, gradient
        todo = slope < 0
        for _ in range(trials):
            if not bool(todo.any()):
                break
            trial = torch.where(todo[:, None], z + step[:, None] * direction, z_new)
            found, at_trial = evaluate(trial)
            good = todo & (found <= value + _ARMIJO * step * slope)
            z_new = torch.where(good[:, None], trial, z_new)
            value_new = torch.where(good, found, value_new)
            gradient_new = torch.where(good[:, None], at_trial, gradient_new)
            todo = todo & ~good
            excess = found - value - step * slope
            guess = -slope * step**2 / (2 * excess.clamp_min(torch.finfo(value.dtype).tiny))
            guess = torch.where(torch.isfinite(guess), guess, 0.1 * step)
            step = torch.where(todo, torch.minimum(torch.maximum(guess, 0.1 * step), 0.5 * step), step)
        moved, change = z_new - z, gradient_new - gradient
        product = (moved * change).sum(1)
        usable = product > _CURVATURE * moved.norm(dim=1) * change.norm(dim=1)
        # a pair that is not usable has the weight 0, with which the recursion passes over it
        weight = torch.where(usable, product, torch.ones_like(product)).reciprocal() * usable
        pairs = [(s, y, w * ~todo) for s, y, w in pairs[1 - memory :]] if memory > 1 else []
        pairs.append((moved, change, weight))
        z, value, gradient = z_new, value_new, gradient_new
    return LBFGSResult(z, value, evaluations)


def _two_loops(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the inverse Hessian's estimate times the gradient ``(B, n)``."""
    q = gradient
    alphas = []
    for s, y, weight in reversed(pairs):
        alpha = weight * (s * q).sum(1)
        q = q - alpha[:, None] * y
        alphas.append(alpha)
    scale = torch.ones_like(gradient[:, 0])
    for _, y, weight in pairs:  # the newest usable pair decides
        inverse = weight * y.square().sum(1)
        scale = torch.where(weight > 0, inverse.clamp_min(torch.finfo(q.dtype).tiny).reciprocal(), scale)
    r = scale[:, None] * q
    for (s, y, weight), alpha in zip(pairs, reversed(alphas), strict=True):
        r = r + s * (alpha - weight * (y * r).sum(1))[:, None]
    return r
