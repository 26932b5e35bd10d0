"""Spatial frequencies of an image: is its texture that of the truth, smoothed away, or noise?"""

from __future__ import annotations

import torch
from torch import Tensor

from .image import _mean, _pair

__all__ = ["HALF_NYQUIST", "high_frequency_ratio", "radial_power"]

HALF_NYQUIST = 0.25


def radial_power(images: Tensor, *, bins: int = 32) -> tuple[Tensor, Tensor]:
    r"""Return the mean power ``|F x|^2`` in rings of spatial frequency, orthonormal Fourier transform.

    Args:
        images: real ``(B, C, *spatial)``.
        bins: rings of equal width from 0 to the Nyquist frequency 0.5 cycles a voxel; what lies beyond it (the corners)
            is left out.

    Returns:
        Centres of the rings ``(bins,)`` in cycles a voxel and power ``(B, C, bins)`` in the square of the image's
        unit; zero in a ring without a sample.

    Raises:
        ValueError: on fewer than one bin or images without spatial axes.
    """
    if images.ndim not in (4, 5) or bins < 1:
        raise ValueError(f"images: expected (B, C, *spatial) and bins >= 1, got {tuple(images.shape)} and {bins}")
    frequency = _frequency(images)
    power = torch.fft.fftn(images.double(), dim=_axes(images), norm="ortho").abs() ** 2
    ring = (frequency * 2 * bins).floor().long().flatten()
    inside = ring < bins
    flat = power.flatten(2)[..., inside]
    count = torch.bincount(ring[inside], minlength=bins)
    sums = torch.zeros(*flat.shape[:2], bins, dtype=flat.dtype, device=flat.device).index_add_(2, ring[inside], flat)
    centres = (torch.arange(bins, dtype=torch.float64, device=images.device) + 0.5) / (2 * bins)
    return centres, sums / count.clamp_min(1)


def high_frequency_ratio(
    pred: Tensor, truth: Tensor, *, mask: Tensor | None = None, cutoff: float = HALF_NYQUIST
) -> Tensor:
    r"""Return the high-frequency energy ratio per sample ``(B,)``: below 1 smoothed, above 1 noise or invented texture.

    .. math:: \mathrm{HFER} = \frac{\|H x\|^2_M}{\|H x^*\|^2_M}, \quad
              H = F^H \, \mathrm{diag}(|f| \geq f_c) \, F

    Without a mask this is the ratio of the power spectra summed over all radial frequencies from ``cutoff`` up, the
    corners included (Parseval). A mask is applied after the filter, so that its border adds no frequencies.

    Args:
        pred: estimate ``(B, C, *spatial)``.
        truth: truth of the same shape and unit.
        mask: ``(*spatial)`` or ``(B, *spatial)``, true where the energy counts; the default is everywhere.
        cutoff: lowest radial frequency in cycles a voxel; the default is half the Nyquist frequency.

    Raises:
        ValueError: on different shapes, an empty mask, a cutoff outside (0, 0.5], or a truth without energy there.
    """
    pred, truth = _pair(pred, truth)
    if not 0 < cutoff <= 0.5:
        raise ValueError(f"cutoff: expected within (0, 0.5] cycles a voxel, got {cutoff}")
    reference = _mean(_high_pass(truth, cutoff) ** 2, mask)
    # rounding of the transform leaves about 1e-32 of the energy where there is none
    if (reference <= 1e-28 * _mean(truth**2, None)).any():
        raise ValueError(f"truth: expected energy at or above {cutoff} cycles a voxel, got {reference.tolist()}")
    return _mean(_high_pass(pred, cutoff) ** 2, mask) / reference


def _axes(images: Tensor) -> tuple[int, ...]:
    return tuple(range(2, images.ndim))


def _frequency(images: Tensor) -> Tensor:
    """Return the radial frequency ``(*spatial)`` in cycles a voxel."""
    lines = [torch.fft.fftfreq(n, dtype=torch.float64, device=images.device) for n in images.shape[2:]]
    squares = [f**2 for f in torch.meshgrid(*lines, indexing="ij")]
    return torch.stack(squares).sum(0).sqrt()


def _high_pass(images: Tensor, cutoff: float) -> Tensor:
    axes = _axes(images)
    spectrum = torch.fft.fftn(images, dim=axes) * (_frequency(images) >= cutoff)
    return torch.fft.ifftn(spectrum, dim=axes).real
