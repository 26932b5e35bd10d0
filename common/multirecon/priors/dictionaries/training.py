"""What the learning of dictionaries adds to MONAI's engines: the trainer's iteration and the batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents, PrepareBatch, Trainer
from torch import Tensor, nn

from .learning import DictionaryLearner

__all__ = ["DictionaryTrainer", "PrepareChannels"]


class DictionaryTrainer(Trainer):
    """A MONAI trainer whose iteration is one update of codes and filters on the whole training set.

    Args:
        device: where to compute.
        max_epochs: epochs.
        train_data_loader: yields the whole training set as one batch, always the same.
        network: owner of the filters.
        learner: updates them.
        epoch_length: iterations an epoch.
        prepare_batch: returns images ``(B, C, H, W)`` and whatever.
        train_handlers: handlers.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Any,
        network: nn.Module,
        learner: DictionaryLearner,
        *,
        epoch_length: int | None = None,
        prepare_batch: Callable[..., Any],
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            prepare_batch=prepare_batch,
            handlers=train_handlers,
            decollate=False,
        )
        self.network = network
        self.learner = learner

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        images, _ = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking)
        engine.state.output = {"image": images, "loss": self.learner.update(images)}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class PrepareChannels(PrepareBatch):
    """Turns slices into the stack of a dictionary, every channel in units of its own scale.

    The batch holds ``"image"``: ``(B, C, H, W)``, one channel a modality; the result is ``(noisy, clean)``, equal
    without noise.

    Args:
        modalities: names of the channels of the batch.
        scales: what counts as one, a number for every channel of the result (the training maximum, say).
        transforms: modality -> map of its image ``(B, 1, H, W)`` to one or several channels.
        sigma: standard deviation of the noise added to the first of the two, in units of the scales.
        seed: of the noise; it is the same for equal batches.

    Raises:
        ValueError: if a transform belongs to no modality, or a scale is not positive.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        scales: Sequence[float],
        *,
        transforms: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        sigma: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.modalities = tuple(modalities)
        self.scales = torch.tensor([float(s) for s in scales])
        self.transforms = dict(transforms or {})
        self.sigma, self.seed = float(sigma), seed
        unknown = sorted(set(self.transforms) - set(self.modalities))
        if unknown:
            raise ValueError(f"transforms: expected some of {list(self.modalities)}, got {unknown}")
        if not bool((self.scales > 0).all()):
            raise ValueError(f"scales: expected numbers > 0, got {list(scales)}")

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return ``(noisy, clean)``, each ``(B, channels, H, W)``, on the device.

        Raises:
            ValueError: if the channels are not as many as the names or the scales.
        """
        image = torch.as_tensor(batchdata["image"], dtype=torch.float32)
        if image.shape[1] != len(self.modalities):
            raise ValueError(f"image: expected channels {list(self.modalities)}, got {image.shape[1]}")
        parts = [
            self.transforms[name](part) if name in self.transforms else part
            for name, part in zip(self.modalities, image.split(1, dim=1), strict=True)
        ]
        stack = torch.cat(parts, dim=1)
        if stack.shape[1] != len(self.scales):
            raise ValueError(f"scales: expected one for each of {stack.shape[1]} channels, got {len(self.scales)}")
        clean = stack / self.scales.reshape(1, -1, 1, 1)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(self.seed))
        noisy = clean + self.sigma * noise if self.sigma else clean
        return noisy.to(device=device, non_blocking=non_blocking), clean.to(device=device, non_blocking=non_blocking)
