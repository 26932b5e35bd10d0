"""Training pairs of the networks that connect the energies: a noisy image of the reference, clean ones of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multirecon.priors.pair_training import PreparePatchPairs

__all__ = ["PreparePairs"]


class PreparePairs(PreparePatchPairs):
    r"""Turns clean slices into pairs ``(u_ref + sigma n, (u_1 .. u_K))`` of patches, every energy over its scale.

    ``sigma`` is drawn anew for every patch, uniformly up to its bound: the networks learn the relation between the
    energies at no noise and not to hand noise on. Noise, augmentation and patches are functions of (seed, step, rank).

    Args:
        scales: what counts as one, a number a channel (1/cm).
        reference: channel of the reference energy.
        sigma: largest standard deviation of the noise in units of the scale; 0 for none.
        patch: side of the patches in pixels.
        patches: patches a slice.
        **options: ``augmentation``, ``seed``, ``rank`` of :class:`~multirecon.priors.pair_training.PreparePatchPairs`.

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
        **options: Any,
    ) -> None:
        super().__init__(scales, patch=patch, patches=patches, **options)
        if not sigma >= 0:
            raise ValueError(f"sigma: expected a number >= 0, got {sigma}")
        if not 0 <= reference < len(scales):
            raise ValueError(f"reference: expected a channel below {len(scales)}, got {reference}")
        self.reference, self.sigma = reference, sigma

    def pairs(self, cut: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return noisy reference patches ``(N, 1, patch, patch)`` and the clean patches of all energies."""
        reference = cut[:, self.reference : self.reference + 1]
        level = self.sigma * torch.rand(len(cut), 1, 1, 1, generator=generator)
        return reference + level * torch.randn(reference.shape, generator=generator), cut
