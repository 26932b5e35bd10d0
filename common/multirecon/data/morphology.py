"""Dilation and closing of masks by boxes, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["close", "dilate"]


def dilate(mask: Tensor, reach: int) -> Tensor:
    """Return the mask grown by ``reach`` voxels along every axis, ``(X, Y, Z)`` bool."""
    for axis in range(mask.ndim):
        grown, n = mask.clone(), mask.shape[axis]
        for i in range(1, min(reach, n - 1) + 1):
            grown.narrow(axis, i, n - i).logical_or_(mask.narrow(axis, 0, n - i))
            grown.narrow(axis, 0, n - i).logical_or_(mask.narrow(axis, i, n - i))
        mask = grown
    return mask


def close(mask: Tensor, reach: int) -> Tensor:
    """Return the mask with gaps narrower than ``2 reach`` voxels closed, ``(X, Y, Z)`` bool."""
    return torch.logical_not(dilate(torch.logical_not(dilate(mask, reach)), reach))
