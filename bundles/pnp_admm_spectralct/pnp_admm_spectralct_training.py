"""Training pairs of the denoiser: clean and noisy patches of attenuation at several energies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

from multirecon.priors.patches import patches_around
from multirecon.priors.training import FollowsStep, keyed_generator

__all__ = ["PreparePatches"]


class PreparePatches(FollowsStep, PrepareBatch):
    r"""Turns slices into pairs ``u + sigma n -> u`` of patches, every energy divided by its fixed scale.

    The same noise level in all energies, in units of the scales: the norm in which the denoiser is nonexpansive. Noise,
    augmentation and patches are functions of (seed, step, rank).

    Args:
        scales: what counts as one, a number a channel (1/cm).
        sigma: standard deviation of the noise in units of the scales.
        patch: side of the patches in pixels.
        patches: patches a slice.
        augmentation: ``augmentation(image, brain, generator=...)`` of the stacks, or None.
        seed: seed of the random numbers.
        rank: number of this process.

    Raises:
        ValueError: on a scale or a noise level that is not positive.
    """

    def __init__(
        self,
        scales: Sequence[float],
        *,
        sigma: float = 0.03,
        patch: int = 48,
        patches: int = 4,
        augmentation: Callable[..., Tensor] | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        if not sigma > 0 or not all(s > 0 for s in scales):
            raise ValueError(f"scales, sigma: expected numbers > 0, got {list(scales)}, {sigma}")
        self.scales = torch.tensor([float(s) for s in scales])
        self.sigma, self.patch, self.patches = sigma, patch, patches
        self.augmentation, self.seed, self.rank = augmentation, seed, rank

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return noisy patches ``(B * patches, C, patch, patch)`` and targets with clean and noisy channels.

        Raises:
            ValueError: if the stack has not one channel a scale.
        """
        image = torch.as_tensor(batchdata["image"], dtype=torch.float32)
        if image.shape[1] != len(self.scales):
            raise ValueError(f"image: expected {len(self.scales)} channels, got {image.shape[1]}")
        generator = keyed_generator("patches", self.seed, self.step, self.rank)
        if self.augmentation is not None:
            brain = torch.as_tensor(batchdata["brain"], dtype=torch.float32)
            image = self.augmentation(image, brain, generator=generator)
        scaled = image / self.scales.reshape(1, -1, 1, 1)
        size = {"patch": self.patch, "count": self.patches, "generator": generator}
        clean = torch.cat([patches_around(one, one[0] > 0.1, **size) for one in scaled])
        noisy = clean + self.sigma * torch.randn(clean.shape, generator=generator)
        pair = torch.cat([clean, noisy], dim=1).to(device, non_blocking=non_blocking)
        return pair[:, len(self.scales) :], pair
