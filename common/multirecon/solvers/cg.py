"""Conjugate gradients for batches, and the damped least-squares problem on top of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.operators.base import LinearOperator
from multirecon.operators.block import BlockDiagonal

from .terms import Callback

__all__ = ["CGResult", "conjugate_gradient", "least_squares"]


class CGResult(NamedTuple):
    """The outcome of a conjugate-gradient run.

    Attributes:
        x: solution, shaped like the right-hand side.
        iterations: products with the matrix spent on each sample, integer ``(B,)``.
        residual: relative residual ``|b - M x| / |b|`` of each sample as the recursion tracks it, ``(B,)``.
    """

    x: Tensor
    iterations: Tensor
    residual: Tensor


def conjugate_gradient(
    gram: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    x0: Tensor | None = None,
    damping: float | Tensor = 0.0,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    implicit: bool = False,
    callback: Callback | None = None,
) -> CGResult:
    r"""Solve ``(M + damping) x = b`` for every sample of a batch by conjugate gradients.

    Each sample stops by itself when ``|b - (M + damping) x| <= tolerance |b|`` and is left untouched from then on, so a
    batch gives what its samples give one by one. Inner products are accumulated in double precision.

    Gradients flow to ``rhs``, ``damping`` and whatever ``gram`` depends on: through the recursion, which keeps every
    iterate in memory, or with ``implicit`` by solving the same system for the gradient, which is exact at the
    solution and keeps one image.

    Args:
        gram: the map ``x -> M x``, Hermitian and positive semi-definite, acting on each sample separately.
        rhs: right-hand side ``b``, real or complex, shape ``(B, ...)``.
        x0: warm start shaped like ``rhs``; the default is zero, which saves one product.
        damping: non-negative number, tensor ``(B,)`` (one a sample) or tensor broadcastable to ``rhs`` (a diagonal).
        max_iterations: largest number of iterations.
        tolerance: relative residual at which a sample stops; ``0`` runs them all.
        preconditioner: Hermitian positive-definite approximation of the inverse of ``M + damping``.
        implicit: whether to differentiate the solution instead of the recursion (once; not twice).
        callback: called with ``{"residual": (B,), "active": (B,) bool}`` after each iteration.

    Returns:
        The solution with per-sample iteration counts and residuals.

    Raises:
        ValueError: if shapes disagree, or the damping or tolerance is negative.

    Example:
        >>> result = conjugate_gradient(lambda x: 4 * x, torch.ones(2, 3), damping=1.0)
        >>> float(result.x[0, 0]), result.iterations.tolist()
        (0.20000000298023224, [1, 1])
    """
    if x0 is not None and x0.shape != rhs.shape:
        raise ValueError(f"x0: expected the shape {tuple(rhs.shape)} of rhs, got {tuple(x0.shape)}")
    if tolerance < 0 or max_iterations < 0:
        raise ValueError(f"tolerance and max_iterations: expected >= 0, got {tolerance} and {max_iterations}")
    shift = _per_sample(damping, rhs)
    if bool(torch.as_tensor(shift < 0).any()):
        raise ValueError(f"damping: expected >= 0, got {damping}")
    damped = isinstance(shift, Tensor) or shift != 0

    def apply(x: Tensor) -> Tensor:
        return gram(x) + shift * x if damped else gram(x)

    if implicit:
        options: dict[str, Any] = {"damping": damping.detach() if isinstance(damping, Tensor) else damping,
                                   "max_iterations": max_iterations, "tolerance": tolerance,
                                   "preconditioner": preconditioner}  # fmt: skip
        with torch.no_grad():
            found = conjugate_gradient(gram, rhs, x0=x0, callback=callback, **options)
        # b - (M + damping) x depends on all that x does; solving with it again gives the right derivative of x
        return found._replace(x=_Implicit.apply(rhs - apply(found.x), found.x, gram, options))
    scale = _inner(rhs, rhs).sqrt()
    safe_scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    x = torch.zeros_like(rhs) if x0 is None else x0
    r = rhs if x0 is None else rhs - apply(x0)
    z = r if preconditioner is None else preconditioner(r)
    p = z
    rz = _inner(r, z)
    residual = _inner(r, r).detach().sqrt() / safe_scale.detach()
    iterations = torch.zeros(rhs.shape[0], dtype=torch.int64, device=rhs.device)
    # b = 0 has the solution 0; from a warm start the residual is then absolute.
    active = residual > tolerance
    for iteration in range(1, max_iterations + 1):
        if not bool(active.any()):
            break
        q = apply(p)
        pq = _inner(p, q)
        # A direction of (numerically) no curvature ends the sample: there is nothing left to gain along it.
        active = active & (pq > 0) & (rz > 0)
        alpha = _ratio(rz, pq, active)
        x = torch.addcmul(x, _expand(alpha, x), p)
        r = torch.addcmul(r, _expand(-alpha, r), q)
        z = r if preconditioner is None else preconditioner(r)
        rz_next = _inner(r, z)
        iterations = iterations + active
        residual = torch.where(active, _inner(r, r).detach().sqrt() / safe_scale.detach(), residual)
        if callback is not None:
            callback(iteration, x, {"residual": residual, "active": active})
        beta = _ratio(rz_next, rz, active)
        rz = torch.where(active, rz_next, rz)
        active = active & (residual > tolerance)
        p = torch.addcmul(z, _expand(beta, p), p)
    return CGResult(x, iterations, residual)


class _Implicit(torch.autograd.Function):
    """The solution, with the derivative ``(M + damping)^-1`` with respect to the residual."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, gram: Callable[[Tensor], Tensor], options: Any) -> Tensor:
        ctx.gram, ctx.options = gram, options
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return conjugate_gradient(ctx.gram, gradient, **ctx.options).x, None, None, None


