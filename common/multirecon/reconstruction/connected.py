"""Energies connected by U-Nets through one latent image that is estimated together with them (Uconnect)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..functionals import JointTotalVariation, TotalVariation
from ..likelihoods import Gaussian, Likelihood, TransmissionPoisson, gaussian_approximation
from ..measurement import Measurement
from ..operators import LinearOperator
from ..solvers import bounded_quasi_newton
from ..solvers.analysis_admm import analysis_admm, mean_curvature
from ..solvers.lbfgs import lbfgs
from ..space import ImageSpace
from .base import Callback, Capability, ImageSource, Reconstructor
from .tuning import Tuning

__all__ = ["ConnectedPenalty", "ConnectedReconstruction", "ConnectingNetworks"]

_LOG = logging.getLogger(__name__)
_START_WEIGHT = 0.3  # of the total variation of the first images, over the noise of the data term's slope
_CLEAN_STD = 0.01  # of a clean image, in units of its scale: how much it counts beside measured ones


class ConnectingNetworks(Protocol):
    """What is asked of the networks: the images of some energies of an image of the reference energy."""

    def at(self, image: Tensor, energies: Sequence[int]) -> Tensor:
        """Return ``(B, len(energies), H, W)`` of ``(B, 1, H, W)``, every energy in units of its scale."""


@dataclass(frozen=True)
class ConnectedPenalty:
    r"""``Q(x, z) = sum_k gamma_k / 2 |f_k(z) - x_k|^2 + lambda H(z)``, whose minimum over ``z`` is the penalty.

    ``f_k(z) = c_k N_k(z)`` with networks in units of the scales, ``z`` in units of that of the reference energy, and
    ``H`` the total variation of ``z`` with a Huber function of the gradient.

    Args:
        networks: ``N``.
        channels: channels of the networks that ``x`` has, in order.
        scales: their ``c``, ``(C,)``.
        gamma: their strengths, ``(C,)``, in the inverse square of the unit of ``x``.
        smoothness: ``lambda``.
        threshold: gradient of ``z`` a pixel above which the Huber function is linear.
    """

    networks: ConnectingNetworks
    channels: tuple[int, ...]
    scales: Tensor
    gamma: Tensor
    smoothness: float
    threshold: float

    def images(self, z: Tensor) -> Tensor:
        """Return ``f(z)``, ``(B, C, H, W)``, in the unit of ``x``."""
        return self.scales.reshape(1, -1, 1, 1) * self.networks.at(z, self.channels)

    def huber(self, z: Tensor) -> Tensor:
        """Return ``lambda H(z)`` per sample ``(B,)``."""
        return _HuberVariation.apply(z, TotalVariation(self.smoothness, smoothing=self.threshold))

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        """Return ``Q`` per sample ``(B,)`` of images ``(B, C, H, W)`` and latent images ``(B, 1, H, W)``."""
        distance = (self.images(z) - x).square().flatten(2).sum(2)
        return 0.5 * distance @ self.gamma + self.huber(z)

    def latent(self, x: Tensor, z: Tensor, *, iterations: int) -> Tensor:
        """Return a latent image with a smaller ``Q(x, z)`` than ``z``: L-BFGS through the networks, from ``z``."""
        found = lbfgs(lambda flat: self(x, flat.reshape_as(z)), z.flatten(1), iterations=iterations)
        return found.z.reshape_as(z)


class _HuberVariation(torch.autograd.Function):
    """A smoothed functional with its own gradient: that of a norm of zero has none in autograd."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, functional: TotalVariation) -> Tensor:
        ctx.save_for_backward(functional.grad(z))
        return functional.value(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0].reshape(-1, *[1] * (slope.ndim - 1)) * slope, None


@dataclass(frozen=True)
class _Block:
    """One measured modality of one sample, with its channels in the stack of what takes part."""

    channels: slice
    operator: LinearOperator
    likelihood: Likelihood
    y: Tensor
    rho: Tensor  # (1, channels, 1, 1)


@dataclass
class Connection:
    """The course of one sample.

    Args:
        objectives: value of the whole objective at the start and after every half step (latent, images).
        latent: the latent image ``(1, 1, H, W)``, in units of the reference's scale.
    """

    objectives: list[float] = field(default_factory=list)
    latent: Tensor | None = None


