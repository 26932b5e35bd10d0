"""One-step decomposition into materials of which the prior knows only some (hybrid ODPS)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..functionals import TotalVariation
from ..likelihoods import PolyenergeticPoisson
from ..measurement import Measurement
from ..operators import SpectralProjector, mass_attenuation
from ..priors import DiffusionPrior, IntensityScaling, SampleNoise, reverse_diffusion
from ..solvers import decompose_counts
from ..solvers.cg import least_squares
from ..space import ImageSpace, Modality
from .base import Callback, Capability, ImageSource, PosteriorSampler
from .misfit import Misfit
from .tuning import Tuning

__all__ = ["HybridSampling"]

_FIRST_ITERATIONS = 12
_SETTINGS = {"zeta": 4.0, "absent_step": 1.0, "absent_weight": 0.02, "absent_from": 1.0}


class HybridSampling(PosteriorSampler):
    r"""Posterior sampling of the materials of a prior, beside gradient steps on materials that it was not trained on.

    The densities ``rho = (rho_p, rho_a)`` share the polyenergetic likelihood, which is all that couples them. Every
    step of the reverse diffusion takes the gradient ``g`` of the misfit at ``(\hat\rho_p(x_t), rho_a)``, preconditioned
    as in :class:`~multirecon.reconstruction.misfit.Misfit`, and uses it twice: through the network for the materials of
    the prior, as :class:`~multirecon.reconstruction.PosteriorSampling` with ``precondition`` does, and in

    .. math:: \rho_a \leftarrow \operatorname{prox}_{s \lambda \mathrm{TV},\, \ge 0}(\rho_a - s\, g_a)

    for the absent ones, in units of half their range. What the network sees, and its noise, holds the materials of the
    prior only. Without an absent material and without ``ridge`` this *is* posterior sampling.

    The absent materials stay zero until the noise has fallen below ``absent_from``: before, the estimates of the others
    are too blurred for what is left of the data to mean anything.

    Args:
        prior: of one modality, the densities of ``materials``.
        materials: names of the prior's materials, in channel order.
        absent: names of the others and their densities at the top of their range in g/cm^3, in channel order behind
            those of the prior.
        ridge: see :class:`~multirecon.reconstruction.misfit.Misfit`; None: the preconditioner of posterior sampling.
        start: fraction of the schedule to start at (1: pure noise). Below 1 (jump start) the run starts from the
            maximum-likelihood line integrals of the prior's materials alone, in a few conjugate gradients: skull and
            skin are then where the data have them, not where the first, noisiest steps happened to put them.
        steps: number of steps.
        num_samples: posterior samples whose mean is returned.
        autocast: precision inside the network, ``"bfloat16"`` or none.
        tuning: ``zeta``: as for posterior sampling; ``absent_step``: length ``s`` of the step, 1 takes away about the
            whole error where the data see one material; ``absent_weight``: ``lambda`` in units of half the range;
            ``absent_from``: the noise level below which absent materials move.
        source: how an image stack becomes a Measurement.

    Raises:
        ValueError: on an unknown material, a prior of other channels, or a range that is not positive.

    References:
        vazia2025
    """

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        materials: tuple[str, ...] | list[str] = ("water", "bone"),
        absent: Mapping[str, float],
        ridge: float | None = None,
        start: float = 1.0,
        steps: int = 200,
        num_samples: int = 1,
        autocast: str | None = None,
        tuning: Tuning | None = None,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(source=source)
        if steps < 1 or num_samples < 1:
            raise ValueError(f"steps, num_samples: expected >= 1, got {steps}, {num_samples}")
        if not 0 < start <= 1:
            raise ValueError(f"start: expected a fraction above 0 up to 1, got {start}")
        if autocast not in (None, "bfloat16", "float16"):
            raise ValueError(f"autocast: expected None, 'bfloat16' or 'float16', got {autocast!r}")
        if len(prior.space.names) != 1 or prior.space.num_channels != len(materials):
            raise ValueError(f"prior: expected one modality of the {len(materials)} materials {list(materials)}, "
                             f"got {prior.space.num_channels} channels of {list(prior.space.names)}")  # fmt: skip
        if any(not top > 0 for top in absent.values()):
            raise ValueError(f"absent: expected positive densities, got {dict(absent)}")
        mass_attenuation((*materials, *absent), [60.0])  # raises on an unknown name
        self.prior, self.steps, self.num_samples, self.ridge, self.start = prior, steps, num_samples, ridge, start
        self.autocast = None if autocast is None else getattr(torch, autocast)
        self.tuning = tuning
        (known,) = prior.space.modalities
        self.modality = known.name
        whole = Modality(known.name, channels=known.channels + len(absent), unit=known.unit, scale=known.scale)
        self.stack = ImageSpace([whole], prior.space.shape, prior.space.spacing_mm)
        rows = [*prior.scaling.knots, *([[0.0, -1.0], [float(top), 1.0]] for top in absent.values())]
        self.scaling = IntensityScaling(self.stack, knots={known.name: rows})
        self.capability = Capability(
            operators=frozenset({SpectralProjector.kind}),
            likelihoods=frozenset({PolyenergeticPoisson.kind}),
            modalities=frozenset({known.name}),
            ndim=frozenset({2}),
            shape=prior.space.shape,
            requires={known.name: SpectralProjector.kind},
            channels={known.name: whole.channels},
        )

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return one posterior sample, or the mean of ``num_samples``, ``(B, C, H, W)`` in g/cm^3."""
        if network is None:
            raise ValueError("network: expected the network of the prior, got None")
        settings = dict(_SETTINGS)
        if self.tuning is not None:
            settings |= self.tuning.of(measurement, self.modality)
        own = measurement.embed(self.stack)
        misfit = Misfit(own, self.stack, scaling=self.scaling, precondition=True, ridge=self.ridge)
        shape = (measurement.batch_size, self.prior.space.num_channels, *self.prior.space.shape)
        like = next(network.parameters(), torch.empty(0))
        first = self.prior.scaling(self._first(own)) if self.start < 1 else None
        total = torch.zeros((), device=like.device)
        for _ in range(self.num_samples):
            noise = SampleNoise(shape, generator, like=torch.zeros((), device=like.device))
            total = total + self._sample(misfit, network, noise, settings, first, callback) / self.num_samples
        result = torch.zeros(shape[0], measurement.space.num_channels, *shape[2:], device=like.device)
        result[:, measurement.space.channels(self.modality)] = total
        return result

    def _first(self, measurement: Measurement) -> Tensor:
        """Return the densities of the prior's materials that explain the data without any other, ``(B, P, H, W)``."""
        operator, likelihood = measurement.operator[self.modality], measurement.likelihood[self.modality]
        assert isinstance(operator, SpectralProjector)
        assert isinstance(likelihood, PolyenergeticPoisson)
        known = self.prior.space.num_channels
        some = PolyenergeticPoisson(likelihood.spectrum, likelihood.attenuation[:known], I0=likelihood.I0,
                                    scatter=likelihood.scatter)  # fmt: skip
        integrals, _ = decompose_counts(some, measurement.y[self.modality])
        projector = SpectralProjector(operator.projector, known)
        return least_squares(projector, integrals, max_iterations=_FIRST_ITERATIONS).x.clamp_min(0)

    def _sample(
        self,
        misfit: Misfit,
        network: nn.Module,
        noise: SampleNoise,
        settings: Mapping[str, float],
        first: Tensor | None,
        callback: Callback | None,
    ) -> Tensor:
        guide = _Guide(misfit, noise.shape, self.stack.num_channels, settings, like=noise.like)
        zeta, times = settings["zeta"], self.prior.schedule.kept_steps(self.steps)
        if self.start < 1:
            last = self.start * (self.prior.schedule.num_timesteps - 1)
            times = torch.unique(torch.linspace(0, last, self.steps, dtype=torch.float64).round().long())

        def guidance(sigma: float) -> float:
            guide.sigma = sigma
            return 4 * zeta / (1 + sigma**2)

        def report(k: int, x: Tensor) -> None:
            if callback is not None:
                callback(k, self.scaling.inverse(torch.cat([x, guide.absent], dim=1)))

        sample = reverse_diffusion(
            self.prior.denoiser(network, autocast=self.autocast),
            self.prior.schedule,
            noise,
            steps=times,
            start=first,
            eta=1.0,
            guide=guide,
            guidance=guidance,
            callback=report,
        )
        return self.scaling.inverse(torch.cat([sample, guide.absent], dim=1))


