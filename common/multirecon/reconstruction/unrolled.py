"""Unrolled methods: the learned parts are the bundle's network, the physics between them is here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..likelihoods import Gaussian
from ..measurement import Measurement
from ..operators import LinearOperator
from ..operators.fourier_rows import RowGram
from ..solvers.cg import conjugate_gradient
from ..space import ImageSpace
from .base import Callback, Capability, ImageSource, Reconstructor

__all__ = ["UnrolledNetwork", "UnrolledReconstructor", "feature_gram"]


class UnrolledNetwork(Protocol):
    """What the reconstructor asks of a network: its iteration cut open where the data come in.

    ``state[0]`` holds the features ``(B, n, *shape)`` of the target, each channel taken as an image.
    """

    iterations: int
    data_step: Tensor

    def start(self, target: Tensor, reference: Tensor) -> list[Tensor]:
        """Return the first state of the back-projected target and the references ``(B, channels, *shape)``."""

    def step(self, k: int, state: list[Tensor], consistent: Tensor) -> list[Tensor]:
        """Return the state after iteration ``k``; ``consistent`` is ``state[0]`` after the data consistency."""

    def finish(self, state: list[Tensor]) -> Tensor:
        """Return the target ``(B, 1, *shape)``."""


class _SelfAdjoint(torch.autograd.Function):
    """A self-adjoint linear map: its gradient is itself, and nothing has to be kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.product = product
        return product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return cast(Tensor, _SelfAdjoint.apply(gradients[0], ctx.product)), None


