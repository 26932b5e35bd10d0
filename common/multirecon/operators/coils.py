"""Receive-coil sensitivity maps: simulated, estimated, and with the image phase absorbed."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor

from .fourier import centred_ifft
from .masks import calibration_size

__all__ = ["birdcage_maps", "estimate_maps", "low_resolution_phase", "smooth_phase"]


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
    ``S``, the vector ``S(r) e^{-2 pi i d r / N}`` (coil, offset ``d`` in the patch) lies in it, so that at every pixel ``S(r)``
    is an eigenvector of ``G(r) = kernel^{-D} sum_{d, d'} P_{d d'} e^{2 pi i (d - d') r / N}`` for the eigenvalue one. ``P``
    enters through its sums over equal lags ``d - d'`` only, a ``(2 kernel - 1)^D`` filter evaluated at the pixels.

    An eigenvector has no phase of its own. With ``real_image`` the phase of the low-resolution image is given to the maps, so
    that the image they belong to is real and non-negative up to finer phase; otherwise the phase is that of the strongest
    combination of the coils.

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
    if kspace.ndim not in (3, 4, 5) or not kspace.is_complex():
        raise ValueError(f"kspace: expected complex (coils, *spatial) or (B, coils, *spatial), got {kspace.dtype} "
                         f"{tuple(kspace.shape)}")  # fmt: skip
