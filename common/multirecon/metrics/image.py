"""Distances between an estimate and the truth, one number a sample, on the whole image or inside a mask."""

from __future__ import annotations

import torch
from monai.metrics import PSNRMetric
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor

__all__ = ["SSIM_WINDOW", "bias", "mae", "nrmse", "psnr", "rmse", "ssim", "ssim_map"]

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def psnr(pred: Tensor, truth: Tensor, *, data_range: float, mask: Tensor | None = None) -> Tensor:
    r"""Return the peak signal-to-noise ratio ``10 log10(R^2 / MSE)`` in dB, of shape ``(B,)``; infinite where equal.

    Args:
        pred: estimate ``(B, C, *spatial)``.
        truth: truth of the same shape and unit.
        data_range: ``R`` in the unit of the images.
        mask: ``(*spatial)`` or ``(B, *spatial)``, true where the error counts; the default is everywhere.

    Raises:
        ValueError: on different shapes, a range that is not positive, or a mask that is empty or of another shape.
    """
    pred, truth = _pair(pred, truth, data_range)
    if mask is None:
        return PSNRMetric(max_val=data_range, reduction="none")(pred, truth)[:, 0]
    return 10.0 * torch.log10(data_range**2 / _mean((pred - truth) ** 2, mask))


def nrmse(pred: Tensor, truth: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Return ``|pred - truth| / |truth|`` (Euclidean norms), of shape ``(B,)``; arguments as in :func:`psnr`."""
    pred, truth = _pair(pred, truth)
    return (_mean((pred - truth) ** 2, mask) / _mean(truth**2, mask)).sqrt()


def rmse(pred: Tensor, truth: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the root mean square error in the unit of the images, of shape ``(B,)``; arguments as in :func:`psnr`."""
    pred, truth = _pair(pred, truth)
    return _mean((pred - truth) ** 2, mask).sqrt()


def mae(pred: Tensor, truth: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the mean absolute error in the unit of the images, of shape ``(B,)``; arguments as in :func:`psnr`."""
    pred, truth = _pair(pred, truth)
    return _mean((pred - truth).abs(), mask)


def bias(pred: Tensor, truth: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the mean error in the unit of the images, of shape ``(B,)``; arguments as in :func:`psnr`."""
    pred, truth = _pair(pred, truth)
    return _mean(pred - truth, mask)


def ssim_map(pred: Tensor, truth: Tensor, *, data_range: float) -> Tensor:
    r"""Return the local structural similarity where the window fits, ``(B, C, *spatial - 10)``.

    Gaussian window of 11 voxels and ``sigma = 1.5``, ``k1 = 0.01``, ``k2 = 0.03``, biased local moments: MONAI's
    convention, and that of scikit-image with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``. The
    images are divided by ``R`` first, so that single precision serves every unit.

    Args:
        pred: estimate ``(B, C, *spatial)``.
        truth: truth of the same shape and unit.
        data_range: ``R`` in the unit of the images.

    Raises:
        ValueError: on different shapes, a range that is not positive, or images smaller than the window.

    References:
        wang2004
    """
    pred, truth = _pair(pred, truth, data_range)
    dims = pred.ndim - 2
    if min(pred.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"image: expected at least {SSIM_WINDOW} voxels an axis for SSIM, got {tuple(pred.shape[2:])}")
    similarity, _ = compute_ssim_and_cs(
        y_pred=pred / data_range,
        y=truth / data_range,
        spatial_dims=dims,
        kernel_size=(SSIM_WINDOW,) * dims,
        kernel_sigma=(SSIM_SIGMA,) * dims,
        data_range=1.0,
    )
    return similarity


def ssim(pred: Tensor, truth: Tensor, *, data_range: float, mask: Tensor | None = None) -> Tensor:
    """Return the mean of :func:`ssim_map` per sample ``(B,)``; a mask selects the window centres that count."""
    similarity = ssim_map(pred, truth, data_range=data_range)
    if mask is not None:
        border = SSIM_WINDOW // 2
        inner = (slice(border, -border),) * (pred.ndim - 2)
        mask = _expand(mask, pred)[(slice(None), *inner)]
    return _mean(similarity, mask)


def _pair(pred: Tensor, truth: Tensor, data_range: float = 1.0) -> tuple[Tensor, Tensor]:
    if pred.shape != truth.shape or pred.ndim not in (4, 5):
        raise ValueError(
            f"pred: expected (B, C, *spatial) like the truth {tuple(truth.shape)}, got {tuple(pred.shape)}"
        )
    if not data_range > 0:
        raise ValueError(f"data_range: expected > 0, got {data_range}")
    return torch.as_tensor(pred).double(), torch.as_tensor(truth).double()


def _expand(mask: Tensor, like: Tensor) -> Tensor:
    """Return the mask as ``(B, *spatial)`` booleans."""
    mask = mask if mask.ndim == like.ndim - 1 else mask[None]
    if mask.ndim != like.ndim - 1 or mask.shape[1:] != like.shape[2:] or mask.shape[0] not in (1, like.shape[0]):
        raise ValueError(
            f"mask: expected shape {tuple(like.shape[2:])} with or without a batch axis, got {tuple(mask.shape)}"
        )
    return mask.to(like.device).bool().expand(like.shape[0], *like.shape[2:])


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over channels and (masked) voxels per sample."""
    if mask is None:
        return values.flatten(1).mean(1)
    weights = _expand(mask, values).to(values.dtype)[:, None]
    count = weights.flatten(1).sum(1)
    if (count == 0).any():
        raise ValueError("mask: expected at least one voxel in every sample, got an empty mask")
    return (values * weights).flatten(1).sum(1) / (count * values.shape[1])
