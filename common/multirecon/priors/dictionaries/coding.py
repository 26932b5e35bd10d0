"""Sparse codes of a convolutional dictionary by ADMM in the Fourier domain, channels coupled by their support."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .filters import transfer
from .thresholds import shrink

__all__ = ["CodingState", "coding_objective", "high_pass", "sparse_code"]

_BALANCE_EVERY, _BALANCE_RATIO, _BALANCE_FACTOR = 10, 10.0, 2.0
_RELAXATION = 1.8


def high_pass(image: Tensor, weight: float = 5.0) -> Tensor:
    r"""Return the image minus its smooth part, ``l = argmin 1/2 |l - s|^2 + weight/2 |grad l|^2``.

    Circular boundaries make it a self-adjoint multiplier between 0 and 1 in the Fourier domain.

    Args:
        image: ``(..., H, W)``.
        weight: weight of the gradient in pixels squared.
    """
    height, width = image.shape[-2:]
    rows = 2 - 2 * torch.cos(2 * torch.pi * torch.fft.fftfreq(height, dtype=image.dtype, device=image.device))
    columns = 2 - 2 * torch.cos(2 * torch.pi * torch.fft.rfftfreq(width, dtype=image.dtype, device=image.device))
    square = weight * (rows[:, None] + columns)
    return torch.fft.irfft2(square / (1 + square) * torch.fft.rfft2(image), s=(height, width))


@dataclass
class CodingState:
    """Where the iterations of :func:`sparse_code` stand, to go on from.

    Attributes:
        codes: sparse codes ``(B, C, K, H, W)``.
        dual: scaled dual variable, likewise.
        rho: coupling, ``(B, 1)``, or ``(B, C)`` where no norm couples the channels.
        count: iterations spent.
    """

    codes: Tensor
    dual: Tensor
    rho: Tensor
    count: int = 0

    @classmethod
    def zeros(cls, signal: Tensor, filters: int, rho: Tensor) -> CodingState:
        """Return the empty codes of signals ``(B, C, H, W)``: one map a filter, ``rho`` ``(1,)`` or ``(C,)``."""
        batch, channels, height, width = signal.shape
        codes = signal.new_zeros(batch, channels, filters, height, width)
        return cls(codes, codes.clone(), rho.to(signal).expand(batch, -1))


def sparse_code(
    signal: Tensor,
    bank: Tensor,
    *,
    single: Tensor,
    group: Tensor,
    weight: Tensor | None = None,
    state: CodingState | None = None,
    iterations: int = 50,
) -> CodingState:
    r"""Minimise ``sum_c w_c/2 |sum_k d_k * z_{c,k} - s_c|^2 + single_c |z_c|_1 + group sum_{k,p} sqrt(sum_c z_c^2)``.

    ADMM with the split ``x = z``: per frequency ``(w D^H D + rho) x = w D^H s + rho (z - u)`` is a rank-one system
    (Sherman-Morrison); then soft threshold and group shrinkage; over-relaxation 1.8. ``rho`` is balanced for each
    sample every 10 iterations (residual ratio 10, factor 2).

    Args:
        signal: ``s``, ``(B, C, H, W)``.
        bank: filters ``(C, K, h, w)``, or ``(1, K, h, w)`` shared by the channels.
        single: weights of the absolute values, ``(C,)``.
        group: weight of the norms over channels, ``(1,)``.
        weight: ``w``, ``(C,)``; one by default.
        state: where to go on; by default empty codes with ``rho = 50 mean(single + group) + 0.5``.
        iterations: number of iterations.

    Returns:
        The new state.

    References:
        wohlberg2016
    """
    if state is None:
        # without a norm over them the channels are problems of their own, and so is their coupling
        level = single if not bool((group > 0).any()) else (single + group).mean()[None]
        state = CodingState.zeros(signal, bank.shape[1], 50 * level + 0.5)
    height, width = signal.shape[-2:]
    d = transfer(bank, height, width)
    w = torch.ones_like(single) if weight is None else weight
    w = w.reshape(1, -1, 1, 1, 1)
    power = w * d.abs().square().sum(1)[None, :, None]
    pull = w * d.conj() * torch.fft.rfft2(signal)[:, :, None]
    z, u, rho = state.codes, state.dual, state.rho
    for step in range(state.count + 1, state.count + iterations + 1):
        r = rho[..., None, None, None]
        right = pull + r * torch.fft.rfft2(z - u)
        along = (d * right).sum(2, keepdim=True)
        x = torch.fft.irfft2((right - w * d.conj() * along / (r + power)) / r, s=(height, width))
        relaxed = _RELAXATION * x + (1 - _RELAXATION) * z + u
        previous, z = z, shrink(relaxed, single.reshape(1, -1, 1, 1, 1) / r, group.reshape(1, 1, 1, 1, 1) / r)
        u = relaxed - z
        if step % _BALANCE_EVERY == 0:
            rho, u = _balance(rho, u, x, z, previous)
    return CodingState(z, u, rho, state.count + iterations)


def _balance(rho: Tensor, u: Tensor, x: Tensor, z: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
    def size(t: Tensor) -> Tensor:
        parts = torch.linalg.vector_norm(t.flatten(2), dim=2)
        return (parts if rho.shape == parts.shape else parts.norm(dim=1, keepdim=True)).clamp_min(1e-30)

    primal, dual = size(x - z) / torch.maximum(size(x), size(z)), size(z - previous) / size(u)
    ratio = primal / dual
    factor = torch.where(ratio > _BALANCE_RATIO, _BALANCE_FACTOR, 1.0)
    factor = torch.where(ratio < 1 / _BALANCE_RATIO, 1 / _BALANCE_FACTOR, factor).to(rho)
    return rho * factor, u / factor[..., None, None, None]


def coding_objective(
    residual: Tensor, codes: Tensor, *, single: Tensor, group: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Return the objective of :func:`sparse_code` for each sample, ``(B,)``.

    Args:
        residual: ``D z - s``, ``(B, C, H, W)``.
        codes: ``z``, ``(B, C, K, H, W)``.
        single: weights of the absolute values, ``(C,)``.
        group: weight of the norms over channels, ``(1,)``.
        weight: weights of the residual, ``(C,)``; one by default.
    """
    w = torch.ones_like(single) if weight is None else weight
    fit = 0.5 * residual.square().flatten(2).sum(2) @ w
    absolute = codes.abs().flatten(2).sum(2) @ single
    norms = codes.square().sum(1).sqrt().flatten(1).sum(1)
    return fit + absolute + group.reshape(()) * norms
