"""What reconstructions with a latent model of patches share: the range, the patches, the steps of the images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..likelihoods import Gaussian, Likelihood, Poisson, TransmissionPoisson, gaussian_approximation
from ..measurement import Measurement
from ..networks.classical import RegularisationWeight
from ..operators import LinearOperator
from ..priors import IntensityScaling
from ..solvers import least_squares, map_em, osem
from ..solvers.surrogate import separable_surrogate
from ..space import ImageSpace
from .base import Capability, ImageSource, Reconstructor
from .penalised_least_squares import PenalisedLeastSquares
from .tuning import Tuning

__all__ = ["Block", "LatentMethod", "Observer", "relative_change"]

_LOG = logging.getLogger(__name__)
_SUBSETS, _PASSES = 6, 2  # of the first PET image
Observer = Callable[[dict[str, Any]], None]


@dataclass
class Block:
    """One modality while it is reconstructed.

    Args:
        name: the modality.
        channel: its channel in the stack.
        operator: model of its data; None for a modality that is given (clean) or missing.
        likelihood: likelihood of ``y``, least squares of the line integrals for CT.
        y: data ``(B, ...)``.
        weight: precision of the penalty per pixel in the network's range; 0 for a missing modality.
        balance: factor ``eta`` of the modality's terms.
        measured: whether anything is known about it.
    """

    name: str
    channel: int
    operator: LinearOperator | None
    likelihood: Likelihood | None
    y: Tensor | None
    weight: float
    balance: float
    measured: bool


class LatentMethod(Reconstructor):
    """What the alternating and the ADMM reconstruction share: the range, the patches, the image steps."""

    def __init__(
        self,
        space: ImageSpace,
        *,
        scaling: IntensityScaling,
        tuning: Tuning,
        stride: int,
        outer: int,
        inner: int,
        latent_iterations: int,
        first_latent_iterations: int,
        alpha: float,
        accelerate: bool,
        smoothness: float,
        latent_start: Literal["encoder", "random"],
        observer: Observer | None,
        source: ImageSource | None,
    ) -> None:
        super().__init__(space=space, source=source)
        if min(stride, outer, inner) < 1 or min(latent_iterations, first_latent_iterations) < 0 or not alpha >= 0:
            raise ValueError("stride, outer, inner, latent_iterations, alpha: expected >= 1, >= 1, >= 1, >= 0, >= 0, "
                             f"got {stride}, {outer}, {inner}, {latent_iterations}, {alpha}")  # fmt: skip
        if space.num_channels != len(space.names) or len(space.shape) != 2:
            raise ValueError(f"space: expected 2D modalities of one channel, got {space}")
        curved = [n for n in space.names if scaling.affine(n) is None]
        if curved:
            raise ValueError(f"scaling: expected an affine map of every modality (two knots), got more for {curved}")
        if latent_start not in ("encoder", "random"):
            raise ValueError(f"latent_start: expected 'encoder' or 'random', got {latent_start!r}")
        self.scaling, self.tuning = scaling, tuning
        self.stride, self.outer, self.inner = stride, outer, inner
        self.latent_iterations, self.first_latent_iterations = latent_iterations, first_latent_iterations
        self.alpha = alpha
        self.accelerate = accelerate
        self.smoothness = smoothness
        self.latent_start = latent_start
        self.observer = observer
        self.units = {n: scaling.affine(n)[1] for n in space.names}  # type: ignore[index]
        self.capability = Capability(
            likelihoods=frozenset({"gaussian", "poisson", "transmission_poisson"}),
            modalities=frozenset(space.names),
            synthesises=True,
            ndim=frozenset({2}),
            shape=space.shape,
        )

    def blocks(self, measurement: Measurement) -> list[Block]:
        """Return every modality of the stack, with the settings of its kind of data."""
        found = []
        for name in measurement.space.names:
            channel = measurement.space.channels(name).start
            if name not in measurement.available:
                found.append(Block(name, channel, None, None, None, 0.0, 0.0, False))
                continue
            settings = self.tuning.of(measurement, name)
            likelihood, y = measurement.likelihood[name], measurement.y[name]
            given = measurement.operator.is_clean(name) and isinstance(likelihood, Gaussian) and likelihood.is_exact
            if isinstance(likelihood, TransmissionPoisson):
                y, likelihood = gaussian_approximation(likelihood, y)
            operator = None if given else measurement.operator[name]
            noise = None if given else likelihood
            found.append(Block(name, channel, operator, noise, y, settings["weight"], settings["balance"], True))
        return found

    @torch.no_grad()
    def start(self, measurement: Measurement, blocks: Sequence[Block]) -> Tensor:
        """Return the first image ``(B, C, *shape)``: OSEM of PET, smooth least squares; zeros of missing modalities."""
        parts = {}
        for block in blocks:
            if not block.measured:
                continue
            if isinstance(block.likelihood, Poisson):
                assert block.operator is not None
                assert block.y is not None
                views = block.y.shape[-2]
                subsets = max(n for n in range(1, _SUBSETS + 1) if views % n == 0)
                image = osem(block.operator, block.likelihood, block.y, subsets=subsets, iterations=_PASSES)
                # EM never leaves zero
                parts[block.name] = image.clamp_min(1e-3 * measurement.space[block.name].scale)
            elif block.operator is None:
                parts[block.name] = measurement.y[block.name]
            else:
                # to a tolerance at which rounding does not decide about one iteration more
                solve = PenalisedLeastSquares(tuning=Tuning({"weight": 0.0, "smoothness": self.smoothness}))
                one, unused = measurement.restrict([block.name]), torch.Generator()
                stack = solve.reconstruct(one, RegularisationWeight(), generator=unused, callback=None)
                image = stack[:, block.channel : block.channel + 1]
                parts[block.name] = image if block.operator.kind == "masked_fourier" else image.clamp_min(0)
        return measurement.operator.assemble(parts, batch=measurement.batch_size, like=torch.empty(0))

    def image_step(self, block: Block, x: Tensor, anchor: Tensor, rho: Tensor) -> Tensor:
        r"""Descend on ``-log p(y | A x) + sum_j rho_j / 2 (x_j - v_j)^2`` from ``x``, all ``(B, 1, *shape)``.

        PET counts: De Pierro's closed form. CT: separable surrogates of least squares, ``x >= 0``; to ``accelerate``,
        one of them, and conjugate gradients cut off at zero where these end lower. MR: conjugate gradients.
        """
        assert block.operator is not None
        assert block.y is not None
        if isinstance(block.likelihood, Poisson):
            return map_em(block.operator, block.likelihood, block.y, anchor=anchor, rho=rho, x0=x,
                          iterations=self.inner)  # fmt: skip
        assert isinstance(block.likelihood, Gaussian)
        if block.operator.kind in ("masked_fourier", "identity"):
            solved = least_squares(block.operator, block.y, weight=block.likelihood.weight(block.y), damping=rho,
                                   anchor=anchor, x0=x, max_iterations=2 * self.inner, tolerance=1e-6)  # fmt: skip
            return solved.x
        descended = separable_surrogate(block.operator, block.likelihood, block.y, anchor=anchor, rho=rho, x0=x,
                                        iterations=1 if self.accelerate else self.inner)  # fmt: skip
        if not self.accelerate:
            return descended
        solved = least_squares(block.operator, block.y, weight=block.likelihood.weight(block.y), damping=rho,
                               anchor=anchor, x0=descended, max_iterations=2 * self.inner, tolerance=1e-6)  # fmt: skip
        jump = solved.x.clamp_min(0)

        def value(x: Tensor) -> Tensor:
            assert block.operator is not None
            assert block.likelihood is not None
            assert block.y is not None
            near = 0.5 * (rho * (x - anchor).double().square()).flatten(1).sum(1)
            return block.likelihood.nll(block.operator(x), block.y).double() + near

        return torch.where((value(jump) <= value(descended)).reshape(-1, 1, 1, 1), jump, descended)

    def first_latents(
        self, network: Any, patches: Tensor, blocks: Sequence[Block], generator: torch.Generator
    ) -> Tensor:
        """Return the latents that the optimisation starts from, ``(B N, latent)``, of patches ``(B N, C, P, P)``."""
        if self.latent_start == "random":
            return torch.randn(len(patches), network.latent, generator=generator).to(patches)
        measured = torch.tensor([float(b.measured) for b in blocks], device=patches.device)
        with torch.no_grad():
            return network.encode(patches, None if bool(measured.all()) else measured)[0]

    def data_terms(self, blocks: Sequence[Block], x: Tensor) -> Tensor:
        """Return ``sum_k eta_k (-log p(y_k | A x_k))``, ``(B,)`` in double precision."""
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for b in blocks:
            if b.operator is not None and b.likelihood is not None and b.y is not None:
                total = total + b.balance * b.likelihood.nll(b.operator(x[:, b.channel : b.channel + 1]), b.y).double()
        return total

    @staticmethod
    def checked(network: nn.Module | None) -> Any:
        """Return the network if it is an autoencoder of patches.

        Raises:
            ValueError: if it is none.
        """
        if network is None or not hasattr(network, "decode") or not hasattr(network, "encode"):
            raise ValueError(
                f"network: expected a patch autoencoder with encode and decode, got {type(network).__name__}"
            )
        return network

    def _report(self, **facts: Any) -> None:
        if self.observer is not None:
            self.observer(facts)
        _LOG.debug("%s", facts)


def relative_change(x: Tensor, before: Tensor) -> Tensor:
    """Return ``|x - before| / |before|``, ``(B,)``."""
    tiny = torch.finfo(x.dtype).tiny
    return (x - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1).clamp_min(tiny)
