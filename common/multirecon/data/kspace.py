"""Measured Cartesian k-space: reading, the sampling mask it implies, and samples held out of a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import torch
from torch import Tensor

from .io.npy import read_npy

__all__ = ["hold_out", "noise_level", "read_kspace", "sampling_mask"]


def read_kspace(path: str | PathLike[str]) -> tuple[Tensor, Tensor]:
    """Read multi-coil k-space from a plain ``.npy`` array; entries that are zero in every coil were not sampled.

    Args:
        path: file with one complex array ``(coils, *spatial)`` of two or three spatial axes, the zero frequency at
            index ``N // 2`` of each.

    Returns:
        complex64 k-space ``(coils, *spatial)`` in the unit of the file, and its float32 mask ``(*spatial)``.

    Raises:
        ValueError: if the file is none of these (a pickle, cut short), or the array has another form, is not finite or
            has no sample. :func:`multirecon.data.io.read_kspace_array` reads other layouts and HDF5.
    """
    array = read_npy(path)
    if array.ndim not in (3, 4) or not np.iscomplexobj(array):
        raise ValueError(f"path: expected a complex array (coils, *spatial), got {array.dtype} {array.shape} in {path}")
    if not np.isfinite(array).all():
        raise ValueError(f"path: expected finite samples, got NaN or Inf in {path}")
    kspace = torch.from_numpy(np.ascontiguousarray(array, dtype=np.complex64))
    mask = sampling_mask(kspace)
    if not mask.any():
        raise ValueError(f"path: expected at least one sample, got zeros only in {path}")
    return kspace, mask


def sampling_mask(kspace: Tensor) -> Tensor:
    """Return the float32 mask ``(*spatial)`` of the entries of ``(coils, *spatial)`` that some coil measured.

    Args:
        kspace: complex ``(coils, *spatial)``, zero where not sampled.
    """
    return (kspace != 0).any(0).float()


def hold_out(
    mask: Tensor,
    fraction: float,
    generator: torch.Generator,
    *,
    calibration: Sequence[int],
    axis: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Split a mask into samples to reconstruct from and samples to judge by; the calibration block is never judged by.

    The error that a reconstruction makes on samples it has not seen is a measure of quality without a reference image.

    Args:
        mask: 0/1 mask ``(*spatial)``.
        fraction: share of the samples outside the calibration block that is held out, between 0 and 1.
        generator: source of randomness (on the CPU).
        calibration: size of the centred block that is kept whole, for each axis.
        axis: hold out whole lines: those with one index along this axis (the undersampled one); the default is points.
            A line that crosses the block keeps its part inside.

    Returns:
        float32 masks ``(*spatial)`` kept and held out; their sum is ``mask``.

    Raises:
        ValueError: if the fraction or the block does not fit, or nothing would be held out.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected between 0 and 1, got {fraction}")
    sizes = tuple(calibration)
    if len(sizes) != mask.ndim or any(not 0 <= k <= n for k, n in zip(sizes, mask.shape, strict=True)):
        raise ValueError(f"calibration: expected {mask.ndim} sizes within {tuple(mask.shape)}, got {sizes}")
    free = mask.bool().clone()
    starts = (n // 2 - k // 2 for n, k in zip(mask.shape, sizes, strict=True))
    free[tuple(slice(start, start + k) for start, k in zip(starts, sizes, strict=True))] = False
    held = torch.zeros_like(free)
    if axis is None:
        held.view(-1)[_draw(free.flatten().nonzero().flatten(), fraction, generator)] = True
    else:
        lines = free.movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
        chosen = torch.zeros(mask.shape[axis], dtype=torch.bool)
        chosen[_draw(lines, fraction, generator)] = True
        view = [1] * mask.ndim
        view[axis] = -1
        held = free & chosen.reshape(view)
    return mask.bool().logical_and(~held).float(), held.float()


def noise_level(kspace: Tensor, *, share: float = 0.1) -> float:
    """Estimate the noise standard deviation (of the real and of the imaginary part) from the outermost samples.

    The median absolute value of the ``share`` of samples farthest from the zero frequency is divided by that of a
    normal deviate of unit variance. Signal out there makes it an upper estimate.

    Args:
        kspace: complex ``(coils, *spatial)``, zero where not sampled.
        share: share of the samples taken, between 0 and 1.

    Returns:
        Standard deviation in the unit of the data.

    Raises:
        ValueError: if the share makes no sense or nothing was sampled.
    """
    mask = sampling_mask(kspace)
    points = mask.nonzero()
    if not 0 < share <= 1 or not len(points):
        raise ValueError(f"share: expected between 0 and 1 of at least one sample, got {share} of {len(points)}")
    size = torch.tensor(mask.shape, dtype=torch.float64)
    radius = ((points - size.div(2).floor()) / size).square().sum(1)
    outer = radius.argsort(descending=True, stable=True)[: max(1, round(share * len(points)))]
    values = torch.view_as_real(kspace[:, mask > 0][:, outer])
    return float(values.abs().median()) / 0.6744897501960817  # the quartile of the standard normal distribution


def _draw(candidates: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    count = round(fraction * len(candidates))
    if not count:
        raise ValueError(f"fraction: expected to hold out at least one of {len(candidates)} candidates, got {fraction}")
    return candidates[torch.randperm(len(candidates), generator=generator)[:count]]
