"""Distillation of a diffusion prior into one that needs few steps: consistency along the trajectories of a teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .denoiser import expand, predicted_noise
from .diffusion import DiffusionPrior, stratified
from .training import PrepareNoisy

__all__ = ["PrepareConsistency", "frozen_copy"]


def frozen_copy(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a network with given weights, for inference only; the network itself is not changed.

    Args:
        network: gives the structure.
        state: weights, as of :func:`multirecon.bundle.read_weights`.

    Raises:
        RuntimeError: if the weights do not fit the network.
    """
    teacher = copy.deepcopy(network)
    teacher.load_state_dict(dict(state))
    return teacher.eval().requires_grad_(False)


class PrepareConsistency(PrepareNoisy):
    r"""Training pairs of a student that should give the same clean image all along a teacher's trajectory.

    The noise levels ``sigma_0 < ... < sigma_N`` are those of ``N`` evenly spaced times. From ``z = x0 + sigma_n xi``
    the teacher takes one deterministic step (DDIM) down to ``sigma_(n-1)``; what the student says there, without
    gradient, is what it should say at ``z``:

    .. math:: z' = D_T(z, \sigma_n) + \sigma_{n-1} \frac{z - D_T(z, \sigma_n)}{\sigma_n},
       \quad D_S(z, \sigma_n) \leftarrow D_S(z', \sigma_{n-1}).

    At the lowest level the preconditioned student is all but the identity, which anchors the chain. Errors are measured
    as in training of the teacher, in the network's own output.

    Args:
        prior: the prior of teacher and student.
        teacher: the trained network, frozen.
        student: the network that is trained; called without gradient.
        intervals: ``N``.
        autocast: precision inside both networks, ``"bfloat16"`` or None.
        units: as in :class:`~multirecon.priors.training.PrepareNoisy`.
        augmentation: as there.
        seed: as there.
        rank: as there.

    Raises:
        ValueError: with fewer than two intervals, or on a prior that is not preconditioned (nothing would anchor it).

    References:
        song2023consistency
    """

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        teacher: nn.Module,
        student: nn.Module,
        intervals: int = 24,
        autocast: str | None = None,
        units: str = "physical",
        augmentation: Callable[..., Tensor] | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        super().__init__(prior, units=units, augmentation=augmentation, seed=seed, rank=rank)
        if intervals < 2:
            raise ValueError(f"intervals: expected >= 2, got {intervals}")
        if prior.parametrisation.kind != "preconditioned":
            raise ValueError(f"prior: expected one of kind 'preconditioned', got {prior.parametrisation.kind!r}")
        dtype = None if autocast is None else getattr(torch, autocast)
        self.teacher = prior.denoiser(teacher, autocast=dtype)
        self.student = prior.denoiser(student, autocast=dtype)
        self.network = student
        self.levels = prior.schedule.sigma(prior.schedule.kept_steps(intervals + 1).double())

    def pair(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return input, target and time of clean images ``(B, C, *shape)`` in the network's range."""
        intervals = len(self.levels) - 1
        upper = (stratified(len(x0), generator) * intervals).long().clamp(max=intervals - 1) + 1
        levels = self.levels.to(x0)
        sigma, lower = levels[upper], levels[upper - 1]
        z = x0 + expand(sigma, x0) * torch.randn(x0.shape, generator=generator, device=x0.device)
        training = self.network.training
        self.network.eval()
        with torch.no_grad():
            estimate, direction = predicted_noise(self.teacher, z, sigma)
            clean = self.student(estimate + expand(lower, x0) * direction, lower)
            pair = self.student.regression_pair(z, clean, sigma)
        self.network.train(training)
        return pair
