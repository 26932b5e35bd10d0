"""Training pairs of the networks that connect the energies: a noisy image of the reference, clean ones of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from multirecon.priors.patches import patches_around
from multirecon.priors.training import FollowsStep, keyed_generator

__all__ = ["PreparePairs"]


class PreparePairs(FollowsStep, PrepareBatch):
    r"""Turns clean slices into pairs ``(u_ref + sigma n, (u_1 .. u_K))`` of patches, every energy over its scale.

    ``sigma`` is drawn anew for every patch, uniformly up to its bound: the networks learn the relation between the
    energies at no noise and not to hand noise on. Noise, augmentation and patches are functions of (seed, step, rank).

    Args:
        scales: what counts as one, a number a channel (1/cm).
        reference: channel of the reference energy.
        sigma: largest standard deviation of the noise in units of the scale; 0 for none.
        patch: side of the patches in pixels.
        patches: patches a slice.
        augmentation: ``augmentation(image, brain, generator=...)`` of the stacks, or None.
        seed: seed of the random numbers.
        rank: number of this process.

    Raises:
        ValueError: on a scale that is not positive, negative noise, or a reference that is no channel.
    """

    def __init__(
        self,
        scales: Sequence[float],
        *,
        reference: int,
        sigma: float = 0.03,
        patch: int = 64,
        patches: int = 2,
        augmentation: Callable[..., Tensor] | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        if not sigma >= 0 or not all(s > 0 for s in scales):
            raise ValueError(f"scales, sigma: expected numbers > 0 and one >= 0, got {list(scales)}, {sigma}")
        if not 0 <= reference < len(scales):
            raise ValueError(f"reference: expected a channel below {len(scales)}, got {reference}")
        self.scales = torch.tensor([float(s) for s in scales])
        self.reference, self.sigma, self.patch, self.patches = reference, sigma, patch, patches
        self.augmentation, self.seed, self.rank = augmentation, seed, rank

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return noisy reference patches ``(B * patches, 1, patch, patch)`` and clean patches of all energies.

        Raises:
            ValueError: if the stack has not one channel a scale.
        """
        image = torch.as_tensor(batchdata["image"], dtype=torch.float32)
        if image.shape[1] != len(self.scales):
            raise ValueError(f"image: expected {len(self.scales)} channels, got {image.shape[1]}")
        generator = keyed_generator("pairs", self.seed, self.step, self.rank)
        if self.augmentation is not None:
            brain = torch.as_tensor(batchdata["brain"], dtype=torch.float32)
            image = self.augmentation(image, brain, generator=generator)
        scaled = image / self.scales.reshape(1, -1, 1, 1)
        size = {"patch": self.patch, "count": self.patches, "generator": generator}
        clean = torch.cat([patches_around(one, one[0] > 0.1, **size) for one in scaled])
        reference = clean[:, self.reference : self.reference + 1]
        level = self.sigma * torch.rand(len(clean), 1, 1, 1, generator=generator)
        noisy = reference + level * torch.randn(reference.shape, generator=generator)
        return noisy.to(device, non_blocking=non_blocking), clean.to(device, non_blocking=non_blocking)
