"""Changes of training patches that one modality shows and the others do not: spots and gains of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["UnsharedChanges"]


class UnsharedChanges:
    """Adds to every modality of a patch, by itself, a soft elliptic spot and a gain of its intensity above background.

    Co-registered training images share nearly all of their structure, so that a joint latent learns to predict one
    modality from the other and has no code for what only one of them shows. Spots that are drawn for each modality
    alone teach it that code. They darken as often as they brighten, and stay on the modality's own object.

    Args:
        rise: largest rise or fall of a spot in every modality, in the network's range; the smallest is a fifth of it.
        probability: probability that a modality of a patch gets a spot.
        radius: smallest and largest half axis in pixels.
        gain: relative half-range of the gain above background of every modality.
        background: the network's value where there is nothing; pixels within 0.05 of it are not of the object.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> change = UnsharedChanges([0.0, 1.0], probability=1.0, radius=(2.0, 4.0))
        >>> patches = torch.zeros(1, 2, 8, 8)
        >>> difference = change(patches, torch.Generator().manual_seed(0)) - patches
        >>> [bool(v) for v in difference.abs().amax((0, 2, 3)) > 0]
        [False, True]
    """

    def __init__(
        self,
        rise: Sequence[float],
        *,
        probability: float = 0.3,
        radius: Sequence[float] = (1.5, 6.0),
        gain: Sequence[float] | None = None,
        background: float = -1.0,
    ) -> None:
        gains = [0.0] * len(rise) if gain is None else list(gain)
        if min(rise, default=-1.0) < 0 or len(gains) != len(rise) or min(gains) < 0:
            raise ValueError(f"rise, gain: expected a number >= 0 a modality each, got {list(rise)}, {gain}")
        if not 0 <= probability <= 1 or len(radius) != 2 or not 0 < radius[0] <= radius[1]:
            raise ValueError("probability, radius: expected 0 to 1, and two positive numbers in order, "
                             f"got {probability}, {list(radius)}")  # fmt: skip
        self.rise, self.gain = torch.tensor([float(r) for r in rise]), torch.tensor([float(g) for g in gains])
        self.probability, self.radius, self.background = probability, (float(radius[0]), float(radius[1])), background

    def __call__(self, patches: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed patches ``(N, K, P, P)``; the generator is a CPU one.

        Raises:
            ValueError: if the patches have another number of modalities.
        """
        if patches.ndim != 4 or patches.shape[1] != len(self.rise):
            raise ValueError(f"patches: expected (N, {len(self.rise)}, P, P), got {tuple(patches.shape)}")
        drawn = torch.rand(8, *patches.shape[:2], 1, 1, generator=generator).to(patches)
        present = (drawn[0] < self.probability).to(patches)
        sign = torch.where(drawn[1] < 0.5, -1.0, 1.0)
        size = sign * (0.2 + 0.8 * drawn[2]) * self.rise.to(patches).reshape(1, -1, 1, 1) * present
        smallest, largest = (math.log(r) for r in self.radius)
        axes = torch.exp(smallest + (largest - smallest) * drawn[3:5])
        rows = torch.arange(patches.shape[2]).to(patches).reshape(-1, 1) - drawn[5] * (patches.shape[2] - 1)
        columns = torch.arange(patches.shape[3]).to(patches) - drawn[6] * (patches.shape[3] - 1)
        distance = ((rows / axes[0]).square() + (columns / axes[1]).square()).sqrt()
        # an edge of about a pixel, whatever the size
        spot = torch.sigmoid(3 * (1 - distance) * axes.mean(0))
        level = patches - self.background
        inside = (level > 0.05).to(patches)
        level = level * (1 + self.gain.to(patches).reshape(1, -1, 1, 1) * (2 * drawn[7] - 1))
        return (level + size * spot * inside).clamp_min(0) + self.background
