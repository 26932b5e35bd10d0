"""Images from a prior alone, with nothing measured."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .diffusion import DiffusionPrior
from .sampling import SampleNoise, reverse_diffusion

__all__ = ["generate"]


def generate(
    prior: DiffusionPrior,
    network: nn.Module,
    count: int,
    *,
    steps: int = 1000,
    eta: float = 1.0,
    seed: int = 0,
    batch_size: int = 8,
    autocast: str | None = None,
) -> Tensor:
    """Return unconditional samples: ancestral DDPM sampling for ``eta = 1``, deterministic DDIM for ``eta = 0``.

    Sample ``i`` depends on ``seed`` and ``i`` alone, not on ``count`` or the size of a batch.

    Args:
        prior: the diffusion prior.
        network: its network.
        count: number of samples.
        steps: denoising steps of each.
        eta: share of fresh noise of a step.
        seed: seed of the random numbers.
        batch_size: samples computed at once.
        autocast: precision inside the network, ``"bfloat16"``, ``"float16"`` or none.

    Returns:
        ``(count, C, *shape)`` in physical units, on the CPU.

    Raises:
        ValueError: if ``count``, ``steps`` or ``batch_size`` is not positive.

    References:
        ho2020, song2021ddim
    """
    if min(count, steps, batch_size) < 1:
        raise ValueError(f"count, steps, batch_size: expected >= 1, got {count}, {steps}, {batch_size}")
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    denoiser = prior.denoiser(network, autocast=None if autocast is None else getattr(torch, autocast))
    generator = torch.Generator().manual_seed(seed)
    like = torch.zeros((), device=device)
    samples = []
    with torch.no_grad():
        for start in range(0, count, batch_size):
            shape = (min(batch_size, count - start), prior.space.num_channels, *prior.space.shape)
            noise = SampleNoise(shape, generator, like=like)
            x = reverse_diffusion(denoiser, prior.schedule, noise, steps=steps, eta=eta)
            samples.append(prior.scaling.inverse(x).float().cpu())
    return torch.cat(samples)