def feature_gram(operator: LinearOperator, batch: int) -> Callable[[Tensor], Tensor]:
    """Return ``x -> A^H A x`` for features ``(B, n, *shape)``, every channel taken as an image; differentiable.

    Cartesian MR with whole lines takes the fast form :class:`~multirecon.operators.fourier_rows.RowGram`; any other
    operator runs sample by sample, the channels of a sample being the batch.

    Args:
        operator: the operator of the target, with one set of tensors a sample or one for all.
        batch: number of samples ``B``.
    """
    if RowGram.applies(operator):
        return RowGram(cast(Any, operator))
    parts = [operator.samples(i, i + 1) for i in range(batch)]

    def product(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            images = x.detach().to(operator.domain_dtype)
            return torch.stack([part.gram(one[:, None])[:, 0] for part, one in zip(parts, images, strict=True)])

    return lambda x: cast(Tensor, _SelfAdjoint.apply(x, product))


def feature_resolvent(operator: LinearOperator, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return ``x -> (A^H A + weight)^-1 x`` for features ``(B, n, *shape)``; differentiable in the features.

    Args:
        operator: the operator of the target, with one set of tensors a sample or one for all.
        weight: positive, one a sample ``(B,)``.
    """
    if RowGram.applies(operator):
        return RowGram(cast(Any, operator)).resolvent(weight)
    parts = [operator.samples(i, i + 1) for i in range(len(weight))]

    def solve(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            images = x.detach().to(operator.domain_dtype)
            solved = [
                conjugate_gradient(part.gram, one[:, None], damping=float(w), max_iterations=50).x[:, 0]
                for part, one, w in zip(parts, images, weight, strict=True)
            ]
            return torch.stack(solved)

    return lambda x: cast(Tensor, _SelfAdjoint.apply(x, solve))


class UnrolledReconstructor(Reconstructor):
    r"""Runs a network that was cut open at its data consistency, ``x^ = x + eta_k (D x - x)``.

    ``x`` are the target's features; each channel is pulled towards the same data. By default ``D`` is a gradient step,
    ``D x = x - (A^H A x - A^H y)``; with ``prior_std`` (s) it is the proximal step

    .. math:: D x = \arg\min_v \frac{\|A v - y\|^2}{2 \sigma^2} + \frac{\|v - x\|^2}{2 s^2}
                  = (A^H A + w)^{-1} (A^H y + w x), \quad w = \sigma^2 / s^2

    with the noise level of the measurement. For one coil, ``eta = 1`` and a mask symmetric about the zero frequency the
    first replaces the measured k-space entries by the measured ones, and so does the second for ``s`` large. The target
    is returned by the network; clean references come back as they are. Training runs through the same code.

    Args:
        space: stack of the method: the target and its references.
        target: the modality that is reconstructed.
        references: clean modalities handed to the network, in this order.
        multiple: the sides of the grid must be divisible by it.
        prior_std: standard deviation s of the error of the iterates, in the unit of the image; None for gradient steps.
            One for every iteration, or one each (iterates get better, so that it should fall).
        data_consistency: False leaves the data out after the start (an ablation).
        autocast: ``"bfloat16"`` runs the network (never the physics) in mixed precision; None in float32.
        source: how an image stack becomes a Measurement.

    References:
        lei2023
    """

    def __init__(
        self,
        *,
        space: ImageSpace,
        target: str = "flair",
        references: Sequence[str] = ("t1",),
        multiple: int = 4,
        prior_std: float | Sequence[float] | None = None,
        data_consistency: bool = True,
        autocast: str | None = None,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(space=space, source=source)
        for name in (target, *references):
            space[name]
        self.target, self.references = target, tuple(references)
        values = prior_std if isinstance(prior_std, Sequence) else () if prior_std is None else (prior_std,)
        if not all(value > 0 for value in values):
            raise ValueError(f"prior_std: expected > 0 or None, got {prior_std}")
        self.multiple, self.prior_std = multiple, prior_std
        self.data_consistency = data_consistency
        self.autocast = None if autocast is None else getattr(torch, autocast)
        self.capability = Capability(
            operators=frozenset({"masked_fourier", "identity"}),
            likelihoods=frozenset({"gaussian"}),
            modalities=frozenset({target, *references}),
            requires={target: "masked_fourier", **dict.fromkeys(references, "identity")},
            ndim=frozenset({len(space.shape)}),
        )

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)``; see the class.

        Raises:
            ValueError: if there is no network, or the grid does not suit it.
        """
        if network is None:
            raise ValueError("network: expected the bundle's unrolled network, got None")
        wrong = [n for n in measurement.space.shape if n % self.multiple]
        if wrong:
            raise ValueError(f"grid: expected sides divisible by {self.multiple}, got {measurement.space.shape}")
        net = cast(UnrolledNetwork, network)
        operator, y = measurement.operator[self.target], measurement.y[self.target]
        reference = torch.cat([measurement.y[name] for name in self.references], dim=1)
        with torch.set_grad_enabled(network.training):
            zero_filled = operator.adjoint(y)
            pulls = self._pulls(measurement, zero_filled, net.iterations) if self.data_consistency else None
            with torch.autocast(y.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                state = net.start(zero_filled, reference)
                for k in range(net.iterations):
                    x = state[0].float()
                    if pulls is not None:
                        x = x + net.data_step[k] * pulls[k](x)
                    state = net.step(k, state, x)
                    if callback is not None:
                        callback(k, net.finish(state).float())
                result = net.finish(state).float()
        parts = {name: measurement.y[name] for name in self.references}
        return measurement.operator.assemble({**parts, self.target: result}, batch=len(y))

    def _pulls(
        self, measurement: Measurement, zero_filled: Tensor, iterations: int
    ) -> list[Callable[[Tensor], Tensor]]:
        """Return ``x -> D x - x`` for features ``(B, n, *shape)``, one an iteration."""
        operator = measurement.operator[self.target]
        if self.prior_std is None:
            gram = feature_gram(operator, len(zero_filled))
            return [lambda x: zero_filled - gram(x)] * iterations
        if not isinstance(self.prior_std, Sequence):
            return [self._proximal_pull(measurement, zero_filled, self.prior_std)] * iterations
        if len(self.prior_std) != iterations:
            raise ValueError(f"prior_std: expected one or {iterations} numbers, got {len(self.prior_std)}")
        solvers = {std: self._proximal_pull(measurement, zero_filled, std) for std in set(self.prior_std)}
        return [solvers[std] for std in self.prior_std]

    def _proximal_pull(self, measurement: Measurement, zero_filled: Tensor, std: float) -> Callable[[Tensor], Tensor]:
        likelihood = cast(Gaussian, measurement.likelihood[self.target])
        weight = (likelihood.sigma.flatten() / std) ** 2
        # data without noise would leave what is not sampled undetermined
        weight = weight.clamp_min(1e-4).expand(len(zero_filled)).to(zero_filled)
        solve = feature_resolvent(measurement.operator[self.target], weight)
        fixed, share = solve(zero_filled), weight.reshape(-1, *[1] * (zero_filled.ndim - 1))
        return lambda x: fixed + share * solve(x) - x
