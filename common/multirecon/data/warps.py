"""Random smooth deformations of an anatomy: where every voxel of a phantom comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from .random_fields import random_field, uniform

__all__ = ["Warp", "draw_warp", "sample_labels", "sample_maps", "warp_points"]


@dataclass(frozen=True)
class Warp:
    """One drawn deformation ``v = c + L p + d(p)`` from phantom mm to anatomy voxels.

    Args:
        matrix: ``(3, 3)`` linear part ``L``, float64.
        elastic_mm: standard deviation of the elastic displacement ``d`` per axis in mm.
        elastic_sigma_mm: smoothness of the elastic displacement in mm.
        mirrored: whether left and right are exchanged.
    """

    matrix: Tensor
    elastic_mm: float
    elastic_sigma_mm: float
    mirrored: bool


def draw_warp(
    generator: torch.Generator,
    *,
    rotation_deg: float,
    scale: tuple[float, float],
    shear: float,
    elastic_mm: tuple[float, float],
    elastic_sigma_mm: tuple[float, float],
    mirror: bool,
    strength: float,
    extent_mm: Sequence[float],
    field_mm: Sequence[float],
) -> Warp:
    """Draw the parameters of one deformation.

    Args:
        generator: CPU generator.
        rotation_deg: half-range of the axial rotation in degrees; the two tilts get half of it.
        scale: range of the head's scale, one common and small separate factors per axis.
        shear: half-range of the shears.
        elastic_mm: range of the standard deviation of the elastic displacement in mm.
        elastic_sigma_mm: range of its smoothness in mm.
        mirror: whether left and right may be exchanged.
        strength: 0 gives the identity, 1 the full ranges.
        extent_mm: size of the unwarped head along x and y in mm.
        field_mm: size of the phantom's field of view along x and y in mm; the scale is limited so that the head fits.

    Returns:
        The deformation.
    """
    draw = [uniform(-1, 1, generator) for _ in range(10)]
    middle, half = 0.5 * (scale[0] + scale[1]) - 1, 0.5 * (scale[1] - scale[0])
    common = 1 + strength * (middle + half * draw[0])
    factors = [common * (1 + strength * 0.3 * half * d) for d in draw[1:4]]
    for axis in (0, 1):
        factors[axis] = min(factors[axis], 0.97 * field_mm[axis] / extent_mm[axis])
    angles = [strength * math.radians(rotation_deg) * f * d for f, d in zip((0.5, 0.5, 1.0), draw[4:7], strict=True)]
    matrix = torch.eye(3, dtype=torch.float64)
    for axis, angle in enumerate(angles):
        turn = torch.eye(3, dtype=torch.float64)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    shears = torch.eye(3, dtype=torch.float64)
    shears[0, 1], shears[0, 2], shears[1, 2] = (strength * shear * d for d in draw[7:10])
    matrix = matrix @ shears @ torch.diag(1 / torch.tensor(factors, dtype=torch.float64))
    return Warp(
        matrix,
        strength * uniform(*elastic_mm, generator),
        uniform(*elastic_sigma_mm, generator),
        bool(uniform(0, 1, generator) < 0.5) and mirror,
    )


def warp_points(
    warp: Warp,
    *,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    origin_mm: Sequence[float],
    centre: Tensor,
    generator: torch.Generator,
    device: torch.device | str,
) -> Tensor:
    """Return the anatomy voxel that every phantom voxel comes from.

    Args:
        warp: the deformation.
        shape: ``(X, Y, Z)`` of the phantom.
        spacing_mm: its voxel size in mm.
        origin_mm: position of its first voxel in mm, relative to the centre of the head.
        centre: ``(3,)`` anatomy voxel that lies at 0 mm.
        generator: CPU generator of the elastic field.
        device: device of the result.

    Returns:
        ``(3, X, Y, Z)`` float32 coordinates in anatomy voxels (1 mm).
    """
    axes = [
        torch.arange(n, dtype=torch.float32, device=device) * s + o
        for n, s, o in zip(shape, spacing_mm, origin_mm, strict=True)
    ]
    if warp.mirrored:
        axes[0] = -axes[0]
    x, y, z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    points = torch.empty(3, *shape, device=device)
    for i in range(3):
        a, b, c = (float(v) for v in warp.matrix[i])
        points[i] = a * x + b * y + c * z + float(centre[i])
        if warp.elastic_mm > 0:
            field = random_field(shape, spacing_mm, sigma_mm=warp.elastic_sigma_mm, generator=generator, device=device)
            points[i] += warp.elastic_mm * field
    return points


def sample_labels(labels: Tensor, points: Tensor) -> Tensor:
    """Look labels up at the nearest voxel; zero outside.

    Args:
        labels: ``(X', Y', Z')`` integer map.
        points: ``(3, X, Y, Z)`` voxel coordinates.

    Returns:
        ``(X, Y, Z)`` labels of the same type.
    """
    # one voxel of zeros around the map: clamped outside points then read zero
    padded = torch.nn.functional.pad(labels, (1, 1, 1, 1, 1, 1))
    index = torch.zeros(points.shape[1:], dtype=torch.int32, device=points.device)
    for i, n in enumerate(labels.shape):
        index = index * (n + 2) + (points[i] + 1.5).clamp_(0, n + 1).to(torch.int32)
    return padded.reshape(-1)[index]


def sample_maps(maps: Tensor, points: Tensor, *, step: float = 1.0) -> Tensor:
    """Interpolate maps linearly, holding the border value outside.

    Args:
        maps: ``(C, X', Y', Z')`` float maps that hold every ``step``-th anatomy voxel.
        points: ``(3, X, Y, Z)`` anatomy voxel coordinates.
        step: distance between the samples of ``maps`` in anatomy voxels.

    Returns:
        ``(C, X, Y, Z)`` float32.
    """
    size = torch.tensor(maps.shape[1:], dtype=torch.float32, device=points.device)
    grid = (2 * points / step / (size - 1).view(3, 1, 1, 1) - 1).permute(1, 2, 3, 0).flip(-1)
    return grid_sample(maps[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
