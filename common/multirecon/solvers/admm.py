"""The alternating direction method of multipliers, with any data step and any proximal map or denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.functionals import AnalysisFunctional, Functional
from multirecon.likelihoods import BlockLikelihood, Likelihood
from multirecon.operators import BlockDiagonal, LinearOperator

from .proximal import data_proximal
from .terms import Callback, DataTerm

__all__ = ["ADMMResult", "admm"]

Proximal = Callable[[Tensor, Tensor], Tensor]
"""``proximal(x, step)``: the proximal map with a step ``(B,)``, or a denoiser of noise variance ``step``."""


class ADMMResult(NamedTuple):
    """The outcome of an ADMM run; pass it back as ``start`` to continue.

    Attributes:
        x: the image after the penalty's proximal map (it satisfies the penalty's constraints), ``(B, *domain_shape)``.
        data_x: the image after the data step.
        u: scaled dual variable.
        primal: ``|data_x - x| / max(|data_x|, |x|)``, ``(B,)``.
        dual: change of ``x`` in the last iteration relative to ``|u|``, ``(B,)``.
        iterations: iterations spent.
    """

    x: Tensor
    data_x: Tensor
    u: Tensor
    primal: Tensor
    dual: Tensor
    iterations: int


def admm(
    operator: LinearOperator | BlockDiagonal,
    likelihood: Likelihood | BlockLikelihood,
    y: Tensor | Blocks,
    penalty: Functional | Proximal,
    *,
    rho: float | Tensor = 1.0,
    x0: Tensor | None = None,
    start: ADMMResult | None = None,
    iterations: int = 50,
    inner_iterations: int = 20,
    inner_tolerance: float = 1e-6,
    tolerance: float = 1e-4,
    data_step: Callable[[Tensor, Tensor], Tensor] | None = None,
    callback: Callback | None = None,
) -> ADMMResult:
    r"""Minimise ``-log p(y | A x) + R(x)`` by splitting the data term from the penalty.

    ``w <- prox_{f / rho}(x - u)``, ``x <- prox_{R / rho}(w + u)``, ``u <- u + w - x``. The data step is
    :func:`~multirecon.solvers.data_proximal` warm-started at the last ``w``; a callable in place of ``R`` makes it
    plug-and-play.

    Args:
        operator: ``A``, plain or block-diagonal.
        likelihood: any likelihood, or a block likelihood.
        y: data ``(B, *range_shape)`` or Blocks.
        penalty: ``R`` with a proximal map, or a callable ``(image, step (B,)) -> image``.
        rho: positive coupling, a number or one a sample ``(B,)``.
        x0: first image; zero by default.
        start: result of an earlier run to continue from.
        iterations: bound on the number of iterations.
        inner_iterations: bound on the iterations of the data step.
        inner_tolerance: relative residual at which conjugate gradients stop in it.
        tolerance: all samples stop when both residuals fall below it.
        data_step: replacement of the data step, ``(anchor, warm start) -> image``.
        callback: called after each iteration with ``{"primal": (B,), "dual": (B,)}``.

    Returns:
        Both images, the dual variable and the residuals.

    References:
        boyd2011
    """
    data = DataTerm(operator, likelihood, y)
    x = data.start(x0) if start is None else start.x
    w = x if start is None else start.data_x
    u = torch.zeros_like(x) if start is None else start.u
    coupling = torch.as_tensor(rho, dtype=x.real.dtype, device=x.device).expand(x.shape[0])
    primal = dual = torch.full_like(coupling, torch.inf)
    field: Tensor | None = None
    iteration = 0
    while iteration < iterations and not bool((torch.maximum(primal, dual) <= tolerance).all()):
        iteration += 1
        if data_step is not None:
            w = data_step(x - u, w)
        else:
            w = data_proximal(operator, likelihood, y, x - u, rho=coupling, x0=w if iteration > 1 or start else None,
                              iterations=inner_iterations, tolerance=inner_tolerance)  # fmt: skip
        previous = x
        if isinstance(penalty, AnalysisFunctional):
            result = penalty.denoise(w + u, 1 / coupling, dual=field)
            x, field = result.x, result.dual
        else:
            x = penalty.prox(w + u, 1 / coupling) if isinstance(penalty, Functional) else penalty(w + u, 1 / coupling)
        u = u + w - x
        primal = _norm(w - x) / _positive(torch.maximum(_norm(w), _norm(x)))
        dual = _norm(x - previous) / _positive(_norm(u))
        if callback is not None:
            callback(iteration, x, {"primal": primal, "dual": dual})
    return ADMMResult(x, w, u, primal, dual, iteration)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _positive(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.ones_like(x))
