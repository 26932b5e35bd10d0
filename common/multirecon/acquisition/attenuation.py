"""Attenuation maps at 511 keV as a PET scanner gets them: from the CT or MR data of the same examination."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..data.materials import attenuation_511
from ..likelihoods import gaussian_approximation
from ..operators import GaussianBlur, Identity
from ..units import attenuation_to_hu
from .base import ScanResult

__all__ = ["attenuation_from_ct", "class_map", "least_squares_image"]

SOFT_TISSUE = 0.0975  # 1/cm at 511 keV, between brain (0.099) and fat (0.091)
SKULL = 0.12  # cortical bone and marrow together
_TISSUE = 0.25  # of the 99th percentile of the T1-weighted image: tissue is brighter
_FAT = 0.6  # likewise: the scalp's fat is brighter, skull and marrow darker
_SKULL_DEPTH_MM = (4.0, 13.0)


@torch.no_grad()
def least_squares_image(result: ScanResult, *, iterations: int = 20) -> Tensor:
    r"""Return an image ``(1, 1, *shape)`` of the data: a few conjugate gradient steps on ``|A x - d|_W^2`` from zero.

    Clean images are returned as they are. Stopping early is all the regularisation there is: good enough for a map
    that is blurred to the resolution of PET afterwards.

    Args:
        result: data and model of one scan; counts go through the Gaussian approximation of their likelihood.
        iterations: number of steps.

    Raises:
        ValueError: if the likelihood has no Gaussian approximation.
    """
    if isinstance(result.operator, Identity):
        return result.y
    data, noise = gaussian_approximation(result.likelihood, result.y)
    weight = torch.where(noise.sigma > 0, noise.sigma, 1.0) ** -2
    weight = weight / weight.max()
    operator = result.operator
    residual = operator.adjoint(weight * data)
    x, direction, energy = torch.zeros_like(residual), residual, residual.square().sum()
    for _ in range(iterations):
        if not bool(energy > 0):
            break
        product = operator.adjoint(weight * operator(direction))
        step = energy / (direction * product).sum()
        x = x + step * direction
        residual = residual - step * product
        previous, energy = energy, residual.square().sum()
        direction = residual + energy / previous * direction
    return x


def attenuation_from_ct(image: Tensor, *, spacing_mm: Sequence[float], fwhm_mm: float = 5.0) -> Tensor:
    """Return the 511 keV attenuation in 1/cm of a CT image: bilinear in HU, then blurred towards PET's resolution.

    Args:
        image: ``(1, 1, *shape)`` linear attenuation at CT energies in 1/cm; noise below zero counts as air.
        spacing_mm: pixel size in mm.
        fwhm_mm: full width at half maximum of the blur in mm.
    """
    mu = attenuation_511(attenuation_to_hu(image.clamp_min(0.0)))
    return GaussianBlur(mu.shape[1:], spacing_mm, fwhm_mm=fwhm_mm).to(mu)(mu) if fwhm_mm else mu


def class_map(image: Tensor, *, spacing_mm: Sequence[float]) -> Tensor:
    """Return a 511 keV attenuation map in 1/cm of three classes (air, soft tissue, skull) from a T1-weighted image.

    The head is the filled outline of what is brighter than a threshold. Under the scalp, 4 to 13 mm deep, what is
    darker than fat counts as skull; all else is soft tissue. Air inside the head and thick muscle over the skull are
    misjudged, as on a scanner without an MR sequence for bone.

    Args:
        image: ``(1, 1, H, W)`` magnitude, any scale.
        spacing_mm: pixel size in mm.
    """
    values = image[0, 0].detach().cpu().double().numpy()
    pixel = float(np.mean(spacing_mm))
    bright = ndimage.gaussian_filter(values, 0.8 / pixel) > _TISSUE * (top := np.percentile(values, 99))
    reach = max(1, round(6.0 / pixel))
    padded = np.pad(bright, 2 * reach)  # closing must not stop at the edge of the image
    head = ndimage.binary_fill_holes(ndimage.binary_closing(padded, iterations=reach))
    head = head[2 * reach : -2 * reach, 2 * reach : -2 * reach]
    parts, count = ndimage.label(head)
    if count > 1:
        head = parts == 1 + int(np.argmax(ndimage.sum_labels(head, parts, range(1, count + 1))))
    depth = ndimage.distance_transform_edt(head, sampling=tuple(spacing_mm))
    first, last = _SKULL_DEPTH_MM
    skull = head & (depth > first) & (depth < last) & (values < _FAT * top)
    mu = np.where(skull, SKULL, np.where(head, SOFT_TISSUE, 0.0))
    return torch.from_numpy(mu)[None, None].to(image)
