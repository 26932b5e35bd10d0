"""An image of thick slices beside another one on a grid of its own: one problem on one grid, through ``Resample``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..blocks import Blocks
from ..data.io import Volume
from ..data.io.checks import refusal
from ..likelihoods import BlockLikelihood, Gaussian
from ..measurement import Measurement
from ..operators import BlockDiagonal, Identity, Resample
from ..space import ImageSpace, Modality
from .images import stack_values

__all__ = ["mixed_grid_measurement"]

_MR = ("t1", "t2", "flair", "t2star")  # in arbitrary units
_PERCENTILE = 99.5
_MOST_VOXELS = 2**26


def mixed_grid_measurement(
    volume: Volume,
    modality: str,
    reference: Volume,
    reference_modality: str,
    *,
    spacing_mm: Sequence[float] = (),
    slices: Sequence[int] = (),
) -> Measurement:
    r"""Return ``y = R x + n`` of one image, seen by its own slices, beside a clean image of another modality.

    ``x`` lives on the reference's grid; with ``spacing_mm`` on one of that voxel size along the axes of the image and
    over its field of view, to which the reference is interpolated linearly. ``R`` averages over the slice thickness,
    which is taken to be the slice distance. MR images are divided by the 99.5th percentile of their positive values.

    Args:
        volume: the image with slices; its axis of largest voxels is that of the slices.
        modality: its key.
        reference: the image beside it, registered in scanner coordinates.
        reference_modality: its key.
        spacing_mm: voxel size of the grid in mm.
        slices: slices to take, evenly spaced; all by default.

    Raises:
        ValueError: if the two modalities are one, an image has channels, slices are uneven, or the grid is too large.
    """
    if reference_modality in ("", modality):
        raise refusal("reference_modality", f"the key of another modality than {modality!r}", repr(reference_modality))
    notes = [*volume.notes, *(f"{reference_modality}: {note}" for note in reference.notes)]
    values, scale, unit = _scaled(volume, modality, notes)
    guide, guide_scale, guide_unit = _scaled(reference, reference_modality, notes)
    axis = int(np.argmax(volume.spacing_mm))
    thickness = volume.spacing_mm[axis]
    affine = volume.affine
    if slices:
        values, affine = _slices(values, affine, axis, slices)
    shape, grid = tuple(guide.shape), reference.affine
    if spacing_mm:
        shape, grid = _covering(values.shape, affine, spacing_mm, axis, thickness)
        seen = Resample((1, *guide.shape), shape, source_affine=torch.from_numpy(reference.affine),
                        target_affine=torch.from_numpy(grid), thickness_mm=(0.0, 0.0, 0.0))  # fmt: skip
        guide = seen(guide[None, None])[0, 0]
        notes.append(f"{reference_modality} interpolated to the grid")
    spacing = np.linalg.norm(grid[:3, :3], axis=0)
    widths = [t if t > 1.01 * g else 0.0 for t, g in zip(_steps(affine), spacing, strict=True)]
    widths[axis] = thickness if thickness > 1.01 * spacing[axis] else 0.0
    operator = Resample((1, *shape), values.shape, source_affine=torch.from_numpy(grid),
                        target_affine=torch.from_numpy(affine), thickness_mm=widths)  # fmt: skip
    sigma = _noise(values)
    modalities = [Modality(modality, unit=unit, scale=scale),
                  Modality(reference_modality, unit=guide_unit, scale=guide_scale)]  # fmt: skip
    space = ImageSpace(modalities, shape, spacing.tolist(), torch.from_numpy(grid))
    blocks = {modality: operator, reference_modality: Identity((1, *shape))}
    facts = {"source": volume.metadata.get("source", ""), "reference": reference.metadata.get("source", ""),
             "sigma": sigma, "simulated": False, "notes": notes}  # fmt: skip
    return Measurement(
        Blocks({modality: values[None, None], reference_modality: guide[None, None]}),
        BlockDiagonal(space, blocks),
        BlockLikelihood({modality: Gaussian(sigma), reference_modality: Gaussian(0.0)}),
        facts,
    )


def _scaled(volume: Volume, modality: str, notes: list[str]) -> tuple[Tensor, float, str]:
    """Return values as the stack holds them, their typical size and unit; MR images are brought to the order of one."""
    values, unit, scale = stack_values(volume, modality)
    if modality not in _MR:
        return values, scale, unit
    positive = values[values > 0]
    if not len(positive):
        raise refusal("path", f"positive values of {modality}", "none")
    top = float(np.percentile(positive.numpy(), _PERCENTILE))
    notes.append(f"{modality} divided by {top:.6g}")
    return values / top, scale, unit


def _slices(
    values: Tensor, affine: NDArray[np.float64], axis: int, chosen: Sequence[int]
) -> tuple[Tensor, NDArray[np.float64]]:
    count, steps = values.shape[axis], set(np.diff(chosen).tolist()) or {1}
    if not all(0 <= s < count for s in chosen) or len(steps) > 1 or min(steps) < 1:
        raise refusal("slices", f"evenly spaced ones of 0 to {count - 1}", list(chosen))
    moved = affine.copy()
    moved[:3, 3] += chosen[0] * affine[:3, axis]
    moved[:3, axis] *= steps.pop()
    return values.index_select(axis, torch.tensor(chosen)).contiguous(), moved


def _covering(
    shape: Sequence[int], affine: NDArray[np.float64], spacing_mm: Sequence[float], axis: int, thickness: float
) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Return size and affine of a grid along the image's axes, over its slices with their thickness."""
    if len(spacing_mm) != 3:
        raise refusal("spacing_mm", "3 numbers", tuple(spacing_mm))
    steps = _steps(affine)
    extent = [(n - 1) * s + (thickness if k == axis else s) for k, (n, s) in enumerate(zip(shape, steps, strict=True))]
    size = tuple(max(1, round(e / g)) for e, g in zip(extent, spacing_mm, strict=True))
    if np.prod(size, dtype=object) > _MOST_VOXELS:
        raise refusal("spacing_mm", f"a grid of at most {_MOST_VOXELS} voxels", size)
    grid = affine.copy()
    grid[:3, :3] *= np.asarray(spacing_mm) / steps
    middle = affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + affine[:3, 3]
    grid[:3, 3] = middle - grid[:3, :3] @ ((np.asarray(size) - 1) / 2)
    return size, grid


def _steps(affine: NDArray[np.float64]) -> list[float]:
    return [float(s) for s in np.linalg.norm(affine[:3, :3], axis=0)]


def _noise(values: Tensor) -> float:
    """Return an upper estimate of the noise: the median of mixed second differences where there is signal."""
    values = values.movedim(int(np.argmin(values.shape)), -1)  # the two longest axes are those within a slice
    mixed = values[1:, 1:] - values[1:, :-1] - values[:-1, 1:] + values[:-1, :-1]
    inside = values[1:, 1:] > 0.1 * float(values.max())
    level = float(mixed[inside].abs().median()) / (2 * 0.6744897501960817) if bool(inside.any()) else 0.0
    if not level > 0:
        raise refusal("path", "an image with noise", "none that can be estimated")
    return level
