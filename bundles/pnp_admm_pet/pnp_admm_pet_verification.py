"""What the convergence of plug-and-play rests on, measured: Jacobian norms, worst pairs, residuals, starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from multirecon.measurement import Measurement
from multirecon.metrics.image import psnr
from multirecon.priors.nonexpansive_checks import central, norms, pair_ratios, rising_steps, worst_pairs
from multirecon.reconstruction.plug_and_play import (
    SUPPORT,
    PlugAndPlay,
    gradient_noise,
    mean_activity,
    plug_and_play,
)
from multirecon.solvers.data_steps import NewtonStep
from multirecon.solvers.em import osem
from multirecon.solvers.terms import DataTerm

__all__ = ["Beside", "Scan", "central", "decay_exponent", "norms", "pair_ratios", "points_of", "prepare",
           "rising_steps", "run", "spread_of_starts", "with_lesion", "worst_pairs"]  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """A PET scan made ready: data, start, scale and coupling.

    Args:
        step: the data step.
        start: OSEM image ``(B, 1, H, W)``.
        scale: ``c``, ``(B,)``.
        rho: coupling, ``(B,)``.
        gain: mean activity that the denoiser sees.
    """

    step: NewtonStep
    start: Tensor
    scale: Tensor
    rho: Tensor
    gain: float = 1.0


class Beside(nn.Module):
    """A guided denoiser beside a fixed guide: a map of images of any size up to the guide's.

    Args:
        network: denoiser of images and guides.
        guide: ``(1, G, H, W)``, from 0 to 1; smaller images see its middle.
    """

    guide: Tensor

    def __init__(self, network: nn.Module, guide: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("guide", guide)

    def forward(self, image: Tensor) -> Tensor:
        """Return the denoised images ``(B, 1, H, W)``."""
        guide = central(self.guide, image.shape[-1])
        return self.network(torch.cat([image, guide.expand(len(image), *guide.shape[1:])], dim=1))


@torch.no_grad()
def prepare(
    measurement: Measurement, *, level: float, gain: float = 1.0, name: str = "pet_fdg", warm_start: int = 4
) -> Scan:
    """Return a scan as :class:`multirecon.reconstruction.PlugAndPlayADMM` prepares it.

    Args:
        measurement: a measurement with a PET block.
        level: the setting of that name.
        gain: the setting of that name.
        name: the block.
        warm_start: passes of OSEM.
    """
    operator, likelihood, y = measurement.operator[name], measurement.likelihood[name], measurement.y[name]
    step = NewtonStep(DataTerm(operator, likelihood, y))
    start = osem(operator, likelihood, y, subsets=6, iterations=warm_start)
    scale = mean_activity(start) / gain
    return Scan(step, start, scale, gradient_noise(step.data, start) * scale / (gain * level), gain)


def run(
    scan: Scan,
    network: nn.Module,
    *,
    iterations: int,
    start: Tensor | None = None,
    inner_iterations: int = 200,
    inner_tolerance: float = 1e-6,
) -> tuple[PlugAndPlay, list[Tensor], list[float]]:
    """Run plug-and-play; return the outcome, the arguments of ``D``, and ``|w_k+1 - w_k|`` of the first sample.

    The residual is monotone for exact data steps: they are solved ten times as exactly as in the bundle, where a step
    of 1e-6 of ``|w|`` can follow a smaller one.
    """
    arguments: list[Tensor] = []

    def denoise(image: Tensor) -> Tensor:
        arguments.append(image)
        return network(image)

    begin = scan.start if start is None else start
    result = plug_and_play(scan.step, denoise, begin, scale=scan.scale, rho=scan.rho, iterations=iterations,
                           inner_iterations=inner_iterations, inner_tolerance=inner_tolerance)  # fmt: skip
    ws = arguments[: iterations + 1]
    steps = [float(torch.linalg.vector_norm(b[0] - a[0])) for a, b in pairwise(ws)]
    return result, ws, steps


def decay_exponent(steps: Sequence[float]) -> float:
    """Return the slope of ``log |w_k+1 - w_k|`` over ``log k`` in the second half of a run; theory asks for -1/2."""
    k = torch.arange(1, len(steps) + 1, dtype=torch.float64)[len(steps) // 2 :].log()
    values = torch.tensor(steps, dtype=torch.float64)[len(steps) // 2 :].clamp_min(1e-300).log()
    centred = k - k.mean()
    return float((centred * values).sum() / centred.square().sum())


def with_lesion(image: Tensor, *, radius: float = 4.0, contrast: float = 2.0) -> Tensor:
    """Return images ``(B, 1, H, W)`` with a hot disc that no training image has, off the middle of what emits."""
    result = image.clone()
    rows, columns = (torch.arange(n, dtype=image.dtype) for n in image.shape[2:])
    for k, one in enumerate(image[:, 0]):
        inside = torch.nonzero(one > SUPPORT * one.max()).to(image)
        if not len(inside):
            continue
        middle = inside.mean(0) + torch.tensor([0.0, 0.4]) * inside.std(0)
        distance = ((rows[:, None] - middle[0]) ** 2 + (columns - middle[1]) ** 2).sqrt()
        result[k, 0] = torch.where(distance < radius, one * contrast + contrast, one)
    return result


def points_of(clean: Tensor, noisy: Tensor, trajectory: Sequence[Tensor], count: int, *, side: int) -> Tensor:
    """Return ``count`` points in equal parts: clean, noisy, with a lesion, and along a trajectory.

    Args:
        clean: images over their mean activity ``(B, 1, H, W)``.
        noisy: the same with the noise of training.
        trajectory: arguments of the denoiser along a run.
        count: points.
        side: side of the images, cut from the middle.
    """
    along = torch.cat(
        [trajectory[round(i)] for i in torch.linspace(0, len(trajectory) - 1, max(1, count // 4)).tolist()]
    )
    groups = [clean, noisy, with_lesion(clean), along]
    share = -(-count // len(groups))
    picked = [group[torch.arange(share) % len(group)] for group in groups]
    shifted = [torch.roll(central(g, side), k % 7, dims=3) for k, g in enumerate(picked)]
    return torch.cat(shifted)[:count]


def spread_of_starts(scan: Scan, network: nn.Module, truth: Tensor, *, iterations: int) -> tuple[float, float]:
    """Return the differences between runs from OSEM, ones and noise: of the PSNR in dB, and relative (NRMSE)."""
    generator = torch.Generator().manual_seed(0)
    level = scan.gain * scan.scale.reshape(-1, 1, 1, 1)
    noise = level * torch.rand(scan.start.shape, generator=generator)
    images = [run(scan, network, iterations=iterations, start=s)[0].x for s in (None, level.expand_as(noise), noise)]
    peak = float(truth.max())
    values = [float(psnr(image, truth, data_range=peak).mean()) for image in images]
    away = [float((i - images[0]).norm() / images[0].norm()) for i in images[1:]]
    return max(values) - min(values), max(away)
