"""Unrolled methods: the learned parts are the bundle's network, the physics between them is here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..measurement import Measurement
from ..operators import LinearOperator
from ..operators.fourier_rows import RowGram
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


class UnrolledReconstructor(Reconstructor):
    r"""Runs a network that was cut open at its data consistency: ``x^ = x - eta_k (A^H A x - A^H y)``.

    ``x`` are the target's features; each channel is pulled towards the same data. For one coil, ``eta = 1`` and a mask
    symmetric about the zero frequency this replaces the measured k-space entries by the measured ones. The target is
    returned by the network; clean references come back as they are. Training runs through the same code.

    Args:
        space: stack of the method: the target and its references.
        target: the modality that is reconstructed.
        references: clean modalities handed to the network, in this order.
        multiple: the sides of the grid must be divisible by it.
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
        data_consistency: bool = True,
        autocast: str | None = None,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(space=space, source=source)
        for name in (target, *references):
            space[name]
        self.target, self.references = target, tuple(references)
        self.multiple = multiple
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
            gram = feature_gram(operator, len(y)) if self.data_consistency else None
            with torch.autocast(y.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                state = net.start(zero_filled, reference)
                for k in range(net.iterations):
                    x = state[0].float()
                    if gram is not None:
                        x = x - net.data_step[k] * (gram(x) - zero_filled)
                    state = net.step(k, state, x)
                    if callback is not None:
                        callback(k, net.finish(state).float())
                result = net.finish(state).float()
        parts = {name: measurement.y[name] for name in self.references}
        return measurement.operator.assemble({**parts, self.target: result}, batch=len(y))
