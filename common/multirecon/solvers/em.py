"""Expectation maximisation for counts with background: MLEM, OSEM, MAP-EM, BSREM, one-step-late."""

from __future__ import annotations

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.functionals import Functional
from multirecon.likelihoods import BlockLikelihood, Likelihood
from multirecon.operators import BlockDiagonal, LinearOperator

from .em_engine import TorchEM, anchored_em, divide, start_image, strength
from .terms import Callback, DataTerm

__all__ = ["bsrem", "map_em", "mlem", "one_step_late", "osem", "subset_order"]

Operator = LinearOperator | BlockDiagonal
AnyLikelihood = Likelihood | BlockLikelihood


def mlem(
    operator: Operator,
    likelihood: AnyLikelihood,
    y: Tensor | Blocks,
    *,
    x0: Tensor | None = None,
    iterations: int = 50,
    callback: Callback | None = None,
) -> Tensor:
    r"""Maximum-likelihood expectation maximisation, ``x <- x / s A^T (y / (A x + b))`` with ``s = A^T 1``.

    The likelihood rises monotonically; without background every iteration keeps ``sum_j s_j x_j = sum_i y_i``. Voxels
    that no line sees keep their start.

    Args:
        operator: ``A >= 0`` with attenuation and normalisation inside, plain or block-diagonal.
        likelihood: Poisson with the background ``b``, or a block likelihood of such.
        y: counts ``(B, *range_shape)`` or Blocks.
        x0: positive start ``(B, *domain_shape)``; by default the uniform image with the measured number of counts.
        iterations: number of iterations.
        callback: called after each iteration with an empty ``info``.

    Returns:
        The image ``(B, *domain_shape)``.

    Raises:
        ValueError: if a likelihood is not Poisson.

    References:
        shepp1982

    Example:
        >>> from multirecon.likelihoods import Poisson
        >>> from multirecon.operators import Diagonal
        >>> A = Diagonal(torch.tensor([[2.0, 4.0]]))
        >>> mlem(A, Poisson(), torch.tensor([[[2.0, 8.0]]]), iterations=1)
        tensor([[[1., 2.]]])
    """
    return osem(operator, likelihood, y, x0=x0, subsets=1, iterations=iterations, callback=callback)


def osem(
    operator: Operator,
    likelihood: AnyLikelihood,
    y: Tensor | Blocks,
    *,
    x0: Tensor | None = None,
    subsets: int = 12,
    iterations: int = 8,
    callback: Callback | None = None,
) -> Tensor:
    """Ordered-subsets expectation maximisation: an MLEM update from each subset of interleaved views in turn.

    One subset is MLEM. Arguments as in :func:`mlem`; the operator, each of its blocks, needs ``subset(index,
    count)``, and the views are the last axis of the data but one.

    Args:
        operator: ``A >= 0``, plain or block-diagonal.
        likelihood: Poisson with background, or a block likelihood of such.
        y: counts ``(B, *range_shape)`` or Blocks.
        x0: positive start; by default the uniform image with the measured number of counts.
        subsets: number of subsets, visited in the order of :func:`subset_order`.
        iterations: number of passes over all data.
        callback: called after each pass with an empty ``info``.

    Returns:
        The image ``(B, *domain_shape)``.

    References:
        hudson1994
    """
    data = DataTerm(operator, likelihood, y)
    parts = [(part, part.sensitivity()) for part in data.subsets(subsets)]
    x = data.uniform(_total(parts)) if x0 is None else data.start(x0)
    for iteration in range(1, iterations + 1):
        for index in subset_order(subsets):
            part, sensitivity = parts[index]
            back = part.adjoint(part.ratios(part.predict(x)))
            x = torch.where(sensitivity > 0, x * divide(back, sensitivity), x)
        if callback is not None:
            callback(iteration, x, {})
    return x


def map_em(
    operator: Operator,
    likelihood: AnyLikelihood,
    y: Tensor | Blocks,
    *,
    anchor: Tensor,
    rho: float | Tensor,
    x0: Tensor | None = None,
    iterations: int = 50,
    tolerance: float = 0.0,
    callback: Callback | None = None,
) -> Tensor:
    r"""Minimise ``-log p(y | A x) + sum_j rho_j / 2 (x_j - v_j)^2`` over ``x >= 0`` by De Pierro's closed form.

    With ``e = x A^T (y / ybar)`` and ``q = v - s / rho`` the update is ``x <- (q + sqrt(q^2 + 4 e / rho)) / 2``: the
    objective falls monotonically to the exact proximal point, and ``rho -> 0`` gives MLEM. Voxels that no line sees
    become ``max(v, 0)``.

    Args:
        operator: ``A >= 0``, plain or block-diagonal.
        likelihood: Poisson with background, or a block likelihood of such.
        y: counts ``(B, *range_shape)`` or Blocks.
        anchor: ``v``, ``(B, *domain_shape)``, of any sign.
        rho: non-negative strength, a number, one a sample ``(B,)``, or broadcastable to the image (``rho D_jj``).
        x0: positive start; by default the positive part of the anchor, where that is positive, else the uniform image.
        iterations: bound on the number of iterations.
        tolerance: residual of the optimality conditions at which to stop (:func:`.em_engine.anchored_em`), 0 for never.
        callback: called after each iteration with ``{"kkt": (B,)}``, the residual before it.

    Returns:
        The image ``(B, *domain_shape)``.

    Raises:
        ValueError: if ``rho`` is negative or a likelihood is not Poisson.

    References:
        depierro1995
    """
    engine = TorchEM(operator, likelihood, y)
    engine.data.start(anchor)
    value = strength(rho, anchor)
    x, _, _ = anchored_em(engine, anchor=anchor, rho=value, x0=start_image(engine, x0, anchor),
                          iterations=iterations, tolerance=tolerance, callback=callback)  # fmt: skip
    return x


