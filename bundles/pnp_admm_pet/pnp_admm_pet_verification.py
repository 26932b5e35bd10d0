"""What the convergence of plug-and-play rests on, measured: Jacobian norms, worst pairs, residuals, starts."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from multirecon.measurement import Measurement
from multirecon.metrics.image import psnr
from multirecon.priors.nonexpansive import ascend_ratio, jacobian_norms, lipschitz_ratios, reflection
from multirecon.reconstruction.plug_and_play import (
    SUPPORT,
    PlugAndPlay,
    gradient_noise,
    mean_activity,
    plug_and_play,
)
from multirecon.solvers.em import osem
from multirecon.solvers.em_engine import TorchEM

__all__ = ["Scan", "central", "points_of", "prepare", "rising_steps", "run", "spread_of_starts", "with_lesion",
           "worst_pairs"]  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """A PET scan made ready: data, start, scale and coupling.

    Args:
        engine: one EM iteration.
        start: OSEM image ``(B, 1, H, W)``.
        scale: ``c``, ``(B,)``.
        rho: coupling, ``(B,)``.
    """

    engine: TorchEM
    start: Tensor
    scale: Tensor
    rho: Tensor


@torch.no_grad()
def prepare(measurement: Measurement, *, level: float, name: str = "pet_fdg", warm_start: int = 4) -> Scan:
    """Return a scan as :class:`multirecon.reconstruction.PlugAndPlayADMM` prepares it.

    Args:
        measurement: a measurement with a PET block.
        level: the setting of that name.
        name: the block.
        warm_start: passes of OSEM.
    """
    operator, likelihood, y = measurement.operator[name], measurement.likelihood[name], measurement.y[name]
    engine = TorchEM(operator, likelihood, y)
    start = osem(operator, likelihood, y, subsets=6, iterations=warm_start)
    scale = mean_activity(start)
    return Scan(engine, start, scale, scale * gradient_noise(engine, start) / level)


def run(
    scan: Scan, network: nn.Module, *, iterations: int, start: Tensor | None = None, inner_iterations: int = 20
) -> tuple[PlugAndPlay, list[Tensor], list[float]]:
    """Run plug-and-play; return the outcome, the arguments of ``D``, and ``|w_k+1 - w_k|`` of the first sample."""
    arguments: list[Tensor] = []

    def denoise(image: Tensor) -> Tensor:
        arguments.append(image)
        return network(image)

    begin = scan.start if start is None else start
    result = plug_and_play(scan.engine, denoise, begin, scale=scan.scale, rho=scan.rho, iterations=iterations,
                           inner_iterations=inner_iterations)  # fmt: skip
    ws = arguments[: iterations + 1]
    steps = [float(torch.linalg.vector_norm(b[0] - a[0])) for a, b in pairwise(ws)]
    return result, ws, steps


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


def central(images: Tensor, side: int) -> Tensor:
    """Return the middle of images, ``side`` pixels wide; all of them where they are smaller."""
    height, width = images.shape[2:]
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    return images[:, :, top : top + side, left : left + side]


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


def norms(network: nn.Module, points: Tensor, *, iterations: int, batch: int = 8) -> Tensor:
    """Return ``|J_Q|`` at points ``(B, 1, H, W)``: ``(B,)``."""
    parts = [jacobian_norms(reflection(network), part, iterations=iterations)[0] for part in points.split(batch)]
    return torch.cat(parts)


@torch.no_grad()
def pair_ratios(network: nn.Module, points: Tensor, count: int, *, batch: int = 32) -> Tensor:
    """Return ``|Q(a) - Q(b)| / |a - b|`` of random pairs, every other one of a point and itself with small noise."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(len(points), (count,), generator=generator) for _ in range(2))
    a, b = points[first], points[second].clone()
    close = a[::2] + 0.02 * torch.randn(a[::2].shape, generator=generator)
    b[::2] = close
    Q = reflection(network)
    return torch.cat([lipschitz_ratios(Q, x, y) for x, y in zip(a.split(batch), b.split(batch), strict=True)])


def worst_pairs(network: nn.Module, points: Tensor, *, steps: int, radius: float | None = None) -> Tensor:
    """Return the worst ratios that gradient ascent finds in float64 from points of a trajectory and their neighbours.

    The second image of a pair lies off the first along the leading singular vector of the Jacobian, where ascent has
    the best start.

    Args:
        network: the denoiser; a copy in float64 is used.
        points: ``(B, 1, H, W)``.
        steps: steps of ascent.
        radius: largest distance of an image from its start, None for no bound.
    """
    exact = deepcopy(network).double().eval()
    a = points.double()
    _, vectors = jacobian_norms(reflection(exact), a, iterations=20)
    best, _, _ = ascend_ratio(reflection(exact), a, a + 0.05 * vectors, steps=steps, radius=radius)
    return best


def rising_steps(steps: Sequence[float], *, slack: float = 1e-3) -> int:
    """Return how often ``|w_k+1 - w_k|`` grew by more than ``slack`` (the data step is solved to a tolerance)."""
    return sum(b > a * (1 + slack) for a, b in pairwise(steps))


def spread_of_starts(scan: Scan, network: nn.Module, truth: Tensor, *, iterations: int) -> tuple[float, float]:
    """Return the differences between runs from OSEM, ones and noise: of the PSNR in dB, and relative (NRMSE)."""
    generator = torch.Generator().manual_seed(0)
    level = scan.scale.reshape(-1, 1, 1, 1)
    noise = level * torch.rand(scan.start.shape, generator=generator)
    images = [run(scan, network, iterations=iterations, start=s)[0].x for s in (None, level.expand_as(noise), noise)]
    peak = float(truth.max())
    values = [float(psnr(image, truth, data_range=peak).mean()) for image in images]
    away = [float((i - images[0]).norm() / images[0].norm()) for i in images[1:]]
    return max(values) - min(values), max(away)
