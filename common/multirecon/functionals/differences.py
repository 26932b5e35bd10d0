"""Finite differences of images and their exact adjoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["divergence_adjoint", "gradient", "gradient_norm"]


def gradient(x: Tensor, spacing: Sequence[float]) -> Tensor:
    r"""Return forward differences ``(x_{i+1} - x_i) / h`` along every spatial axis, zero at the far border.

    Args:
        x: images ``(B, C, *spatial)``, real or complex.
        spacing: grid step ``h`` of every axis.

    Returns:
        Differences ``(B, C, d, *spatial)`` for ``d`` spatial axes.
    """
    dims = _check(x.ndim - 2, spacing)
    p = x.new_zeros(x.shape[0], x.shape[1], dims, *x.shape[2:])
    for axis, h in enumerate(spacing):
        n = x.shape[2 + axis]
        p[:, :, axis].narrow(2 + axis, 0, n - 1).copy_(torch.diff(x, dim=2 + axis) / h)
    return p


def divergence_adjoint(p: Tensor, spacing: Sequence[float]) -> Tensor:
    """Return the adjoint of :func:`gradient`, minus the divergence: ``(B, C, d, *spatial) -> (B, C, *spatial)``."""
    _check(p.ndim - 3, spacing)
    x = torch.zeros_like(p[:, :, 0])
    for axis, h in enumerate(spacing):
        n = p.shape[3 + axis]
        part = p[:, :, axis].narrow(2 + axis, 0, n - 1) / h
        x.narrow(2 + axis, 1, n - 1).add_(part)
        x.narrow(2 + axis, 0, n - 1).sub_(part)
    return x


def gradient_norm(spacing: Sequence[float]) -> float:
    """Return the upper bound ``2 sqrt(sum 1 / h^2)`` of the gradient's spectral norm."""
    return 2 * sum(h**-2 for h in spacing) ** 0.5


def _check(dims: int, spacing: Sequence[float]) -> int:
    if len(spacing) != dims:
        raise ValueError(f"spacing: expected {dims} values for {dims} spatial axes, got {list(spacing)}")
    return dims
