"""The data step of a splitting algorithm, ``argmin_{x >= 0} f(x) + sum rho_j / 2 (x_j - v_j)^2``, as one object."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .em_engine import EMEngine, anchored_em, poisson_gradient
from .projected_newton import projected_newton
from .terms import DataTerm

__all__ = ["DataStep", "EmissionStep", "NewtonStep"]


@runtime_checkable
class DataStep(Protocol):
    """What plug-and-play asks of the data: a proximal map over non-negative images, and the gradient."""

    def proximal(
        self, anchor: Tensor, rho: Tensor, x0: Tensor, *, iterations: int, tolerance: float
    ) -> tuple[Tensor, int, Tensor]:
        """Return the image, the iterations it took, and the relative residual of its optimality conditions ``(B,)``.

        Args:
            anchor: ``v``, ``(B, C, *shape)``.
            rho: strength, broadcastable to the image, positive.
            x0: start.
            iterations: bound on the iterations.
            tolerance: residual at which they end.
        """

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of ``f`` where ``x > 0``."""


class NewtonStep:
    """Projected Newton steps on the likelihood itself: see :func:`~multirecon.solvers.projected_newton`.

    Channels without data have ``f = 0``, so that their anchor comes back, cut at zero; channels that are given hold
    the only image that they may: both are proximal maps of convex functions.

    Args:
        data: operator, convex likelihood and data, of one image or of a stack.
        given: images of channels that are known without noise ``(B, C, *shape)``, and their mask ``(C,)``.
    """

    def __init__(self, data: DataTerm, *, given: tuple[Tensor, Tensor] | None = None) -> None:
        self.data, self.given = data, given

    def proximal(
        self, anchor: Tensor, rho: Tensor, x0: Tensor, *, iterations: int, tolerance: float
    ) -> tuple[Tensor, int, Tensor]:
        """See :class:`DataStep`; an iteration is a projection forth and back."""
        x, count, residual = projected_newton(
            self.data, anchor=anchor, rho=rho, x0=x0, iterations=iterations, tolerance=tolerance
        )
        if self.given is not None:
            image, known = self.given
            x = torch.where(known.reshape(1, -1, *[1] * (x.ndim - 2)), image, x)
        return x, count, residual

    def gradient(self, x: Tensor) -> Tensor:
        """See :class:`DataStep`."""
        return self.data.adjoint(self.data.slopes(self.data.predict(x)))


class EmissionStep:
    """De Pierro's iteration around the EM iteration of a program: slow, and all that a black box needs to offer.

    Args:
        engine: the EM iteration.
    """

    def __init__(self, engine: EMEngine) -> None:
        self.engine = engine

    def proximal(
        self, anchor: Tensor, rho: Tensor, x0: Tensor, *, iterations: int, tolerance: float
    ) -> tuple[Tensor, int, Tensor]:
        """See :class:`DataStep`."""
        return anchored_em(self.engine, anchor=anchor, rho=rho, x0=x0, iterations=iterations, tolerance=tolerance)

    def gradient(self, x: Tensor) -> Tensor:
        """See :class:`DataStep`."""
        return poisson_gradient(self.engine, x)
