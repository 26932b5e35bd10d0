"""Penalties that read the edges of a guide image: directional total variation and parallel level sets."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .differences import gradient
from .tv import TotalVariation

__all__ = ["DirectionalTotalVariation", "ParallelLevelSets"]


class DirectionalTotalVariation(TotalVariation):
    r"""Directional total variation ``sum_j |(I - xi xi^T) grad x|_j`` with the edge directions ``xi`` of a guide.

    ``xi = grad v / sqrt(|grad v|^2 + edge^2)``: across a strong edge of the guide ``v`` an edge of ``x`` costs almost
    nothing, along it and in flat regions as much as in total variation. The guide steers where edges may lie, not
    their sign or height.

    Args:
        weight: factor of the penalty, a number or one a sample.
        guide: guide image ``v``, real, ``(B, 1, *spatial)`` or ``(1, 1, *spatial)``; or one guide a channel ``(B, C,
            *spatial)``.
        edge: gradient magnitude of the guide (its unit per grid step) that counts as half an edge.
        options: see :class:`~multirecon.functionals.GradientFunctional`.

    Raises:
        ValueError: if ``edge`` is not positive or the guide is not a real image.

    References:
        ehrhardt2016

    Example:
        >>> import torch
        >>> step = torch.zeros(1, 1, 8, 8)
        >>> step[..., 4:] = 1.0
        >>> guided = DirectionalTotalVariation(guide=5 * step, edge=0.01)
        >>> bool(guided.value(step) < 1e-4), float(guided.value(step.mT))
        (True, 8.0)
    """

    def __init__(self, weight: float | Tensor = 1.0, *, guide: Tensor, edge: float, **options: Any) -> None:
        super().__init__(weight, **options)
        if not edge > 0:
            raise ValueError(f"edge: expected > 0, got {edge}")
        if guide.ndim not in (4, 5) or guide.is_complex():
            raise ValueError(f"guide: expected a real image (B, C, *spatial), got {tuple(guide.shape)} {guide.dtype}")
        self.edge = float(edge)
        slopes = gradient(guide, self._steps(guide.ndim - 2))
        self.directions: Tensor
        self.register_buffer("directions", slopes / (slopes.square().sum(2, keepdim=True) + edge**2).sqrt())

    def analyse(self, x: Tensor) -> Tensor:
        """Return the gradient without its part along the guide's."""
        return self._reduce(super().analyse(x))

    def synthesise(self, p: Tensor) -> Tensor:
        """Return the adjoint of :meth:`analyse`."""
        return super().synthesise(self._reduce(p))

    def _reduce(self, p: Tensor) -> Tensor:
        along = (self.directions * p).sum(2, keepdim=True)
        return p - self._share() * self.directions * along

    def _share(self) -> Tensor | float:
        return 1.0


class ParallelLevelSets(DirectionalTotalVariation):
    r"""Parallel level sets with a fixed guide, ``sum_j sqrt(|grad x|^2 - <grad x, xi>^2)_j``.

    It differs from directional total variation where the guide has weak edges, ``|xi| < 1``: there this form
    regularises the direction across them more. Arguments as in :class:`DirectionalTotalVariation`.

    References:
        ehrhardt2016
    """

    def _share(self) -> Tensor:
        # (I - c xi xi^T)^2 = I - xi xi^T  for  c = (1 - sqrt(1 - |xi|^2)) / |xi|^2 = 1 / (1 + sqrt(1 - |xi|^2))
        square = self.directions.square().sum(2, keepdim=True)
        return 1 / (1 + (1 - square).clamp_min(0).sqrt())
