"""Variational reconstruction: total variation of one or several modalities, and wavelet-sparse SENSE."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..blocks import Blocks
from ..functionals import AnalysisFunctional, DirectionalTotalVariation, JointTotalVariation, TotalVariation
from ..functionals.differences import gradient
from ..likelihoods import BlockLikelihood, Gaussian, Likelihood
from ..measurement import Measurement
from ..operators import BlockDiagonal, Wavelet
from ..solvers.analysis_admm import analysis_admm, mean_curvature
from .base import Callback, Capability, ImageSource, Reconstructor
from .tuning import Tuning

__all__ = ["CycleSpunWavelets", "TotalVariationReconstruction", "WaveletSense"]

Penalty = Literal["separate", "joint", "directional"]
_PENALTIES = ("separate", "joint", "directional")
_GUIDES = ("t1", "t2", "flair", "t2star", "ct", "ct_high", "ct_low")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Block:
    """One measured modality of one sample: what the solver needs, and the penalty weight of each channel."""

    name: str
    operator: Any
    likelihood: Likelihood
    y: Tensor
    weights: tuple[float, ...]
    settings: dict[str, float]


class _Variational(Reconstructor):
    """Runs samples one by one, so that a batch is the loop over its samples, and leaves clean modalities alone."""

    _defaults: ClassVar[dict[str, float]] = {}

    def __init__(
        self,
        *,
        tuning: Tuning | None,
        iterations: int,
        inner_iterations: int,
        tolerance: float,
        source: ImageSource | None,
    ) -> None:
        super().__init__(source=source)
        if iterations < 1 or inner_iterations < 1:
            raise ValueError(f"iterations, inner_iterations: expected >= 1, got {iterations}, {inner_iterations}")
        if not tolerance >= 0:
            raise ValueError(f"tolerance: expected >= 0, got {tolerance}")
        self.tuning = tuning
        self.iterations, self.inner_iterations, self.tolerance = iterations, inner_iterations, tolerance

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)``; see the class."""
        if network is None:
            raise ValueError("network: expected the regularisation weight of the bundle, got None")
        factor = network(torch.ones(1, 1, *[1] * len(measurement.space.shape), device=measurement.device)).reshape(())
        # outside training nothing is differentiated: a graph through all iterations would only fill the memory
        factor = factor if network.training else factor.detach()
        with torch.set_grad_enabled(network.training and torch.is_grad_enabled()):
            stacks = [
                self._sample(measurement.samples(k, k + 1), factor, callback) for k in range(measurement.batch_size)
            ]
        return torch.cat(stacks)

    def _sample(self, measurement: Measurement, factor: Tensor, callback: Callback | None) -> Tensor:
        given = {n: measurement.y[n] for n in measurement.given}
        blocks = [self._block(measurement, name) for name in measurement.available if name not in given]
        solved = self._images(measurement, blocks, given, factor, callback)
        return measurement.operator.assemble({**given, **solved}, batch=1, like=torch.empty(0))

    def _block(self, measurement: Measurement, name: str) -> _Block:
        operator, likelihood, y = measurement.operator[name], measurement.likelihood[name], measurement.y[name]
        if isinstance(likelihood, Gaussian) and likelihood.is_exact:
            likelihood = Gaussian(1e-3 * float(y.abs().square().mean().sqrt()) or 1.0)
        settings = dict(self._defaults)
        if self.tuning is not None:
            settings |= self.tuning.of(measurement, name)
        with torch.no_grad():
            gains = mean_curvature(operator, likelihood, y)[0].sqrt()
        weights = tuple(settings["weight"] * float(gain) for gain in gains)
        return _Block(name, operator, likelihood, y, weights, settings)

    def _images(
        self,
        measurement: Measurement,
        blocks: Sequence[_Block],
        given: dict[str, Tensor],
        factor: Tensor,
        callback: Callback | None,
    ) -> dict[str, Tensor]:
        """Return the images of the measured blocks, one at a time."""
        return {b.name: self._solve(b.operator, b.likelihood, b.y,
                                    self._penalty(measurement, b, given, factor), callback)
                for b in blocks}  # fmt: skip

    def _penalty(
        self, measurement: Measurement, block: _Block, given: dict[str, Tensor], factor: Tensor
    ) -> AnalysisFunctional:
        raise NotImplementedError

    def _solve(self, operator: Any, likelihood: Any, y: Any, penalty: AnalysisFunctional, callback: Any) -> Tensor:
        return analysis_admm(
            operator, likelihood, y, penalty,
            nonnegative=True, iterations=self.iterations, inner_iterations=self.inner_iterations,
            tolerance=self.tolerance, callback=None if callback is None else lambda k, x, *_: callback(k, x),
        ).x  # fmt: skip


