"""Axial slices of a volume on a centred grid, by area averages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

__all__ = ["region_slices", "resample_slices"]


def resample_slices(
    volume: Tensor,
    z_indices: Sequence[int],
    *,
    volume_spacing_mm: Sequence[float],
    shape: tuple[int, int],
    spacing_mm: float,
    oversample: int = 1,
    outside: float = 0.0,
) -> Tensor:
    """Resample slices of a centred volume to a centred grid.

    The volume is sampled linearly at points fine enough for its voxels, on a lattice that does not depend on
    ``oversample``; pixels are means over their points. Means over blocks of a refined result therefore equal the
    unrefined one.

    Args:
        volume: ``(X, Y, Z)`` float.
        z_indices: slice numbers.
        volume_spacing_mm: in-plane voxel size of the volume in mm.
        shape: ``(H, W)`` of the unrefined grid.
        spacing_mm: its pixel size in mm.
        oversample: refinement, 1 or 2.
        outside: value beyond the volume.

    Returns:
        ``(len(z_indices), H * oversample, W * oversample)`` float32.

    Raises:
        ValueError: if a slice does not exist or the refinement is neither 1 nor 2.
    """
    if oversample not in (1, 2):
        raise ValueError(f"oversample: expected 1 or 2, got {oversample}")
    picked = _pick(volume, z_indices)
    points = 2 * max(1, math.ceil(spacing_mm / 2 / min(volume_spacing_mm) - 1e-6))  # per pixel and axis
    dense = _sample(picked - outside, volume_spacing_mm, [n * points for n in shape], spacing_mm / points) + outside
    return avg_pool2d(dense[:, None], points // oversample)[:, 0] if points > oversample else dense


def region_slices(
    regions: Tensor,
    z_indices: Sequence[int],
    *,
    volume_spacing_mm: Sequence[float],
    shape: tuple[int, int],
    spacing_mm: float,
) -> Tensor:
    """Resample slices of a map of codes: the commonest code of every pixel, the lowest code on a tie.

    Args:
        regions: ``(X, Y, Z)`` uint8 codes.
        z_indices: slice numbers.
        volume_spacing_mm: in-plane voxel size of the map in mm.
        shape: ``(H, W)`` of the grid.
        spacing_mm: its pixel size in mm.

    Returns:
        ``(len(z_indices), H, W)`` uint8.
    """
    picked = _pick(regions, z_indices)
    points = 2 * max(1, math.ceil(spacing_mm / 2 / min(volume_spacing_mm) - 1e-6))
    size = [n * points for n in shape]
    dense = (
        _sample(picked.float(), volume_spacing_mm, size, spacing_mm / points, mode="nearest").round().to(torch.uint8)
    )
    n, (h, w) = len(dense), shape
    blocks = dense.view(n, h, points, w, points).permute(0, 1, 3, 2, 4).reshape(n, h, w, points * points)
    return torch.mode(blocks, dim=-1).values


def _pick(volume: Tensor, z_indices: Sequence[int]) -> Tensor:
    depth = volume.shape[2]
    wrong = [z for z in z_indices if not 0 <= z < depth]
    if wrong or not len(z_indices):
        raise ValueError(f"z_indices: expected slice numbers from 0 to {depth - 1}, got {wrong or list(z_indices)}")
    return volume[:, :, torch.as_tensor(list(z_indices), device=volume.device)].permute(2, 0, 1)


def _sample(
    stack: Tensor, spacing_mm: Sequence[float], size: Sequence[int], step_mm: float, mode: str = "bilinear"
) -> Tensor:
    """Sample ``(N, X, Y)`` at a centred lattice of ``size`` points ``step_mm`` apart; zero outside."""
    matched = all(abs(s - step_mm) < 1e-6 for s in spacing_mm)
    if matched and all((n - m) % 2 == 0 for n, m in zip(stack.shape[1:], size, strict=True)):
        # same lattice: crop or pad, bit for bit
        edges = [(m - n) // 2 for n, m in zip(stack.shape[1:], size, strict=True)]
        return torch.nn.functional.pad(stack, (edges[1], edges[1], edges[0], edges[0])).contiguous()
    axes = []
    for n, m, s in zip(stack.shape[1:], size, spacing_mm, strict=True):
        place = (torch.arange(m, dtype=torch.float64) - (m - 1) / 2) * (step_mm / s)  # voxels from the centre
        axes.append((2 * place / n).to(stack))
    grid = torch.stack(torch.meshgrid(axes[1], axes[0], indexing="xy"), dim=-1)
    return grid_sample(stack[:, None], grid.expand(len(stack), -1, -1, -1), mode=mode, align_corners=False)[:, 0]
