"""Volumes seen from the side: quality of reslices, and whether neighbouring slices belong together."""

from __future__ import annotations

import torch
from torch import Tensor

from .image import _expand, _pair

__all__ = ["reslice_psnr", "through_plane_variation"]

AXES = {"sagittal": 2, "coronal": 3, "axial": 4}
# a slice counts where the truth reaches this share of the data range: air says nothing about a method
SIGNAL = 0.01


def reslice_psnr(pred: Tensor, truth: Tensor, *, plane: str, data_range: float, mask: Tensor | None = None) -> Tensor:
    """Return the mean of the PSNR of slices of a volume in dB, ``(B,)``: over the slices that show something, if any.

    The mean square error of a volume is the same from every side; the mean of decibels is not, and a slice that a
    method loses altogether shows from the side it is lost on.

    Args:
        pred: estimate ``(B, C, H, W, D)``, H along left-right, W along back-front, D along feet-head.
        truth: truth of the same shape and unit.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        data_range: range in the unit of the images.
        mask: ``(H, W, D)`` or ``(B, H, W, D)``, true where the error counts; slices without it are left out.

    Raises:
        ValueError: if the images are no volumes, or on an unknown plane.
    """
    pred, truth = _volumes(pred, truth)
    if plane not in AXES:
        raise ValueError(f"plane: expected one of {list(AXES)}, got {plane!r}")
    inside = torch.ones_like(truth[:, 0], dtype=torch.bool) if mask is None else _expand(mask, truth)
    shown = (truth.abs().amax(1) > SIGNAL * data_range) & inside
    parts = ((pred - truth).square().mean(1), inside, shown)
    error, inside, shown = (t.movedim(AXES[plane] - 1, 1).flatten(2) for t in parts)
    counts = inside.sum(2)
    mse = (error * inside).sum(2) / counts.clamp_min(1)
    decibels = 10 * torch.log10(data_range**2 / mse.clamp_min(torch.finfo(mse.dtype).tiny))
    used = shown.any(2)
    return torch.where(used, decibels, 0.0).sum(1) / used.sum(1)


def through_plane_variation(pred: Tensor, truth: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Return the total variation across slices, estimate over truth, per sample ``(B,)``.

    .. math:: \sum |x_{k+1} - x_k| \;/\; \sum |x^*_{k+1} - x^*_k|

    Above 1 neighbouring slices contradict each other (noise, or slices made one by one), below 1 they are smoothed into
    each other. NaN where the truth does not change across slices.

    Args:
        pred: estimate ``(B, C, H, W, D)``; slices follow each other along the last axis.
        truth: truth of the same shape and unit.
        mask: ``(H, W, D)`` or ``(B, H, W, D)``; pairs count that lie inside with both voxels.

    Raises:
        ValueError: if the images are no volumes of two slices or more.
    """
    pred, truth = _volumes(pred, truth)
    if truth.shape[-1] < 2:
        raise ValueError(f"truth: expected two slices or more, got {truth.shape[-1]}")
    inside = torch.ones_like(truth[:, 0], dtype=torch.bool) if mask is None else _expand(mask, truth)
    pairs = (inside[..., 1:] & inside[..., :-1])[:, None]
    variation, reference = ((x.diff(dim=-1).abs() * pairs).flatten(1).sum(1) for x in (pred, truth))
    return torch.where(reference > 0, variation / reference, torch.nan)


def _volumes(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    pred, truth = _pair(pred, truth)
    if truth.ndim != 5:
        raise ValueError(f"truth: expected volumes (B, C, H, W, D), got {tuple(truth.shape)}")
    return pred, truth
