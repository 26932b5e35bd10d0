"""The functional contract, and the dual solution of every functional that is a norm of a linear transform."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["AnalysisFunctional", "Functional", "ProximalResult", "per_sample"]


class Functional(nn.Module):
    r"""A penalty ``R(x)`` of an image stack ``(B, C, *spatial)``, real or complex.

    Args:
        weight: non-negative factor of the penalty, a number or one a sample ``(B,)``.

    Raises:
        ValueError: if the weight is negative.
    """

    def __init__(self, weight: float | Tensor = 1.0) -> None:
        super().__init__()
        tensor = torch.as_tensor(weight, dtype=torch.float64) if not isinstance(weight, Tensor) else weight
        if tensor.ndim > 1 or bool((tensor < 0).any()):
            raise ValueError(f"weight: expected a number >= 0 or one a sample (B,), got {weight}")
        self.weight: Tensor
        self.register_buffer("weight", tensor)

    def value(self, x: Tensor) -> Tensor:
        """Return ``R(x)`` per sample, of shape ``(B,)``."""
        raise NotImplementedError

    def grad(self, x: Tensor) -> Tensor:
        """Return the gradient of ``R`` at ``x``.

        Raises:
            NotImplementedError: where the functional is not differentiable.
        """
        raise NotImplementedError(f"{type(self).__name__} is not differentiable; use prox")

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        r"""Return ``argmin_u 1/2 |u - x|^2 + step R(u)``.

        Args:
            x: images ``(B, C, *spatial)``.
            step: non-negative number or one a sample ``(B,)``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no proximal map; use grad")

    def _scaled(self, step: float | Tensor, like: Tensor) -> Tensor:
        """Return ``step * weight``, broadcastable to ``like``."""
        product = torch.as_tensor(step, device=self.weight.device) * self.weight
        return per_sample(product.to(like.device, like.real.dtype), like)


class ProximalResult(NamedTuple):
    """A proximal point with its certificate.

    Attributes:
        x: the proximal point ``(B, C, *spatial)``.
        dual: the dual variable, a warm start for the next call.
        gap: primal-dual gap relative to the primal objective, ``(B,)``; ``|x - exact|^2 / 2`` is at most the absolute
            gap.
        iterations: iterations spent.
    """

    x: Tensor
    dual: Tensor
    gap: Tensor
    iterations: int