class ConnectedReconstruction(Reconstructor):
    r"""Uconnect: images of several energies, each near the image that a U-Net makes of one common latent image.

    .. math:: \min_{x \ge 0,\, z} \sum_k -\log p(y_k \mid A_k x_k)
              + \sum_k \tfrac{\gamma_k}{2} \|c_k N_k(z) - x_k\|^2 + \lambda H_\epsilon(z)

    The latent ``z`` is an image at the reference energy that is estimated like the others, no output of a network.
    Each iteration takes L-BFGS steps on ``z`` through the networks, from where it stood, and projected quasi-Newton
    steps on every ``x_k`` with ``f_k(z)`` as anchor; with ``exact`` on the likelihood of the counts, else on its
    count-weighted least squares (PWLS). Neither raises the objective, which is logged (level DEBUG) and kept in
    ``runs``.

    ``gamma_k = w mean diag A_k^T W A_k`` and ``lambda = h (sum_k c_k^2 mean diag A_k^T W A_k)^(1/2)`` with the
    dimensionless ``"weight"`` ``w`` and ``"smoothness"`` ``h``, so that one setting serves all doses. With ``w = 0``
    every energy is reconstructed by its data alone. Clean modalities stay as they are and take part with an error of a
    hundredth of their scale; modalities without a measurement are ``f_k(z)``.

    Args:
        space: stack of the method; the networks have one energy a channel.
        scales: ``c``, a number a channel, in its unit.
        reference: channel of the reference energy.
        tuning: ``"weight"`` and ``"smoothness"`` by kind of block; of several blocks the mean smoothness counts.
        iterations: bound on the alternations.
        inner_iterations: iterations of an image step.
        latent_iterations: iterations of a latent step; the first one has four times as many.
        start_iterations: iterations of total variation (joint over the bins of a block), from which ``x`` and ``z``
            start.
        threshold: ``epsilon``, gradient of ``z`` a pixel at which the Huber function becomes linear.
        exact: whether counts keep their likelihood.
        tolerance: relative change of every channel at which the alternation ends.
        source: how an image stack becomes a Measurement.

    Raises:
        ValueError: on numbers out of range.

    References:
        wang2024uconnect, liu1989
    """

    _defaults: ClassVar = {"weight": 4.0, "smoothness": 0.8}

    def __init__(
        self,
        *,
        space: ImageSpace,
        scales: Sequence[float],
        reference: int,
        tuning: Tuning | None = None,
        iterations: int = 20,
        inner_iterations: int = 5,
        latent_iterations: int = 8,
        start_iterations: int = 40,
        threshold: float = 0.01,
        exact: bool = True,
        tolerance: float = 1e-3,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(space=space, source=source)
        counts = (iterations, inner_iterations, latent_iterations, start_iterations)
        if min(counts) < 1 or not tolerance >= 0 or not threshold > 0:
            raise ValueError("iterations, inner_iterations, latent_iterations, start_iterations, tolerance, "
                             "threshold: expected >= 1 (four), >= 0 and > 0, "
                             f"got {counts}, {tolerance} and {threshold}")  # fmt: skip
        if len(scales) != space.num_channels or not all(s > 0 for s in scales):
            raise ValueError(f"scales: expected {space.num_channels} numbers > 0, got {list(scales)}")
        if not 0 <= reference < space.num_channels:
            raise ValueError(f"reference: expected a channel below {space.num_channels}, got {reference}")
        self.scales, self.reference, self.tuning = torch.tensor([float(s) for s in scales]), reference, tuning
        self.iterations, self.inner_iterations = iterations, inner_iterations
        self.latent_iterations, self.start_iterations = latent_iterations, start_iterations
        self.threshold, self.exact, self.tolerance = threshold, exact, tolerance
        self.runs: list[Connection] = []
        """Objectives and latent image of every sample of the last call."""
        self.capability = Capability(
            likelihoods=frozenset({"gaussian", "transmission_poisson"}),
            modalities=frozenset(space.names),
            synthesises=True,
            ndim=frozenset({2}),
        )

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, H, W)``; see the class.

        Raises:
            ValueError: if the network does not know the energies.
        """
        if not hasattr(network, "at"):
            raise ValueError(f"network: expected networks of the energies, got {type(network).__name__}")
        self.runs = []
        with torch.no_grad():
            return torch.cat([
                self._sample(measurement.samples(k, k + 1), network, callback)  # type: ignore[arg-type]
                for k in range(measurement.batch_size)
            ])  # fmt: skip

    def _sample(self, measurement: Measurement, networks: ConnectingNetworks, callback: Callback | None) -> Tensor:
        run = Connection()
        self.runs.append(run)
        names = [n for n in measurement.space.names if n in measurement.available]
        if not names:
            return measurement.operator.assemble({}, batch=1)
        x, penalty, blocks = self.prepare(measurement, networks)
        z = self._start(x, penalty)
        run.objectives.append(self._objective(blocks, penalty, x, z))
        for iteration in range(self.iterations):
            first = 4 if iteration == 0 else 1
            z, before = penalty.latent(x, z, iterations=first * self.latent_iterations), x
            run.objectives.append(self._objective(blocks, penalty, x, z))
            anchor, x = penalty.images(z), x.clone()
            for b in blocks:
                x[:, b.channels] = bounded_quasi_newton(
                    b.operator, b.likelihood, b.y, anchor=anchor[:, b.channels], rho=b.rho,
                    x0=before[:, b.channels], iterations=self.inner_iterations,
                )  # fmt: skip
            run.objectives.append(self._objective(blocks, penalty, x, z))
            _LOG.debug("iteration %d: objective %.8g, %.8g", iteration + 1, *run.objectives[-2:])
            if callback is not None:
                callback(iteration, self._stack(measurement, networks, x, z))
            moved = (x - before).flatten(2).norm(dim=2) <= self.tolerance * x.flatten(2).norm(dim=2)
            if self.tolerance > 0 and bool(moved.all()):
                break
        run.latent = z
        return self._stack(measurement, networks, x, z)

    @torch.no_grad()
    def prepare(
        self, measurement: Measurement, networks: ConnectingNetworks
    ) -> tuple[Tensor, ConnectedPenalty, list[_Block]]:
        """Return first images ``(1, C, H, W)`` of what was measured, the penalty, and the data of one sample."""
        space, given = measurement.space, measurement.given
        names = [n for n in space.names if n in measurement.available]
        part = space.select(names)
        index = [int(k) for n in names for k in range(space.channels(n).start, space.channels(n).stop)]
        parts, blocks, curvatures, gammas, smooth = [], [], [], [], []
        for name in names:
            operator, likelihood, y = measurement.operator[name], measurement.likelihood[name], measurement.y[name]
            if name in given:
                clean = (_CLEAN_STD * self.scales[space.channels(name)].to(y)) ** -2
                parts.append(y)
                gammas.append(clean)
                curvatures.append(clean)
                continue
            if isinstance(likelihood, TransmissionPoisson) and not self.exact:
                y, likelihood = gaussian_approximation(likelihood, y)
            elif isinstance(likelihood, Gaussian) and likelihood.is_exact:
                likelihood = Gaussian(1e-3 * float(y.abs().square().mean().sqrt()) or 1.0)
            settings = self._defaults | ({} if self.tuning is None else self.tuning.of(measurement, name))
            curvature = mean_curvature(operator, likelihood, y)[0].clamp_min(1e-30)
            gamma = settings["weight"] * curvature
            blocks.append(_Block(part.channels(name), operator, likelihood, y, gamma.reshape(1, -1, 1, 1)))
            curvatures.append(curvature)
            gammas.append(gamma)
            smooth.append(settings["smoothness"])
            variation = JointTotalVariation(_START_WEIGHT, channel_weights=curvature.sqrt().tolist())
            start = analysis_admm(operator, likelihood, y, variation, iterations=self.start_iterations)
            parts.append(start.x)
        x, scales = torch.cat(parts, dim=1), self.scales[index].to(parts[0])
        information = (scales**2 * torch.cat(curvatures).to(x)).sum()
        level = sum(smooth) / len(smooth) if smooth else self._defaults["smoothness"]
        gamma = torch.cat(gammas).to(x)
        penalty = ConnectedPenalty(networks, tuple(index), scales, gamma, level * float(information.sqrt()),
                                   self.threshold)  # fmt: skip
        return x, penalty, blocks

    def _start(self, x: Tensor, penalty: ConnectedPenalty) -> Tensor:
        """Return the reference's image if it was measured, else the mean of the energies, in units of the scales."""
        u = x / penalty.scales.reshape(1, -1, 1, 1)
        if self.reference in penalty.channels:
            k = penalty.channels.index(self.reference)
            return u[:, k : k + 1]
        return u.mean(1, keepdim=True)

    @staticmethod
    def _objective(blocks: Sequence[_Block], penalty: ConnectedPenalty, x: Tensor, z: Tensor) -> float:
        total = penalty(x, z).double().sum()
        for b in blocks:
            total = total + b.likelihood.nll(b.operator(x[:, b.channels]), b.y).double().sum()
        return float(total)

    def _stack(self, measurement: Measurement, networks: ConnectingNetworks, x: Tensor, z: Tensor) -> Tensor:
        space = measurement.space
        names = [n for n in space.names if n in measurement.available]
        part = space.select(names)
        images = {n: x[:, part.channels(n)] for n in names}
        for name in measurement.missing:
            here = space.channels(name)
            made = networks.at(z, range(here.start, here.stop))
            images[name] = (self.scales[here].to(z).reshape(1, -1, 1, 1) * made).clamp_min(0)
        return measurement.operator.assemble(images, batch=1)
