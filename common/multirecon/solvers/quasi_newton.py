"""Limited-memory quasi-Newton steps over non-negative images, for every likelihood."""

from __future__ import annotations

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Likelihood
from multirecon.operators import BlockDiagonal, LinearOperator

from .terms import Callback, DataTerm

__all__ = ["bounded_quasi_newton"]

_DECREASE = 1e-4  # share of the predicted decrease that a step has to bring
_HALVINGS = 12


def bounded_quasi_newton(
    operator: LinearOperator | BlockDiagonal,
    likelihood: Likelihood | BlockLikelihood,
    y: Tensor | Blocks,
    *,
    anchor: Tensor | None = None,
    rho: float | Tensor = 0.0,
    x0: Tensor | None = None,
    iterations: int = 20,
    memory: int = 9,
    callback: Callback | None = None,
) -> Tensor:
    r"""Minimise ``-log p(y | A x) + sum_j rho_j / 2 (x_j - v_j)^2`` over ``x >= 0`` by projected L-BFGS.

    Two-metric projection: voxels at zero whose slope pushes them out are held; among the others the direction is ``-H
    g`` with the two-loop recursion over the last ``memory`` pairs, started from the separable surrogate's diagonal, and
    the projected step is halved until it brings its share of the predicted decrease. The objective never rises. Samples
    are independent.

    Args:
        operator: ``A``, plain or block-diagonal, on real images.
        likelihood: any likelihood with gradient and curvature, or a block likelihood.
        y: data ``(B, *range_shape)`` or Blocks.
        anchor: ``v``, ``(B, *domain_shape)``; zero by default.
        rho: non-negative strength, a number, one a sample ``(B,)``, or broadcastable to the image.
        x0: start; the anchor's positive part by default.
        iterations: number of iterations.
        memory: number of pairs kept.
        callback: called after each iteration with ``{"objective": (B,)}``.

    Returns:
        The image ``(B, *domain_shape)``.

    References:
        liu1989, bertsekas1982

    Example:
        >>> from multirecon.likelihoods import Gaussian
        >>> from multirecon.operators import Identity
        >>> bounded_quasi_newton(Identity((1, 2)), Gaussian(1.0), torch.tensor([[[3.0, -1.0]]]))
        tensor([[[3., 0.]]])
    """
    data = DataTerm(operator, likelihood, y)
    x = data.start(anchor if x0 is None else x0).clamp_min(0)
    target = torch.zeros_like(x) if anchor is None else data.start(anchor)
    strength = torch.as_tensor(rho, dtype=x.dtype, device=x.device)
    strength = strength.reshape(-1, *[1] * (x.ndim - 1)) if strength.ndim == 1 else strength

    def value(x: Tensor, z: list[Tensor]) -> Tensor:
        return data.nll(z) + _inner(0.5 * strength * (x - target), x - target)

    def slope(x: Tensor, z: list[Tensor]) -> Tensor:
        return data.adjoint(data.slopes(z)) + strength * (x - target)

    z = data.predict(x)
    level, g = value(x, z), slope(x, z)
    scale = _diagonal(data, z, x) + strength
    scale = torch.where(scale > 0, 1 / torch.where(scale > 0, scale, torch.ones_like(scale)), torch.zeros_like(scale))
    pairs: list[tuple[Tensor, Tensor]] = []
    for iteration in range(1, iterations + 1):
        free = ((x > 0) | (g < 0)).to(x)
        direction = -free * _two_loop(free * g, pairs, scale, free)
        downhill = _inner(direction, g) < 0
        direction = torch.where(_wide(downhill, x), direction, -free * scale * g)
        step, done = torch.ones_like(level), torch.zeros_like(level, dtype=torch.bool)
        new, new_z, new_level = x, z, level
        for _ in range(_HALVINGS):
            trial = torch.where(_wide(done, x), new, (x + _wide(step, x) * direction).clamp_min(0))
            trial_z = data.predict(trial)
            trial_level = value(trial, trial_z)
            enough = trial_level <= level + _DECREASE * _inner(g, trial - x)
            new, new_z, new_level, done = trial, trial_z, torch.where(done, new_level, trial_level), done | enough
            if bool(done.all()):
                break
            step = torch.where(done, step, step / 2)
        if not bool(done.all()):  # no decrease can be seen any more: stay
            new = torch.where(_wide(done, x), new, x)
            new_z, new_level = data.predict(new), torch.where(done, new_level, level)
        if not bool(done.any()):
            break
        new_g = slope(new, new_z)
        pairs = [*pairs, (new - x, new_g - g)][-memory:]
        x, z, level, g = new, new_z, new_level, new_g
        if callback is not None:
            callback(iteration, x, {"objective": level})
    return x


def _two_loop(g: Tensor, pairs: list[tuple[Tensor, Tensor]], scale: Tensor, free: Tensor) -> Tensor:
    """Return ``H g``: L-BFGS on the free voxels; pairs without positive curvature in a sample are left out of it."""
    q, stack = g, []
    factor: Tensor | None = None
    for s, y in reversed(pairs):
        s, y = free * s, free * y
        sy = _inner(s, y)
        good = sy > 1e-10 * (_inner(s, s) * _inner(y, y)).sqrt()
        inverse = torch.where(good, 1 / torch.where(good, sy, torch.ones_like(sy)), torch.zeros_like(sy))
        a = inverse * _inner(s, q)
        q = q - _wide(a, q) * y
        stack.append((s, y, a, inverse))
        ratio = torch.where(good, sy / _inner(y, scale * y).clamp_min(1e-30), torch.zeros_like(sy))
        # the newest pair that says something scales the diagonal
        factor = ratio if factor is None else torch.where(factor > 0, factor, ratio)
    r = scale * q if factor is None else _wide(torch.where(factor > 0, factor, torch.ones_like(factor)), q) * scale * q
    for s, y, a, inverse in reversed(stack):
        b = inverse * _inner(y, r)
        r = r + _wide(a - b, r) * s
    return r


def _diagonal(data: DataTerm, z: list[Tensor], x: Tensor) -> Tensor:
    """Return the diagonal of the separable surrogate ``A^T (c A 1)``, or its mean where that is not positive."""
    lengths = data.predict(torch.ones_like(x))
    curves = [t.likelihood.curvature(zm, t.y) * length for t, zm, length in zip(data.terms, z, lengths, strict=True)]
    diagonal = data.adjoint(curves)
    mean = diagonal.flatten(1).mean(1).abs()
    return torch.where(diagonal > 0, diagonal, _wide(mean, diagonal))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _wide(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))
