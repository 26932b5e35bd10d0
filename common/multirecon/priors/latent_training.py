"""Training of patch autoencoders by MONAI's engines: random patches, mixed precision, the beta-VAE loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import PrepareBatch
from monai.inferers import Inferer
from torch import Tensor, nn

from ..space import ImageSpace
from .patches import random_patches
from .scaling import IntensityScaling
from .training import keyed_generator
from .unshared import UnsharedChanges

__all__ = ["BetaVAELoss", "EvidenceInferer", "PreparePatches"]


class PreparePatches(PrepareBatch):
    """Turns a batch of clean stacks into patches in the network's range, and the normal noise of their latents.

    The batch holds ``"image"``: ``(B, C, H, W)`` on the scale of networks (about [0, 1], CT compressed), and
    ``"brain"`` where it is augmented. All that is drawn is a function of (seed, step, rank).

    Args:
        space: image space of the stack.
        scaling: physical units to the network's range.
        patch: side of the patches.
        count: patches a stack.
        latent: size of the latent.
        draws: latents drawn a patch; 0 for validation, which needs none.
        augmentation: ``augmentation(image, brain, generator=...)``, or None.
        unshared: changes of one modality alone, made in the patches, or None.
        seed: seed of the random numbers.
        rank: number of this process.
    """

    def __init__(
        self,
        space: ImageSpace,
        *,
        scaling: IntensityScaling,
        patch: int = 32,
        count: int = 32,
        latent: int = 32,
        draws: int = 1,
        augmentation: Callable[..., Tensor] | None = None,
        unshared: UnsharedChanges | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        if patch < 1 or count < 1 or latent < 1 or draws < 0:
            raise ValueError("patch, count, latent, draws: expected >= 1 (draws >= 0), "
                             f"got {patch}, {count}, {latent}, {draws}")  # fmt: skip
        self.scaling, self.stored = scaling, IntensityScaling(space)
        self.patch, self.count, self.latent, self.draws = patch, count, latent, draws
        self.augmentation, self.unshared = augmentation, unshared
        self.seed, self.rank = seed, rank
        self.step = 0

    def attach(self, engine: Engine) -> None:
        """Follow the engine's iteration; without it every batch counts as step 0 (validation)."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._follow)

    def _follow(self, engine: Engine) -> None:
        self.step = engine.state.iteration

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], dict[str, Any]]:
        """Return ``(patches, patches, (noise,), {})``, the noise ``(draws, N, latent)`` only if ``draws > 0``."""
        image = torch.as_tensor(batchdata["image"], dtype=torch.float32)
        if self.augmentation is not None:
            brain = torch.as_tensor(batchdata["brain"], dtype=torch.float32)
            generator = keyed_generator("augment", self.seed, self.step, self.rank)
            image = self.augmentation(image, brain, generator=generator)
        x = self.scaling(self.stored.inverse(2 * image - 1))
        places = keyed_generator("patches", self.seed, self.step, self.rank)
        patches = random_patches(x, patch=self.patch, count=self.count, generator=places)
        if self.unshared is not None:
            patches = self.unshared(patches, keyed_generator("unshared", self.seed, self.step, self.rank))
        patches = patches.to(device=device, non_blocking=non_blocking)
        if not self.draws:
            return patches, patches, (), {}
        generator = keyed_generator("latent", self.seed, self.step, self.rank)
        noise = torch.randn(self.draws, len(patches), self.latent, generator=generator).to(patches)
        return patches, patches, (noise,), {}


class EvidenceInferer(Inferer):
    """Runs a :class:`~multirecon.networks.evidence.EvidencePass`, in mixed precision if asked, and returns float32.

    Args:
        autocast: ``"bfloat16"`` or None.
    """

    def __init__(self, *, autocast: str | None = None) -> None:
        super().__init__()
        self.autocast = None if autocast is None else getattr(torch, autocast)

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return reconstructions and divergences."""
        with torch.autocast(inputs.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            reconstructions, divergence = network(inputs, *args, **kwargs)
        return reconstructions.float(), divergence.float()


class BetaVAELoss(nn.Module):
    r"""Mean over patches of ``sum_k mean_pixels (x_k - G_k)^2 / (2 sigma_k^2) + beta D``; ``beta`` is warmed up.

    With ``beta`` one over the number of pixels of a patch it is the negative evidence bound per pixel.

    Args:
        sigmas: noise ``sigma_k`` of every modality in the network's range.
        beta: weight of the divergence.
        warmup: steps over which ``beta`` rises from zero.

    Raises:
        ValueError: if a number is out of range.

    References:
        higgins2017
    """

    sigmas: Tensor

    def __init__(self, sigmas: Sequence[float], *, beta: float = 1e-3, warmup: int = 0) -> None:
        super().__init__()
        values = torch.tensor([float(s) for s in sigmas])
        if not len(values) or not (values > 0).all() or beta < 0 or warmup < 0:
            raise ValueError(f"sigmas, beta, warmup: expected positive, >= 0 and >= 0, got {sigmas}, {beta}, {warmup}")
        self.register_buffer("sigmas", values, persistent=False)
        self.beta, self.warmup = beta, warmup
        self.step: int | None = None

    def attach(self, engine: Engine) -> None:
        """Follow the engine's iteration; without it ``beta`` has its final value."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._follow)

    def _follow(self, engine: Engine) -> None:
        self.step = engine.state.iteration

    @property
    def weight(self) -> float:
        """``beta`` at the current step."""
        if self.step is None or not self.warmup:
            return self.beta
        return self.beta * min(1.0, self.step / self.warmup)

    def forward(self, prediction: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """Return the loss of reconstructions ``(S, N, K, P, P)`` and divergences ``(N,)`` for patches ``(N, K, P, P)``.

        Raises:
            ValueError: if the modalities and the noise levels differ in number.
        """
        reconstructions, divergence = prediction
        if target.shape[1] != len(self.sigmas):
            raise ValueError(f"target: expected {len(self.sigmas)} modalities, got {tuple(target.shape)}")
        errors = (reconstructions - target).square().mean(dim=(0, 1, 3, 4))
        return (errors / (2 * self.sigmas.to(errors) ** 2)).sum() + self.weight * divergence.mean()
