"""Lesions: how much of their contrast comes back, and how well it stands out of the background."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, max_pool3d

from .image import _expand, _mean, _pair

__all__ = ["MINIMUM_CONTRAST", "contrast_recovery", "contrast_to_noise", "surroundings"]

MINIMUM_CONTRAST = 0.05


def surroundings(mask: Tensor, *, gap: int = 1, width: int = 3) -> Tensor:
    r"""Return the shell around a mask, ``dilate(M, gap + width) \ dilate(M, gap)``, of the mask's shape.

    The gap keeps voxels that a lesion spills into out of its background. Dilation is by a square (cube).

    Args:
        mask: ``(H, W)`` or ``(D, H, W)``, true inside the lesions.
        gap: voxels left out next to the lesion.
        width: thickness of the shell in voxels.

    Raises:
        ValueError: on another number of axes, ``gap < 0`` or ``width < 1``.
    """
    if mask.ndim not in (2, 3):
        raise ValueError(f"mask: expected 2 or 3 axes, got shape {tuple(mask.shape)}")
    if gap < 0 or width < 1:
        raise ValueError(f"gap, width: expected gap >= 0 and width >= 1, got {gap} and {width}")
    pool = max_pool2d if mask.ndim == 2 else max_pool3d
    near, far = (
        pool(mask.bool().float()[None, None], 2 * n + 1, stride=1, padding=n)[0, 0] > 0 for n in (gap, gap + width)
    )
    return far & ~near


def contrast_recovery(
    pred: Tensor, truth: Tensor, *, lesion: Tensor, background: Tensor, minimum_contrast: float = MINIMUM_CONTRAST
) -> Tensor:
    r"""Return the contrast recovery coefficient per sample ``(B,)``; 1 is perfect.

    .. math:: \mathrm{CRC} = \frac{\bar x_L / \bar x_B - 1}{\bar x^*_L / \bar x^*_B - 1}

    NaN where the truth's own contrast is below ``minimum_contrast`` in size or its background is not positive: this
    modality shows no lesion there.

    Args:
        pred: estimate ``(B, C, *spatial)`` on a ratio scale (activity, attenuation, MR signal; not HU).
        truth: truth of the same shape and unit.
        lesion: ``(*spatial)`` or ``(B, *spatial)``, true in the lesions.
        background: region to compare with, of the same shape.
        minimum_contrast: smallest contrast ``|x*_L / x*_B - 1|`` that can be recovered.

    Raises:
        ValueError: on different shapes, an empty mask or overlapping masks.
    """
    pred, truth = _pair(pred, truth)
    _apart(lesion, background, truth)
    reference = _mean(truth, background)
    true = _mean(truth, lesion) / reference - 1
    found = _mean(pred, lesion) / _mean(pred, background) - 1
    return torch.where((reference > 0) & (true.abs() >= minimum_contrast), found / true, torch.nan)


def contrast_to_noise(pred: Tensor, *, lesion: Tensor, background: Tensor) -> Tensor:
    r"""Return :math:`|\bar x_L - \bar x_B| / \mathrm{std}_B(x)` per sample ``(B,)`` (population standard deviation).

    The spread over the background's voxels holds its anatomy as well as noise; infinite on a constant background.

    Args:
        pred: image ``(B, C, *spatial)``.
        lesion: ``(*spatial)`` or ``(B, *spatial)``, true in the lesions.
        background: region to compare with, of the same shape.

    Raises:
        ValueError: on an empty mask, overlapping masks, or masks of another shape.
    """
    pred, _ = _pair(pred, pred)
    _apart(lesion, background, pred)
    level = _mean(pred, background)
    centred = pred - level.reshape(-1, *[1] * (pred.ndim - 1))
    return (_mean(pred, lesion) - level).abs() / _mean(centred**2, background).sqrt()


def _apart(lesion: Tensor, background: Tensor, like: Tensor) -> None:
    if (_expand(lesion, like) & _expand(background, like)).any():
        raise ValueError("background: expected no voxel of the lesion, got overlapping masks")
