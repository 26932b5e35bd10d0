"""Noise schedules of diffusion models, and the one conversion between their time and the noise level."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = ["NoiseSchedule"]


class NoiseSchedule:
    r"""Variance-preserving schedule ``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) n`` for ``t = 0 ... T - 1``.

    Everything outside this class speaks of the noise level ``sigma = sqrt((1 - abar) / abar)``, the standard deviation
    of the noise relative to the signal: ``x_t / sqrt(abar_t) = x0 + sigma_t n``. The conversion is

    .. math:: \sigma_t = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}, \quad \sqrt{\bar\alpha} = 1 / \sqrt{1 + \sigma^2}

    and, for fractions of a step, linear interpolation of ``log sigma`` over ``t``; it is monotonic, so :meth:`timestep`
    inverts :meth:`sigma` exactly.

    Args:
        betas: variance added by each step, ``(T,)``, inside (0, 1).

    Raises:
        ValueError: if ``betas`` is not a vector of numbers inside (0, 1).

    References:
        ho2020, nichol2021

    Example:
        >>> schedule = NoiseSchedule.cosine(1000)
        >>> round(float(schedule.abar[499]), 7), round(float(schedule.timestep(schedule.sigma(torch.tensor(499.0)))), 3)
        (0.4938436, 499.0)
    """

    def __init__(self, betas: Tensor) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
            raise ValueError(f"betas: expected a vector of numbers inside (0, 1), got shape {tuple(betas.shape)}")
        self.betas = betas
        self.abar = torch.cumprod(1 - betas, dim=0)
        # log(1 - abar) through the sum of logarithms: exact where abar is close to one
        log_abar = torch.cumsum(torch.log1p(-betas), dim=0)
        self._log_sigma = 0.5 * (torch.log(-torch.expm1(log_abar)) - log_abar)

    @classmethod
    def cosine(cls, num_timesteps: int = 1000, *, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        r"""Return the cosine schedule, ``beta_t = min(1 - f((t + 1) / T) / f(t / T), max_beta)``.

        With ``f(s) = cos^2(pi / 2 (s + offset) / (1 + offset))``.

        Args:
            num_timesteps: number of steps ``T``.
            offset: keeps the first steps from being too small.
            max_beta: bound on one step.
        """
        s = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
        f = torch.cos(math.pi / 2 * (s + offset) / (1 + offset)) ** 2
        return cls((1 - f[1:] / f[:-1]).clamp(max=max_beta))

    @classmethod
    def linear(cls, num_timesteps: int = 1000, *, first: float = 1e-4, last: float = 0.02) -> NoiseSchedule:
        """Return the schedule with ``beta`` linear from ``first`` to ``last``.

        Args:
            num_timesteps: number of steps ``T``.
            first: variance of the first step.
            last: variance of the last step.
        """
        return cls(torch.linspace(first, last, num_timesteps, dtype=torch.float64))

    @property
    def num_timesteps(self) -> int:
        """Number of steps ``T``."""
        return len(self.betas)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest noise level."""
        return float(self._log_sigma[0].exp()), float(self._log_sigma[-1].exp())

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the noise level of times in steps.

        Args:
            timestep: any shape, between 0 and ``T - 1``, fractions allowed.

        Raises:
            ValueError: if a time lies outside the schedule.
        """
        t = timestep.to(torch.float64)
        if t.numel() and (t.min() < 0 or t.max() > self.num_timesteps - 1):
            raise ValueError(
                f"timestep: expected 0 to {self.num_timesteps - 1}, got {float(t.min())} to {float(t.max())}"
            )
        table = self._log_sigma.to(t.device)
        low = t.floor().long().clamp(max=max(self.num_timesteps - 2, 0))
        high = (low + 1).clamp(max=self.num_timesteps - 1)
        log_sigma = table[low] + (t - low) * (table[high] - table[low])
        return log_sigma.exp().to(timestep.dtype if timestep.is_floating_point() else torch.float32)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the time in steps, with fractions, of noise levels; beyond the schedule its first or last time.

        Args:
            sigma: positive noise levels, any shape.
        """
        log_sigma = sigma.to(torch.float64).log()
        table = self._log_sigma.to(sigma.device)
        log_sigma = log_sigma.clamp(table[0], table[-1])
        high = torch.searchsorted(table, log_sigma).clamp(1, self.num_timesteps - 1)
        step = table[high] - table[high - 1]
        return ((high - 1) + (log_sigma - table[high - 1]) / step).to(sigma.dtype)

    def even_levels(self, count: int, *, sigma_max: float | None = None) -> Tensor:
        """Return ``count`` times, fractions of a step, whose noise levels are evenly spaced in ``log sigma``.

        Args:
            count: number of times, ascending from 0.
            sigma_max: largest noise level; the schedule's by default.

        Raises:
            ValueError: with fewer than two times, or a level outside the schedule.
        """
        low, high = self.sigma_range
        top = high if sigma_max is None else sigma_max
        if count < 2 or not low < top <= high:
            raise ValueError(f"count, sigma_max: expected >= 2 and a level in ({low:g}, {high:g}], got {count}, {top}")
        return self.timestep(torch.linspace(math.log(low), math.log(top), count, dtype=torch.float64).exp())

    def kept_steps(self, count: int, spacing: Literal["linspace", "trailing"] = "linspace") -> Tensor:
        """Return ``count`` rounded, evenly spaced times, ascending, ``(count,)`` integers.

        Args:
            count: number of times to keep, 1 to ``T``; a single one is the last time.
            spacing: ``"linspace"`` from 0 to ``T - 1``, or ``"trailing"``, which leaves out 0: for few steps, whose
                last one would be spent where nothing is left to denoise.

        Raises:
            ValueError: if there are not as many times, or on another spacing.

        Example:
            >>> schedule = NoiseSchedule.cosine(1000)
            >>> schedule.kept_steps(4).tolist(), schedule.kept_steps(4, "trailing").tolist()
            ([0, 333, 666, 999], [249, 499, 749, 999])

        References:
            lin2024
        """
        if not 1 <= count <= self.num_timesteps:
            raise ValueError(f"count: expected 1 to {self.num_timesteps}, got {count}")
        if spacing not in ("linspace", "trailing"):
            raise ValueError(f"spacing: expected 'linspace' or 'trailing', got {spacing!r}")
        if spacing == "trailing":
            times = torch.linspace(0, self.num_timesteps, count + 1, dtype=torch.float64)[1:]
            return times.round().long() - 1
        if count == 1:
            return torch.tensor([self.num_timesteps - 1])
        return torch.linspace(0, self.num_timesteps - 1, count, dtype=torch.float64).round().long()
