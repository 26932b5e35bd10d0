"""Reconstruction with convolutional dictionaries whose codes are shared by the modalities (CDL, CAOL, MCAOL)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..likelihoods import Gaussian, Likelihood, Poisson
from ..measurement import Measurement
from ..operators import LinearOperator
from ..priors.dictionaries import (
    CodingState,
    analyse,
    coding_objective,
    high_pass,
    keep_jointly,
    sparse_code,
    synthesise,
)
from ..solvers import bounded_quasi_newton, data_proximal, mlem
from ..solvers.analysis_admm import mean_curvature
from ..space import ImageSpace
from .base import Callback, Capability, ImageSource, Reconstructor
from .tuning import Tuning

__all__ = ["AnalysisReconstruction", "SynthesisReconstruction"]

_LOG = logging.getLogger(__name__)
_FILTERS_AT_ONCE = 7
_CLEAN_STD = 0.01  # of a clean image, in units of the modality's scale: how much it counts beside measured ones


@dataclass(frozen=True)
class _Block:
    """One measured modality of one sample."""

    name: str
    operator: LinearOperator
    likelihood: Likelihood
    y: Tensor
    curvature: Tensor  # (channels,): mean of the diagonal of A^T W A
    settings: dict[str, float]


class _Prior:
    """The penalty of one sample for fixed codes, and the codes for a fixed image."""

    def update(self, x: Tensor) -> None:
        """Bring the codes up to date with the image ``(1, C, H, W)``; the penalty does not rise."""
        raise NotImplementedError

    def anchor(self, x: Tensor) -> Tensor:
        """Return ``v``: ``rho/2 |x' - v|^2`` and a constant are the penalty, or above it and equal to it at ``x``."""
        raise NotImplementedError

    def value(self, x: Tensor) -> Tensor:
        """Return the penalty of an image for the present codes."""
        raise NotImplementedError


