"""Diffusion posterior sampling on any measurement: MDS (DDS, PET-DDS) and MPS (DPS) of Any2all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..blocks import Blocks
from ..likelihoods import BlockLikelihood, Gaussian, TransmissionPoisson, gaussian_approximation
from ..measurement import Measurement
from ..priors import DenoiserError, DiffusionPrior, SampleNoise, reverse_diffusion
from ..priors.denoiser import clamp_table
from ..solvers import data_proximal, mean_curvature
from .base import Callback, Capability, ImageSource, PosteriorSampler
from .misfit import Misfit
from .tuning import Tuning, block_kind

__all__ = ["DecomposedSampling", "PosteriorSampling"]


class _DiffusionSampler(PosteriorSampler):
    """What both samplers share: the prior's stack, the noise, clean modalities returned as they came."""

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        steps: int,
        num_samples: int,
        autocast: str | None,
        tuning: Tuning | None,
        source: ImageSource | None,
    ) -> None:
        super().__init__(space=prior.space, source=source)
        if steps < 1 or num_samples < 1:
            raise ValueError(f"steps, num_samples: expected >= 1, got {steps}, {num_samples}")
        if autocast not in (None, "bfloat16", "float16"):
            raise ValueError(f"autocast: expected None, 'bfloat16' or 'float16', got {autocast!r}")
        self.prior = prior
        self.steps = steps
        self.num_samples = num_samples
        self.autocast = None if autocast is None else getattr(torch, autocast)
        self.tuning = tuning
        self.capability = Capability(
            likelihoods=frozenset({"gaussian", "poisson", "transmission_poisson", "polyenergetic_poisson"}),
            modalities=frozenset(prior.space.names),
            synthesises=True,
            ndim=frozenset({len(prior.space.shape)}),
            shape=prior.space.shape,
            channels={m.name: m.channels for m in prior.space.modalities},
        )

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return one posterior sample, or the mean of ``num_samples``, ``(B, C, *shape)`` in physical units."""
        if network is None:
            raise ValueError("network: expected the network of the prior, got None")
        shape = (measurement.batch_size, self.prior.space.num_channels, *self.prior.space.shape)
        parameter = next(network.parameters(), torch.empty(0))
        total = torch.zeros(shape, device=parameter.device)
        for _ in range(self.num_samples):
            noise = SampleNoise(shape, generator, like=total)
            total = total + self._sample(measurement, network, noise, callback) / self.num_samples
        for name in measurement.given:
            total[:, self.prior.space.channels(name)] = measurement.y[name].to(total)
        return total

    def _sample(
        self, measurement: Measurement, network: nn.Module, noise: SampleNoise, callback: Callback | None
    ) -> Tensor:
        raise NotImplementedError

    def _denoiser(self, network: nn.Module) -> Any:
        return self.prior.denoiser(network, autocast=self.autocast)

    def spread(self, measurement: Measurement) -> dict[str, float]:
        """Return the tuned ``spread`` of every measured modality, see :class:`PosteriorSampler`."""
        return {name: self._setting("spread", 1.0, measurement, name) for name in measurement.available}

    def _setting(self, name: str, default: float, measurement: Measurement, block: str) -> float:
        if self.tuning is None or name not in self.tuning.parameters:
            return default
        return self.tuning(name, block_kind(measurement, block))


_ERROR = 0.0108  # error variance of a denoiser at sigma = 1: the rule of thumb of DecomposedSampling


def _rule(error: float, sigma: float) -> float:
    return min(error * sigma**0.75, 0.25)


class DecomposedSampling(_DiffusionSampler):
    r"""Modality-decomposed sampling (MDS): after each denoising step the clean estimate is made to agree with the data.

    .. math:: \tilde u_m = \arg\min_u -\log p(y_m \mid A_m u) + \tfrac12 \|\rho^{1/2} (u - \hat u_m)\|^2

    for every measured modality ``m`` in physical units: conjugate gradients from the estimate for Gaussian data, De
    Pierro's EM for PET counts, for CT counts weighted least squares of the line integrals, or separable surrogates of
    the exact likelihood where the blank scan has few counts. Clean modalities are replaced by their data, missing ones
    keep the prior's estimate. The single-modality Gaussian case is DDS.

    The weight is ``rho = strength * (dx/du)^2 / v(sigma)``, whitened and dimensionless, with the error variance of a
    denoiser ``v = min(error * sigma^0.75, 1/4)`` in the network's range (a rough rule; the denoising PSNR in a
    prior's training curve says how far it holds): what the prior is trusted with falls as its noise level rises.
    A measured :class:`~multirecon.priors.DenoiserError` as ``error`` replaces the rule by the error of this denoiser
    for the modality and the value: the prior is then trusted in air and bone, and data at the borders. The table
    is measured under independent noise, and errors of a run are not independent of its earlier steps; ``calibration``
    goes from the rule (0) to the table (1), ``v = table^c rule^(1 - c)``.
    ``strength = 1`` weighs data and prior by their variances. ``perturb`` draws ``u~`` from the Gaussian that this
    problem is the mode of (data and estimate are perturbed by their own noise before it is solved); with
    ``noise_split="dds", eta=1``, every step then keeps the marginal posterior of its noise level where ``v`` is right,
    which makes samples spread as the posterior does.
    ``weight="constant"`` is the published rule instead: one ``lambda`` against the squared
    residual, ``rho = strength (dx/du)^2 / (2 sigma_y)^2`` with the typical noise of the data.

    Args:
        prior: the diffusion prior.
        steps: number of denoising steps (150 as published).
        eta: share of fresh noise of a step, 0 to 1.
        noise_split: see :func:`~multirecon.priors.reverse_diffusion`.
        order: 2 for the multistep solver.
        spacing: of the times, see :meth:`~multirecon.priors.NoiseSchedule.kept_steps`; a shortened run has its own.
        strength: weight of the prior in the correction, dimensionless; a tuned ``strength`` goes before it.
        weight: rule for ``rho``.
        error: error variance of the denoiser at ``sigma = 1`` in the network's range, its variance as a function of
            ``sigma``, or a measured table.
        calibration: how far a table replaces the rule, 0 to 1; a tuned ``calibration`` goes before it.
        iterations: inner iterations of every correction.
        warm: whether a correction starts at the one before instead of the new estimate. The few iterations of all steps
            then add up, which projections need; both starts have the same limit.
        precondition: whether conjugate gradients are preconditioned by the data's mean curvature and ``rho``, pixel
            by pixel; without a table ``rho`` hardly varies and it makes no difference.
        exact_air: None, or the standard errors of an estimate within which attenuation counts as that of air at the
            end. Corrected estimates of attenuation are then also cut to the range of the prior's own (its ``clamp``):
            conjugate gradients know no bounds. Air is a point mass of the prior that no network reproduces exactly.
        perturb: whether corrections are samples instead of modes.
        exact_below: blank-scan counts a ray under which CT counts keep their exact likelihood.
        start: fraction of the schedule to start at (1: pure noise); below 1 from ``initial``.
        initial: image ``(measurement, network) -> (B, C, *shape)`` in physical units that a shortened run starts from.
        num_samples: posterior samples whose mean is returned.
        autocast: precision inside the network, ``"bfloat16"`` or none.
        tuning: tuned settings by kind of block, may hold ``strength``.
        source: how an image stack becomes a Measurement.

    References:
        any2all, chung2024dds
    """

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        steps: int = 150,
        eta: float = 0.85,
        noise_split: Literal["ddim", "dds"] = "ddim",
        order: Literal[1, 2] = 1,
        spacing: Literal["linspace", "trailing"] = "linspace",
        strength: float = 1.0,
        weight: Literal["error", "constant"] = "error",
        error: float | Callable[[float], float] | DenoiserError = _ERROR,
        calibration: float = 1.0,
        iterations: int = 5,
        warm: bool = True,
        precondition: bool = False,
        exact_air: float | None = None,
        perturb: bool = False,
        exact_below: float = 5e3,
        start: float = 1.0,
        initial: Callable[[Measurement, nn.Module], Tensor] | None = None,
        num_samples: int = 1,
        autocast: str | None = None,
        tuning: Tuning | None = None,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(prior, steps=steps, num_samples=num_samples, autocast=autocast, tuning=tuning, source=source)
        if not strength > 0 or iterations < 1:
            raise ValueError(f"strength, iterations: expected > 0, >= 1, got {strength}, {iterations}")
        if not callable(error) and not error > 0:
            raise ValueError(f"error: expected > 0, got {error}")
        if isinstance(error, DenoiserError) and error.channels != prior.space.num_channels:
            raise ValueError(f"error: expected a table of {prior.space.num_channels} channels, got {error.channels}")
        if not 0 <= calibration <= 1:
            raise ValueError(f"calibration: expected 0 to 1, got {calibration}")
        if exact_air is not None and not exact_air >= 0:
            raise ValueError(f"exact_air: expected >= 0 or None, got {exact_air}")
        if weight not in ("error", "constant") or spacing not in ("linspace", "trailing"):
            raise ValueError(f"weight, spacing: expected 'error' or 'constant' and 'linspace' or 'trailing', "
                             f"got {weight!r} and {spacing!r}")  # fmt: skip
        if not 0 < start <= 1 or (start < 1) != (initial is not None):
            raise ValueError(
                f"start, initial: expected 1 and none, or a fraction and an image to start from, got {start}"
            )
        self.eta = eta
        self.noise_split = noise_split
        self.order = order
        self.spacing = spacing
        self.strength = strength
        self.weight = weight
        self.error = error
        self.calibration = calibration
        self.iterations = iterations
        self.warm = warm
        self.precondition = precondition
        self.exact_air = exact_air
        self.perturb = perturb
        self.exact_below = exact_below
        self.start = start
        self.initial = initial

    def _sample(
        self, measurement: Measurement, network: nn.Module, noise: SampleNoise, callback: Callback | None
    ) -> Tensor:
        scaling, space = self.prior.scaling, self.prior.space
        data = self._simplified(measurement)
        strengths = {name: self._setting("strength", self.strength, measurement, name) for name in data.available}
        tempered = data.available if isinstance(self.error, DenoiserError) else ()
        shares = {name: self._setting("calibration", self.calibration, measurement, name) for name in tempered}
        # where pixels are trusted differently, plain conjugate gradients need many more iterations
        curvature = mean_curvature(data.operator, data.likelihood, data.y) if self.precondition else None
        attenuating = [c for name in data.available if isinstance(measurement.likelihood[name], TransmissionPoisson)
                       for c in range(*space.channels(name).indices(space.num_channels))]  # fmt: skip
        last = round(self.start * (self.prior.schedule.num_timesteps - 1))
        times = self.prior.schedule.kept_steps(self.steps, self.spacing)
        if self.start < 1:
            times = torch.unique(torch.linspace(0, last, self.steps, dtype=torch.float64).round().long())
        physical, end = torch.empty(0), float(self.prior.schedule.sigma(times[:1].double()))

        def correct(estimate: Tensor, sigma: float) -> Tensor:
            nonlocal physical
            y, variance = data.y, self._error(sigma, estimate, shares)
            if self.perturb and sigma > end:
                estimate = estimate + variance.sqrt() * noise()
                y = self._perturbed(data, noise)
            prediction = scaling.inverse(estimate)
            slope = scaling.slope(prediction) ** 2
            rho = torch.ones_like(prediction)  # of missing modalities it is not used
            for name in data.available:
                channels = space.channels(name)
                trust = self._constant(data, name) if self.weight == "constant" else 1 / variance[:, channels]
                rho[:, channels] = strengths[name] * trust * slope[:, channels]
            physical = data_proximal(
                data.operator,
                data.likelihood,
                y,
                prediction,
                rho=rho,
                x0=physical if self.warm and physical.numel() else None,
                iterations=self.iterations,
                tolerance=1e-5,
                curvature=curvature,
            )
            return self._within(scaling(physical), variance, attenuating, last=sigma <= end)

        clean = reverse_diffusion(
            self._denoiser(network),
            self.prior.schedule,
            noise,
            steps=times,
            eta=self.eta,
            noise_split=self.noise_split,
            order=self.order,
            correct=correct,
            start=None if self.initial is None else scaling(self.initial(measurement, network)),
            callback=None if callback is None else lambda k, x: callback(k, scaling.inverse(x)),
        )
        return scaling.inverse(clean)

    def _within(self, x: Tensor, variance: Tensor, channels: list[int], *, last: bool) -> Tensor:
        """Return a corrected estimate whose attenuation lies in the range of the prior, in the end with exact air."""
        table = clamp_table(self.prior.clamp)
        if table is None or self.exact_air is None or not channels:
            return x
        low, high = table.to(x).expand(2, x.shape[1])[:, channels].reshape(2, 1, -1, *[1] * (x.ndim - 2))
        part = torch.minimum(torch.maximum(x[:, channels], low), high)
        if last:
            part = torch.where(part < low + self.exact_air * variance[:, channels].sqrt(), low, part)
        x = x.clone()
        x[:, channels] = part
        return x

    @staticmethod
    def _constant(measurement: Measurement, name: str) -> Tensor | float:
        likelihood = measurement.likelihood[name]
        if not isinstance(likelihood, Gaussian):
            raise ValueError(f"weight: expected 'error' for the {likelihood.kind} block {name!r}, got 'constant'")
        return 0.25 * likelihood.weight(measurement.y[name]).mean() if not likelihood.is_exact else 1.0

    def _error(self, sigma: float, estimate: Tensor, shares: Mapping[str, float]) -> Tensor:
        """Return the error variance of an estimate, shaped like it."""
        if not isinstance(self.error, DenoiserError):
            rule = self.error(sigma) if callable(self.error) else _rule(self.error, sigma)
            return torch.full_like(estimate, rule)
        rule, variance = _rule(_ERROR, sigma), self.error(sigma, estimate)
        for name, share in shares.items():
            channels = self.prior.space.channels(name)
            variance[:, channels] = variance[:, channels] ** share * rule ** (1 - share)
        return variance

    @staticmethod
    def _perturbed(measurement: Measurement, noise: SampleNoise) -> Blocks:
        """Return the data with a second realisation of their noise on top."""
        blocks = {}
        for name, y in measurement.y.items():
            likelihood = measurement.likelihood[name]
            if isinstance(likelihood, Gaussian):
                blocks[name] = y + likelihood.sigma.to(y.real.dtype) * noise.beside(y)
            else:
                blocks[name] = (y + y.clamp_min(0).sqrt() * noise.beside(y)).clamp_min(0)
        return Blocks(blocks)

    def _simplified(self, measurement: Measurement) -> Measurement:
        """Return the measurement with CT counts as line integrals where they are many."""
        y, likelihoods = dict(measurement.y), {n: measurement.likelihood[n] for n in measurement.available}
        for name, likelihood in likelihoods.items():
            if isinstance(likelihood, TransmissionPoisson) and float(likelihood.I0.median()) >= self.exact_below:
                y[name], likelihoods[name] = gaussian_approximation(likelihood, y[name])
        return Measurement(Blocks(y), measurement.operator, BlockLikelihood(likelihoods), measurement.metadata)


class PosteriorSampling(_DiffusionSampler):
    r"""Multimodal posterior sampling (MPS): each step follows the gradient of the misfit through the network.

    .. math::
        x_{t-1} = x'_{t-1} - \zeta \nabla_{x_t} \Big(\sum_m \|y_m - A_m \hat u_m(x_t)\|^2\Big)^{1/2}

    with the ancestral step ``x'`` and one norm for each sample over all measured blocks (not squared: the step is
    inverse to the residual). DPS is the case of one modality. Blocks are made comparable in units of half the network's
    range: clean images by their scaling, counts through their Gaussian approximation, whitened data by the norm of the
    operator; for multi-coil MR in [0, 1] that is the plain residual. Counts behind several materials have no such
    approximation: they keep their likelihood, whose square root takes the place of the norm (one-step decomposition).

    Args:
        prior: the diffusion prior.
        steps: number of steps (1000 as published).
        zeta: weight of the gradient; a tuned ``zeta`` (the mean of the blocks' values) goes before it.
        exact: whether all counts keep their likelihood; see :class:`~multirecon.reconstruction.misfit.Misfit`.
        precondition: whether the gradient is preconditioned for projections, as there. Steps then shrink with the
            misfit by themselves; ``zeta``, of the order of 1, is the share of the image's error that one takes away.
            They are taken in ``x_t / sqrt(abar_t)``, where the network's Jacobian bounds them at every noise level.
        num_samples: posterior samples whose mean is returned.
        autocast: precision inside the network, ``"bfloat16"`` or none.
        tuning: tuned settings by kind of block, may hold ``zeta``.
        source: how an image stack becomes a Measurement.

    References:
        any2all, chung2023dps
    """

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        steps: int = 1000,
        zeta: float = 1.0,
        exact: bool = False,
        precondition: bool = False,
        num_samples: int = 1,
        autocast: str | None = None,
        tuning: Tuning | None = None,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(prior, steps=steps, num_samples=num_samples, autocast=autocast, tuning=tuning, source=source)
        if not zeta > 0:
            raise ValueError(f"zeta: expected > 0, got {zeta}")
        self.zeta = zeta
        self.exact, self.precondition = exact, precondition

    def _sample(
        self, measurement: Measurement, network: nn.Module, noise: SampleNoise, callback: Callback | None
    ) -> Tensor:
        scaling = self.prior.scaling
        zetas = [self._setting("zeta", self.zeta, measurement, name) for name in measurement.available]
        zeta = sum(zetas) / len(zetas) if zetas else 0.0
        sample = reverse_diffusion(
            self._denoiser(network),
            self.prior.schedule,
            noise,
            steps=self.steps,
            eta=1.0,
            guide=(
                Misfit(measurement, self.prior, exact=self.exact, precondition=self.precondition)
                if measurement.available
                else None
            ),
            # the misfit is in units of half the range: its gradient is a quarter of that in units of the range
            guidance=(lambda sigma: 4 * zeta / (1 + sigma**2)) if self.precondition else zeta,
            callback=None if callback is None else lambda k, x: callback(k, scaling.inverse(x)),
        )
        return scaling.inverse(sample)
