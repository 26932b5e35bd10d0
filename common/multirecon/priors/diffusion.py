"""The diffusion prior: everything that turns a network into a distribution of image stacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..space import ImageSpace
from .denoiser import Domain, NetworkDenoiser, Parametrisation, PixelDomain, clamp_table
from .scaling import IntensityScaling
from .schedules import NoiseSchedule

__all__ = ["DiffusionPrior", "NoisyBatch"]


@dataclass(frozen=True)
class NoisyBatch:
    """One training batch.

    Args:
        image: input of the network ``(B, C', *shape')``.
        timestep: its time in steps ``(B,)``.
        target: what it should answer, shaped like ``image``.
        sigma: noise levels ``(B,)``.
    """

    image: Tensor
    timestep: Tensor
    target: Tensor
    sigma: Tensor


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """Return numbers in [0, 1), one in each of ``count`` equal parts, ``(count,)`` in random order."""
    device = generator.device
    return (torch.randperm(count, generator=generator, device=device)
            + torch.rand(count, generator=generator, device=device)) / count  # fmt: skip


def check_units(units: str) -> str:
    """Return the units of a stack, ``"physical"`` or ``"unit"``.

    Raises:
        ValueError: if they are neither.
    """
    if units not in ("physical", "unit"):
        raise ValueError(f"units: expected 'physical' or 'unit', got {units!r}")
    return units


class DiffusionPrior:
    r"""An unconditional diffusion prior of the stack of ``space``: schedule, parametrisation, domain and scaling.

    The network is not part of it: bundles hand it over, samplers call :meth:`denoiser`. Denoising happens in the
    network's range, about [-1, 1]; ``scaling`` leads there from physical units and back.

    Args:
        space: the stack of the prior.
        schedule: noise schedule; its noise levels are those of training.
        parametrisation: what the network predicts.
        domain: pixels (default) or Haar coefficients.
        scaling: physical units to the network's range; the default is by the modalities' names.
        clamp: range of the clean estimate in the network's units, one pair or one for every channel, or None.

    Example:
        >>> space = ImageSpace(["t1"], (8, 8), (1.0, 1.0))
        >>> prior = DiffusionPrior(space, NoiseSchedule.cosine(), parametrisation=Parametrisation("velocity"))
        >>> prior.noisy_batch(torch.zeros(4, 1, 8, 8), torch.Generator().manual_seed(0)).target.shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(
        self,
        space: ImageSpace,
        schedule: NoiseSchedule,
        *,
        parametrisation: Parametrisation,
        domain: Domain | None = None,
        scaling: IntensityScaling | None = None,
        clamp: Sequence[float] | Sequence[Sequence[float]] | None = (-1.0, 1.0),
    ) -> None:
        self.space = space
        self.schedule = schedule
        self.parametrisation = parametrisation
        self.domain = domain or PixelDomain()
        self.scaling = scaling or IntensityScaling(space)
        self.clamp = clamp
        clamp_table(clamp)

    def denoiser(self, network: nn.Module | Any, *, autocast: torch.dtype | None = None) -> NetworkDenoiser:
        """Return the denoiser of a network, in the network's range.

        Args:
            network: ``network(image, timestep)``.
            autocast: dtype of mixed precision inside the network, or None.
        """
        return NetworkDenoiser(
            network,
            schedule=self.schedule,
            parametrisation=self.parametrisation,
            domain=self.domain,
            clamp=self.clamp,
            autocast=autocast,
        )

    def to_range(self, stack: Tensor, units: str) -> Tensor:
        """Return a stack in the network's range, from ``"physical"`` or ``"unit"`` (about [0, 1]) units."""
        return 2 * stack - 1 if check_units(units) == "unit" else self.scaling(stack)

    def draw_levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Return ``count`` noise levels for times uniform over the schedule, one in each of ``count`` equal parts.

        Args:
            count: batch size.
            generator: random numbers.

        Returns:
            ``(count,)`` in random order, on the generator's device.
        """
        part = stratified(count, generator)
        return self.schedule.sigma(part.to(torch.float32) * (self.schedule.num_timesteps - 1))

    def noisy_batch(self, x0: Tensor, generator: torch.Generator) -> NoisyBatch:
        """Return a training batch of clean images ``(B, C, *shape)`` in the network's range.

        Args:
            x0: clean images.
            generator: random numbers of times and noise, on the images' device.
        """
        sigma = self.draw_levels(len(x0), generator).to(x0)
        noise = torch.randn(x0.shape, generator=generator, device=generator.device, dtype=x0.dtype).to(x0.device)
        image, target, timestep = self.denoiser(None).training_pair(x0, noise, sigma)
        return NoisyBatch(image=image, timestep=timestep, target=target, sigma=sigma)
