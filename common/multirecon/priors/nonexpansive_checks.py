"""Whether a denoiser is firmly nonexpansive where it is used: norms at points, ratios of pairs, steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn

from .nonexpansive import ascend_ratio, jacobian_norms, krylov_norms, lipschitz_ratios, reflection

__all__ = ["central", "norms", "pair_ratios", "rising_steps", "worst_pairs"]


def central(images: Tensor, side: int) -> Tensor:
    """Return the middle of images, ``side`` pixels wide; all of them where they are smaller."""
    height, width = images.shape[2:]
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    return images[:, :, top : top + side, left : left + side]


def norms(network: nn.Module, points: Tensor, *, iterations: int, batch: int = 8) -> Tensor:
    """Return ``|J_Q|`` at points ``(B, C, H, W)``: ``(B,)``, to a singular value's residual of 0.5 %."""
    parts = [
        krylov_norms(reflection(network), part, iterations=iterations, tolerance=5e-3) for part in points.split(batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def pair_ratios(network: nn.Module, points: Tensor, count: int, *, batch: int = 32) -> Tensor:
    """Return ``|Q(a) - Q(b)| / |a - b|`` of random pairs, every other one of a point and itself with small noise.

    In float64: points late in a run differ by so little that single precision would measure rounding.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(len(points), (count,), generator=generator) for _ in range(2))
    a, b = points[first].double(), points[second].double()
    b[::2] = a[::2] + 0.02 * torch.randn(a[::2].shape, generator=generator)
    Q = reflection(deepcopy(network).double())
    return torch.cat([lipschitz_ratios(Q, x, y) for x, y in zip(a.split(batch), b.split(batch), strict=True)])


def worst_pairs(network: nn.Module, points: Tensor, *, steps: int, radius: float | None = None) -> Tensor:
    """Return the worst ratios that gradient ascent finds in float64 from points of a trajectory and their neighbours.

    The second image of a pair lies off the first along the leading singular vector of the Jacobian, where ascent has
    the best start.

    Args:
        network: the denoiser; a copy in float64 is used.
        points: ``(B, C, H, W)``.
        steps: steps of ascent.
        radius: largest distance of an image from its start, None for no bound.
    """
    exact = deepcopy(network).double().eval()
    a = points.double()
    _, vectors = jacobian_norms(reflection(exact), a, iterations=20)
    best, _, _ = ascend_ratio(reflection(exact), a, a + 0.05 * vectors, steps=steps, radius=radius)
    return best


def rising_steps(steps: Sequence[float], *, slack: float = 1e-3, floor: float = 0.0) -> int:
    """Return how often ``|w_k+1 - w_k|`` grew by more than ``slack`` (the data step is solved to a tolerance).

    Args:
        steps: the norms.
        slack: relative growth that is let pass.
        floor: size at and below which steps are rounding, such as 1e-6 of ``|w|`` in single precision.
    """
    return sum(b > max(a * (1 + slack), floor) for a, b in pairwise(steps))
