"""Measures that say how close simulated MR images come to real ones; the same code runs on both.

They need no segmentation: grey and white matter are read off the two modes of the T1 histogram inside the brain mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["contrast_ratios", "spectrum_slope", "tissue_modes"]

Volume = NDArray[np.floating]
Mask = NDArray[np.bool_]
_FIELD = 180  # voxels: side of the square whose spectrum is taken


def tissue_modes(t1: Volume, brain: Mask) -> tuple[float, float]:
    """Return the modes of grey and white matter of a T1-weighted image.

    Args:
        t1: ``(X, Y, Z)`` intensities, any scale.
        brain: ``(X, Y, Z)`` brain mask.

    Returns:
        Intensity of grey and of white matter.
    """
    values = t1[brain]
    counts, edges = np.histogram(values, 200, (0.0, float(np.percentile(values, 99.5))))
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 3)
    centres = 0.5 * (edges[1:] + edges[:-1])
    white = centres[120 + int(np.argmax(smooth[120:]))]
    low, high = np.searchsorted(centres, [0.5 * white, 0.85 * white])
    return float(centres[low + int(np.argmax(smooth[low:high]))]), float(white)


def contrast_ratios(
    images: Mapping[str, Volume], brain: Mask, lesion: Mask | None = None
) -> dict[str, dict[str, float]]:
    """Return median intensities relative to white matter.

    Args:
        images: name -> ``(X, Y, Z)``; ``"t1"`` is needed, it tells the tissues apart.
        brain: ``(X, Y, Z)`` brain mask.
        lesion: ``(X, Y, Z)`` lesion mask, left out of the tissues.

    Returns:
        name -> ``{"gm", "csf", "lesion"}``; ``"lesion"`` only with a lesion mask.

    Raises:
        ValueError: if there is no T1 image.
    """
    if "t1" not in images:
        raise ValueError(f"images: expected a 't1' image among them, got {sorted(images)}")
    healthy = brain if lesion is None else brain & ~lesion
    grey, white = tissue_modes(images["t1"], healthy)
    relative = images["t1"] / white
    tissues = {
        "gm": healthy & (np.abs(relative - grey / white) < 0.06),
        "csf": healthy & (relative < 0.3),
        **({} if lesion is None else {"lesion": lesion}),
    }
    reference = healthy & (np.abs(relative - 1) < 0.05)
    return {
        name: {tissue: float(np.median(image[m]) / np.median(image[reference])) for tissue, m in tissues.items()}
        for name, image in images.items()
    }


def spectrum_slope(image: Volume, brain: Mask, z_indices: Iterable[int]) -> float:
    """Return the slope of the radial power spectrum in log-log axes, 5 to 60 cycles per 180 mm, brain only.

    Args:
        image: ``(X, Y, Z)`` with 1 mm voxels in-plane.
        brain: ``(X, Y, Z)`` brain mask.
        z_indices: axial slices to average over.

    Returns:
        Mean slope, about -3 for T1 and -2.5 for T2 and FLAIR of real brains.
    """
    frequency = np.fft.fftfreq(_FIELD) * _FIELD
    radius = np.rint(np.hypot(frequency[:, None], frequency[None, :])).astype(int)
    band = np.arange(5, 61)
    slopes = []
    for z in z_indices:
        columns, rows = np.nonzero(brain[:, :, z].any(1))[0], np.nonzero(brain[:, :, z].any(0))[0]
        x0 = max((columns[0] + columns[-1]) // 2 - _FIELD // 2, 0)
        y0 = max((rows[0] + rows[-1]) // 2 - _FIELD // 2, 0)
        cut = (image[:, :, z] * brain[:, :, z])[x0 : x0 + _FIELD, y0 : y0 + _FIELD]
        square = np.zeros((_FIELD, _FIELD))
        square[: cut.shape[0], : cut.shape[1]] = cut
        power = np.abs(np.fft.fft2(square)) ** 2
        radial = np.bincount(radius.ravel(), power.ravel()) / np.bincount(radius.ravel())
        slopes.append(np.polyfit(np.log(band), np.log(radial[band]), 1)[0])
    return float(np.mean(slopes))
