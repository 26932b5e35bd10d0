"""Simultaneous iterative reconstruction (SIRT)."""

from __future__ import annotations

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.operators import BlockDiagonal, LinearOperator

from .terms import Callback

__all__ = ["sirt"]


def sirt(
    operator: LinearOperator | BlockDiagonal,
    y: Tensor | Blocks,
    *,
    x0: Tensor | None = None,
    relaxation: float = 1.0,
    iterations: int = 200,
    nonnegative: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    r"""Iterate ``x <- x + tau C A^T R (y - A x)`` with ``R = 1 / row sums`` and ``C = 1 / column sums``.

    It minimises ``|y - A x|_R^2``; from zero and with consistent data it tends to the solution of least ``C^-1`` norm.

    Args:
        operator: ``A`` with non-negative entries (line integrals), plain or block-diagonal.
        y: data ``(B, *range_shape)`` or Blocks.
        x0: start ``(B, *domain_shape)``; zero by default.
        relaxation: ``tau``, between 0 and 2.
        iterations: number of iterations.
        nonnegative: whether negative values are set to zero after each update.
        callback: called after each iteration with ``{"residual": |y - A x| before it, (B,)}``.

    Returns:
        The image ``(B, *domain_shape)``.

    Raises:
        ValueError: if the relaxation is out of range.

    References:
        gilbert1972

    Example:
        >>> from multirecon.operators import Diagonal
        >>> sirt(Diagonal(torch.tensor([[2.0, 4.0]])), torch.tensor([[[2.0, 8.0]]]), iterations=1)
        tensor([[[1., 2.]]])
    """
    if not 0 < relaxation < 2:
        raise ValueError(f"relaxation: expected between 0 and 2, got {relaxation}")
    columns = operator.adjoint(_map(y, torch.ones_like))  # type: ignore[arg-type]
    rows = operator(torch.ones_like(columns))
    scale = relaxation * _inverse(columns)
    weights = _map(rows, _inverse)
    x = torch.zeros_like(columns) if x0 is None else x0
    for iteration in range(1, iterations + 1):
        residual = y - operator(x)
        x = x + scale * operator.adjoint(residual * weights)
        if nonnegative:
            x = x.clamp_min(0)
        if callback is not None:
            size = residual.norm() if isinstance(residual, Blocks) else residual.flatten(1).norm(dim=1)
            callback(iteration, x, {"residual": size})
    return x


def _map(y: Tensor | Blocks, function: object) -> Tensor | Blocks:
    return y.map(function) if isinstance(y, Blocks) else function(y)  # type: ignore[arg-type, operator]


def _inverse(sums: Tensor) -> Tensor:
    # a line that misses the image, or a voxel no line meets, takes no part
    safe = torch.where(sums.abs() > 0, sums, torch.ones_like(sums))
    return torch.where(sums.abs() > 0, 1 / safe, torch.zeros_like(sums))
