"""Total variation: of each channel, jointly over channels, and of the nuclear norm of the channels' Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import AnalysisFunctional
from .differences import divergence_adjoint, gradient, gradient_norm

__all__ = ["GradientFunctional", "JointTotalVariation", "NuclearTotalVariation", "TotalVariation"]


class GradientFunctional(AnalysisFunctional):
    r"""A norm of the channel-weighted gradient ``K x = (eta_c grad x_c)_c``, of shape ``(B, C, d, *spatial)``.

    Args:
        weight: factor of the penalty, a number or one a sample.
        spacing: grid steps of the spatial axes (the differences are divided by them); one by default.
        channel_weights: ``eta``, one non-negative number a channel; one by default.
        options: ``smoothing``, ``nonnegative``, ``max_iterations``, ``tolerance`` of
            :class:`~multirecon.functionals.AnalysisFunctional`.

    Raises:
        ValueError: on a spacing that is not positive or a negative channel weight.
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        *,
        spacing: Sequence[float] | None = None,
        channel_weights: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(weight, **options)
        self.spacing = None if spacing is None else tuple(float(h) for h in spacing)
        self.channel_weights = None if channel_weights is None else tuple(float(v) for v in channel_weights)
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ValueError(f"spacing: expected positive values, got {self.spacing}")
        if self.channel_weights is not None and min(self.channel_weights) < 0:
            raise ValueError(f"channel_weights: expected values >= 0, got {self.channel_weights}")

    def analyse(self, x: Tensor) -> Tensor:
        """Return the weighted gradient ``(B, C, d, *spatial)``."""
        eta = self._eta(x, x.ndim)
        return gradient(x if eta is None else eta * x, self._steps(x.ndim - 2))

    def synthesise(self, p: Tensor) -> Tensor:
        """Return its adjoint, ``(B, C, *spatial)``."""
        x = divergence_adjoint(p, self._steps(p.ndim - 3))
        eta = self._eta(x, x.ndim)
        return x if eta is None else eta * x

    def analysis_norm(self, x: Tensor) -> float:
        """Return the bound ``2 max(eta) sqrt(sum 1 / h^2)``."""
        return gradient_norm(self._steps(x.ndim - 2)) * max(self.channel_weights or (1.0,))

    def channel_norms(self, x: Tensor) -> Tensor:
        """Return ``2 eta_c sqrt(sum 1 / h^2)``: the transform mixes no channels."""
        eta = x.real.new_ones(x.shape[1]) if self.channel_weights is None else x.real.new_tensor(self.channel_weights)
        return gradient_norm(self._steps(x.ndim - 2)) * eta

    def _steps(self, dims: int) -> tuple[float, ...]:
        return (1.0,) * dims if self.spacing is None else self.spacing

    def _eta(self, x: Tensor, ndim: int) -> Tensor | None:
        if self.channel_weights is None:
            return None
        if len(self.channel_weights) != x.shape[1]:
            raise ValueError(f"channel_weights: expected {x.shape[1]} values, got {list(self.channel_weights)}")
        return x.real.new_tensor(self.channel_weights).reshape(-1, *[1] * (ndim - 2))


class TotalVariation(GradientFunctional):
    r"""Total variation of every channel by itself, ``sum_c sum_j |eta_c (grad x_c)_j|``.

    Args:
        weight: factor of the penalty, a number or one a sample.
        isotropic: whether ``|g|`` is the Euclidean norm over the axes (else the sum of absolute values).
        options: see :class:`GradientFunctional`.

    References:
        rudin1992

    Example:
        >>> step = torch.zeros(1, 1, 4, 4)
        >>> step[..., 2:] = 3.0
        >>> TotalVariation(weight=0.5).value(step)
        tensor([6.])
    """

    def __init__(self, weight: float | Tensor = 1.0, *, isotropic: bool = True, **options: Any) -> None:
        super().__init__(weight, **options)
        self.isotropic = isotropic

    def magnitude(self, p: Tensor) -> Tensor:
        """Return the sum of the pointwise norms."""
        norms = torch.linalg.vector_norm(p, dim=2) if self.isotropic else p.abs()
        return norms.flatten(1).sum(1)

    def project(self, p: Tensor, radius: Tensor) -> Tensor:
        """Return the field with pointwise norms cut at ``radius``."""
        return _shrink(p, torch.linalg.vector_norm(p, dim=2, keepdim=True) if self.isotropic else p.abs(), radius)


class JointTotalVariation(GradientFunctional):
    r"""Joint total variation ``sum_j sqrt(sum_c eta_c^2 |(grad x_c)_j|^2)``: edges are cheaper where they coincide.

    Args:
        weight: factor of the penalty, a number or one a sample.
        options: see :class:`GradientFunctional`; ``channel_weights`` bring the modalities to one scale.

    References:
        blomgren1998

    Example:
        >>> step = torch.zeros(1, 2, 4, 4)
        >>> step[:, 0, :, 2:], step[:, 1, :, 2:] = 3.0, 4.0
        >>> JointTotalVariation().value(step)
        tensor([20.])
    """

    def magnitude(self, p: Tensor) -> Tensor:
        """Return the sum of the norms over channels and axes."""
        return torch.linalg.vector_norm(p, dim=(1, 2)).flatten(1).sum(1)

    def project(self, p: Tensor, radius: Tensor) -> Tensor:
        """Return the field with joint pointwise norms cut at ``radius``."""
        return _shrink(p, torch.linalg.vector_norm(p, dim=(1, 2), keepdim=True), radius)