def least_squares(
    operator: LinearOperator | BlockDiagonal,
    y: Tensor | Blocks,
    *,
    weight: Tensor | float | Mapping[str, Tensor | float] | None = None,
    damping: float | Tensor = 0.0,
    anchor: Tensor | None = None,
    x0: Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    implicit: bool = False,
    callback: Callback | None = None,
) -> CGResult:
    r"""Minimise ``1/2 |y - A x|_W^2 + 1/2 |x - v|_damping^2`` by conjugate gradients on the normal equations.

    The solution of ``(A^H W A + damping) x = A^H W y + damping v``. Without damping and from ``x0 = 0`` it tends to the
    minimum-norm least-squares solution.

    Args:
        operator: ``A``, a plain operator or the block-diagonal operator of a stack.
        y: data ``(B, *range_shape)``, or the Blocks of a stack.
        weight: real data weights ``W`` (``1/variance``), broadcastable to the data; a mapping for Blocks.
        damping: non-negative number, ``(B,)`` or broadcastable to the image; unit of ``A^H W A``.
        anchor: ``v``, shaped like the image; the default is zero.
        x0: warm start ``(B, *domain_shape)``.
        max_iterations: largest number of iterations.
        tolerance: relative residual of the normal equations at which a sample stops.
        preconditioner: approximate inverse of the normal matrix.
        implicit: see :func:`conjugate_gradient`.
        callback: see :func:`conjugate_gradient`.

    Returns:
        The image ``(B, *domain_shape)`` with per-sample iteration counts and residuals.

    Raises:
        ValueError: if the weight does not fit the data.

    Example:
        >>> from multirecon.operators import Diagonal
        >>> A = Diagonal(torch.tensor([[1.0, 2.0]]), shape=(1, 2))
        >>> least_squares(A, torch.tensor([[[3.0, 4.0]]])).x.round(decimals=4)
        tensor([[[3., 2.]]])
    """
    rhs = operator.adjoint(_weighted(weight, y))  # type: ignore[arg-type]
    if anchor is not None:
        rhs = rhs + _per_sample(damping, rhs) * anchor

    def gram(x: Tensor) -> Tensor:
        if weight is None:
            return operator.gram(x)
        if isinstance(weight, Tensor) and isinstance(y, Tensor) and weight.numel() == 1:
            return weight.reshape(()) * operator.gram(x)  # white noise: the operator's own, faster gram
        return operator.adjoint(_weighted(weight, operator(x)))  # type: ignore[arg-type]

    return conjugate_gradient(
        gram, rhs, x0=x0, damping=damping, max_iterations=max_iterations, tolerance=tolerance,
        preconditioner=preconditioner, implicit=implicit, callback=callback,
    )  # fmt: skip


def _weighted(weight: Tensor | float | Mapping[str, Tensor | float] | None, y: Tensor | Blocks) -> Tensor | Blocks:
    if weight is None:
        return y
    if isinstance(y, Blocks):
        if not isinstance(weight, Mapping) or set(weight) != set(y):
            got = list(weight) if isinstance(weight, Mapping) else type(weight).__name__
            raise ValueError(f"weight: expected one entry for each block of {list(y)}, got {got}")
        return Blocks({name: weight[name] * datum for name, datum in y.items()})
    if isinstance(weight, Mapping):
        raise ValueError("weight: expected a tensor or a number for plain data, got a mapping")
    return weight * y


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product per sample, accumulated in double precision."""
    product = (a.conj() * b).real if a.is_complex() else a * b
    return product.flatten(1).sum(1, dtype=torch.float64)


def _ratio(numerator: Tensor, denominator: Tensor, active: Tensor) -> Tensor:
    """``numerator / denominator`` where active, else 0, without a NaN in the backward pass."""
    safe = torch.where(active, denominator, torch.ones_like(denominator))
    return torch.where(active, numerator / safe, torch.zeros_like(numerator))


def _expand(value: Tensor, like: Tensor) -> Tensor:
    """Give a per-sample value ``(B,)`` the dtype and the trailing axes of ``like``."""
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def _per_sample(value: float | Tensor, like: Tensor) -> float | Tensor:
    if isinstance(value, Tensor) and value.ndim == 1:
        return value.to(like.real.dtype).reshape(-1, *[1] * (like.ndim - 1))
    return value
