"""Projected Newton steps over non-negative images: a data step solved to a stated tolerance in few projections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .em_engine import divide
from .terms import DataTerm

__all__ = ["projected_newton"]

_DECREASE = 1e-4  # share of the predicted decrease that a step has to bring
_ROUNDING = 10  # of the objective's unit of rounding: smaller rises cannot be told from none
_HALVINGS = 8
_BAND = 0.1  # width relative to the residual, root mean square
_PATIENCE = 10  # Newton steps without a new smallest residual: rounding has been reached


@dataclass
class _State:
    x: Tensor
    z: list[Tensor]
    level: Tensor
    gradient: Tensor


@torch.no_grad()
def projected_newton(
    data: DataTerm,
    *,
    anchor: Tensor,
    rho: Tensor,
    x0: Tensor,
    iterations: int = 200,
    tolerance: float = 1e-5,
    forcing: float = 0.1,
) -> tuple[Tensor, int, Tensor]:
    r"""Minimise ``f(x) + sum_j rho_j / 2 (x_j - v_j)^2`` over ``x >= 0`` by projected Newton steps.

    Voxels close to zero whose slope pushes them there go to zero, the others along the Newton direction, which
    conjugate gradients find to a relative residual of ``forcing`` with products ``A^T (f'' (A p)) + rho p``. The
    projected step is halved until the objective falls; samples are independent. It ends when the residual of the
    Karush-Kuhn-Tucker conditions ``|x - max(0, x - g / rho)| / |x|``, the same as that of
    :func:`~multirecon.solvers.em_engine.anchored_em`, is at most the tolerance: near the solution after a few
    projections where expectation maximisation takes hundreds.

    Args:
        data: ``f``, convex, with gradient and curvature.
        anchor: ``v``, ``(B, *domain_shape)``, of any sign.
        rho: strength, broadcastable to the image, positive.
        x0: start, non-negative.
        iterations: bound on the projections forth and back of a sample, those of conjugate gradients among them.
        tolerance: residual of every sample at which to stop.
        forcing: relative residual of the Newton equation.

    Returns:
        The image, the largest number of projections forth and back, and the residual of the optimality conditions
        ``(B,)``.

    References:
        bertsekas1982, dembo1982

    Example:
        >>> from multirecon.likelihoods import Poisson
        >>> from multirecon.operators import Identity
        >>> data = DataTerm(Identity((1, 2)), Poisson(1.0), torch.tensor([[[3.0, 0.0]]]))
        >>> zero = torch.zeros(1, 1, 2)
        >>> x, _, residual = projected_newton(data, anchor=zero, rho=torch.ones(1, 1, 1), x0=zero + 1)
        >>> [round(float(v), 4) for v in x.flatten()]
        [0.7321, 0.0]
    """
    strength = rho.expand_as(x0) if rho.ndim == x0.ndim else rho.reshape(-1, *[1] * (x0.ndim - 1)).expand_as(x0)
    state = _evaluate(data, x0.clamp_min(0), anchor, strength)
    count, best = torch.ones_like(state.level), torch.full_like(state.level, torch.inf)
    waited = torch.zeros_like(count)
    while True:
        moved = state.x - (state.x - state.gradient / strength).clamp_min(0)
        residual = divide(_norm(moved), _norm(state.x))
        waited = torch.where(residual < 0.9 * best, torch.zeros_like(waited), waited + 1)
        best = torch.minimum(best, residual)
        # each sample by its own account: what it costs to finish one does not shorten another
        active = (residual > tolerance) & (count < iterations) & (waited < _PATIENCE)
        if not bool(active.any()):
            return state.x, int(count.max()), residual
        curvature = [t.likelihood.curvature(zm, t.y) for t, zm in zip(data.terms, state.z, strict=True)]
        # a band above zero, narrower as the residual falls, in which the bound is felt: without it steps get stuck
        band = _BAND * _wide(_norm(state.x) * residual.clamp_max(1.0) / state.x[0].numel() ** 0.5, state.x)
        free = ((state.x > band) | (state.gradient < 0)).to(state.x)
        direction, used = _newton_direction(
            data, curvature, strength, state, free, forcing=forcing, budget=torch.where(active, iterations - count, 0)
        )
        count = torch.where(active, count + used + 1, count)
        state = _step(data, state, direction, anchor, strength, active=active)


def _evaluate(data: DataTerm, x: Tensor, anchor: Tensor, strength: Tensor) -> _State:
    z = data.predict(x)
    return _State(x, z, _objective(data, x, z, anchor, strength), _gradient(data, x, z, anchor, strength))


def _objective(data: DataTerm, x: Tensor, z: list[Tensor], anchor: Tensor, strength: Tensor) -> Tensor:
    return data.nll(z) + _inner(0.5 * strength * (x - anchor), x - anchor)


def _gradient(data: DataTerm, x: Tensor, z: list[Tensor], anchor: Tensor, strength: Tensor) -> Tensor:
    return data.adjoint(data.slopes(z)) + strength * (x - anchor)


def _newton_direction(
    data: DataTerm,
    curvature: list[Tensor],
    strength: Tensor,
    state: _State,
    free: Tensor,
    *,
    forcing: float,
    budget: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the direction, ``-x`` where not free, and the number of products with the Hessian, ``(B,)``."""

    def hessian(p: Tensor) -> Tensor:
        return data.adjoint([c * q for c, q in zip(curvature, data.predict(p), strict=True)]) + strength * p

    direction = (free - 1) * state.x
    residual = -free * state.gradient
    used = (direction != 0).flatten(1).any(1).to(budget)
    if bool(used.any()):
        residual = residual - free * hessian(direction)
    p, size = residual, _inner(residual, residual)
    goal = forcing**2 * size
    while bool((going := (size > goal) & (used < budget)).any()):
        image = free * hessian(p)
        used = used + going
        length = torch.where(going, divide(size, _inner(p, image)), torch.zeros_like(size))
        direction = direction + _wide(length, p) * p
        residual = residual - _wide(length, p) * image
        new = _inner(residual, residual)
        p = torch.where(_wide(going, p), residual + _wide(divide(new, size), p) * p, p)
        size = torch.where(going, new, size)
    return direction, used


def _step(
    data: DataTerm, state: _State, direction: Tensor, anchor: Tensor, strength: Tensor, *, active: Tensor
) -> _State:
    """Return the state after a projected step that lowers the objective; finished samples and dead ends stay."""
    length, done = torch.ones_like(state.level), ~active
    x, z, level = state.x, state.z, state.level
    rounding = _ROUNDING * torch.finfo(level.dtype).eps
    for _ in range(_HALVINGS):
        trial = torch.where(_wide(done, x), x, (state.x + _wide(length, x) * direction).clamp_min(0))
        trial_z = data.predict(trial)
        trial_level = _objective(data, trial, trial_z, anchor, strength)
        bound = state.level + _DECREASE * _inner(state.gradient, trial - state.x) + rounding * state.level.abs()
        done = done | (trial_level <= bound)
        x, z, level = trial, trial_z, trial_level
        if bool(done.all()):
            break
        length = torch.where(done, length, length / 2)
    else:
        x = torch.where(_wide(done, x), x, state.x)
        z = data.predict(x)
        level = _objective(data, x, z, anchor, strength)
    return _State(x, z, level, _gradient(data, x, z, anchor, strength))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
