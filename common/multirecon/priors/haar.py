"""Orthonormal Haar bands as channels, for networks that work on wavelet coefficients."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

__all__ = ["band_names", "haar_analysis", "haar_synthesis"]


def band_names(spatial_dims: int) -> tuple[str, ...]:
    """Return the bands in channel order, first axis first: ``("LL", "LH", "HL", "HH")`` in two dimensions."""
    return tuple("".join(letters) for letters in product("LH", repeat=spatial_dims))


def haar_analysis(image: Tensor, axes: int | None = None) -> Tensor:
    r"""Return the one-level orthonormal Haar coefficients as channels, image channel major, bands as in ``band_names``.

    Along every axis ``low = (a + b) / sqrt 2``, ``high = (a - b) / sqrt 2`` for the neighbours ``a, b`` of a pair.

    Args:
        image: ``(B, C, *shape)`` with even axes.
        axes: transform this many of the spatial axes, the first ones; all by default.

    Returns:
        ``(B, C * 2 ** d, *shape / 2)`` with ``d`` axes halved.

    Raises:
        ValueError: if an axis is odd.

    Example:
        >>> haar_analysis(torch.ones(1, 1, 2, 2)).flatten().tolist()
        [2.0, 0.0, 0.0, 0.0]
    """
    dims = image.ndim - 2 if axes is None else axes
    if any(n % 2 for n in image.shape[2 : 2 + dims]):
        raise ValueError(f"image: expected even axes, got {tuple(image.shape)}")
    bands = [image]
    for axis in range(2, 2 + dims):
        pairs = [band.unflatten(axis, (-1, 2)).unbind(axis + 1) for band in bands]
        bands = [part for a, b in pairs for part in (a + b, a - b)]
    return torch.stack(bands, dim=2).flatten(1, 2) * 2.0 ** (-dims / 2)


def haar_synthesis(coefficients: Tensor, axes: int | None = None) -> Tensor:
    """Return the image of Haar coefficients: inverse and adjoint of :func:`haar_analysis`.

    Args:
        coefficients: ``(B, C * 2 ** d, *shape)``.
        axes: the ``d`` first spatial axes are doubled; all by default.

    Returns:
        ``(B, C, *shape * 2)``.

    Raises:
        ValueError: if the number of channels is not a multiple of ``2 ** d``.
    """
    dims = coefficients.ndim - 2 if axes is None else axes
    if coefficients.shape[1] % 2**dims:
        raise ValueError(f"coefficients: expected a multiple of {2**dims} channels, got {coefficients.shape[1]}")
    bands = list(coefficients.unflatten(1, (-1, 2**dims)).unbind(2))
    for axis in reversed(range(2, 2 + dims)):
        pairs = [(bands[i], bands[i + 1]) for i in range(0, len(bands), 2)]
        bands = [torch.stack([low + high, low - high], axis + 1).flatten(axis, axis + 1) for low, high in pairs]
    return bands[0] * 2.0 ** (-dims / 2)
