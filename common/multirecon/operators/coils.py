"""Receive-coil sensitivity maps: simulated, estimated, and with the image phase absorbed."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor

from .fourier import centred_fft, centred_ifft
from .masks import calibration_size

__all__ = ["birdcage_maps", "estimate_maps", "image_phase", "low_resolution_phase", "smooth_phase"]


def birdcage_maps(coils: int, shape: Sequence[int], *, radius: float = 1.5, rings: int = 1) -> Tensor:
    r"""Return the maps of coils on a circle around the field of view, root sum of squares one.

    Coil ``c`` sits at the angle ``a = 2 pi c / C``. At row ``j``, column ``i``: ``X = (i - W/2)/(W/2) - r cos a``,
    ``Y = (j - H/2)/(H/2) - r sin a``, ``S_c = exp(i (atan2(X, -Y) - a)) / |(X, Y)|``, divided by the root sum of
    squares over coils. In 3D, ``Z = (k - D/2)/(D/2) - h`` joins the distance and the coils form rings at the heights
    ``h``, one apart and centred.

    Args:
        coils: number of coils, divisible by ``rings``.
        shape: ``(H, W)`` or ``(D, H, W)``.
        radius: distance of the coils from the centre in half widths of the image.
        rings: number of rings of coils (3D only).

    Returns:
        complex64 maps ``(coils, *shape)``; coil 0 is brightest at the right edge.

    Raises:
        ValueError: if the arguments do not fit.

    Example:
        >>> maps = birdcage_maps(8, (6, 5))
        >>> torch.allclose(maps.abs().square().sum(0), torch.ones(6, 5))
        True
    """
    if len(shape) not in (2, 3):
        raise ValueError(f"shape: expected two or three sizes, got {tuple(shape)}")
    if coils < 1 or rings < 1 or coils % rings or (rings > 1 and len(shape) == 2):
        raise ValueError(f"coils, rings: expected coils in equal rings (one ring in 2D), got {coils} and {rings}")
    per_ring = coils // rings
    *_, y, x = torch.meshgrid(*[2 * torch.arange(n, dtype=torch.float64) / n - 1 for n in shape], indexing="ij")
    maps = []
    for coil in range(coils):
        ring, place = divmod(coil, per_ring)
        angle = torch.tensor(2 * pi * place / per_ring, dtype=torch.float64)
        dx, dy = x - radius * torch.cos(angle), y - radius * torch.sin(angle)
        squared = dx**2 + dy**2
        if len(shape) == 3:
            z = 2 * torch.arange(shape[0], dtype=torch.float64) / shape[0] - 1
            squared = squared + (z - (ring - (rings - 1) / 2)).reshape(-1, 1, 1) ** 2
        magnitude = squared.clamp_min(1e-12).rsqrt()  # a coil may lie on a grid point
        maps.append(torch.polar(magnitude, torch.atan2(dx, -dy) - angle))
    stack = torch.stack(maps)
    return (stack / torch.linalg.vector_norm(stack, dim=0)).to(torch.complex64)


def smooth_phase(
    shape: Sequence[int], generator: torch.Generator, *, order: int = 3, amplitude: float = pi / 3
) -> Tensor:
    """Return a random smooth phase: low-order cosines with normal coefficients and a uniform constant.

    Args:
        shape: ``(*spatial)``.
        generator: source of randomness (on the CPU).
        order: highest sum of cosine orders over the axes; the spread of a coefficient falls with its order.
        amplitude: root mean square deviation from the mean phase over the grid, in radians.

    Returns:
        float32 phase of ``shape`` in radians.

    Raises:
        ValueError: if order is below 1 or the amplitude negative.
    """
    if order < 1 or amplitude < 0:
        raise ValueError(f"order, amplitude: expected order >= 1 and amplitude >= 0, got {order} and {amplitude}")
    phase = torch.zeros(tuple(shape), dtype=torch.float64)
    axes = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in shape]
    for orders in torch.cartesian_prod(*[torch.arange(order + 1)] * len(shape)).tolist():
        if not 1 <= sum(orders) <= order:
            continue
        term = torch.randn((), generator=generator, dtype=torch.float64) / sum(orders)
        for axis, (grid, degree) in enumerate(zip(axes, orders, strict=True)):
            term = term * torch.cos(pi * degree * grid).reshape(-1, *[1] * (len(shape) - 1 - axis))
        phase = phase + term
    phase = phase - phase.mean()
    phase = phase * (amplitude / phase.square().mean().sqrt())
    return (phase + (2 * torch.rand((), generator=generator, dtype=torch.float64) - 1) * pi).float()


def estimate_maps(
    kspace: Tensor,
    *,
    calibration: Sequence[int] | None = None,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.9,
    real_image: bool = True,
) -> Tensor:
    r"""Estimate coil maps from the fully sampled centre of k-space, by the eigenvalue method.

    All ``kernel``-sized patches of the centre lie near a small subspace with projector ``P``. If an image has the maps
    ``S``, the vector ``S(r) exp(-2 pi i d r / N)`` (coil, offset ``d`` in the patch) lies in it, so that at every pixel
    ``S(r)`` is an eigenvector of ``G(r) = kernel^{-D} sum_{d, d'} P_{d d'} exp(2 pi i (d - d') r / N)`` for the
    eigenvalue one. ``P`` enters through its sums over equal lags ``d - d'``: a filter of ``(2 kernel - 1)^D`` taps.

    An eigenvector has no phase of its own. With ``real_image`` the phase of the low-resolution image is given to the
    maps, so that the image they belong to is real and non-negative up to finer phase; otherwise the phase is that of
    the strongest combination of the coils.

    Args:
        kspace: ``(coils, *spatial)`` or ``(B, coils, *spatial)``, complex, zero where not sampled.
        calibration: size of the centred fully sampled block for each axis; the default is the largest one, at most 32
            along each axis.
        kernel: patch size along every axis.
        threshold: singular values of the patches below this fraction of the largest are taken for noise.
        crop: pixels whose eigenvalue lies below are outside the support, their maps zero; 0 keeps all.
        real_image: whether the low-resolution phase is absorbed.

    Returns:
        Complex maps shaped like ``kspace``, with root sum of squares one inside the support.

    Raises:
        ValueError: if there is no fully sampled centre of at least two kernels.

    References:
        uecker2014
    """
    if kspace.ndim not in (3, 4) or not kspace.is_complex():
        raise ValueError(f"kspace: expected complex (coils, *spatial), got {kspace.dtype} {tuple(kspace.shape)}")
    block, size = _calibration_block(kspace, calibration)
    if min(size) < 2 * kernel:
        raise ValueError(
            f"calibration: expected at least {2 * kernel} along every axis for kernel={kernel}, got {size}"
        )
    lag_filter = _subspace_lags(block.to(torch.complex128), kernel, threshold).to(kspace.dtype)
    spatial = kspace.shape[1:]
    ramps = [_lag_ramp(n, kernel, kspace) for n in spatial]
    for ramp in reversed(ramps[1:]):  # last axis first: (C, C, lag_0, ..., lag_k) -> (C, C, lag_0, n_1, ..., n_k)
        lag_filter = torch.tensordot(lag_filter, ramp, dims=([1 + len(spatial)], [1])).movedim(-1, 3)
    rows = max(1, 2**22 // lag_filter[:, :, 0].numel())  # matrices of some 30 MB at a time
    maps, value = torch.empty_like(kspace), torch.empty(spatial, dtype=kspace.real.dtype, device=kspace.device)
    for start in range(0, spatial[0], rows):
        part = slice(start, start + rows)
        matrices = torch.tensordot(ramps[0][part], lag_filter, dims=([1], [2])).movedim((1, 2), (-2, -1))
        eigenvalues, eigenvectors = torch.linalg.eigh(matrices)
        value[part] = eigenvalues[..., -1]
        maps[:, part] = eigenvectors[..., -1].movedim(-1, 0)
    if real_image:
        reference = (maps.conj() * _low_resolution(block, spatial)).sum(0)
    else:
        flat = block.flatten(1)
        reference = (maps.conj() * torch.linalg.eigh(flat @ flat.mH)[1][:, -1].reshape(-1, *[1] * len(spatial))).sum(0)
    maps = maps * torch.polar(torch.ones_like(value), reference.angle())
    return maps * (value >= crop)


def low_resolution_phase(kspace: Tensor, maps: Tensor, *, calibration: Sequence[int] | None = None) -> Tensor:
    """Return the phase of the coil-combined low-resolution image; ``maps * exp(i phase)`` absorbs it.

    Args:
        kspace: ``(coils, *spatial)``, complex, zero where not sampled.
        maps: complex coil maps ``(coils, *spatial)``.
        calibration: size of the centred fully sampled block for each axis; the default is as in :func:`estimate_maps`.

    Returns:
        Phase ``(*spatial)`` in radians.

    Raises:
        ValueError: if shapes disagree or the block is not fully sampled.
    """
    if kspace.shape != maps.shape:
        raise ValueError(f"maps: expected the shape {tuple(kspace.shape)} of kspace, got {tuple(maps.shape)}")
    block, _ = _calibration_block(kspace, calibration)
    return (maps.conj() * _low_resolution(block, kspace.shape[1:])).sum(0).angle()


def image_phase(image: Tensor, size: Sequence[int]) -> Tensor:
    """Return the phase of a complex image after a low-pass; ``maps * exp(i phase)`` absorbs it.

    A coil-combined image (CG-SENSE with complex maps, say) is known beyond the calibration block, so its phase follows
    steeper changes than :func:`low_resolution_phase`: with ``size`` two to four times the block, a real image explains
    measured data nearly as well as a complex one.

    Args:
        image: complex ``(..., *spatial)``.
        size: number of frequencies kept along each of the last axes, under a Hann window.

    Returns:
        Phase shaped like ``image`` in radians.

    Raises:
        ValueError: if the image is real or a size does not fit.
    """
    spatial = image.shape[-len(size) :]
    if not image.is_complex() or any(not 1 <= k <= n for k, n in zip(size, spatial, strict=True)):
        raise ValueError(f"image, size: expected a complex image and sizes within {tuple(spatial)}, "
                         f"got {image.dtype} and {tuple(size)}")  # fmt: skip
    corner = (slice(n // 2 - k // 2, n // 2 - k // 2 + k) for n, k in zip(spatial, size, strict=True))
    block = centred_fft(image.reshape(-1, *spatial), len(size))[(slice(None), *corner)]
    return _low_resolution(block, spatial).reshape(image.shape).angle()


def _calibration_block(kspace: Tensor, size: Sequence[int] | None) -> tuple[Tensor, tuple[int, ...]]:
    sampled = (kspace != 0).any(0)
    found = calibration_size(sampled)
    size = tuple(min(n, 32) for n in found) if size is None else tuple(int(n) for n in size)
    if len(size) != sampled.ndim:
        raise ValueError(f"calibration: expected {sampled.ndim} sizes, got {size}")
    block = kspace[(slice(None), *[slice(n // 2 - k // 2, n // 2 - k // 2 + k)
                                   for n, k in zip(sampled.shape, size, strict=True)])]  # fmt: skip
    if min(size) < 1 or tuple(block.shape[1:]) != size or not (block != 0).any(0).all():
        raise ValueError(f"calibration: expected a fully sampled block (the largest found is {found}), got {size}")
    return block, size


def _subspace_lags(block: Tensor, kernel: int, threshold: float) -> Tensor:
    """Return the projector of the patch subspace, summed over equal lags: ``(C, C, *(2 kernel - 1))``."""
    coils, dims = block.shape[0], block.ndim - 1
    patches = block
    for axis in range(1, dims + 1):
        patches = patches.unfold(axis, kernel, 1)
    patches = patches.movedim(0, dims).reshape(-1, coils * kernel**dims)
    eigenvalues, eigenvectors = torch.linalg.eigh(patches.mT @ patches.conj())
    signal = eigenvectors[:, eigenvalues > threshold**2 * eigenvalues[-1]]
    projector = (signal @ signal.mH).reshape(coils, -1, coils, kernel**dims).transpose(1, 2).flatten(2)
    offsets = torch.cartesian_prod(*[torch.arange(kernel)] * dims)
    lags = offsets[:, None] - offsets[None, :] + kernel - 1
    index = torch.zeros(lags.shape[:2], dtype=torch.long)
    for axis in range(dims):
        index = index * (2 * kernel - 1) + lags[..., axis]
    total = projector.new_zeros(coils, coils, (2 * kernel - 1) ** dims)
    total.index_add_(2, index.flatten().to(block.device), projector)
    return total.reshape(coils, coils, *[2 * kernel - 1] * dims) / kernel**dims


def _lag_ramp(size: int, kernel: int, like: Tensor) -> Tensor:
    """Return ``exp(2 pi i lag (n - N // 2) / N)`` of shape ``(N, 2 kernel - 1)``."""
    place = (torch.arange(size, dtype=torch.float64) - size // 2) / size
    turns = place[:, None] * torch.arange(1 - kernel, kernel, dtype=torch.float64)
    return torch.polar(torch.ones_like(turns), 2 * pi * turns).to(like)


def _low_resolution(block: Tensor, spatial: Sequence[int]) -> Tensor:
    """Return coil images ``(coils, *spatial)`` of the block of k-space under a Hann window."""
    padded = block.new_zeros(block.shape[0], *spatial)
    window = block.new_ones(())
    place: list[slice] = [slice(None)]
    for axis, (n, size) in enumerate(zip(block.shape[1:], spatial, strict=True)):
        place.append(slice(size // 2 - n // 2, size // 2 - n // 2 + n))
        steps = torch.arange(n, dtype=torch.float64) - n // 2
        hann = torch.cos(pi * steps / (n + 1)) ** 2
        window = window * hann.to(block).reshape(-1, *[1] * (block.ndim - 2 - axis))
    padded[tuple(place)] = block * window
    return centred_ifft(padded, len(spatial))
