"""Regularised least squares: CG-SENSE for MR, Tikhonov for any linear Gaussian measurement."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..measurement import Measurement
from ..solvers.cg import conjugate_gradient
from .base import Callback, Capability, ImageSource, Reconstructor
from .tuning import Tuning

__all__ = ["Tikhonov"]


class Tikhonov(Reconstructor):
    r"""Tikhonov-regularised least squares, block by block (CG-SENSE where ``A`` is multi-coil MR).

    .. math:: x_m = \arg\min_x \tfrac12 \|A_m x - y_m\|^2 + \tfrac12 \|A_m\|^2 \langle x, R x \rangle

    solved by conjugate gradients on ``(A^H A + |A|^2 R) x = A^H y``. ``R`` is the bundle's network: a dimensionless
    weight (:class:`~multirecon.networks.classical.RegularisationWeight`), so that one number serves operators of every
    scale. White Gaussian noise of one level a block drops out of the normal equations; data of any other kind are for
    :class:`~multirecon.reconstruction.PenalisedLeastSquares`. A clean modality is returned as
    it is; a modality without a measurement comes back as zeros, the minimum-norm solution.

    Args:
        tuning: ``"weight"`` by kind of block, a factor of the network's weight; without it 1.
        max_iterations: bound on the CG iterations.
        tolerance: relative residual at which a sample stops.
        source: how an image stack becomes a Measurement.

    References:
        pruessmann2001
    """

    capability = Capability(likelihoods=frozenset({"gaussian"}))

    def __init__(
        self,
        *,
        tuning: Tuning | None = None,
        max_iterations: int = 50,
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
            raise ValueError("network: expected the regularisation weight of the bundle, got None")
        parts: dict[str, Tensor] = {}
        for name, operator in measurement.operator.items():
            y = measurement.y[name]
            if name in measurement.given:
                parts[name] = y
                continue
            scale = operator.norms(len(y)).reshape(-1, *[1] * (len(operator.domain_shape))) ** 2
            if self.tuning is not None:
                scale = scale * self.tuning.of(measurement, name)["weight"]

            def normal(x: Tensor, operator: nn.Module = operator, scale: Tensor = scale) -> Tensor:
                return operator.gram(x) + scale * network(x)  # type: ignore[operator]

            result = conjugate_gradient(
                normal,
                operator.adjoint(y),
                max_iterations=self.max_iterations,
                tolerance=self.tolerance,
                callback=None if callback is None else lambda k, x, *_: callback(k, x),
            )
            parts[name] = result.x
        return measurement.operator.assemble(parts, batch=measurement.batch_size, like=torch.empty(0))
