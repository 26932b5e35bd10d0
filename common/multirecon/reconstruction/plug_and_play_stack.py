"""Plug-and-play ADMM for a stack of images that one denoiser sees together, each with its own likelihood."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..blocks import Blocks
from ..likelihoods import BlockLikelihood
from ..measurement import Measurement
from ..operators import BlockDiagonal
from ..solvers import bounded_quasi_newton
from ..solvers.analysis_admm import mean_curvature
from ..solvers.data_steps import NewtonStep
from ..solvers.terms import DataTerm
from ..space import ImageSpace
from .base import Callback, Capability, ImageSource, Reconstructor
from .plug_and_play import PlugAndPlay, append_history, plug_and_play
from .tuning import Tuning

__all__ = ["StackPlugAndPlayADMM"]


class StackPlugAndPlayADMM(Reconstructor):
    r"""Convergent plug-and-play ADMM on a stack: one denoiser for all channels, the exact likelihood of every block.

    The bundle's network is ``D``, for stacks divided by the fixed scales ``c`` of the channels. ``rho`` is one number a
    scan, chosen so that ``grad f(x) / rho`` at the truth has the root mean square ``level`` (a setting) in units of the
    scales: a lower level trusts the denoiser more. One number, for ``D`` is firmly nonexpansive in the plain norm of
    the stack, not in one that weighs its channels. The data step is solved to a tolerance by projected Newton steps on
    the likelihood itself.

    Channels without data follow the denoiser (``f = 0``); where a result is asked for they are not handed out. Clean
    images stay as they are and take part. After a call ``runs`` holds the outcome, one for each sample.

    Args:
        space: stack of the method; the network has its channels.
        scales: ``c`` of every channel, in the unit of the channel.
        tuning: the setting ``level``, by kind of block; of several blocks the mean counts.
        iterations: bound on the ADMM iterations.
        inner_iterations: bound on the projections forth and back of a data step.
        inner_tolerance: residual of the optimality conditions at which a data step ends; it falls from iteration to
            iteration, see :func:`~multirecon.reconstruction.plug_and_play.plug_and_play`.
        tolerance: relative residual of ``w`` at which the run ends, 0 for never.
        start_iterations: iterations of the likelihood alone, from which the run starts.
        history: CSV file to which residuals, data steps and fixed-point errors are appended, or None.
        source: how an image stack becomes a Measurement.

    Raises:
        ValueError: on numbers out of range.

    References:
        sureau2023, pesquet2021
    """

    def __init__(
        self,
        *,
        space: ImageSpace,
        scales: Sequence[float],
        tuning: Tuning,
        iterations: int = 100,
        inner_iterations: int = 200,
        inner_tolerance: float = 1e-5,
        tolerance: float = 1e-4,
        start_iterations: int = 20,
        history: str | os.PathLike[str] | None = None,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(space=space, source=source)
        if min(iterations, inner_iterations, start_iterations) < 1 or inner_tolerance < 0 or tolerance < 0:
            raise ValueError("iterations, inner_iterations, start_iterations, inner_tolerance, tolerance: expected >= "
                             f"1 (three) and >= 0, got {iterations}, {inner_iterations}, {start_iterations}, "
                             f"{inner_tolerance} and {tolerance}")  # fmt: skip
        if len(scales) != space.num_channels or not all(s > 0 for s in scales):
            raise ValueError(f"scales: expected {space.num_channels} numbers > 0, got {list(scales)}")
        self.scales = torch.tensor([float(s) for s in scales])
        self.tuning = tuning
        self.iterations, self.inner_iterations, self.start_iterations = iterations, inner_iterations, start_iterations
        self.inner_tolerance, self.tolerance = inner_tolerance, tolerance
        self.history = None if history is None else Path(history)
        self.runs: list[PlugAndPlay] = []
        self.capability = Capability(
            likelihoods=frozenset({"gaussian", "transmission_poisson"}),
            modalities=frozenset(space.names),
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
        """Return the stack ``(B, C, H, W)``; channels without data are zero."""
        if network is None:
            raise ValueError("network: expected the bundle's denoiser, got None")
        self.runs = []
        with torch.no_grad():
            return torch.cat([
                self._sample(measurement.samples(k, k + 1), network, callback) for k in range(measurement.batch_size)
            ])  # fmt: skip

    def _sample(self, measurement: Measurement, network: nn.Module, callback: Callback | None) -> Tensor:
        given = measurement.given
        images = {n: measurement.y[n] for n in given}
        measured = [n for n in measurement.available if n not in given]
        if not measured:
            return measurement.operator.assemble(images, batch=1)
        step, start, rho = self.prepare(measurement)
        seen = torch.zeros(measurement.space.num_channels, 1, 1, dtype=torch.bool, device=start.device)
        for name in measurement.available:
            seen[measurement.space.channels(name)] = True

        def report(k: int, x: Tensor, _: dict[str, Tensor]) -> None:
            if callback is not None:
                callback(k, torch.where(seen, x, 0))

        run = plug_and_play(
            step, network, start, scale=self.scales[None], rho=rho, iterations=self.iterations,
            inner_iterations=self.inner_iterations, inner_tolerance=self.inner_tolerance, tolerance=self.tolerance,
            callback=report,
        )  # fmt: skip
        self.runs.append(run)
        if self.history is not None:
            append_history(self.history, "+".join(measured), run)
        return torch.where(seen, run.x, 0)

    @torch.no_grad()
    def prepare(self, measurement: Measurement) -> tuple[NewtonStep, Tensor, Tensor]:
        """Return the data step of one sample, the image ``(1, C, H, W)`` that the run starts from, and ``rho``."""
        space, given = measurement.space, measurement.given
        names = [n for n in measurement.available if n not in given]
        blocks = {n: (measurement.operator[n], measurement.likelihood[n], measurement.y[n]) for n in names}
        start = next(iter(measurement.y.values())).new_zeros(1, *space.stack_shape)
        known = torch.zeros(space.num_channels, dtype=torch.bool, device=start.device)
        seen, noise = known.clone(), torch.zeros_like(known, dtype=start.dtype)
        for name in given:
            start[:, space.channels(name)] = measurement.y[name]
            known[space.channels(name)] = True
        for name, (operator, likelihood, y) in blocks.items():
            curvature = mean_curvature(operator, likelihood, y)[0].clamp_min(1e-30)
            here = space.channels(name)
            # the variance of the gradient at the truth, over noise
            noise[here] = curvature.to(start)
            start[:, here] = bounded_quasi_newton(
                operator, likelihood, y, anchor=torch.zeros_like(start[:, here]),
                rho=1e-3 * curvature.reshape(1, -1, 1, 1), iterations=self.start_iterations,
            )  # fmt: skip
        for name in measurement.available:
            seen[space.channels(name)] = True
        # what was not measured starts as what was, in units of the scales
        c = self.scales.to(start).reshape(1, -1, 1, 1)
        mean = (start / c)[:, seen].mean(1, keepdim=True)
        start = torch.where(seen.reshape(1, -1, 1, 1), start, c * mean).clamp_min(0)
        data = DataTerm(
            BlockDiagonal(space, {n: b[0] for n, b in blocks.items()}),
            BlockLikelihood({n: b[1] for n, b in blocks.items()}),
            Blocks({n: b[2] for n, b in blocks.items()}),
        )
        step = NewtonStep(data, given=(start, known) if given else None)
        levels = [self.tuning.of(measurement, n)["level"] for n in names]
        variance = (self.scales.to(start) ** 2 * noise)[noise > 0].mean()
        return step, start, (variance.sqrt() * len(levels) / sum(levels)).reshape(1)
