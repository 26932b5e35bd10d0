"""Separable quadratic surrogates: a simultaneous, non-negative descent for every likelihood."""

from __future__ import annotations

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.functionals import Functional
from multirecon.likelihoods import BlockLikelihood, Likelihood
from multirecon.operators import BlockDiagonal, LinearOperator

from .terms import Callback, DataTerm

__all__ = ["separable_surrogate"]


def separable_surrogate(
    operator: LinearOperator | BlockDiagonal,
    likelihood: Likelihood | BlockLikelihood,
    y: Tensor | Blocks,
    penalty: Functional | None = None,
    *,
    anchor: Tensor | None = None,
    rho: float | Tensor = 0.0,
    x0: Tensor | None = None,
    iterations: int = 50,
    nonnegative: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    r"""Minimise ``-log p(y | A x) + R(x) + sum_j rho_j / 2 (x_j - v_j)^2`` by separable paraboloidal surrogates.

    ``x <- [x - (A^T g + grad R(x) + rho (x - v)) / (d + h + rho)]_+`` with ``g`` the slope and ``c`` the curvature of
    the likelihood at ``A x``, ``d = A^T (c A 1)`` and ``h`` the penalty's diagonal curvature bound. For weighted
    least squares, and for ``TransmissionPoisson(curvature="paraboloid")``, the objective falls monotonically.

    Args:
        operator: ``A >= 0``, plain or block-diagonal.
        likelihood: any likelihood with gradient and curvature, or a block likelihood.
        y: data ``(B, *range_shape)`` or Blocks.
        penalty: smooth functional with ``grad`` and ``curvature``.
        anchor: ``v``, ``(B, *domain_shape)``; zero by default.
        rho: non-negative strength, a number, one a sample ``(B,)``, or broadcastable to the image.
        x0: start; the anchor's positive part by default (its own value if negative values are allowed).
        iterations: number of iterations.
        nonnegative: whether the image is constrained to ``x >= 0``.
        callback: called after each iteration with an empty ``info``.

    Returns:
        The image ``(B, *domain_shape)``; voxels without any information keep their start.

    Raises:
        ValueError: if the penalty has no curvature.

    References:
        erdogan1999
    """
    if penalty is not None and not hasattr(penalty, "curvature"):
        raise ValueError(f"penalty: expected one with a curvature bound, got {type(penalty).__name__}")
    data = DataTerm(operator, likelihood, y)
    x = data.start(anchor if x0 is None else x0)
    x = x.clamp_min(0) if nonnegative else x
    target = torch.zeros_like(x) if anchor is None else data.start(anchor)
    strength = torch.as_tensor(rho, dtype=x.dtype, device=x.device)
    strength = strength.reshape(-1, *[1] * (x.ndim - 1)) if strength.ndim == 1 else strength
    lengths = data.predict(torch.ones_like(x))
    for iteration in range(1, iterations + 1):
        z = data.predict(x)
        slope = data.adjoint(data.slopes(z)) + strength * (x - target)
        curve = strength + data.adjoint(
            [t.likelihood.curvature(zm, t.y) * length for t, zm, length in zip(data.terms, z, lengths, strict=True)]
        )
        if penalty is not None:
            slope, curve = slope + penalty.grad(x), curve + penalty.curvature(x)  # type: ignore[operator]
        known = curve > 0
        x = torch.where(known, x - slope / torch.where(known, curve, torch.ones_like(curve)), x)
        x = x.clamp_min(0) if nonnegative else x
        if callback is not None:
            callback(iteration, x, {})
    return x
