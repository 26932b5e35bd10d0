"""Penalised weighted least squares: a quadratic model of any data and a quadratic penalty, solved exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..functionals.differences import divergence_adjoint, gradient
from ..likelihoods import Likelihood, Poisson, PolyenergeticPoisson
from ..likelihoods.approximation import gaussian_approximation
from ..measurement import Measurement
from ..operators import LinearOperator
from ..solvers.cg import conjugate_gradient
from ..solvers.decomposition import decompose_counts
from .base import Callback, Capability, ImageSource, Reconstructor
from .tuning import Tuning

__all__ = ["PenalisedLeastSquares"]

Linear = Callable[[Tensor], Tensor]
_FLOOR = 0.1  # smallest variance of a count, as a share of the mean count


class PenalisedLeastSquares(Reconstructor):
    r"""Generalised Tikhonov regularisation of any block: images, k-space, emission, transmission and spectral counts.

    .. math:: x_m = \arg\min_x \tfrac12 \|A_m x - d_m\|_{W_m}^2
              + \frac{1}{2 s_m^2} \bigl(w \langle x, R x \rangle + v \|\nabla x\|^2\bigr)

    with the scale ``s`` of the modality, forward differences between neighbouring pixels, and the bundle's network as
    ``R`` (:class:`~multirecon.networks.classical.RegularisationWeight`). The weights ``W`` are inverse variances, so
    that ``w`` and ``v`` are those of a prior: the same at every dose and for every operator. Data ``d`` and ``W`` come
    from :func:`~multirecon.likelihoods.gaussian_approximation`; those of a polyenergetic block are the
    maximum-likelihood line integrals of the materials with their Fisher information, ray by ray. Variances taken from
    emission counts favour low counts, hence one more solution with those of the expected counts.

    Conjugate gradients solve ``(A^H W A + (w R + v D^T D) / s^2) x = A^H W d``. A clean modality is returned as it
    is; a modality without a measurement comes back as zeros, the minimum of the penalty.

    Args:
        tuning: ``"weight"`` ``w`` and ``"smoothness"`` ``v`` by kind of block, dimensionless; without it 1 and 0.
        max_iterations: bound on the CG iterations.
        tolerance: relative residual at which a sample stops.
        source: how an image stack becomes a Measurement.

    References:
        sauer1993
    """

    capability = Capability(
        likelihoods=frozenset({"gaussian", "poisson", "transmission_poisson", "polyenergetic_poisson"})
    )

    def __init__(
        self,
        *,
        tuning: Tuning | None = None,
        max_iterations: int = 100,
        tolerance: float = 1e-5,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(source=source)
        if max_iterations < 1:
            raise ValueError(f"max_iterations: expected >= 1, got {max_iterations}")
        self.tuning = tuning
        self.max_iterations = max_iterations
        self.tolerance = tolerance

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)``; see the class."""
        if network is None:
            raise ValueError("network: expected the penalty of the bundle, got None")
        parts: dict[str, Tensor] = {}
        for name, operator in measurement.operator.items():
            y, likelihood = measurement.y[name], measurement.likelihood[name]
            if name in measurement.given:
                parts[name] = y
                continue
            settings = {"weight": 1.0, "smoothness": 0.0}
            if self.tuning is not None:
                settings |= self.tuning.of(measurement, name)
            model = quadratic_model(likelihood, y)
            penalty = self._penalty(network, settings, measurement.space[name].scale)
            x = self._solve(operator, model, penalty, None, callback)
            if isinstance(likelihood, Poisson):
                floor = _FLOOR * _positive(y.flatten(1).mean(1)).reshape(-1, *[1] * (y.ndim - 1))
                weights = torch.maximum(likelihood.mean(operator(x.detach())), floor).reciprocal()
                x = self._solve(operator, _weighted(model.data, weights), penalty, x.detach(), callback)
            parts[name] = x
        return measurement.operator.assemble(parts, batch=measurement.batch_size, like=torch.empty(0))

    @staticmethod
    def _penalty(network: nn.Module, settings: dict[str, float], scale: float) -> Callable[[Tensor], Tensor]:
        weight, smoothness = settings["weight"] / scale**2, settings["smoothness"] / scale**2

        def penalty(x: Tensor) -> Tensor:
            value = weight * network(x)
            if smoothness:
                steps = [1.0] * (x.ndim - 2)
                value = value + smoothness * divergence_adjoint(gradient(x, steps), steps)
            return value

        return penalty

    def _solve(
        self,
        operator: LinearOperator,
        model: QuadraticModel,
        penalty: Callable[[Tensor], Tensor],
        start: Tensor | None,
        callback: Callback | None,
    ) -> Tensor:
        share = model.level.reciprocal().to(model.data.device).reshape(-1, *[1] * len(operator.domain_shape))

        def normal(x: Tensor) -> Tensor:
            weight = model.weight
            curvature = operator.gram(x) if weight is None else operator.adjoint(weight(operator(x)))
            return curvature + share * penalty(x)

        return conjugate_gradient(
            normal,
            operator.adjoint(model.data if model.weight is None else model.weight(model.data)),
            x0=start,
            max_iterations=self.max_iterations,
            tolerance=self.tolerance,
            preconditioner=model.preconditioner,
            callback=None if callback is None else lambda k, x, *_: callback(k, x),
        ).x


@dataclass(frozen=True)
class QuadraticModel:
    r"""``-log p(y | z) = 1/2 |z - d|_W^2`` to second order, with ``W`` divided by its mean.

    Args:
        data: ``d``, shaped like the predictor ``z``.
        weight: the map ``z -> W z / level``; ``None`` where it is the identity.
        level: mean weight of every sample, ``(B,)`` or ``(1,)``, in the unit of ``1/d^2``; infinite without noise.
        preconditioner: approximate inverse of ``A^H W A`` up to a factor, on images; ``None`` for the identity.
    """

    data: Tensor
    weight: Linear | None
    level: Tensor
    preconditioner: Linear | None = None


def quadratic_model(likelihood: Likelihood, y: Tensor) -> QuadraticModel:
    """Return the quadratic model of one block's likelihood at its data ``(B, ...)``."""
    if isinstance(likelihood, PolyenergeticPoisson):
        with torch.no_grad():
            integrals, information = decompose_counts(likelihood, y)
        level = _positive(torch.diagonal(information, dim1=1, dim2=2).flatten(1).mean(1))
        scaled = information / level.reshape(-1, *[1] * (information.ndim - 1))
        # materials look alike to the data: undo what they have in common on average
        mean = scaled.flatten(3).mean(-1)
        ridge = 1e-3 * torch.diagonal(mean, dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(mean.shape[1]).to(mean)
        inverse = torch.linalg.inv(mean + ridge)
        return QuadraticModel(
            integrals,
            lambda z: torch.einsum("bmn...,bn...->bm...", scaled, z),
            level,
            lambda x: torch.einsum("bmn,bn...->bm...", inverse, x),
        )
    data, noise = gaussian_approximation(likelihood, y)
    sigma = noise.sigma.to(data.real.dtype)
    if noise.is_exact or sigma.ndim == 0 or sigma[0].numel() == 1:
        return QuadraticModel(data, None, sigma.flatten() ** -2)
    return _weighted(data, sigma**-2)


def _weighted(data: Tensor, weights: Tensor) -> QuadraticModel:
    level = _positive(weights.flatten(1).mean(1))
    scaled = weights / level.reshape(-1, *[1] * (weights.ndim - 1))
    return QuadraticModel(data, lambda z: scaled * z, level)


def _positive(level: Tensor) -> Tensor:
    return level.clamp_min(torch.finfo(level.dtype).eps)
