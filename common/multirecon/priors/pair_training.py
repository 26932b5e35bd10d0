"""Training pairs of patches: scaled and augmented stacks, cut around the object; subclasses say what a pair is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from .patches import patches_around
from .training import FollowsStep, keyed_generator

__all__ = ["PreparePatchPairs"]


class PreparePatchPairs(FollowsStep, PrepareBatch):
    """Turns a batch of clean stacks into pairs of patches (input, target); a subclass makes the pairs in :meth:`pairs`.

    The batch holds ``"image"``: ``(B, C, H, W)``, and ``"brain"`` where it is augmented. Augmentation, what a subclass
    draws, and the places of the patches come from one generator, a function of (seed, step, rank).

    Args:
        scales: what counts as one, a number a channel; None for stacks that are taken as they are.
        patch: side of the patches in pixels.
        patches: patches a slice.
        augmentation: ``augmentation(image, brain, generator=...)`` of the stacks, or None.
        seed: seed of the random numbers.
        rank: number of this process.

    Raises:
        ValueError: on a scale that is not positive.
    """

    key = "pairs"
    """First word of the generator's key: classes with different ones draw independent numbers."""
    threshold = 0.1
    """A pixel belongs to the object where the first channel that is cut is above this."""

    def __init__(
        self,
        scales: Sequence[float] | None = None,
        *,
        patch: int = 48,
        patches: int = 4,
        augmentation: Callable[..., Tensor] | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        if scales is not None and not all(s > 0 for s in scales):
            raise ValueError(f"scales: expected numbers > 0, got {list(scales)}")
        self.scales = None if scales is None else torch.tensor([float(s) for s in scales])
        self.patch, self.patches = patch, patches
        self.augmentation, self.seed, self.rank = augmentation, seed, rank

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, ``(B * patches, channels, patch, patch)`` each.

        Raises:
            ValueError: if the stack has not one channel a scale.
        """
        image = torch.as_tensor(batchdata["image"], dtype=torch.float32)
        if self.scales is not None and image.shape[1] != len(self.scales):
            raise ValueError(f"image: expected {len(self.scales)} channels, got {image.shape[1]}")
        generator = keyed_generator(self.key, self.seed, self.step, self.rank)
        if self.augmentation is not None:
            brain = torch.as_tensor(batchdata["brain"], dtype=torch.float32)
            image = self.augmentation(image, brain, generator=generator)
        if self.scales is not None:
            image = image / self.scales.reshape(1, -1, 1, 1)
        cut = torch.cat(
            [
                patches_around(one, one[0] > self.threshold, patch=self.patch, count=self.patches, generator=generator)
                for one in self.stacks(image, generator)
            ]
        )
        inputs, targets = self.pairs(cut, generator)
        return inputs.to(device, non_blocking=non_blocking), targets.to(device, non_blocking=non_blocking)

    def stacks(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Return the stacks that are cut, ``(B, channels, H, W)``; the scaled ones by default.

        Args:
            image: scaled and augmented stacks ``(B, C, H, W)``.
            generator: where random numbers come from.
        """
        return image

    def pairs(self, cut: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of patches ``(N, channels, patch, patch)`` of the stacks.

        Args:
            cut: the patches.
            generator: where random numbers come from.
        """
        raise NotImplementedError
