r"""Plug-and-play ADMM, and its form for PET: the Poisson likelihood by projected Newton steps.

With a firmly nonexpansive denoiser ``D`` the iteration converges to a solution of ``x = D(x - grad f(x) / rho)``; no
cost function exists that it would minimise. What is guaranteed is the residual of ``w``, the argument of ``D``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..measurement import Measurement
from ..priors.nonexpansive import guided
from ..solvers.data_steps import DataStep, EmissionStep, NewtonStep
from ..solvers.em import osem
from ..solvers.em_engine import EMEngine
from ..solvers.terms import DataTerm
from .base import Callback, ImageSource
from .em import EmissionCapability, EmissionReconstructor, guide_image
from .tuning import Tuning

__all__ = ["PlugAndPlay", "PlugAndPlayADMM", "fixed_point_error", "gradient_noise", "mean_activity", "plug_and_play"]

SUPPORT = 0.01
"""Share of the largest activity above which a voxel counts for the scale of an image."""

SETTLED = 10
"""Iterations after which the tolerance of the data step begins to fall."""

ROUNDING = 4
"""Of the unit of rounding: the tolerance below which no data step can be solved."""

Denoiser = Callable[[Tensor], Tensor]


@dataclass
class PlugAndPlay:
    """The outcome of a run.

    Args:
        x: the non-negative image of the data step, ``(B, C, *shape)``, in the unit of the start.
        w: the last argument of the denoiser, in the same unit; pass it back as ``start`` to continue.
        residuals: ``|w_k+1 - w_k| / |w_k|`` of every iteration, of ``w / c``, ``(iterations, B)``.
        inner: iterations of every data step.
        kkt: residual of the optimality conditions of the last data step, ``(B,)``.
        worst_kkt: the largest such residual of any data step.
        error: the fixed-point error of ``x``, see :func:`fixed_point_error`, ``(B,)``.
    """

    x: Tensor
    w: Tensor
    residuals: Tensor
    inner: list[int] = field(default_factory=list)
    kkt: Tensor = field(default_factory=lambda: torch.empty(0))
    error: Tensor = field(default_factory=lambda: torch.empty(0))
    worst_kkt: float = float("nan")


@torch.no_grad()
def plug_and_play(
    engine: EMEngine | DataStep,
    denoiser: Denoiser,
    start: Tensor,
    *,
    scale: Tensor,
    rho: Tensor,
    iterations: int = 200,
    inner_iterations: int = 20,
    inner_tolerance: float = 1e-5,
    tolerance: float = 0.0,
    callback: Callable[[int, Tensor, dict[str, Tensor]], None] | None = None,
) -> PlugAndPlay:
    r"""Run ``x <- argmin_{x >= 0} f(x) + rho / 2 |x - (v - u)|^2``, ``v <- c D((x + u) / c)``, ``u <- u + x - v``.

    In terms of ``w = x + u`` this is ``w <- w + prox(2 v - w) - v``: for a firmly nonexpansive ``D`` and a convex ``f``
    an averaged map, so that ``|w_k+1 - w_k|`` never grows (of ``w / c``, where channels differ in scale). The data step
    is warm-started at the last ``x``, and its tolerance falls like ``1 / k^1.1`` after the tenth iteration, down to
    rounding, for errors may not add up without end; the scale ``c`` is fixed, for a rescaling from iteration to
    iteration is another operator than ``D``.

    Args:
        engine: the data step, or one EM iteration of the data, of this library or an external program, around which De
            Pierro's iteration is one.
        denoiser: ``D``, on images divided by ``c``, ``(B, C, *shape)``.
        start: the first ``w`` with ``u = 0``, a positive image ``(B, C, *shape)``.
        scale: ``c``, ``(B,)`` or ``(B, C)``, in the unit of the start.
        rho: ``(B,)``, of the problem in ``x / c``.
        iterations: bound on the iterations.
        inner_iterations: bound on the iterations of a data step.
        inner_tolerance: residual of its optimality conditions at which a data step ends, in the first ten iterations.
        tolerance: end when the relative residual of ``w`` of every sample is at most this; 0 for all iterations.
        callback: called after each iteration with the image of the data step and ``{"residual": (B,), "kkt": (B,)}``.

    Returns:
        Image, residuals and fixed-point error.

    References:
        sureau2023
    """
    step = _data_step(engine)
    c, strength = _scaled(scale, rho, start)
    residuals: list[Tensor] = []
    inner: list[int] = []
    worst = 0.0
    w, x = start, start.clamp_min(torch.finfo(start.dtype).tiny)
    v = c * denoiser(w / c)
    for iteration in range(1, iterations + 1):
        goal = max(inner_tolerance / max(1.0, iteration / SETTLED) ** 1.1, ROUNDING * torch.finfo(w.dtype).eps)
        x, count, kkt = step.proximal(2 * v - w, strength, x, iterations=inner_iterations, tolerance=goal)
        change = x - v
        w = w + change
        residuals.append(_norm(change / c) / _norm(w / c).clamp_min(torch.finfo(w.dtype).tiny))
        inner.append(count)
        worst = max(worst, float(kkt.max()))
        v = c * denoiser(w / c)
        if callback is not None:
            callback(iteration, x, {"residual": residuals[-1], "kkt": kkt})
        if bool((residuals[-1] <= tolerance).all()):
            break
    error = fixed_point_error(engine, denoiser, x, w=w, scale=scale, rho=rho)
    return PlugAndPlay(x, w, torch.stack(residuals), inner, kkt, error, worst)


@torch.no_grad()
def fixed_point_error(
    engine: EMEngine | DataStep, denoiser: Denoiser, x: Tensor, *, w: Tensor, scale: Tensor, rho: Tensor
) -> Tensor:
    r"""Return ``|x - D(x - grad f(x) / rho)| / |x|`` of ``x / c`` over the voxels with ``x > 0``, ``(B,)``.

    Where ``x = 0`` the gradient may point out of the constraint: a normal-cone term joins the equation there, and
    ``w``, which holds it, takes the place of the argument. The likelihood enters by its gradient, not by the iterates.

    Args:
        engine: the data step, or one EM iteration of the data.
        denoiser: ``D``.
        x: image ``(B, C, *shape)``.
        w: argument of the denoiser, in the unit of ``x``.
        scale: ``c``, ``(B,)`` or ``(B, C)``.
        rho: ``(B,)``.
    """
    c, strength = _scaled(scale, rho, x)
    # EM approaches zero and never reaches it
    positive = x > 1e-4 * c
    argument = torch.where(positive, (x - _data_step(engine).gradient(x) / strength) / c, w / c)
    difference = torch.where(positive, x / c - denoiser(argument), torch.zeros_like(x))
    return _norm(difference) / _norm(torch.where(positive, x / c, torch.zeros_like(x)))


def mean_activity(image: Tensor) -> Tensor:
    """Return the mean over the voxels above 1 % of an image's maximum, ``(B,)``, for images ``(B, 1, *shape)``."""
    flat = image.flatten(1)
    inside = flat > SUPPORT * flat.amax(1, keepdim=True)
    return (flat * inside).sum(1) / inside.sum(1).clamp_min(1)