class _Guide:
    """The misfit as a function of the prior's materials, which moves the absent ones whenever it is asked.

    Args:
        misfit: of all materials, preconditioned.
        shape: ``(B, P, H, W)`` of the prior's materials.
        channels: number of all materials.
        settings: see :class:`HybridSampling`.
        like: tensor whose device and dtype the images have.
    """

    def __init__(
        self, misfit: Misfit, shape: tuple[int, ...], channels: int, settings: Mapping[str, float], *, like: Tensor
    ) -> None:
        self.misfit, self.known = misfit, shape[1]
        self.settings = settings
        self.sigma = float("inf")
        self.absent = torch.full((shape[0], channels - self.known, *shape[2:]), -1.0, dtype=like.dtype).to(like.device)
        # prox in (rho + 1): zero density is the bottom of the range
        (name,) = misfit.channels
        whole, own = (misfit.length(name, count) for count in (channels, self.known))
        # known materials: the length of a step that posterior sampling without the absent ones has; absent ones: 1
        share = torch.cat(
            [(own / whole)[:, None].expand(-1, self.known), (1 / whole)[:, None].expand(-1, channels - self.known)], 1
        )
        self.share = 1.0 if misfit.joint else share[..., None, None].to(self.absent)
        self.penalty = TotalVariation(settings["absent_weight"], nonnegative=True, max_iterations=30, tolerance=1e-3)

    def __call__(self, x: Tensor) -> Tensor:
        """Return what has the preconditioned gradient for its own, ``(B,)``."""
        gradient = self.share * self.misfit.direction(torch.cat([x.detach(), self.absent], dim=1))
        if self.absent.shape[1] and self.sigma <= self.settings["absent_from"]:
            step = self.settings["absent_step"]
            # a quarter of the square of the range, as for the prior's materials
            moved = self.absent + 1 - 4 * step * gradient[:, self.known :]
            self.absent = self.penalty.prox(moved, step) - 1
        return (gradient[:, : self.known] * x).flatten(1).sum(1)
