"""Measured k-space as a Measurement: coil maps, noise level and scale from the data themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..blocks import Blocks
from ..data.io.checks import refusal
from ..data.io.kspace import KSpace
from ..data.kspace import noise_level
from ..likelihoods import BlockLikelihood, Gaussian
from ..measurement import Measurement
from ..operators import BlockDiagonal, MaskedFourier, calibration_size, estimate_maps, low_resolution_phase
from ..operators.fourier import centred_ifft
from ..space import ImageSpace, Modality

__all__ = ["kspace_measurement"]

_PERCENTILE = 99.0


def kspace_measurement(
    kspace: KSpace,
    *,
    modality: str = "t1",
    spacing_mm: Sequence[float] = (),
    real_image: bool = True,
    keep_scale: bool = False,
    calibration: int = 32,
) -> Measurement:
    """Return slices of measured k-space as samples of a Measurement.

    Coil maps come from the fully sampled centre of every slice (one coil: its low-resolution phase); with a real image
    they carry its phase. The noise standard deviation comes from the outermost samples. The data are divided by the
    99th percentile of the low-resolution magnitude image over all slices, so that an image is of order one.

    Args:
        kspace: the data.
        modality: key of the image.
        spacing_mm: voxel size in mm along each axis, in the place of the file's.
        real_image: whether the unknown is real.
        keep_scale: whether the unit of the file is kept.
        calibration: the centre used is at most this large along each axis.

    Raises:
        ValueError: if the voxel size is unknown, or the centre of k-space was not fully sampled.
    """
    data = torch.from_numpy(np.ascontiguousarray(kspace.data))
    mask = torch.from_numpy(kspace.mask).expand(len(data), *kspace.spatial).float().contiguous()
    spacing = tuple(spacing_mm) or kspace.spacing_mm
    notes = list(kspace.notes)
    if spacing is None:
        spacing = (1.0,) * len(kspace.spatial)
        notes.append("voxel size unknown: 1 mm taken (spacing_mm says otherwise)")
    if len(spacing) != len(kspace.spatial):
        raise refusal("spacing_mm", f"{len(kspace.spatial)} numbers", spacing)
    blocks = [_block(m, calibration) for m in mask]
    scale = 1.0 if keep_scale else _scale(data, blocks)
    data = data / scale
    maps = torch.stack([_maps(k, b, real_image) for k, b in zip(data, blocks, strict=True)])
    sigma = torch.tensor([noise_level(k) for k in data])
    if not bool((sigma > 0).all()):
        raise refusal("path", "noise in the outer samples of k-space", "zeros")
    shape = (-1, *[1] * (data.ndim - 1))
    operator = MaskedFourier(mask, maps, real_image=real_image, spatial_dims=len(kspace.spatial))
    likelihood = Gaussian(sigma.reshape(shape), support=mask.unsqueeze(1))
    affine = None if kspace.affines is None else torch.from_numpy(kspace.affines)
    space = ImageSpace([Modality(modality)], kspace.spatial, spacing, affine)
    facts = {**kspace.metadata, "simulated": False, "scale": scale, "calibration": [list(b) for b in blocks],
             "notes": notes}  # fmt: skip
    return Measurement(Blocks({modality: data}), BlockDiagonal(space, {modality: operator}),
                       BlockLikelihood({modality: likelihood}), facts)  # fmt: skip


def _block(mask: Tensor, most: int) -> tuple[int, ...]:
    found = calibration_size(mask)
    if min(found) < 1:
        raise refusal(
            "path", "a fully sampled centre of k-space", f"no sample at the zero frequency {tuple(mask.shape)}"
        )
    return tuple(min(n, most) for n in found)


def _scale(data: Tensor, blocks: Sequence[tuple[int, ...]]) -> float:
    """Return the 99th percentile of the low-resolution root-sum-of-squares images."""
    values = []
    for kspace, size in zip(data, blocks, strict=True):
        low = torch.zeros_like(kspace)
        centre = (slice(None), *(slice(n // 2 - k // 2, n // 2 - k // 2 + k)
                                 for n, k in zip(kspace.shape[1:], size, strict=True)))  # fmt: skip
        low[centre] = kspace[centre]
        image = centred_ifft(low, kspace.ndim - 1)
        values.append(torch.linalg.vector_norm(image, dim=0).numpy().ravel())
    return float(np.percentile(np.concatenate(values), _PERCENTILE))


def _maps(kspace: Tensor, size: tuple[int, ...], real_image: bool) -> Tensor:
    if kspace.shape[0] > 1:
        return estimate_maps(kspace, calibration=size, real_image=real_image)
    flat = torch.ones_like(kspace)
    if not real_image:
        return flat
    phase = low_resolution_phase(kspace, flat, calibration=size)
    return torch.polar(torch.ones_like(phase), phase)[None]
