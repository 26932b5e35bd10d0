r"""Analytic inversion: filtered back-projection as plain differentiable functions."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor

from ..operators.radon import ParallelBeam

__all__ = ["WINDOWS", "fbp", "ramp_filter"]

WINDOWS = ("ram-lak", "shepp-logan", "cosine", "hann")


def ramp_filter(bins: int, pitch_cm: float, *, window: str = "ram-lak", cutoff: float = 1.0) -> Tensor:
    r"""Return the frequency response of the windowed ramp for zero-padded rows.

    It is the transform of the band-limited spatial kernel ``h[0] = 1/(4 d^2)``, ``h[n] = -1/(pi n d)^2`` for odd ``n``,
    ``0`` for even ``n``; sampling ``|xi|`` instead would lose the mean value and cup the image.

    Args:
        bins: number of detector bins.
        pitch_cm: bin width ``d`` in cm.
        window: ``"ram-lak"``, ``"shepp-logan"``, ``"cosine"`` or ``"hann"``.
        cutoff: fraction of the Nyquist frequency at which the window ends, in ``(0, 1]``.

    Returns:
        ``(length // 2 + 1,)`` float64 response for ``torch.fft.rfft`` rows of ``length``, the power of two that is at
        least ``2 * bins``, in 1/cm, sampling step included: ``irfft(rfft(p) * response)`` is the filtered row.

    Raises:
        ValueError: on an unknown window or a cutoff outside ``(0, 1]``.

    References:
        kak1988
    """
    if window not in WINDOWS:
        raise ValueError(f"window: expected one of {WINDOWS}, got {window!r}")
    if not 0 < cutoff <= 1:
        raise ValueError(f"cutoff: expected a fraction of Nyquist in (0, 1], got {cutoff}")
    length = 1 << (2 * bins - 1).bit_length()
    n = torch.arange(length, dtype=torch.float64)
    n = torch.minimum(n, length - n)
    kernel = torch.where(n % 2 == 1, -1.0 / (pi * n.clamp_min(1) * pitch_cm) ** 2, torch.zeros(()))
    kernel[0] = 1.0 / (4 * pitch_cm**2)
    response = torch.fft.rfft(kernel).real * pitch_cm
    relative = torch.linspace(0, 1, length // 2 + 1, dtype=torch.float64) / cutoff  # frequency over the cut-off
    if window == "shepp-logan":
        response = response * torch.sinc(relative / 2)
    elif window == "cosine":
        response = response * torch.cos(pi * relative / 2)
    elif window == "hann":
        response = response * 0.5 * (1 + torch.cos(pi * relative))
    return torch.where(relative <= 1, response, torch.zeros(()))


def fbp(operator: ParallelBeam, sinogram: Tensor, *, window: str = "ram-lak", cutoff: float = 1.0) -> Tensor:
    r"""Return the filtered back-projection of parallel-beam sinograms.

    .. math:: x = \frac{\pi}{V} \sum_\theta (h * y_\theta)(u \cdot e_\theta)

    with the operator's adjoint, divided by its own back projection of ones, as the back-projector.

    Args:
        operator: parallel beam whose views are spread evenly over ``pi`` or a multiple of it.
        sinogram: ``(B, channels, views, bins)`` line integrals.
        window: apodisation of the ramp, see :func:`ramp_filter`.
        cutoff: fraction of the Nyquist frequency, in ``(0, 1]``.

    Returns:
        ``(B, channels, H, W)`` image in 1/cm where the sinogram is dimensionless.

    Raises:
        ValueError: if the views do not cover a multiple of ``pi`` evenly, or the sinogram does not fit.

    Example:
        >>> import torch
        >>> A = ParallelBeam((32, 32), (5.0, 5.0), views=48, bins=48)
        >>> fbp(A, A(torch.ones(1, 1, 32, 32))).shape
        torch.Size([1, 1, 32, 32])
    """
    operator.check_range(sinogram)
    views = len(operator.angles)
    if not _evenly_spread(operator.angles):
        span = f"{views} views from {operator.angles[0]:.4g} to {operator.angles[-1]:.4g}"
        raise ValueError(f"operator: expected views spread evenly over pi or a multiple of it, got {span}; "
                         "other scans need an iterative method")  # fmt: skip
    g = operator.geometry
    pitch = g.pitch_mm / 10
    response = ramp_filter(g.bins, pitch, window=window, cutoff=cutoff).to(sinogram.device, sinogram.dtype)
    length = 2 * (response.numel() - 1)
    filtered = torch.fft.irfft(torch.fft.rfft(sinogram, n=length) * response, n=length)[..., : g.bins]
    # A pixel's weights add to (pixel area) / (bin width) per view on average; dividing by its own sum removes the moire
    # of the two grids. A pixel that some views miss keeps the average: nothing there is exact anyway.
    average = views * g.spacing_mm[0] * g.spacing_mm[1] / 100 / pitch
    weights = operator.sensitivity(filtered.device, filtered.dtype)
    weights = torch.where(weights > 0.9 * average, weights, average)
    return operator.adjoint(filtered.contiguous()) * (pi / weights)


def _evenly_spread(angles: Sequence[float]) -> bool:
    """Whether the angles modulo pi are equally spaced, each as often as every other."""
    theta = torch.tensor(angles, dtype=torch.float64)
    folded = torch.sort(torch.remainder(theta - theta[0] + 1e-7, pi)).values - 1e-7
    new = torch.cat([torch.ones(1, dtype=torch.bool), folded.diff() > 1e-6])  # first of every group of equal angles
    distinct = int(new.sum())
    if len(angles) % distinct:
        return False
    expected = (torch.arange(len(angles)) // (len(angles) // distinct)).double() * (pi / distinct)
    return torch.allclose(folded, expected, atol=1e-6)
