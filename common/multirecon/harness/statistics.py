"""Statistics over anatomies: slices of one head are not independent, heads are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["Interval", "anatomy_interval"]

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval.

    Args:
        mean: mean over anatomies of the anatomies' means.
        low: lower end, ``None`` where fewer than two anatomies (or infinite values) allow no interval.
        high: upper end, or ``None``.
        anatomies: number of anatomies.
        samples: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    anatomies: int
    samples: int

    def text(self, decimals: int, *, sign: bool = False) -> str:
        """Return ``mean [low, high]`` with the given decimals (and a sign for differences)."""
        style = f"{'+' if sign else ''}.{decimals}f"
        if self.low is None or self.high is None:
            return f"{self.mean:{style}}"
        return f"{self.mean:{style}} [{self.low:{style}}, {self.high:{style}}]"


def anatomy_interval(
    values: Iterable[tuple[str, float]], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    r"""Return the mean and its percentile bootstrap interval over anatomies.

    All values of an anatomy (slices, repeats) are averaged first; whole anatomies are then drawn with replacement.

    Args:
        values: ``(anatomy, value)`` pairs.
        level: coverage of the interval.
        resamples: bootstrap resamples.
        seed: seed of the resampling: the same values give the same interval.

    Raises:
        ValueError: if there is no value.

    Example:
        >>> anatomy_interval([("a", 1.0), ("a", 3.0), ("b", 4.0)]).mean
        3.0
    """
    groups: dict[str, list[float]] = {}
    for anatomy, value in values:
        groups.setdefault(anatomy, []).append(value)
    if not groups:
        raise ValueError("values: expected at least one, got none")
    means = np.array([np.mean(groups[name]) for name in sorted(groups)])
    count = sum(map(len, groups.values()))
    mean = float(means.mean())
    if len(means) < 2 or not math.isfinite(mean):
        return Interval(mean, None, None, len(means), count)
    draws = np.random.default_rng(seed).integers(len(means), size=(resamples, len(means)))
    low, high = np.quantile(means[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), len(means), count)
