"""What the harness runs for a guest: a deepinv reconstructor on every scanned modality, one by one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from deepinv.models.base import Reconstructor as DeepinvReconstructor
from torch import Tensor, nn

from multirecon.harness.guests import build_guest
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, ScaledOperator
from multirecon.reconstruction import Capability, Reconstructor
from multirecon.reconstruction.base import Callback

from .deepinv import OperatorPhysics, as_data, as_physics

__all__ = ["GuestReconstructor"]


class GuestReconstructor(Reconstructor):
    r"""Runs ``model(y, physics)`` of deepinv on one modality after the other.

    Each scanned modality becomes whitened real data with an operator of norm 1 on an image of about unit size,

    .. math:: y = A u + n, \qquad A = W^{1/2} A_m s_m / c, \quad n \sim N(0, c^{-2}), \quad
        c = \|W^{1/2} A_m s_m\|, \quad x_m = s_m u

    with ``s_m`` the modality's scale, so that step sizes and denoisers made for images in [0, 1] fit every scanner;
    counts go through their Gaussian approximation. Noiseless clean images are returned as they are, missing modalities
    as zeros. Of a sampler that returns several results (mean and variance) the first is taken.

    Args:
        file: JSON file with ``model``, ``clean_sigma`` and ``capability``, see :mod:`multirecon.harness.guests`.
        models: folder of the weight files.

    Raises:
        ValueError: if the model cannot be built, or is no deepinv reconstructor.
    """

    def __init__(self, file: str, models: str) -> None:
        super().__init__()
        values = json.loads(Path(file).read_text(encoding="utf-8"))
        known: dict[str, Any] = {key: frozenset(items) for key, items in values["capability"].items()}
        self.capability = Capability(**known)
        self.clean_sigma = float(values["clean_sigma"])
        model = build_guest(values["model"], Path(models))
        if not isinstance(model, DeepinvReconstructor):
            raise ValueError(
                f"model: expected a deepinv reconstructor model(y, physics), got {type(model).__name__} "
                "(a denoiser goes into deepinv.models.ArtifactRemoval or deepinv.optim.PnP)"
            )
        self.model = model.eval()

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)``; ``network`` is the model on the device of the data."""
        model = network if isinstance(network, DeepinvReconstructor) else self.model
        parts: dict[str, Tensor] = {}
        for number, name in enumerate(measurement.available):
            if name in measurement.given:
                parts[name] = measurement.y[name]
                continue
            # a copy: some of deepinv's denoisers keep their last image for a warm start
            parts[name] = self._one(copy.deepcopy(model), _only(measurement, name), generator)
            if callback is not None:
                stack = measurement.operator.restrict(list(parts)).assemble(parts, batch=measurement.batch_size)
                callback(number, stack)
        return measurement.operator.assemble(parts, batch=measurement.batch_size, like=torch.empty(0))

    def _one(self, model: nn.Module, measurement: Measurement, generator: torch.Generator) -> Tensor:
        physics: Any = as_physics(measurement, clean_sigma=self.clean_sigma)
        scale = measurement.space.modalities[0].scale
        norm = scale * physics.operator.norm()
        if not norm > 0:
            raise ValueError(f"operator of {measurement.available[0]!r}: expected a norm > 0, got {norm}")
        unit = OperatorPhysics(ScaledOperator(physics.operator, scale / norm), sigma=1 / norm).to(measurement.device)
        y = as_data(measurement, clean_sigma=self.clean_sigma) / norm
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(generator.initial_seed())
            result = model(y, unit)
        image = result[0] if isinstance(result, tuple | list) else result
        if not isinstance(image, Tensor):
            raise ValueError(f"model: expected a tensor, got {type(image).__name__}")
        return scale * image.to(y.dtype)


def _only(measurement: Measurement, name: str) -> Measurement:
    """Return the measurement of one block on the image of its own modality."""
    operator = BlockDiagonal(measurement.space.select([name]), {name: measurement.operator[name]})
    return Measurement(
        measurement.y.select([name]), operator, measurement.likelihood.restrict([name]), measurement.metadata
    )