class AnalysisFunctional(Functional):
    r"""``R(x) = weight sum_j |(K x)_j|``, a norm of a linear transform ``K``, optionally with ``x >= 0``.

    With ``smoothing = eps > 0`` every ``|g|`` becomes the Huber function, ``|g|^2 / (2 eps)`` below ``eps`` and ``|g|
    - eps / 2`` above, and ``R`` has a gradient. The proximal map is computed by accelerated projected gradient on the
    dual until the relative primal-dual gap of a sample falls below ``tolerance``. Primal-dual solvers use
    ``analyse``, ``synthesise`` and ``project`` directly.

    Args:
        weight: factor of the penalty, a number or one a sample.
        smoothing: Huber threshold ``eps`` in the unit of ``K x``.
        nonnegative: whether ``R`` is infinite outside ``x >= 0`` (real images).
        max_iterations: bound on the dual iterations of ``prox``.
        tolerance: relative gap at which ``prox`` stops.

    Raises:
        ValueError: if the smoothing is negative.

    References:
        beck2009tv
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        *,
        smoothing: float = 0.0,
        nonnegative: bool = False,
        max_iterations: int = 500,
        tolerance: float = 1e-4,
    ) -> None:
        super().__init__(weight)
        if smoothing < 0:
            raise ValueError(f"smoothing: expected >= 0, got {smoothing}")
        self.smoothing = float(smoothing)
        self.nonnegative = bool(nonnegative)
        self.max_iterations = int(max_iterations)
        self.tolerance = float(tolerance)

    def analyse(self, x: Tensor) -> Tensor:
        """Return ``K x``."""
        raise NotImplementedError

    def synthesise(self, p: Tensor) -> Tensor:
        """Return ``K^H p``."""
        raise NotImplementedError

    def analysis_norm(self, x: Tensor) -> float:
        """Return an upper bound of the spectral norm of ``K`` on images like ``x``."""
        raise NotImplementedError

    def channel_norms(self, x: Tensor) -> Tensor:
        """Return upper bounds ``(C,)`` of the norm of ``K`` on each channel, valid together as a diagonal bound.

        The default, the bound of the whole for every channel, holds for any ``K``.
        """
        return x.real.new_full(x.shape[1:2], self.analysis_norm(x))

    def magnitude(self, p: Tensor) -> Tensor:
        """Return ``sum_j |p_j|`` per sample, of shape ``(B,)``."""
        raise NotImplementedError

    def project(self, p: Tensor, radius: Tensor) -> Tensor:
        """Return the nearest field whose dual norms are at most ``radius`` everywhere."""
        raise NotImplementedError

    def prox_conjugate(self, p: Tensor, sigma: float | Tensor, *, step: float | Tensor = 1.0) -> Tensor:
        """Return the proximal map of ``sigma F*`` with ``F(g) = step * weight * sum_j |g_j|`` (or its Huber form)."""
        radius = self._scaled(step, p)
        if self.smoothing:
            # F* is an indicator plus eps / (2 radius) |p|^2; a radius of zero leaves p = 0 whatever the factor.
            safe = torch.where(radius > 0, radius, torch.ones_like(radius))
            p = p / (1 + per_sample(sigma, p) * self.smoothing / safe)
        return self.project(p, radius)

    def conjugate(self, p: Tensor, *, step: float | Tensor = 1.0) -> Tensor:
        """Return ``F*(p)`` per sample of the ``F`` of :meth:`prox_conjugate`, for a ``p`` that is feasible."""
        if not self.smoothing:
            return torch.zeros_like(_inner(p, p))
        radius = self._scaled(step, p).reshape(-1)
        safe = torch.where(radius > 0, radius, torch.ones_like(radius))
        return self.smoothing / (2 * safe) * _inner(p, p)

    def value(self, x: Tensor) -> Tensor:
        """Return the penalty per sample; infinite where a non-negative functional meets a negative value."""
        total = self._scaled(1.0, x).reshape(-1) * self._norms(self.analyse(x))
        if self.nonnegative:
            total = torch.where((x < 0).flatten(1).any(1), torch.full_like(total, torch.inf), total)
        return total

    def _norms(self, g: Tensor) -> Tensor:
        if not self.smoothing:
            return self.magnitude(g)
        q = self.project(g / self.smoothing, g.real.new_ones(()))
        return _inner(q, g) - self.smoothing / 2 * _inner(q, q)

    def grad(self, x: Tensor) -> Tensor:
        """Return ``weight K^H q`` with ``q`` the projection of ``K x / eps``.

        Raises:
            NotImplementedError: without smoothing, or with a constraint.
        """
        if not self.smoothing or self.nonnegative:
            return super().grad(x)
        q = self.project(self.analyse(x) / self.smoothing, x.real.new_ones(()))
        return self._scaled(1.0, x) * self.synthesise(q)

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """Return the proximal point; see :meth:`denoise` for its gap and for warm starts."""
        return self.denoise(x, step).x

    def denoise(self, x: Tensor, step: float | Tensor = 1.0, *, dual: Tensor | None = None) -> ProximalResult:
        """Return ``argmin_u 1/2 |u - x|^2 + step R(u)`` with its dual variable and gap.

        Args:
            x: images ``(B, C, *spatial)``.
            step: non-negative number or one a sample ``(B,)``.
            dual: dual variable of an earlier call on a similar problem (warm start).
        """
        norm = self.analysis_norm(x)
        rate = 1 / norm**2 if norm > 0 else 0.0
        p = torch.zeros_like(self.analyse(x)) if dual is None else self.project(dual, self._scaled(step, dual))
        ahead, momentum, iteration = p, 1.0, 0
        gap = self._gap(x, p, step)
        done = gap <= self.tolerance
        while iteration < self.max_iterations and not bool(done.all()):
            iteration += 1
            q = self.prox_conjugate(ahead + rate * self.analyse(self._primal(x, ahead)), rate, step=step)
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = q + ((momentum - 1) / following) * (q - p)
            # a finished sample keeps its dual, so that a batch equals its samples
            p, momentum = torch.where(per_sample(done, p), p, q), following
            if iteration % 10 == 0 or iteration == self.max_iterations:
                gap = torch.where(done, gap, self._gap(x, p, step))
                done = gap <= self.tolerance
        return ProximalResult(self._primal(x, p), p, gap, iteration)

    def _primal(self, x: Tensor, p: Tensor) -> Tensor:
        u = x - self.synthesise(p)
        return u.clamp_min(0) if self.nonnegative else u

    def _gap(self, x: Tensor, p: Tensor, step: float | Tensor) -> Tensor:
        """F(K u) + F*(p) - <p, K u>, relative to the primal objective."""
        u = self._primal(x, p)
        g = self.analyse(u)
        norms = self._scaled(step, x).reshape(-1) * self._norms(g)
        gap = (norms + self.conjugate(p, step=step) - _inner(p, g)).clamp_min(0)
        # The floor is what rounding leaves of an exact solution with a small objective.
        floor = torch.finfo(x.real.dtype).eps * _inner(x, x)
        objective = (_inner(u - x, u - x) / 2 + norms).clamp_min(floor)
        return torch.where(gap > 0, gap / torch.where(objective > 0, objective, torch.ones_like(objective)), gap)


def per_sample(value: float | Tensor, like: Tensor) -> Tensor:
    """Give a number or a per-sample value ``(B,)`` the trailing axes of ``like``."""
    tensor = torch.as_tensor(value, device=like.device)
    return tensor.reshape(-1, *[1] * (like.ndim - 1)) if tensor.ndim == 1 else tensor


def _inner(a: Tensor, b: Tensor) -> Tensor:
    product = (a.conj() * b).real if a.is_complex() else a * b
    return product.flatten(1).sum(1)