class TotalVariationReconstruction(_Variational):
    r"""Total variation with the exact likelihood of every block and non-negative images.

    .. math:: x = \arg\min_{x \ge 0} \sum_m -\log p(y_m \mid A_m x_m) + R(x), \qquad
              \lambda_m = w_m \sqrt{\operatorname{mean} \operatorname{diag} A_m^H W_m A_m}

    with the data weights ``W`` and a dimensionless weight ``w`` a kind of block. ``lambda`` is ``w`` times the standard
    deviation of the data term's slope at the truth, so that one ``w`` serves all doses and scales. ``penalty`` is

    * ``"separate"``: ``R = sum_m lambda_m TV(x_m)``, channel by channel;
    * ``"joint"``: ``R = sum_j sqrt(sum_c lambda_c^2 |(grad x_c)_j|^2)`` over the channels of all measured and clean
      modalities; ``lambda`` of a clean one is ``coupling`` times the mean of ``lambda_m s_m`` over its scale ``s``;
    * ``"directional"``: ``R = sum_m lambda_m sum_j |(I - xi_j xi_j^T) (grad x_m)_j|`` with the edge directions
      ``xi`` of one clean modality (the first of ``guides``), where gradients count from ``edge`` times its scale.
      Without a clean modality it is the separate penalty, and a line of the log says so.

    Solved by :func:`~multirecon.solvers.analysis_admm.analysis_admm` until the relative change of the image is below
    ``tolerance`` (and its distance to the data step below five times that). The bundle's network
    (:class:`~multirecon.networks.classical.RegularisationWeight`) multiplies all weights. Clean modalities come back
    unchanged, a modality without a measurement as zeros; data without noise count as having 1e-3 of their root mean
    square.

    Args:
        tuning: ``"weight"``, ``"coupling"`` and ``"edge"`` by kind of block, dimensionless.
        penalty: see above.
        guides: clean modalities in order of preference; any other comes after them in stack order.
        iterations: bound on the iterations.
        inner_iterations: bound on the conjugate gradients of one of them.
        tolerance: relative change at which a sample stops.
        source: how an image stack becomes a Measurement.

    References:
        rudin1992, blomgren1998, ehrhardt2016, boyd2011
    """

    capability = Capability(likelihoods=frozenset({"gaussian", "poisson", "transmission_poisson"}))
    _defaults: ClassVar = {"weight": 0.35, "coupling": 3.0, "edge": 0.04}

    def __init__(
        self,
        *,
        tuning: Tuning | None = None,
        penalty: Penalty = "separate",
        guides: Sequence[str] = _GUIDES,
        iterations: int = 100,
        inner_iterations: int = 6,
        tolerance: float = 1e-3,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(tuning=tuning, iterations=iterations, inner_iterations=inner_iterations, tolerance=tolerance,
                         source=source)  # fmt: skip
        if penalty not in _PENALTIES:
            raise ValueError(f"penalty: expected one of {_PENALTIES}, got {penalty!r}")
        self.penalty: Penalty = penalty
        self.guides = tuple(guides)
        self._said = False

    def _images(
        self,
        measurement: Measurement,
        blocks: Sequence[_Block],
        given: dict[str, Tensor],
        factor: Tensor,
        callback: Callback | None,
    ) -> dict[str, Tensor]:
        if self.penalty != "joint" or not blocks:
            return super()._images(measurement, blocks, given, factor, callback)
        space = measurement.space.select([b.name for b in blocks])
        level = sum(b.weights[0] * measurement.space[b.name].scale * b.settings["coupling"] for b in blocks)
        known = [level / len(blocks) / measurement.space[n].scale * image for n, image in given.items()]
        penalty = JointVariationWithKnown(
            factor,
            known=torch.cat(known, dim=1) if known else None,
            channel_weights=[w for b in blocks for w in b.weights],
            spacing=_steps(measurement),
        )
        stack = self._solve(
            BlockDiagonal(space, {b.name: b.operator for b in blocks}),
            BlockLikelihood({b.name: b.likelihood for b in blocks}),
            Blocks({b.name: b.y for b in blocks}),
            penalty,
            callback,
        )
        return {b.name: stack[:, space.channels(b.name)] for b in blocks}

    def _penalty(
        self, measurement: Measurement, block: _Block, given: dict[str, Tensor], factor: Tensor
    ) -> AnalysisFunctional:
        options: dict[str, Any] = {"channel_weights": block.weights, "spacing": _steps(measurement)}
        if self.penalty == "directional":
            ranked = [n for n in self.guides if n in given] + [n for n in given if n not in self.guides]
            if ranked:
                guide = given[ranked[0]][:, :1]
                edge = block.settings["edge"] * measurement.space[ranked[0]].scale
                return DirectionalTotalVariation(factor, guide=guide, edge=edge, **options)
            if not self._said:
                _LOG.warning("directional total variation: no clean modality to be guided by, total variation instead")
                self._said = True
        return TotalVariation(factor, **options)


class WaveletSense(_Variational):
    r"""Compressed sensing MR: SENSE with an L1 penalty on wavelet coefficients, and a non-negative image.

    .. math:: x_m = \arg\min_{x \ge 0} \tfrac{1}{2 \sigma^2} \|A_m x - y_m\|^2
              + \lambda_m \tfrac1S \sum_s \|D\, \Psi\, T_s x\|_1

    ``Psi`` is an orthonormal wavelet transform, ``D`` drops its coarsest band, and ``T_s`` are ``S`` fixed shifts
    (cycle spinning, which removes the block artefacts of the decimated transform; one shift is the plain penalty). The
    phase is part of the coil maps, so that ``x`` is real. ``lambda`` is the dimensionless ``w`` times the standard
    deviation of the data term's slope, as in :class:`TotalVariationReconstruction`, and the solver is the same.

    Args:
        tuning: ``"weight"`` by kind of block, dimensionless.
        wavelet: an orthogonal wavelet of PyWavelets.
        levels: number of levels; a grid that cannot be halved so often is padded with zeros for the transform.
        shifts: number of shifts ``S``, spread over the diagonal lattice of ``2^levels`` pixels.
        iterations: bound on the iterations.
        inner_iterations: bound on the conjugate gradients of one of them.
        tolerance: relative change at which a sample stops.
        source: how an image stack becomes a Measurement.

    References:
        lustig2007, pruessmann1999, coifman1995, boyd2011
    """

    capability = Capability(operators=frozenset({"masked_fourier", "identity"}), likelihoods=frozenset({"gaussian"}),
                            ndim=frozenset({2}))  # fmt: skip
    _defaults: ClassVar = {"weight": 0.4}

    def __init__(
        self,
        *,
        tuning: Tuning | None = None,
        wavelet: str = "db4",
        levels: int = 4,
        shifts: int = 4,
        iterations: int = 100,
        inner_iterations: int = 6,
        tolerance: float = 1e-3,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(tuning=tuning, iterations=iterations, inner_iterations=inner_iterations, tolerance=tolerance,
                         source=source)  # fmt: skip
        if levels < 1 or shifts < 1:
            raise ValueError(f"levels, shifts: expected >= 1, got {levels}, {shifts}")
        self.wavelet, self.levels, self.shifts = wavelet, levels, shifts

    def _penalty(
        self, measurement: Measurement, block: _Block, given: dict[str, Tensor], factor: Tensor
    ) -> AnalysisFunctional:
        channels, *grid = block.operator.domain_shape
        step = 2**self.levels
        padded = (channels, *(-(-n // step) * step for n in grid))
        transform = Wavelet(padded, self.wavelet, levels=self.levels).to(block.y.device)
        return CycleSpunWavelets(factor * block.weights[0], transform=transform, shifts=self.shifts,
                                 grid=grid)  # fmt: skip


class JointVariationWithKnown(JointTotalVariation):
    r"""Joint total variation over unknown and known channels, ``sum_j sqrt(sum_c |grad x_c|^2 + sum_k |grad v_k|^2)``.

    The transform is affine: the gradients of the known images are further channels of the field.

    Args:
        weight: factor of the penalty.
        known: known images ``v``, already scaled, ``(B, K, *spatial)``.
        options: see :class:`~multirecon.functionals.GradientFunctional`.
    """

    def __init__(self, weight: float | Tensor = 1.0, *, known: Tensor | None = None, **options: Any) -> None:
        super().__init__(weight, **options)
        self.slopes: Tensor | None
        self.register_buffer("slopes", None if known is None else gradient(known, self._steps(known.ndim - 2)))

    def analyse(self, x: Tensor) -> Tensor:
        """Return the gradients of unknown and known channels ``(B, C + K, d, *spatial)``."""
        field = super().analyse(x)
        return (
            field if self.slopes is None else torch.cat([field, self.slopes.expand(len(x), *self.slopes.shape[1:])], 1)
        )

    def synthesise(self, p: Tensor) -> Tensor:
        """Return the adjoint of the linear part, ``(B, C, *spatial)``."""
        return super().synthesise(p if self.slopes is None else p[:, : p.shape[1] - self.slopes.shape[1]])

    def conjugate(self, p: Tensor, *, step: float | Tensor = 1.0) -> Tensor:
        """Return the conjugate of the penalty as a function of the linear part."""
        value = super().conjugate(p, step=step)
        if self.slopes is None:
            return value
        return value - (p[:, -self.slopes.shape[1] :] * self.slopes).flatten(1).sum(1)


class CycleSpunWavelets(AnalysisFunctional):
    r"""Mean over shifts of the L1 norm of wavelet details, ``weight / S sum_s |D Psi T_s x|_1``.

    Args:
        weight: factor of the penalty.
        transform: orthonormal wavelet transform of real 2D images.
        shifts: number ``S`` of shifts: zero first, then along a lattice with both coordinates below ``2^levels``.
        grid: size ``(H, W)`` of images smaller than those of the transform: they are padded with zeros at the end of
            each axis, which keeps ``|Psi x| = |x|``; the default is the transform's.
        options: see :class:`~multirecon.functionals.AnalysisFunctional`.

    References:
        coifman1995
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        *,
        transform: Wavelet,
        shifts: int = 1,
        grid: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(weight, **options)
        self.transform = transform
        self.grid = tuple(transform.domain_shape[1:] if grid is None else grid)
        self._margin = [m - n for m, n in zip(transform.domain_shape[1:], self.grid, strict=True)]
        period = 2**transform.levels
        # rank-one lattice: both coordinates run through all residues, and no two shifts are close
        self.shifts = tuple((k * period // shifts, k * 5 * period // shifts % period) for k in range(shifts))
        corner = (slice(None), *(slice(0, n // period) for n in transform.domain_shape[1:]))
        details = torch.ones(transform.domain_shape)
        details[corner] = 0
        self.details: Tensor
        self.register_buffer("details", (details / shifts).to(transform._reference_tensor().device))

    def analyse(self, x: Tensor) -> Tensor:
        """Return the details of all shifts, ``(B, S, C, H, W)``."""
        x = pad(x, (0, self._margin[1], 0, self._margin[0])) if any(self._margin) else x
        moved = [torch.roll(x, shift, dims=(-2, -1)) if any(shift) else x for shift in self.shifts]
        coefficients = self.transform(torch.cat(moved)).unflatten(0, (len(moved), -1)).movedim(0, 1)
        return self.details.to(x) * coefficients

    def synthesise(self, p: Tensor) -> Tensor:
        """Return the adjoint, ``(B, C, H, W)``."""
        images = self.transform.adjoint((self.details.to(p) * p).flatten(0, 1)).unflatten(0, p.shape[:2])
        back = [torch.roll(image, (-shift[0], -shift[1]), dims=(-2, -1)) if any(shift) else image
                for image, shift in zip(images.unbind(1), self.shifts, strict=True)]  # fmt: skip
        return torch.stack(back).sum(0)[..., : self.grid[0], : self.grid[1]]

    def analysis_norm(self, x: Tensor) -> float:
        """Return ``1 / sqrt(S)``."""
        return len(self.shifts) ** -0.5

    def magnitude(self, p: Tensor) -> Tensor:
        """Return the sum of absolute values."""
        return p.abs().flatten(1).sum(1)

    def project(self, p: Tensor, radius: Tensor) -> Tensor:
        """Return the field clipped at ``radius``."""
        radius = radius.reshape(-1, *[1] * (p.ndim - 1)) if radius.ndim == 1 else radius
        return torch.minimum(torch.maximum(p, -radius), radius)


def _steps(measurement: Measurement) -> tuple[float, ...]:
    spacing = measurement.space.spacing_mm
    return tuple(h / min(spacing) for h in spacing)
