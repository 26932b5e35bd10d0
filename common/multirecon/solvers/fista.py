"""Accelerated proximal gradient descent with backtracking and restarts."""

from __future__ import annotations

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.functionals import AnalysisFunctional, Functional
from multirecon.likelihoods import BlockLikelihood, Gaussian, Likelihood
from multirecon.operators import BlockDiagonal, LinearOperator

from .terms import Callback, DataTerm

__all__ = ["fista"]

_MAX_HALVINGS = 60
_GROWTH = 1.1


def fista(
    operator: LinearOperator | BlockDiagonal,
    likelihood: Likelihood | BlockLikelihood,
    y: Tensor | Blocks,
    functional: Functional | None = None,
    *,
    x0: Tensor | None = None,
    step: float | None = None,
    iterations: int = 200,
    tolerance: float = 0.0,
    callback: Callback | None = None,
) -> Tensor:
    r"""Minimise ``-log p(y | A x) + R(x)`` for any differentiable likelihood and any functional with a proximal map.

    FISTA with a step of its own for every sample, halved whenever the quadratic bound of the data term fails (and
    growing by a tenth an iteration where the curvature varies), and a restart of the momentum whenever it points
    uphill. Each iteration costs one product with ``A`` and one with ``A^H``.

    Args:
        operator: ``A``, plain or block-diagonal.
        likelihood: any likelihood with a gradient; a non-convex one (transmission) is descended, not solved globally.
        y: data ``(B, *range_shape)`` or Blocks.
        functional: ``R``; :class:`~multirecon.functionals.NonNegativity` for a constraint alone, none by default.
        x0: start ``(B, *domain_shape)``, where the likelihood is finite; zero by default, or the
            uniform image where zero explains no counts.
        step: first step length; by default ``1 / (max curvature * |A|^2)`` at the start.
        iterations: number of iterations.
        tolerance: a sample stops when the relative change ``|x+ - x| / |x|`` of an iteration falls below it.
        callback: called after each iteration with ``{"change": (B,), "step": (B,)}``.

    Returns:
        The image ``(B, *domain_shape)``.

    Raises:
        ValueError: if the likelihood is infinite at the start.

    References:
        beck2009, odonoghue2015
    """
    data = DataTerm(operator, likelihood, y)
    x = data.start(x0)
    z = data.predict(x)
    value = data.nll(z)
    if x0 is None and not bool(torch.isfinite(value).all()):
        x = data.uniform(data.sensitivity())
        z = data.predict(x)
        value = data.nll(z)
    if not bool(torch.isfinite(value).all()):
        raise ValueError("x0: expected a start with finite likelihood, got an infinite one (expected counts of zero)")
    rate = torch.full_like(value, _first_step(data, z) if step is None else step)
    previous, z_previous = x, z
    # the curvature of a counting likelihood falls along the way: let its steps grow again
    growth = 1.0 if all(isinstance(t.likelihood, Gaussian) for t in data.terms) else _GROWTH
    momentum = torch.ones_like(value)
    dual: Tensor | None = None
    active = torch.ones_like(value, dtype=torch.bool)
    for iteration in range(1, iterations + 1):
        rate = rate * growth
        following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        beta = (momentum - 1) / following
        at = x + _wide(beta, x) * (x - previous)
        z_at = [zm + _wide(beta, zm) * (zm - old) for zm, old in zip(z, z_previous, strict=True)]
        value_at = data.nll(z_at)
        stuck = ~torch.isfinite(value_at)  # extrapolated out of the likelihood's domain
        if bool(stuck.any()):
            at = torch.where(_wide(stuck, x), x, at)
            z_at = [torch.where(_wide(stuck, zm), zm, za) for zm, za in zip(z, z_at, strict=True)]
            value_at = data.nll(z_at)
        slope = data.adjoint(data.slopes(z_at))
        for _ in range(_MAX_HALVINGS):
            new, new_dual = _proximal(functional, at - _wide(rate, x) * slope, rate, dual)
            z_new = data.predict(new)
            move = new - at
            bound = value_at + _inner(slope, move) + _inner(move, move) / (2 * rate)
            # the slack is rounding: near the solution both sides agree to the last digits
            slack = 10 * torch.finfo(value.dtype).eps * value_at.abs()
            failed = active & ~(data.nll(z_new) <= bound + slack)
            if not bool(failed.any()):
                break
            rate = torch.where(failed, rate / 2, rate)
        dual = new_dual
        uphill = _inner(at - new, new - x) > 0
        momentum = torch.where(uphill | stuck, torch.ones_like(following), following)
        keep = ~active
        previous, z_previous = x, z
        x = torch.where(_wide(keep, x), x, new)
        z = [torch.where(_wide(keep, zm), zm, zn) for zm, zn in zip(z, z_new, strict=True)]
        size = _inner(x, x).sqrt()
        change = _inner(x - previous, x - previous).sqrt() / torch.where(size > 0, size, torch.ones_like(size))
        if callback is not None:
            callback(iteration, x, {"change": change, "step": rate})
        active = active & (change > tolerance) if tolerance > 0 else active
        if not bool(active.any()):
            break
    return x


def _proximal(
    functional: Functional | None, x: Tensor, rate: Tensor, dual: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if functional is None:
        return x, None
    if isinstance(functional, AnalysisFunctional):
        result = functional.denoise(x, rate, dual=dual)
        return result.x, result.dual
    return functional.prox(x, rate), None


def _first_step(data: DataTerm, z: list[Tensor]) -> float:
    largest = [float(t.likelihood.curvature(zm, t.y).max()) * t.operator.norm() ** 2
               for t, zm in zip(data.terms, z, strict=True)]  # fmt: skip
    top = max(largest, default=0.0)
    return 1 / top if top > 0 else 1.0


def _inner(a: Tensor, b: Tensor) -> Tensor:
    product = (a.conj() * b).real if a.is_complex() else a * b
    return product.flatten(1).sum(1)


def _wide(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))
