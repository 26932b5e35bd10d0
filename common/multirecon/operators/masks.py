"""Cartesian k-space sampling masks; the zero frequency lies at index ``N // 2`` of every axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["acceleration", "calibration_size", "equispaced_mask", "poisson_disc_mask", "random_mask"]


def acceleration(mask: Tensor) -> float:
    """Return the true acceleration: grid points over sampled points (of the whole batch, if there is one).

    Args:
        mask: 0/1 tensor.

    Raises:
        ValueError: if nothing is sampled.
    """
    sampled = float(mask.sum())
    if sampled <= 0:
        raise ValueError("mask: expected at least one sampled point, got none")
    return mask.numel() / sampled


def calibration_size(mask: Tensor) -> tuple[int, ...]:
    """Return the size of the largest fully sampled block around the zero frequency.

    The block grows by turns along every axis until an unsampled point would enter, so that of several large blocks the
    one nearest to a cube is found.

    Args:
        mask: 0/1 or boolean mask ``(*spatial)``.

    Returns:
        Size along each axis; zeros if the zero frequency was not sampled. Index ``N // 2 - size // 2`` is its first.
    """
    sampled = mask.bool()
    if not sampled[tuple(n // 2 for n in sampled.shape)]:
        return (0,) * sampled.ndim
    size, growing = [1] * sampled.ndim, set(range(sampled.ndim))
    while growing:
        for axis in sorted(growing):
            trial = [n + (a == axis) for a, n in enumerate(size)]
            fits = trial[axis] <= sampled.shape[axis]
            if fits and sampled[tuple(_centre(n, k) for n, k in zip(sampled.shape, trial, strict=True))].all():
                size = trial
            else:
                growing.discard(axis)
    return tuple(size)


def equispaced_mask(
    shape: Sequence[int],
    acceleration: float,
    *,
    center_lines: int = 0,
    offset: int = 0,
    axis: int = -1,
    keep_rate: bool = False,
) -> Tensor:
    """Return a mask of lines at equal distances, the zero frequency included.

    With an integer acceleration ``R`` that divides the even size ``W`` and no centre block, the true acceleration is
    exactly ``R``. A centre block lowers it, unless ``keep_rate`` widens the outer distance so that about ``W / R``
    lines are sampled in all.

    Args:
        shape: spatial shape ``(*spatial)``.
        acceleration: distance of the lines, in lines.
        center_lines: number of consecutive lines sampled around the zero frequency.
        offset: shift of the comb in lines; 0 puts a line on the zero frequency.
        axis: the axis of ``shape`` that is undersampled; the others are sampled fully.
        keep_rate: whether the acceleration is that of the whole mask.

    Returns:
        float32 mask of ``shape``.

    Raises:
        ValueError: if the acceleration or the centre does not fit the size.

    Example:
        >>> mask = equispaced_mask((2, 8), 4)
        >>> mask[0].tolist(), acceleration(mask)
        ([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], 4.0)

    References:
        zbontar2018
    """
    size = _line_count(shape, acceleration, center_lines, axis)
    distance = float(acceleration)
    if keep_rate and center_lines:
        remaining = size / acceleration - center_lines
        if remaining <= 0:
            raise ValueError(f"center_lines: expected fewer than {size / acceleration:g} lines at acceleration "
                             f"{acceleration:g} with keep_rate, got {center_lines}")  # fmt: skip
        distance = (size - center_lines) / remaining
    reach = int(size / distance) + 2
    comb = torch.arange(-reach, reach + 1, dtype=torch.float64) * distance
    lines = size // 2 + offset + torch.floor(comb + 0.5).long()
    line_mask = torch.zeros(size)
    line_mask[lines[(lines >= 0) & (lines < size)]] = 1
    line_mask[_centre(size, center_lines)] = 1
    return _along(line_mask, shape, axis)


def random_mask(
    shape: Sequence[int],
    acceleration: float,
    generator: torch.Generator,
    *,
    center_lines: int = 0,
    power: float = 0.0,
    axis: int = -1,
) -> Tensor:
    """Return a mask of lines drawn without replacement, ``round(W / R)`` in all.

    Args:
        shape: spatial shape ``(*spatial)``.
        acceleration: acceleration of the whole mask, the centre block included.
        generator: source of randomness (on the CPU).
        center_lines: number of consecutive lines sampled around the zero frequency.
        power: lines are drawn with probability proportional to ``(1 - |k| / k_max)^power``; 0 is uniform.
        axis: the axis of ``shape`` that is undersampled.

    Returns:
        float32 mask of ``shape``.

    Raises:
        ValueError: if the centre block alone exceeds the rate.
    """
    size = _line_count(shape, acceleration, center_lines, axis)
    line_mask = torch.zeros(size)
    line_mask[_centre(size, center_lines)] = 1
    missing = round(size / acceleration) - center_lines
    if missing < 0:
        raise ValueError(f"center_lines: expected at most {round(size / acceleration)} lines at acceleration "
                         f"{acceleration:g}, got {center_lines}")  # fmt: skip
    if missing:
        radius = (torch.arange(size, dtype=torch.float64) - size // 2).abs() / (size // 2 + 1)
        weight = (1 - radius) ** power * (line_mask == 0)
        line_mask[torch.multinomial(weight, missing, replacement=False, generator=generator)] = 1
    return _along(line_mask, shape, axis)


def poisson_disc_mask(
    shape: Sequence[int],
    acceleration: float,
    generator: torch.Generator,
    *,
    calibration: Sequence[int] = (0, 0),
    slope: float = 4.0,
    crop_corners: bool = False,
) -> Tensor:
    """Return a variable-density Poisson-disc mask over two phase-encoding axes.

    Points are visited in random order; an accepted point blocks a disc whose radius grows linearly from the centre,
    ``r(k) = scale (1 + slope |k| / k_max)``. The scale is found by bisection, then surplus points outside the
    calibration block are dropped at random, so that the number of points is exact. For 3D k-space with a fully sampled
    readout, give the two phase-encoding sizes and expand the result along the readout axis.

    Args:
        shape: ``(H, W)``.
        acceleration: acceleration of the whole mask over the full grid, calibration block included.
        generator: source of randomness (on the CPU).
        calibration: size ``(h, w)`` of the fully sampled centre block.
        slope: growth of the disc radius from the centre to the edge.
        crop_corners: whether points outside the inscribed ellipse are left out.

    Returns:
        float32 mask ``(H, W)`` with ``round(H W / R)`` ones.

    Raises:
        ValueError: if the calibration block does not fit, or so many points cannot be placed.

    References:
        bridson2007
        lustig2010
    """
    if len(shape) != 2 or len(calibration) != 2:
        raise ValueError(f"shape, calibration: expected two sizes each, got {tuple(shape)} and {tuple(calibration)}")
    if not 1 <= acceleration <= shape[0] * shape[1]:
        raise ValueError(f"acceleration: expected between 1 and the number of points, got {acceleration}")
    height, width = (int(n) for n in shape)
    rows = (np.arange(height) - height // 2) / (height / 2)
    columns = (np.arange(width) - width // 2) / (width / 2)
    distance = np.hypot(rows[:, None], columns[None, :])
    fixed = np.zeros((height, width), dtype=bool)
    fixed[_centre(height, calibration[0]), _centre(width, calibration[1])] = True
    allowed = (distance <= 1) if crop_corners else np.ones_like(fixed)
    target = round(height * width / acceleration) - int(fixed.sum())
    free = int((allowed & ~fixed).sum())
    if not 0 <= target <= free:
        raise ValueError(f"calibration: expected room for {target} more points at acceleration {acceleration:g}, "
                         f"got {free} free points beside the block {tuple(calibration)}")  # fmt: skip
    order = torch.randperm(height * width, generator=generator).numpy()
    order = order[(allowed & ~fixed).ravel()[order]]
    profile = 1 + slope * distance
    low, high = 0.0, float(np.sqrt(acceleration)) + 1.0  # radius below one: every free point is accepted
    points = order
    for _ in range(12):
        scale = (low + high) / 2
        accepted = _throw_darts(order, scale * profile, fixed)
        if len(accepted) < target:
            high = scale
        else:
            low, points = scale, accepted
            if len(accepted) <= 1.005 * target:
                break
    keep = torch.randperm(len(points), generator=generator).numpy()[:target]
    fixed.ravel()[points[keep]] = True
    return torch.from_numpy(fixed.astype(np.float32))


def _throw_darts(order: np.ndarray, radius: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Accept points in the given order unless an accepted one lies nearer than its own radius."""
    height, width = radius.shape
    blocked = fixed.copy()
    flat = blocked.ravel()
    radii = radius.ravel()
    discs: dict[int, tuple[int, np.ndarray]] = {}
    accepted = []
    for point in order.tolist():
        if flat[point]:
            continue
        accepted.append(point)
        flat[point] = True
        reach = radii[point]
        if reach <= 1.0:
            continue
        squared = int(np.ceil(reach * reach))  # grid distances have integer squares: |d| < r means |d|^2 < ceil(r^2)
        if squared not in discs:
            half = int(np.ceil(reach)) - 1
            steps = np.arange(-half, half + 1) ** 2
            discs[squared] = half, steps[:, None] + steps[None, :] < squared
        half, disc = discs[squared]
        row, column = divmod(point, width)
        top, left = max(row - half, 0), max(column - half, 0)
        bottom, right = min(row + half + 1, height), min(column + half + 1, width)
        blocked[top:bottom, left:right] |= disc[
            top - row + half : bottom - row + half, left - column + half : right - column + half
        ]
    return np.asarray(accepted, dtype=np.int64)


def _line_count(shape: Sequence[int], acceleration: float, center_lines: int, axis: int) -> int:
    size = int(tuple(shape)[axis])
    if not 1 <= acceleration <= size:
        raise ValueError(f"acceleration: expected between 1 and {size}, got {acceleration}")
    if not 0 <= center_lines <= size:
        raise ValueError(f"center_lines: expected between 0 and {size}, got {center_lines}")
    return size


def _centre(size: int, count: int) -> slice:
    """Return ``count`` consecutive indices around ``size // 2`` (one more below it when the count is even)."""
    if not 0 <= count <= size:
        raise ValueError(f"calibration: expected between 0 and {size} lines, got {count}")
    start = size // 2 - count // 2
    return slice(start, start + count)


def _along(line_mask: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    view = [1] * len(shape)
    view[axis] = -1
    return line_mask.reshape(view).expand(*shape).contiguous()
