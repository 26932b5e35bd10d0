"""Emission tomography: OSEM with a post-filter, and penalised likelihood, for every PET block of a measurement.

What was measured beside PET is not their subject: clean images come back as they are, CT and MR data are
reconstructed by penalised least squares, and may then guide the PET image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..functionals import Functional, ParallelLevelSets, RelativeDifference, bowsher_weights
from ..functionals.base import per_sample
from ..measurement import Measurement
from ..networks.classical import GaussianSmoothing, RegularisationWeight
from ..solvers.em import bsrem, osem
from ..space import ImageSpace
from .base import Callback, Capability, ImageSource, Reconstructor
from .penalised_least_squares import PenalisedLeastSquares
from .tuning import Tuning

__all__ = ["OSEM", "EmissionCapability", "EmissionReconstructor", "PenalisedLikelihood"]

EMISSION = frozenset({"pet", "pet_3d"})
"""Kinds of operators whose blocks are reconstructed by expectation maximisation."""

FLOOR = 1e-3
"""Activity, relative to the modality's scale, that keeps the relative difference prior smooth at zero."""
HUBER = 1e-2
"""Gradient, relative to the modality's scale per voxel, below which parallel level sets are quadratic."""

Guidance = Literal["none", "level_sets", "bowsher"]
SETTINGS = {
    "none": ("weight", "gamma", "smoothness"),
    "level_sets": ("weight", "edge", "smoothness"),
    "bowsher": ("weight", "gamma", "share", "smoothness"),
}


@dataclass(frozen=True)
class EmissionCapability(Capability):
    """At least one PET block of counts; beside it clean images, and data that penalised least squares takes.

    Args:
        guided: whether a modality beside PET must be there.
        guides: modalities one of which must be there; none for no such demand.
    """

    likelihoods: frozenset[str] | None = PenalisedLeastSquares.capability.likelihoods
    guided: bool = False
    guides: tuple[str, ...] = ()

    def refusals(self, measurement: Measurement, targets: Iterable[str] = ()) -> list[str]:
        """Return every reason why the measurement is out of reach; see :meth:`Capability.refusals`."""
        reasons = super().refusals(measurement, targets)
        pet = emission_blocks(measurement)
        if not pet:
            kinds = {n: measurement.operator[n].kind for n in measurement.available}
            reasons.append(f"blocks: expected at least one with an operator of {sorted(EMISSION)}, got {kinds}")
        noises = {n: measurement.likelihood[n].kind for n in pet}
        reasons += [
            f"block {n!r}: expected the likelihood 'poisson', got {k!r}" for n, k in noises.items() if k != "poisson"
        ]
        if self.guided and len(pet) == len(measurement.available):
            reasons.append(f"guide: expected a modality beside PET, got {list(measurement.available)}")
        if self.guides and not set(self.guides) & set(measurement.available):
            reasons.append(f"guide: expected one of {list(self.guides)}, got {list(measurement.available)}")
        return reasons


def emission_blocks(measurement: Measurement) -> tuple[str, ...]:
    """Return the names of the PET blocks."""
    return tuple(n for n in measurement.available if measurement.operator[n].kind in EMISSION)


@torch.no_grad()
def other_image(measurement: Measurement, name: str, smoothness: float) -> Tensor:
    """Return the image ``(B, channels, *shape)`` of a block beside PET by smooth penalised least squares.

    Args:
        measurement: the measurement.
        name: name of the block; a clean image comes back as it is.
        smoothness: that of :class:`~multirecon.reconstruction.PenalisedLeastSquares`.
    """
    if measurement.operator.is_clean(name):
        return measurement.y[name]
    solve = PenalisedLeastSquares(tuning=Tuning({"weight": 0.0, "smoothness": smoothness}), tolerance=1e-3)
    one, unused = measurement.restrict([name]), torch.Generator()
    stack = solve.reconstruct(one, RegularisationWeight(), generator=unused, callback=None)
    return stack[:, measurement.space.channels(name)]


def guide_image(measurement: Measurement, others: Mapping[str, Tensor], guides: Sequence[str]) -> Tensor:
    """Return the image ``(B, 1, *shape)`` that guides PET, see :func:`unit_range`: clean ones first.

    Args:
        measurement: the measurement.
        others: the images beside PET.
        guides: modalities in the order of preference; any other comes after them.
    """
    ranked = [n for n in guides if n in others] + [n for n in others if n not in guides]
    return unit_range(others[sorted(ranked, key=lambda n: n not in measurement.clean)[0]].detach()[:, :1])