class NuclearTotalVariation(GradientFunctional):
    r"""Total nuclear variation ``sum_j |J_j|_*`` of the channel Jacobian ``J_j = (eta_c grad x_c)_j``.

    The nuclear norm favours Jacobians of rank one, that is, gradients that are parallel across the modalities.

    Args:
        weight: factor of the penalty, a number or one a sample.
        options: see :class:`GradientFunctional`.

    References:
        holt2014

    Example:
        >>> crossed = torch.zeros(1, 2, 4, 4)
        >>> crossed[:, 0, :, 2:], crossed[:, 1, 2:, :] = 1.0, 1.0
        >>> round(float(NuclearTotalVariation().value(crossed)), 4)  # 8 edges, and no gain where they cross
        8.0
    """

    def magnitude(self, p: Tensor) -> Tensor:
        """Return the sum of the singular values of all Jacobians."""
        return _eigenvalues(_small_gram(p)[0]).clamp_min(0).sqrt().flatten(1).sum(1)

    def project(self, p: Tensor, radius: Tensor) -> Tensor:
        """Return the field with the singular values of every Jacobian cut at ``radius``."""
        gram, over_axes = _small_gram(p)
        factor = _spectral_cut(gram, radius.reshape(-1, *[1] * (p.ndim - 3)) if radius.ndim else radius)
        if over_axes:
            return torch.einsum("bcd...,bde...->bce...", p, factor.to(p.dtype))
        return torch.einsum("bce...,bed...->bcd...", factor.to(p.dtype), p)


def _shrink(p: Tensor, norms: Tensor, radius: Tensor) -> Tensor:
    # p * min(1, radius / |p|) without a division by zero
    return p * (radius / torch.maximum(norms, radius.expand_as(norms)).clamp_min(torch.finfo(norms.dtype).tiny))


def _small_gram(p: Tensor) -> tuple[Tensor, bool]:
    """Return ``J^H J`` or ``J J^H``, whichever is smaller, ``(B, n, n, *spatial)``, and whether it is over the axes."""
    over_axes = p.shape[2] <= p.shape[1]
    if over_axes:
        return torch.einsum("bcd...,bce...->bde...", p.conj(), p), True
    return torch.einsum("bcd...,bed...->bce...", p, p.conj()), False


def _eigenvalues(gram: Tensor) -> Tensor:
    """Return the eigenvalues of Hermitian matrices ``(B, n, n, *spatial)`` on axis 1."""
    n = gram.shape[1]
    if n == 1:
        return gram[:, 0].real if gram.is_complex() else gram[:, 0]
    if n == 2:
        half = (gram[:, 0, 0] + gram[:, 1, 1]).real / 2
        spread = (((gram[:, 0, 0] - gram[:, 1, 1]).real / 2) ** 2 + gram[:, 0, 1].abs() ** 2).sqrt()
        return torch.stack([half - spread, half + spread], dim=1)
    return torch.linalg.eigvalsh(gram.movedim((1, 2), (-2, -1))).movedim(-1, 1)


def _spectral_cut(gram: Tensor, radius: Tensor) -> Tensor:
    """Return ``f(gram)`` with ``f(s) = min(1, radius / sqrt(s))``."""

    def cut(values: Tensor) -> Tensor:
        root = values.clamp_min(0).sqrt()
        return radius / torch.maximum(root, radius.expand_as(root)).clamp_min(torch.finfo(root.dtype).tiny)

    n = gram.shape[1]
    if n == 1:
        return cut(_eigenvalues(gram)).unsqueeze(1)
    if n == 2:
        # A function of a 2 x 2 matrix is the line through its two values: f(G) = a I + b G.
        low, high = _eigenvalues(gram).unbind(1)
        at_low, at_high = cut(low), cut(high)
        spread = high - low
        apart = spread > 1e-6 * high
        slope = torch.where(apart, (at_high - at_low) / torch.where(apart, spread, torch.ones_like(spread)), 0 * spread)
        offset = at_high - slope * high
        eye = torch.eye(2, dtype=gram.dtype, device=gram.device).reshape(1, 2, 2, *[1] * (gram.ndim - 3))
        return slope[:, None, None] * gram + offset[:, None, None] * eye
    values, vectors = torch.linalg.eigh(gram.movedim((1, 2), (-2, -1)))
    scales = cut(values.movedim(-1, 1)).movedim(1, -1)
    return (vectors * scales[..., None, :] @ vectors.mH).movedim((-2, -1), (1, 2))