def bsrem(
    operator: Operator,
    likelihood: AnyLikelihood,
    y: Tensor | Blocks,
    penalty: Functional,
    *,
    x0: Tensor | None = None,
    subsets: int = 1,
    iterations: int = 50,
    relaxation: float = 1.0,
    decay: float = 0.1,
    eps: float = 1e-6,
    callback: Callback | None = None,
) -> Tensor:
    r"""Block-sequential regularised EM: preconditioned gradient descent on ``-log p(y | A x) + R(x)`` over ``x >= 0``.

    ``x <- [x - a_k D (n grad f_i + grad R)]_+`` with the subset term ``f_i`` of ``n``, ``a_k = relaxation / (1 +
    decay k)`` at pass ``k`` and ``D = u / (s + u h)``, ``u = x + eps max(x)``, where ``h`` is the penalty's diagonal
    curvature bound if it has one. Without a penalty, a decay and subsets it is MLEM but for ``eps``.

    Args:
        operator: ``A >= 0``, plain or block-diagonal.
        likelihood: Poisson with background, or a block likelihood of such.
        y: counts ``(B, *range_shape)`` or Blocks.
        penalty: smooth functional with ``grad``.
        x0: positive start; by default the uniform image with the measured number of counts.
        subsets: number of subsets.
        iterations: number of passes over all data.
        relaxation: first step length.
        decay: decrease of the step length per pass; with subsets it must be positive for convergence.
        eps: floor of the preconditioner relative to the largest voxel, so that zeros can grow again.
        callback: called after each pass with ``{"step": a_k}``.

    Returns:
        The image ``(B, *domain_shape)``.

    References:
        depierro2001
    """
    data = DataTerm(operator, likelihood, y)
    parts = data.subsets(subsets)
    sensitivity, curvature = data.sensitivity(), getattr(penalty, "curvature", None)
    x = data.uniform(sensitivity) if x0 is None else data.start(x0)
    for iteration in range(1, iterations + 1):
        step = relaxation / (1 + decay * (iteration - 1))
        for index in subset_order(subsets):
            slope = subsets * parts[index].adjoint(parts[index].slopes(parts[index].predict(x))) + penalty.grad(x)
            level = x + eps * x.flatten(1).amax(1).reshape(-1, *[1] * (x.ndim - 1))
            below = sensitivity if curvature is None else sensitivity + level * curvature(x)
            x = (x - step * divide(level, below) * slope).clamp_min(0)
        if callback is not None:
            callback(iteration, x, {"step": step})
    return x


def one_step_late(
    operator: Operator,
    likelihood: AnyLikelihood,
    y: Tensor | Blocks,
    penalty: Functional,
    *,
    x0: Tensor | None = None,
    subsets: int = 1,
    iterations: int = 50,
    callback: Callback | None = None,
) -> Tensor:
    r"""Green's one-step-late algorithm, ``x <- x A_i^T (y / ybar) / (s_i + grad R(x) / n)``.

    Fast and without guarantee: the denominator is kept above a tenth of the sensitivity. Arguments as in :func:`bsrem`.

    Args:
        operator: ``A >= 0``, plain or block-diagonal.
        likelihood: Poisson with background, or a block likelihood of such.
        y: counts ``(B, *range_shape)`` or Blocks.
        penalty: smooth functional with ``grad``.
        x0: positive start; by default the uniform image with the measured number of counts.
        subsets: number of subsets.
        iterations: number of passes over all data.
        callback: called after each pass with an empty ``info``.

    Returns:
        The image ``(B, *domain_shape)``.

    References:
        green1990
    """
    data = DataTerm(operator, likelihood, y)
    parts = [(part, part.sensitivity()) for part in data.subsets(subsets)]
    x = data.uniform(_total(parts)) if x0 is None else data.start(x0)
    for iteration in range(1, iterations + 1):
        for index in subset_order(subsets):
            part, sensitivity = parts[index]
            below = torch.maximum(sensitivity + penalty.grad(x) / subsets, sensitivity / 10)
            back = part.adjoint(part.ratios(part.predict(x)))
            x = torch.where(sensitivity > 0, x * divide(back, below), x)
        if callback is not None:
            callback(iteration, x, {})
    return x


def subset_order(count: int) -> list[int]:
    """Return the order in which subsets are visited: golden-section steps, so that neighbours in time are far in angle.

    Example:
        >>> subset_order(8)
        [0, 5, 2, 7, 4, 1, 6, 3]
    """
    steps = [s for s in range(1, count + 1) if _coprime(s, count)]
    step = min(steps, key=lambda s: abs(s - 0.618 * count))
    return [index * step % count for index in range(count)]


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def _total(parts: list[tuple[DataTerm, Tensor]]) -> Tensor:
    return torch.stack([sensitivity for _, sensitivity in parts]).sum(0)
