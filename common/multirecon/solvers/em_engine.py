"""One EM iteration as a black box, and De Pierro's anchored iteration on top of it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Likelihood
from multirecon.operators import BlockDiagonal, LinearOperator

from .terms import Callback, DataTerm

__all__ = ["EMEngine", "TorchEM", "anchored_em", "divide", "poisson_gradient"]


class EMEngine(Protocol):
    """What an EM program offers: the sensitivity, and one iteration from a given image."""

    @property
    def sensitivity(self) -> Tensor:
        """``s = A^T 1``, ``(B, *domain_shape)``."""

    def update(self, x: Tensor) -> Tensor:
        """Return ``x / s A^T (y / (A x + b))``: one plain MLEM iteration over all data; ``x`` where ``s = 0``."""


class TorchEM:
    """The EM iteration of an operator and a Poisson likelihood of this library.

    Args:
        operator: ``A >= 0``, plain or block-diagonal.
        likelihood: Poisson with background, or a block likelihood of such.
        y: counts ``(B, *range_shape)`` or Blocks.
    """

    def __init__(
        self,
        operator: LinearOperator | BlockDiagonal,
        likelihood: Likelihood | BlockLikelihood,
        y: Tensor | Blocks,
    ) -> None:
        self.data = DataTerm(operator, likelihood, y)
        self._sensitivity: Tensor | None = None

    @property
    def sensitivity(self) -> Tensor:
        """``s = A^T 1``, ``(B, *domain_shape)``."""
        if self._sensitivity is None:
            self._sensitivity = self.data.sensitivity()
        return self._sensitivity

    def update(self, x: Tensor) -> Tensor:
        """Return the image ``(B, *domain_shape)`` after one MLEM iteration."""
        back = self.data.adjoint(self.data.ratios(self.data.predict(x)))
        return torch.where(self.sensitivity > 0, x * divide(back, self.sensitivity), x)


def anchored_em(
    engine: EMEngine,
    *,
    anchor: Tensor,
    rho: Tensor,
    x0: Tensor,
    iterations: int = 50,
    tolerance: float = 0.0,
    callback: Callback | None = None,
) -> tuple[Tensor, int, Tensor]:
    r"""Minimise ``f(x) + sum_j rho_j / 2 (x_j - v_j)^2`` over ``x >= 0`` by De Pierro's closed form around an engine.

    With ``e = s x_em``, where ``x_em`` is the engine's iteration from ``x``, and ``q = v - s / rho`` the update is
    ``x <- (q + sqrt(q^2 + 4 e / rho)) / 2``. The gradient at ``x`` is at hand, ``g = s (1 - x_em / x) + rho (x - v)``,
    and so is the residual of the Karush-Kuhn-Tucker conditions, ``|x - max(0, x - g / rho)| / |x|``: it bounds the
    distance to the minimiser, ``|x - x*| <= (1 + L / rho) r |x|`` for an ``L``-smooth ``f``.

    Args:
        engine: the EM iteration.
        anchor: ``v``, ``(B, *domain_shape)``, of any sign.
        rho: strength, broadcastable to the image; positive where a tolerance is asked for.
        x0: positive start.
        iterations: bound on the number of iterations.
        tolerance: stop when the residual of every sample is at most this; 0 for all iterations.
        callback: called after each iteration with ``{"kkt": (B,)}``, the residual before it.

    Returns:
        The image, the number of engine calls, and the last residual that was computed ``(B,)``.
    """
    s, x = engine.sensitivity, x0
    residual = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    for iteration in range(1, iterations + 1):
        em = engine.update(x)
        gradient = s * (1 - torch.where(x > 0, divide(em, x), torch.ones_like(x))) + rho * (x - anchor)
        # where rho is 0 there is no scale in the image: the EM step itself stands in for it
        step = torch.where(rho > 0, divide(gradient, rho.expand_as(gradient)), x - em)
        moved = torch.linalg.vector_norm((x - (x - step).clamp_min(0)).flatten(1), dim=1)
        residual = divide(moved, torch.linalg.vector_norm(x.flatten(1), dim=1))
        if tolerance and bool((residual <= tolerance).all()):
            return x, iteration, residual
        x = _positive_root(rho, s - rho * anchor, s * em)
        if callback is not None:
            callback(iteration, x, {"kkt": residual})
    return x, iterations, residual


def poisson_gradient(engine: EMEngine, x: Tensor) -> Tensor:
    """Return the gradient of ``-log p(y | x)`` where ``x > 0``, ``s (1 - x_em / x)``, and 0 elsewhere."""
    return torch.where(x > 0, engine.sensitivity * (1 - divide(engine.update(x), x)), torch.zeros_like(x))


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a / b``, zero where ``b`` is not positive."""
    return torch.where(b > 0, a / torch.where(b > 0, b, torch.ones_like(b)), torch.zeros_like(a))


def _positive_root(rho: Tensor, b: Tensor, e: Tensor) -> Tensor:
    """Return the non-negative root of ``rho x^2 + b x - e = 0``, free of cancellation for either sign of ``b``."""
    root = torch.sqrt(b**2 + 4 * rho * e)
    large = divide(2 * e, b + root)  # for b >= 0; tends to e / b, the MLEM update, as rho -> 0
    small = divide(root - b, 2 * rho.expand_as(b))
    return torch.where(b >= 0, large, small)


def start_image(engine: TorchEM, x0: Tensor | None, anchor: Tensor) -> Tensor:
    """Return a start that EM can leave in every voxel: ``x0``, else the anchor where positive and the uniform image."""
    if x0 is not None:
        return engine.data.start(x0)
    return torch.where(anchor > 0, anchor, engine.data.uniform(engine.sensitivity))


def strength(rho: float | Tensor, anchor: Tensor) -> Tensor:
    """Return ``rho`` as a tensor that broadcasts against the image.

    Raises:
        ValueError: if it is negative.
    """
    value: Any = torch.as_tensor(rho, dtype=anchor.dtype, device=anchor.device)
    value = value.reshape(-1, *[1] * (anchor.ndim - 1)) if value.ndim == 1 else value
    if bool((value < 0).any()):
        raise ValueError(f"rho: expected >= 0, got {rho}")
    return value
