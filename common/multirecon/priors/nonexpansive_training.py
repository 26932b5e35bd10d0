"""Training of firmly nonexpansive denoisers: the norms of its layers, and the metrics of validation."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from torch import Tensor, nn

from .nonexpansive import guided, jacobian_norms, reflection

__all__ = ["DenoisedPSNR", "ReflectionNorm", "RenewNorms"]


class DenoisedPSNR(Metric):
    """Mean PSNR in dB of denoised images against the clean ones.

    Args:
        data_range: of the images; 2 for activity over its mean.
    """

    def __init__(self, *, data_range: float = 2.0) -> None:
        self._peak = data_range
        super().__init__(output_transform=lambda output: (output["pred"], output["label"]))

    def reset(self) -> None:
        """Forget everything."""
        self._values: list[float] = []

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Add a batch ``(pred (B, C, H, W), label (B, 2 C + G, H, W))``: clean, noisy and guides."""
        pred, label = (torch.as_tensor(t).detach().float() for t in output)
        error = (pred - label[:, : pred.shape[1]]).square().flatten(1).mean(1)
        self._values += (10 * torch.log10(self._peak**2 / error.clamp_min(1e-12))).tolist()

    def compute(self) -> float:
        """Return the mean.

        Raises:
            ValueError: if no batch was added.
        """
        if not self._values:
            raise ValueError("psnr: expected at least one batch, got none")
        return sum(self._values) / len(self._values)


class ReflectionNorm(Metric):
    """Largest ``|J_Q|`` of the denoiser over the noisy images of the batches, by power iteration.

    Args:
        network: the network whose norm is taken.
        iterations: power iterations.
        guides: channels of a guide behind the image.
    """

    def __init__(self, network: nn.Module, *, iterations: int = 10, guides: int = 0) -> None:
        self._network, self._iterations, self._guides = network, iterations, guides
        super().__init__(output_transform=lambda output: output["label"])

    def reset(self) -> None:
        """Forget everything."""
        self._largest = float("-inf")

    def update(self, output: Tensor) -> None:
        """Add a batch: clean and noisy images and their guides ``(B, 2 C + G, H, W)``."""
        label = torch.as_tensor(output).detach().float()
        images, guides = label.tensor_split([label.shape[1] - self._guides], dim=1)
        function = reflection(guided(self._network, guides))
        norms, _ = jacobian_norms(function, images.chunk(2, dim=1)[1], iterations=self._iterations)
        self._largest = max(self._largest, float(norms.max()))

    def compute(self) -> float:
        """Return the largest norm."""
        return self._largest


class RenewNorms:
    """Calls ``network.renew()`` after every step where there is one: layers that divide by norms follow their weights.

    Args:
        network: the network that is trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before the weights are averaged."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._renew)

    def _renew(self, engine: Engine) -> None:
        if callable(getattr(self.network, "renew", None)):
            self.network.renew()  # type: ignore[operator]