class _DictionaryReconstruction(Reconstructor):
    """Alternates between the codes of all channels and the images, each with its own likelihood; sample by sample."""

    _defaults: ClassVar[dict[str, float]] = {}

    def __init__(
        self,
        *,
        space: ImageSpace,
        tuning: Tuning | None = None,
        iterations: int = 40,
        inner_iterations: int = 10,
        start_iterations: int = 20,
        tolerance: float = 1e-3,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(space=space, source=source)
        if min(iterations, inner_iterations, start_iterations) < 1 or not tolerance >= 0:
            raise ValueError(f"iterations, inner_iterations, start_iterations, tolerance: expected >= 1 and >= 0, "
                             f"got {iterations}, {inner_iterations}, {start_iterations}, {tolerance}")  # fmt: skip
        self.tuning = tuning
        self.iterations, self.inner_iterations = iterations, inner_iterations
        self.start_iterations, self.tolerance = start_iterations, tolerance
        self.objectives: list[list[float]] = []
        """Objective of every sample of the last call: at the start, and after each iteration."""
        self.capability = Capability(
            likelihoods=frozenset({"gaussian", "poisson", "transmission_poisson"}),
            modalities=frozenset(space.names),
            ndim=frozenset({2}),
            shape=space.shape,
        )

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)``; see the class.

        Raises:
            ValueError: if there is no network, or the grid is smaller than a filter.
        """
        filters = getattr(network, "filters", None)
        if not isinstance(filters, Tensor):
            raise ValueError(f"network: expected a bank of filters, got {type(network).__name__}")
        size = tuple(filters.shape[2:])
        if any(n < s for n, s in zip(measurement.space.shape, size, strict=True)):
            raise ValueError(f"grid: expected at least {size} pixels, got {measurement.space.shape}")
        self.objectives = []
        with torch.no_grad():
            stacks = [
                self._sample(measurement.samples(k, k + 1), filters.detach(), callback)
                for k in range(measurement.batch_size)
            ]
        return torch.cat(stacks)

    def _sample(self, measurement: Measurement, filters: Tensor, callback: Callback | None) -> Tensor:
        space = measurement.space
        images = {n: measurement.y[n] for n in measurement.given}
        blocks = [self._block(measurement, n) for n in measurement.available if n not in images]
        self.objectives.append([])
        if not blocks:
            return measurement.operator.assemble(images, batch=1)
        given = {n: image.to(blocks[0].y.real) for n, image in images.items()}
        images = {**given, **{b.name: self._start(b) for b in blocks}}
        names = [n for n in space.names if n in images]
        part = space.select(names)
        bank = filters if len(filters) == 1 else filters[space.channel_index(names)]
        x = torch.cat([images[n] for n in names], dim=1)
        curvature = torch.cat([
            next((b.curvature for b in blocks if b.name == n), x.new_full((space[n].channels,), _clean(space, n)))
            for n in names
        ])  # fmt: skip
        settings = [next((b.settings for b in blocks if b.name == n), _mean(blocks)) for n in names
                    for _ in range(space[n].channels)]  # fmt: skip
        columns = {key: x.new_tensor([s[key] for s in settings]) for key in self._defaults}
        rho = columns["weight"] * curvature.to(x)
        prior = self._prior(bank.to(x), rho, curvature.to(x), columns)
        prior.update(x)
        self.objectives[-1].append(self._objective(blocks, part, x, prior))
        for iteration in range(self.iterations):
            anchor, before = prior.anchor(x), x
            parts = dict(given)
            for b in blocks:
                here = part.channels(b.name)
                parts[b.name] = self._image_step(b, anchor[:, here], rho[here].reshape(1, -1, 1, 1), x[:, here])
            x = torch.cat([parts[n] for n in names], dim=1)
            prior.update(x)
            self.objectives[-1].append(self._objective(blocks, part, x, prior))
            _LOG.debug("iteration %d: objective %.8g", iteration + 1, self.objectives[-1][-1])
            if callback is not None:
                callback(iteration, self._assemble(measurement, part, given, x))
            if self._settled(before, x):
                break
        return self._assemble(measurement, part, given, x)

    def _block(self, measurement: Measurement, name: str) -> _Block:
        operator, likelihood, y = measurement.operator[name], measurement.likelihood[name], measurement.y[name]
        if isinstance(likelihood, Gaussian) and likelihood.is_exact:
            likelihood = Gaussian(1e-3 * float(y.abs().square().mean().sqrt()) or 1.0)
        settings = dict(self._defaults)
        if self.tuning is not None:
            settings |= self.tuning.of(measurement, name)
        curvature = mean_curvature(operator, likelihood, y)[0].clamp_min(1e-30)
        return _Block(name, operator, likelihood, y, curvature, settings)

    def _start(self, block: _Block) -> Tensor:
        """Return an image from the data and a weak pull towards zero, or from a few EM iterations."""
        weak = 1e-3 * block.curvature.reshape(1, -1, *[1] * len(block.operator.domain_shape[1:]))
        if isinstance(block.likelihood, Poisson):
            return mlem(block.operator, block.likelihood, block.y, iterations=self.start_iterations)
        zero = weak.new_zeros(1, *block.operator.domain_shape)
        if isinstance(block.likelihood, Gaussian):
            return data_proximal(block.operator, block.likelihood, block.y, zero, rho=weak,
                                 iterations=self.start_iterations)  # fmt: skip
        return bounded_quasi_newton(block.operator, block.likelihood, block.y, anchor=zero, rho=weak,
                                    iterations=self.start_iterations)  # fmt: skip

    def _image_step(self, block: _Block, anchor: Tensor, rho: Tensor, x: Tensor) -> Tensor:
        """Return an image with a lower ``-log p(y | A x) + rho/2 |x - v|^2`` than ``x``."""
        if isinstance(block.likelihood, Gaussian | Poisson):
            return data_proximal(block.operator, block.likelihood, block.y, anchor, rho=rho, x0=x,
                                 iterations=self.inner_iterations)  # fmt: skip
        return bounded_quasi_newton(block.operator, block.likelihood, block.y, anchor=anchor, rho=rho, x0=x,
                                    iterations=self.inner_iterations)  # fmt: skip

    def _objective(self, blocks: list[_Block], part: ImageSpace, x: Tensor, prior: _Prior) -> float:
        total = prior.value(x).double()
        for b in blocks:
            total = total + b.likelihood.nll(b.operator(x[:, part.channels(b.name)]), b.y).double().sum()
        return float(total)

    def _settled(self, before: Tensor, x: Tensor) -> bool:
        """Whether no channel moved by more than the tolerance."""
        moved = (x - before).flatten(2).norm(dim=2) <= self.tolerance * x.flatten(2).norm(dim=2)
        return self.tolerance > 0 and bool(moved.all())

    @staticmethod
    def _assemble(measurement: Measurement, part: ImageSpace, given: dict[str, Tensor], x: Tensor) -> Tensor:
        # conjugate gradients know no bound: what they left below zero is cut at the end
        images = {n: given[n] if n in given else x[:, part.channels(n)].clamp_min(0) for n in part.names}
        return measurement.operator.assemble(images, batch=1)

    def _prior(self, bank: Tensor, rho: Tensor, curvature: Tensor, settings: dict[str, Tensor]) -> _Prior:
        raise NotImplementedError


class AnalysisReconstruction(_DictionaryReconstruction):
    r"""Multi-channel convolutional analysis operators (MCAOL): tight frames with responses sparse at the same places.

    .. math:: \min_{x \ge 0,\, z} \sum_m -\log p(y_m \mid A_m x_m)
              + \sum_c \tfrac{\rho_c}{2} \sum_k \|d_{c,k} (*) x_c - z_{c,k}\|^2
              + b\, \|\,\textstyle\sum_c |z_{c,k}|\,\|_0

    with ``rho_c = w_c mean diag A^T W A``, alternating between the codes (joint hard threshold: positions with ``sum_c
    rho_c r_c^2 / 2 >= b`` stay, exact) and the images. For a tight frame the coupling of an image is ``rho/2 |x - sum_k
    d~_k (*) z_k|^2`` and a constant, so one image carries all codes. Poisson data take De Pierro's EM,
    transmission data quasi-Newton steps over ``x >= 0`` (both with the exact likelihood), Gaussian data conjugate
    gradients (non-negative at the end). The objective does not rise; it is kept in ``objectives`` and logged.

    ``w`` (``"weight"``) is relative to the curvature of the data, ``b`` (``"cost"``) is a price in nats, so that the
    threshold of a response is a multiple of its noise, whatever the dose. Blocks that are coupled pay the mean of their
    prices. A clean modality stays as it is and takes part with an error of a hundredth of its scale. Without coupling,
    each channel is reconstructed by CAOL alone.

    Args:
        space: stack of the method; the network has one bank a channel.
        tuning: ``"weight"`` and ``"cost"`` by kind of block, dimensionless.
        joint: whether the channels share the support of their codes.
        iterations: bound on the alternations.
        inner_iterations: iterations of an image step.
        start_iterations: iterations of the likelihood alone, from which the alternation starts.
        tolerance: relative change of every channel at which it ends.
        source: how an image stack becomes a Measurement.

    References:
        chun2020, perelli2022
    """

    _defaults: ClassVar = {"weight": 0.3, "cost": 0.3}

    def __init__(self, *, joint: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.joint = joint

    def _prior(self, bank: Tensor, rho: Tensor, curvature: Tensor, settings: dict[str, Tensor]) -> _Prior:
        cost = settings["cost"]
        return _TightFrame(bank, rho, cost.mean()[None] if self.joint else cost, self.joint)


class _TightFrame(_Prior):
    def __init__(self, bank: Tensor, rho: Tensor, cost: Tensor, joint: bool) -> None:
        self.bank, self.rho, self.cost, self.joint = bank, rho, cost, joint
        self.v = self.constant = torch.empty(0)

    def update(self, x: Tensor) -> None:
        # filter by filter: no map of codes outlives its turn, what stays is one image and three numbers a channel
        self.v, square, price = torch.zeros_like(x), torch.zeros_like(self.rho).double(), 0.0
        for part in self.bank.split(_FILTERS_AT_ONCE, dim=1):
            z = keep_jointly(analyse(x, part), self.rho, self.cost, self.joint)
            self.v += synthesise(z, part)
            square += z.square().flatten(2).sum((0, 2)).double()
            kept = (z != 0).any(1, keepdim=True) if self.joint else z != 0
            price += float(kept.flatten(2).sum((0, 2)).double() @ self.cost.double())
        square -= self.v.square().flatten(2).sum((0, 2)).double()
        self.constant = 0.5 * (self.rho.double() * square).sum() + price

    def anchor(self, x: Tensor) -> Tensor:
        return self.v

    def value(self, x: Tensor) -> Tensor:
        distance = (x - self.v).square().flatten(2).sum(2)
        return 0.5 * (self.rho.double() * distance.double()).sum() + self.constant


class SynthesisReconstruction(_DictionaryReconstruction):
    r"""Multi-channel convolutional dictionary (CDL): images that few atoms at common places explain, and a smooth part.

    .. math:: \min_{x \ge 0,\, z} \sum_m -\log p(y_m \mid A_m x_m) + \sum_c \tfrac{w_c}{2} \|D z_c - s_c H x_c\|^2
              + \sum_c \lambda_c \|z_c\|_1 + \mu \sum_{k,p} \bigl(\sum_c z_{c,k}(p)^2\bigr)^{1/2}

    with the high-pass part ``H x`` (:func:`~multirecon.priors.dictionaries.high_pass`) in units of its noise,
    ``s_c^2 = mean diag A^T W A``: all settings are dimensionless and serve every dose. With the dimensionless
    ``"sparsity"`` of a block and the ``share`` of the coupling, ``lambda = (1 - share) sparsity`` and ``mu`` is
    ``share`` times the mean sparsity; ``share = 0`` reconstructs every channel by itself.

    The codes go on from where they stood by ``code_iterations`` of ADMM, taken over where the objective falls; the
    images minimise a separable majoriser (``H`` lies between 0 and 1) by the steps of :class:`AnalysisReconstruction`.
    The objective does not rise; it is kept in ``objectives`` and logged.

    Args:
        space: stack of the method.
        tuning: ``"weight"`` ``w`` and ``"sparsity"`` by kind of block, dimensionless.
        share: part of the sparsity that couples the channels, 0 to 1.
        code_iterations: ADMM iterations of an alternation.
        smoothing: weight of the smooth part, as in the learning.
        options: ``iterations``, ``inner_iterations``, ``start_iterations``, ``tolerance``, ``source`` as there.

    References:
        wohlberg2016
    """

    _defaults: ClassVar = {"weight": 3.0, "sparsity": 3.0}

    def __init__(
        self, *, share: float = 1 / 3, code_iterations: int = 5, smoothing: float = 5.0, **options: Any
    ) -> None:
        super().__init__(**options)
        if not 0 <= share <= 1 or code_iterations < 1:
            raise ValueError(f"share, code_iterations: expected 0 to 1, >= 1, got {share}, {code_iterations}")
        self.share, self.code_iterations, self.smoothing = share, code_iterations, smoothing

    def _prior(self, bank: Tensor, rho: Tensor, curvature: Tensor, settings: dict[str, Tensor]) -> _Prior:
        sparsity = settings["sparsity"]
        # one channel has nobody to share with
        share = self.share if len(sparsity) > 1 else 0.0
        return _Dictionary(
            bank,
            unit=curvature.sqrt(),
            weight=settings["weight"],
            single=(1 - share) * sparsity,
            group=share * sparsity.mean()[None],
            options=(self.code_iterations, self.smoothing),
        )


class _Dictionary(_Prior):
    def __init__(
        self, bank: Tensor, *, unit: Tensor, weight: Tensor, single: Tensor, group: Tensor, options: tuple[int, float]
    ) -> None:
        self.bank, self.unit = bank, unit.reshape(1, -1, 1, 1)
        self.terms = {"weight": weight, "single": single, "group": group}
        self.iterations, self.smoothing = options
        self.state: CodingState | None = None
        self.codes = self.synthesis = torch.empty(0)

    def update(self, x: Tensor) -> None:
        signal = self.unit * high_pass(x, self.smoothing)
        self.state = sparse_code(signal, self.bank, state=self.state, iterations=self.iterations, **self.terms)
        synthesis = synthesise(self.state.codes, self.bank)
        if not self.codes.numel():
            self.codes, self.synthesis = self.state.codes, synthesis
            return
        old = coding_objective(self.synthesis - signal, self.codes, **self.terms)
        if bool(coding_objective(synthesis - signal, self.state.codes, **self.terms) <= old):
            self.codes, self.synthesis = self.state.codes, synthesis

    def anchor(self, x: Tensor) -> Tensor:
        return x - high_pass(high_pass(x, self.smoothing) - self.synthesis / self.unit, self.smoothing)

    def value(self, x: Tensor) -> Tensor:
        residual = self.synthesis - self.unit * high_pass(x, self.smoothing)
        return coding_objective(residual, self.codes, **self.terms).sum()


def _clean(space: ImageSpace, name: str) -> float:
    return (_CLEAN_STD * space[name].scale) ** -2


def _mean(blocks: list[_Block]) -> dict[str, float]:
    return {key: sum(b.settings[key] for b in blocks) / len(blocks) for key in blocks[0].settings}