@torch.no_grad()
def gradient_noise(data: DataTerm, image: Tensor, *, probes: int = 8) -> Tensor:
    r"""Return the standard deviation of ``grad f`` at the truth, ``(B,)``, root mean square over the emitting voxels.

    ``grad f = A^T (1 - y / ybar)`` has the covariance ``A^T diag(1 / ybar) A``; the mean of its diagonal is estimated
    with random signs, the same in every call and for every sample.

    Args:
        data: data and model, with one block of counts.
        image: an estimate ``(B, 1, *shape)`` that gives ``ybar``.
        probes: draws.
    """
    (predicted,) = data.predict(image)
    (term,) = data.terms
    ybar = (predicted + term.likelihood.background.to(predicted)).clamp_min(1e-3)  # type: ignore[operator]
    inside = image > SUPPORT * image.flatten(1).amax(1).reshape(-1, *[1] * (image.ndim - 1))
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(len(image), device=image.device)
    for _ in range(probes):
        signs = 2 * torch.randint(2, (1, *ybar.shape[1:]), generator=generator).to(ybar) - 1
        noise = data.adjoint([signs / ybar.sqrt()])
        total = total + (noise.square() * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1)
    return (total / probes).sqrt()


class PlugAndPlayADMM(EmissionReconstructor):
    r"""Convergent plug-and-play ADMM for every PET block, from a short OSEM run; see :func:`plug_and_play`.

    The bundle's network is ``D``, for images divided by their mean activity ``c``, which the OSEM image gives once for
    the scan. ``rho`` is chosen so that the noise of ``grad f(x) / rho`` at the truth has the root mean square ``level``
    (a setting, relative to ``c``): the disturbance that ``D`` was trained to remove, whatever the number of counts. A
    lower level trusts the denoiser more. The other setting, ``gain``, is the mean activity that ``D`` sees: the
    operator is ``D(g x) / g``, as nonexpansive as ``D``, and a larger gain makes its noise smaller beside the image. In
    volumes ``D`` acts slice by slice along the last axis, which keeps it firmly nonexpansive.

    After a call ``runs`` holds the outcome of every PET block: residuals, inner iterations, fixed-point error.

    Args:
        tuning: settings ``level``, ``gain`` and ``smoothness`` (of the other modalities).
        guides: modalities, best first, whose image the network sees behind that of PET; none for a network without a
            guide.
        iterations: bound on the ADMM iterations.
        inner_iterations: bound on the projections forth and back of a data step.
        inner_tolerance: residual of the optimality conditions at which a data step ends.
        tolerance: relative residual of ``w`` at which the run ends, 0 for never.
        subsets: largest number of ordered subsets of the start; the iteration itself uses all data.
        warm_start: passes of OSEM.
        history: CSV file to which residuals, data steps and fixed-point errors are appended, or None.
        source: how an image stack becomes a Measurement.

    Raises:
        ValueError: on numbers out of range.

    References:
        sureau2023, xu2020
    """

    capability = EmissionCapability()
    settings = ("level", "gain", "smoothness")

    def __init__(
        self,
        *,
        tuning: Tuning,
        guides: Sequence[str] = (),
        iterations: int = 200,
        inner_iterations: int = 200,
        inner_tolerance: float = 1e-5,
        tolerance: float = 0.0,
        subsets: int = 6,
        warm_start: int = 2,
        history: str | os.PathLike[str] | None = None,
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(tuning=tuning, subsets=subsets, source=source)
        if min(iterations, inner_iterations, warm_start) < 1 or inner_tolerance < 0 or tolerance < 0:
            raise ValueError(
                "iterations, inner_iterations, warm_start, inner_tolerance, tolerance: expected >= 1 (three) and >= 0, "
                f"got {iterations}, {inner_iterations}, {warm_start}, {inner_tolerance} and {tolerance}"
            )
        self.guides = tuple(guides)
        # only what was asked for: the network knows the contrast of that modality
        self.capability = EmissionCapability(guides=self.guides)
        self.iterations, self.inner_iterations, self.warm_start = iterations, inner_iterations, warm_start
        self.inner_tolerance, self.tolerance = inner_tolerance, tolerance
        self.history = None if history is None else Path(history)
        self.runs: dict[str, PlugAndPlay] = {}

    def emission(
        self,
        measurement: Measurement,
        name: str,
        others: Mapping[str, Tensor],
        network: nn.Module | None,
        report: Callable[..., None],
    ) -> Tensor:
        """Return the non-negative image of the last data step; ``report`` sees that of every iteration."""
        if network is None:
            raise ValueError("network: expected the bundle's denoiser, got None")
        operator, likelihood, y = measurement.operator[name], measurement.likelihood[name], measurement.y[name]
        step = NewtonStep(DataTerm(operator, likelihood, y))
        start = osem(operator, likelihood, y, subsets=self.divisor(measurement, name), iterations=self.warm_start)
        # an empty scan leaves nothing to scale by
        scale = mean_activity(start).clamp_min(torch.finfo(start.dtype).tiny)
        settings = self.tuning.of(measurement, name)
        scale, gain = scale / settings["gain"], settings["gain"]
        rho = (gradient_noise(step.data, start) * scale / (gain * settings["level"])).clamp_min(1e-6)
        denoiser = slicewise(network)
        if self.guides:
            denoiser = guided(denoiser, guide_image(measurement, others, self.guides).to(start))
        run = plug_and_play(
            step, denoiser, start, scale=scale, rho=rho, iterations=self.iterations,
            inner_iterations=self.inner_iterations, inner_tolerance=self.inner_tolerance, tolerance=self.tolerance,
            callback=report,
        )  # fmt: skip
        self.runs[name] = run
        if self.history is not None:
            append_history(self.history, name, run)
        return run.x

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, *shape)``; see the class."""
        self.runs = {}
        return super().reconstruct(measurement, network, generator=generator, callback=callback)


def slicewise(network: nn.Module) -> Denoiser:
    """Return a 2D network as a map of images ``(B, C, H, W)`` and volumes ``(B, C, H, W, D)``, slice by slice."""

    def apply(image: Tensor) -> Tensor:
        if image.ndim == 4:
            return network(image)
        slices = image.movedim(-1, 1)
        return network(slices.flatten(0, 1)).unflatten(0, slices.shape[:2]).movedim(1, -1)

    return apply


def append_history(path: Path, name: str, run: PlugAndPlay) -> None:
    """Append a line ``block, sample, iteration, residual, inner`` an iteration, and one with the fixed-point error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["block", "sample", "iteration", "residual", "inner", "fixed_point_error"])
        for sample in range(run.residuals.shape[1]):
            for k, (residual, inner) in enumerate(zip(run.residuals[:, sample].tolist(), run.inner, strict=True), 1):
                writer.writerow([name, sample, k, f"{residual:.6e}", inner, ""])
            writer.writerow([name, sample, len(run.inner), "", "", f"{float(run.error[sample]):.6e}"])


def _data_step(engine: EMEngine | DataStep) -> DataStep:
    return engine if isinstance(engine, DataStep) else EmissionStep(engine)


def _scaled(scale: Tensor, rho: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``c`` and the strength ``rho / c^2`` in the unit of an image, with its axes."""
    c = scale.reshape(*scale.shape, *[1] * (image.ndim - scale.ndim)).to(image)
    return c, rho.reshape(-1, *[1] * (image.ndim - 1)).to(image) / c**2


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
