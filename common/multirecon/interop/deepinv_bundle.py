"""A bundle as a deepinv reconstructor: ``model(y, physics)``."""

from __future__ import annotations

import os
from typing import Any

import torch
from deepinv.models.base import Reconstructor as DeepinvReconstructor
from deepinv.physics import Physics
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.bundle import load, load_network
from multirecon.likelihoods import BlockLikelihood, Gaussian, Likelihood
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal
from multirecon.space import ImageSpace

from .deepinv import OperatorPhysics

__all__ = ["BundleReconstructor", "as_deepinv"]


class BundleReconstructor(DeepinvReconstructor):
    """Runs a bundle's inferer on one measured modality whose operator is one of ours.

    Args:
        inferer: the bundle's inferer.
        network: its network, with the weights loaded.
        space: the image space of the modality that is reconstructed (one modality).
        likelihood: noise model of the data; the default is Gaussian noise of the physics' level.
        seed: seed of the inferer's generator, the same at every call.
    """

    def __init__(
        self,
        inferer: Any,
        network: torch.nn.Module,
        space: ImageSpace,
        *,
        likelihood: Likelihood | None = None,
        seed: int = 0,
    ) -> None:
        if len(space.names) != 1:
            raise ValueError(f"space: expected one modality, got {list(space.names)}")
        super().__init__()
        self.inferer, self.network, self.space = inferer, network, space
        self.likelihood, self.seed = likelihood, seed

    def forward(self, y: Tensor, physics: Physics, **_: Any) -> Tensor:
        """Return the image ``(B, C, *shape)``.

        Args:
            y: data ``(B, *range_shape)``, as ``physics.A`` gives them.
            physics: an :class:`~multirecon.interop.deepinv.OperatorPhysics` on the grid of ``space``.

        Raises:
            ValueError: if the physics is another library's, or does not fit the bundle.
        """
        if not isinstance(physics, OperatorPhysics):
            raise ValueError(f"physics: expected OperatorPhysics (see as_physics), got {type(physics).__name__}")
        name = self.space.names[0]
        operator = BlockDiagonal(self.space, {name: physics.operator})
        likelihood = BlockLikelihood({name: self.likelihood or Gaussian(_noise_level(physics))})
        generator = torch.Generator().manual_seed(self.seed)
        result = self.inferer(Measurement(Blocks({name: y}), operator, likelihood), self.network, generator=generator)
        return result.as_tensor()


def _noise_level(physics: Physics) -> float:
    sigma = getattr(physics.noise_model, "sigma", None)
    # A physics without noise still needs a scale: data terms of one block do not depend on it.
    return float(torch.as_tensor(sigma).max()) if sigma is not None and float(torch.as_tensor(sigma).max()) > 0 else 1.0


def as_deepinv(
    bundle: str | os.PathLike[str],
    *,
    space: ImageSpace | None = None,
    variant: str | None = None,
    likelihood: Likelihood | None = None,
    seed: int = 0,
    **overrides: Any,
) -> BundleReconstructor:
    """Return a bundle as a deepinv reconstructor, with its shipped weights.

    Args:
        bundle: name or folder of the bundle.
        space: image space of the modality to reconstruct; the bundle's own by default.
        variant: inference variant.
        likelihood: noise model of the data; Gaussian noise of the physics' level by default.
        seed: seed of the generator at every call.
        overrides: config overrides, as for ``multirecon.bundle.load``.

    Raises:
        ValueError: on an unknown bundle or variant, or a space of several modalities.
    """
    workflow = load(bundle, variant, **overrides)
    network = load_network(workflow)
    own = space if space is not None else workflow.parser.get_parsed_content("space")
    return BundleReconstructor(workflow.inferer, network.eval(), own, likelihood=likelihood, seed=seed)
