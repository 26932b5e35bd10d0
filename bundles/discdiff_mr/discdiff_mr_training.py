"""What trains DisC-Diff: the pass that shows the deepest features, and the loss that disentangles them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from discdiff_mr import DisentangledUNet
from monai.inferers import Inferer
from torch import Tensor, nn

from multirecon.priors.conditional import ConditionalBatch, ConditionalDiffusion

__all__ = ["DisentanglingLoss", "TrainingInferer", "TrainingPass", "pairwise_differences"]


class TrainingPass(nn.Module):
    """The network as training sees it: its output and the parts of the deepest features.

    Args:
        network: the network; its weights are the ones that are trained and stored.
    """

    def __init__(self, network: DisentangledUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return output, common and distinct parts; see :meth:`DisentangledUNet.disentangle`."""
        return self.network.disentangle(image, timestep)


class TrainingInferer(Inferer):
    """Runs the training pass, in mixed precision if asked, and returns float32.

    Args:
        autocast: ``"bfloat16"`` or None.
    """

    def __init__(self, *, autocast: str | None = None) -> None:
        super().__init__()
        self.autocast = None if autocast is None else getattr(torch, autocast)

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return ``(output, common parts, distinct parts)``."""
        with torch.autocast(inputs.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output, common, distinct = network(inputs, *args, **kwargs)
        return output.float(), [c.float() for c in common], [d.float() for d in distinct]


class DisentanglingLoss(nn.Module):
    r"""``L = L_charb + w L_dis + L_vb``.

    ``L_charb`` is the mean of ``sqrt(e^2 + 1e-6)`` over the error ``e`` of the prediction. With ``Com`` and ``Dis`` the
    mean squared differences of the common and of the distinct parts, summed over the three pairs of streams, ``L_dis =
    Com / (Dis + 1e-8)``: common parts should agree, distinct parts differ. The reference has no 1e-8, and equal streams
    give 0 / 0. ``L_vb`` is the term of the variational bound that teaches the variance.

    Args:
        diffusion: the diffusion of the target.
        disentangling: ``w``.

    References:
        mao2023, nichol2021
    """

    def __init__(self, diffusion: ConditionalDiffusion, *, disentangling: float = 1.0) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.disentangling = disentangling
        self.terms: dict[str, float] = {}

    def forward(self, prediction: tuple[Tensor, list[Tensor], list[Tensor]], target: ConditionalBatch) -> Tensor:
        """Return the loss, and keep its terms in ``terms``."""
        output, common, distinct = prediction
        charbonnier = ((output[:, :1] - target.target).square() + 1e-6).sqrt().mean()
        agreement, difference = pairwise_differences(common), pairwise_differences(distinct)
        ratio = agreement / (difference + 1e-8)
        bound = self.diffusion.variational_bound(target, output[:, :1], output[:, 1:]).mean()
        self.terms = {
            name: float(value.detach())
            for name, value in {
                "charbonnier": charbonnier,
                "ratio": ratio,
                "bound": bound,
                "common": agreement,
                "distinct": difference,
            }.items()
        }
        return charbonnier + self.disentangling * ratio + bound


def pairwise_differences(parts: Sequence[Tensor]) -> Tensor:
    """Return the mean squared differences summed over all pairs of tensors of one shape."""
    pairs = [(i, j) for i in range(len(parts)) for j in range(i)]
    return torch.stack([(parts[i] - parts[j]).square().mean() for i, j in pairs]).sum()