def unit_range(image: Tensor) -> Tensor:
    """Return images ``(B, 1, *shape)`` as 0 to 1 up to their 99th percentile."""
    top = torch.stack([torch.quantile(one.flatten()[:: 1 + one.numel() // 2**22], 0.99) for one in image])
    return (image / per_sample(top.clamp_min(torch.finfo(image.dtype).tiny), image)).clamp(0, 1)


class EmissionReconstructor(Reconstructor):
    """What methods for PET share: the other modalities first, then every PET block by itself.

    Args:
        tuning: settings by kind of block; ``smoothness`` is that of the other modalities, see
            :class:`~multirecon.reconstruction.PenalisedLeastSquares`.
        subsets: largest number of ordered subsets; the largest divisor of the number of views up to it is taken.
        source: how an image stack becomes a Measurement.
    """

    settings: tuple[str, ...] = ("smoothness",)

    def __init__(self, *, tuning: Tuning, subsets: int = 6, source: ImageSource | None = None) -> None:
        super().__init__(source=source)
        if subsets < 1:
            raise ValueError(f"subsets: expected >= 1, got {subsets}")
        if not set(self.settings) <= set(tuning.parameters):
            raise ValueError(f"tuning: expected the settings {sorted(self.settings)}, got {sorted(tuning.parameters)}")
        self.tuning = tuning
        self.subsets = subsets

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)``; see the class."""
        pet = emission_blocks(measurement)
        others = [n for n in measurement.available if n not in pet]
        parts = {n: other_image(measurement, n, self.tuning.of(measurement, n)["smoothness"]) for n in others}
        with torch.set_grad_enabled(network is not None and network.training):
            for name in pet:
                done = dict(parts)

                def report(k: int, x: Tensor, *_: object, done: Mapping[str, Tensor] = done, name: str = name) -> None:
                    if callback is not None:
                        callback(k, measurement.operator.assemble({**done, name: x}, batch=len(x)))

                parts[name] = self.emission(measurement, name, done, network, report)
        return measurement.operator.assemble(parts, batch=measurement.batch_size)

    @abstractmethod
    def emission(
        self,
        measurement: Measurement,
        name: str,
        others: Mapping[str, Tensor],
        network: nn.Module | None,
        report: Callable[..., None],
    ) -> Tensor:
        """Return the image ``(B, 1, *shape)`` of a PET block; ``others`` are the images at hand."""

    def divisor(self, measurement: Measurement, name: str) -> int:
        """Return the number of subsets: the largest divisor of the number of views, at most ``subsets``."""
        views = measurement.y[name].shape[-2]
        return max(n for n in range(1, min(self.subsets, views) + 1) if views % n == 0)


class OSEM(EmissionReconstructor):
    r"""Ordered-subsets expectation maximisation, stopped early, followed by the bundle's network (a Gaussian filter).

    .. math:: x \leftarrow \frac{x}{A_i^T 1} A_i^T \frac{y_i}{A_i x + b_i}, \qquad \hat x = G_w x

    with attenuation, efficiencies, resolution and time of flight in ``A`` and randoms and scatter in ``b``. Settings:
    ``iterations`` (passes over all data) and ``fwhm_mm``, the width of the filter in mm whatever the voxel size; the
    network's number is a factor of it.

    Args:
        tuning: settings ``iterations``, ``fwhm_mm`` and ``smoothness``.
        subsets: largest number of subsets.
        source: how an image stack becomes a Measurement.

    References:
        hudson1994
    """

    capability = EmissionCapability()
    settings = ("iterations", "fwhm_mm", "smoothness")

    def emission(
        self,
        measurement: Measurement,
        name: str,
        others: Mapping[str, Tensor],
        network: nn.Module | None,
        report: Callable[..., None],
    ) -> Tensor:
        """Return the filtered image; ``report`` sees the iterates before the filter."""
        smoothing = GaussianSmoothing() if network is None else network
        if not isinstance(smoothing, GaussianSmoothing):
            raise ValueError(f"network: expected GaussianSmoothing, got {type(smoothing).__name__}")
        settings = self.tuning.of(measurement, name)
        with torch.no_grad():
            x = osem(
                measurement.operator[name],
                measurement.likelihood[name],
                measurement.y[name],
                subsets=self.divisor(measurement, name),
                iterations=max(1, round(settings["iterations"])),
                callback=report,
            )
        return smoothing.smooth(x, [settings["fwhm_mm"] / h for h in measurement.space.spacing_mm])


class PenalisedLikelihood(EmissionReconstructor):
    r"""Penalised likelihood by BSREM, warm-started by OSEM: relative difference prior, or a prior guided by anatomy.

    .. math:: \hat x = \arg\min_{x \ge 0} \; -\log p(y \mid A x + b) + \frac{\beta}{\bar x} R(x)

    ``R`` is homogeneous of degree one; the activity ``xbar = sum x^2 / sum x`` of the warm start makes ``beta``
    dimensionless. It is the logarithm of a prior density of images relative to their level, so it stands for scans of
    any number of counts: the data weigh more as the counts grow. The bundle's network is a factor of it.

    * ``"none"``: relative difference prior, settings ``weight`` (``beta``) and ``gamma``.
    * ``"bowsher"``: the same, but only with that ``share`` of the neighbours which is most alike in the guide.
    * ``"level_sets"``: parallel level sets with the guide, settings ``weight`` and ``edge`` (gradient of the guide per
      voxel, relative to its range, that counts as half an edge).

    The guide is the first of ``guides`` that was measured (clean images first), else any other modality.

    Args:
        tuning: settings, see above, and ``smoothness``.
        guidance: which prior.
        guides: modalities in the order of preference.
        subsets: largest number of ordered subsets.
        warm_start: passes of OSEM.
        iterations: passes of BSREM.
        decay: decrease of the step length per pass.
        source: how an image stack becomes a Measurement.

    Raises:
        ValueError: on an unknown guidance or numbers out of range.

    References:
        nuyts2002, depierro2001, ehrhardt2016, bowsher2004
    """

    def __init__(
        self,
        *,
        tuning: Tuning,
        guidance: Guidance = "none",
        guides: Sequence[str] = ("t1", "flair", "t2", "t2star", "ct"),
        subsets: int = 6,
        warm_start: int = 2,
        iterations: int = 10,
        decay: float = 0.1,
        source: ImageSource | None = None,
    ) -> None:
        if guidance not in SETTINGS:
            raise ValueError(f"guidance: expected one of {sorted(SETTINGS)}, got {guidance!r}")
        self.settings = SETTINGS[guidance]
        super().__init__(tuning=tuning, subsets=subsets, source=source)
        if warm_start < 1 or iterations < 1 or not decay > 0:
            raise ValueError("warm_start, iterations, decay: expected >= 1, >= 1 and > 0, "
                             f"got {warm_start}, {iterations} and {decay}")  # fmt: skip
        self.guidance = guidance
        self.guides = tuple(guides)
        self.warm_start, self.iterations, self.decay = warm_start, iterations, decay
        self.capability = EmissionCapability(guided=guidance != "none")

    def emission(
        self,
        measurement: Measurement,
        name: str,
        others: Mapping[str, Tensor],
        network: nn.Module | None,
        report: Callable[..., None],
    ) -> Tensor:
        """Return the minimiser; ``report`` sees the iterates of BSREM."""
        operator, likelihood, y = measurement.operator[name], measurement.likelihood[name], measurement.y[name]
        settings, subsets = self.tuning.of(measurement, name), self.divisor(measurement, name)
        with torch.no_grad():
            start = osem(operator, likelihood, y, subsets=subsets, iterations=self.warm_start)
            total = start.flatten(1).sum(1).clamp_min(torch.finfo(start.dtype).tiny)
            level = start.square().flatten(1).sum(1) / total
            strength = settings["weight"] / level
        if network is not None:
            strength = network(strength.reshape(-1, 1, 1, 1)).reshape(-1)
        guide = None if self.guidance == "none" else guide_image(measurement, others, self.guides)
        penalty = self._penalty(strength, measurement.space, name, settings, guide)
        return bsrem(operator, likelihood, y, penalty, x0=start, subsets=subsets, iterations=self.iterations,
                     decay=self.decay, callback=report)  # fmt: skip

    def _penalty(
        self, strength: Tensor, space: ImageSpace, name: str, settings: Mapping[str, float], guide: Tensor | None
    ) -> Functional:
        steps, scale = [h / min(space.spacing_mm) for h in space.spacing_mm], space[name].scale
        if self.guidance == "level_sets" and guide is not None:
            return _LevelSets(strength, guide=guide, edge=settings["edge"], smoothing=HUBER * scale, spacing=steps)
        pairs = None
        if guide is not None:
            around = 3 ** len(space.shape) - 1
            pairs = bowsher_weights(guide, neighbours=min(max(1, round(settings["share"] * around)), around))
        return RelativeDifference(strength, gamma=settings["gamma"], eps=FLOOR * scale, spacing=steps,
                                  pair_weights=pairs)  # fmt: skip


class _LevelSets(ParallelLevelSets):
    """Parallel level sets with the diagonal curvature bound that BSREM's preconditioner asks for."""

    def curvature(self, x: Tensor) -> Tensor:
        """Return a diagonal majoriser of the Hessian at ``x``: ``|g|^2 / max(|g|, eps)`` with the differences split."""
        norms = torch.linalg.vector_norm(self.analyse(x), dim=2).clamp_min(self.smoothing)
        slope = self._scaled(1.0, x) / norms
        result = torch.zeros_like(x)
        for axis, h in enumerate(self._steps(x.ndim - 2), start=2):
            n = x.shape[axis] - 1
            # |a - b|^2 <= 2 |a|^2 + 2 |b|^2
            twice = 2 / h**2 * slope.narrow(axis, 0, n)
            result.narrow(axis, 0, n).add_(twice)
            result.narrow(axis, 1, n).add_(twice)
        return result
