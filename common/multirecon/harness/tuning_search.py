"""Which settings a tuner tries next: the default, a space-filling design, then steps around the best so far."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["STAGES", "Range", "Search", "Trial"]

STAGES = ("default", "design", "refinement")
_DIGITS = 4  # settings are rounded, so that a log in decimal numbers says exactly what was tried
_FIRST_STEP, _LAST_STEP = 0.2, 0.02  # standard deviation of the steps, as a share of the range
_TRIES = 20
_REACH = 0.3  # how far from the best the maximum of a fitted parabola is believed, as a share of the range


@dataclass(frozen=True)
class Range:
    """The values among which one setting is searched.

    Args:
        low: smallest value.
        high: largest value.
        scale: ``"log"``, ``"linear"`` or ``"integer"``.

    Raises:
        ValueError: if the range is empty, or a logarithmic one does not lie above zero.

    Example:
        >>> Range(0.01, 1.0, "log").value(0.5), Range(1, 4, "integer").value(0.6)
        (0.1, 3.0)
    """

    low: float
    high: float
    scale: str = "log"

    def __post_init__(self) -> None:
        if self.scale not in ("log", "linear", "integer"):
            raise ValueError(f"scale: expected 'log', 'linear' or 'integer', got {self.scale!r}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low, high: expected two finite numbers in this order, got {self.low} and {self.high}")
        if self.scale == "log" and not self.low > 0:
            raise ValueError(f"low: expected > 0 on a logarithmic scale, got {self.low}")
        if self.scale == "integer" and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(f"low, high: expected whole numbers, got {self.low} and {self.high}")

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Range:
        """Return the range of an entry ``{"low": ..., "high": ..., "scale": ...}`` of a bundle's metadata."""
        return cls(float(entry["low"]), float(entry["high"]), str(entry.get("scale", "log")))

    def value(self, share: float) -> float:
        """Return the value at a share in [0, 1] of the range, rounded to four digits and inside it."""
        low, high = self._ends()
        place = low + share * (high - low)
        if self.scale == "integer":
            return float(min(max(round(place), self.low), self.high))
        value = math.exp(place) if self.scale == "log" else place
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    def share(self, value: float) -> float:
        """Return where in the range a value lies, in [0, 1]."""
        low, high = self._ends()
        place = math.log(value) if self.scale == "log" else value
        return min(max((place - low) / (high - low), 0.0), 1.0)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def _ends(self) -> tuple[float, float]:
        return (math.log(self.low), math.log(self.high)) if self.scale == "log" else (self.low, self.high)


@dataclass(frozen=True)
class Trial:
    """One set of values that was tried.

    Args:
        settings: name -> value.
        score: what is maximised; ``-inf`` where the method failed.
    """

    settings: Mapping[str, float]
    score: float


class Search:
    """The order in which settings are tried; the same history gives the same next settings.

    The first trial is the default. With it, half of the trials are points of a scrambled Sobol sequence, which fill the
    box of ranges evenly (log-spaced where the scale says so); the rest are normal steps around the best settings so
    far, whose width shrinks from 20 % to 2 % of the ranges.

    Args:
        ranges: name of every setting -> its range.
        default: name -> default.
        trials: number of trials in all.
        seed: of design and steps.

    Raises:
        ValueError: if names disagree, a default lies outside its range, or there are fewer than two trials.
    """

    def __init__(
        self, ranges: Mapping[str, Range], default: Mapping[str, float], *, trials: int = 24, seed: int = 0
    ) -> None:
        if trials < 2:
            raise ValueError(f"trials: expected >= 2 (the default and another), got {trials}")
        if not ranges or set(ranges) != set(default):
            raise ValueError(f"ranges: expected one for each of {sorted(default)}, got {sorted(ranges)}")
        for name, value in default.items():
            if value not in ranges[name]:
                raise ValueError(f"{name}: expected a default in [{ranges[name].low:g}, {ranges[name].high:g}], "
                                 f"got {value:g}")  # fmt: skip
        self.ranges, self.default, self.trials, self.seed = dict(ranges), dict(default), trials, seed
        engine = torch.quasirandom.SobolEngine(len(ranges), scramble=True, seed=seed)
        self._design = engine.draw(self._in_design, dtype=torch.float64).tolist()

    @property
    def _in_design(self) -> int:
        return max(1, self.trials // 2 - 1)

    def stage(self, index: int) -> str:
        """Return one of :data:`STAGES` for the number of a trial."""
        return STAGES[0] if index == 0 else STAGES[1] if index <= self._in_design else STAGES[2]

    def propose(self, history: Sequence[Trial]) -> dict[str, float]:
        """Return the settings to try after those of the history."""
        stage = self.stage(len(history))
        if stage == "default":
            return dict(self.default)
        if stage == "design":
            shares = self._design[len(history) - 1]
            return {name: r.value(share) for (name, r), share in zip(self.ranges.items(), shares, strict=True)}
        return self._step(history)

    def _step(self, history: Sequence[Trial]) -> dict[str, float]:
        first = 1 + self._in_design
        tried = [dict(t.settings) for t in history]
        best = self._shares(max(history, key=lambda t: t.score))
        if (len(history) - first) % 2 == 0:
            settings = self._settings(self._parabola(history, best))
            if settings not in tried:
                return settings
        progress = (len(history) - first) / max(1, self.trials - first - 1)
        width = _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** progress
        key = hashlib.sha256(f"{self.seed}|{len(history)}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        for _ in range(_TRIES):  # whole numbers may land on what was tried
            settings = self._settings(best + width * torch.randn(len(best), generator=generator, dtype=torch.float64))
            if settings not in tried:
                break
            width *= 1.3
        return settings

    def _parabola(self, history: Sequence[Trial], best: Tensor) -> Tensor:
        """Return the maximum of a separable parabola fitted to the nearest trials; without one, the best stays."""
        good = [t for t in history if math.isfinite(t.score)]
        offsets = torch.stack([self._shares(t) for t in good]) - best
        unknowns = 1 + 2 * len(best)
        if len(good) < unknowns:
            return best
        distance = offsets.norm(dim=1)
        near = distance.argsort()[: unknowns + 2]
        columns = [torch.ones(len(near), 1, dtype=torch.float64), offsets[near], offsets[near] ** 2]
        scores = torch.tensor([good[i].score for i in near.tolist()], dtype=torch.float64)
        nearness = 1 / (0.02 + distance[near, None])
        fit = torch.linalg.lstsq(nearness * torch.cat(columns, dim=1), nearness * scores[:, None]).solution[1:, 0]
        slope, curvature = fit.chunk(2)
        peak = torch.where(curvature < 0, -slope / (2 * curvature), torch.zeros_like(slope))
        return best + torch.nan_to_num(peak).clamp(-_REACH, _REACH)

    def _shares(self, trial: Trial) -> Tensor:
        return torch.tensor([r.share(trial.settings[n]) for n, r in self.ranges.items()], dtype=torch.float64)

    def _settings(self, shares: Tensor) -> dict[str, float]:
        return {name: r.value(_inside(s)) for (name, r), s in zip(self.ranges.items(), shares.tolist(), strict=True)}


def _inside(share: float) -> float:
    """Reflect a share at the ends of [0, 1]."""
    folded = abs(share) % 2
    return 2 - folded if folded > 1 else folded
