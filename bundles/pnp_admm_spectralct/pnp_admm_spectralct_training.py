"""Training pairs of the denoiser: clean and noisy patches of attenuation at several energies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multirecon.priors.pair_training import PreparePatchPairs

__all__ = ["PreparePatches"]


class PreparePatches(PreparePatchPairs):
    r"""Turns slices into pairs ``u + sigma n -> u`` of patches, every energy divided by its fixed scale.

    The same noise level in all energies, in units of the scales: the norm in which the denoiser is nonexpansive. Noise,
    augmentation and patches are functions of (seed, step, rank).

    Args:
        scales: what counts as one, a number a channel (1/cm).
        sigma: standard deviation of the noise in units of the scales.
        **options: ``patch``, ``patches``, ``augmentation``, ``seed``, ``rank`` of
            :class:`~multirecon.priors.pair_training.PreparePatchPairs`.

    Raises:
        ValueError: on a scale or a noise level that is not positive.
    """

    key = "patches"

    def __init__(self, scales: Sequence[float], *, sigma: float = 0.03, **options: Any) -> None:
        super().__init__(scales, **options)
        if not sigma > 0:
            raise ValueError(f"sigma: expected a number > 0, got {sigma}")
        self.sigma = sigma

    def pairs(self, cut: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return noisy patches ``(N, C, patch, patch)`` and targets with clean and noisy channels."""
        noisy = cut + self.sigma * torch.randn(cut.shape, generator=generator)
        return noisy, torch.cat([cut, noisy], dim=1)
