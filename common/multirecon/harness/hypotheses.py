"""What a claim says, as tests on the records: orderings, differences of gains, ratios of costs, trends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np

from ..metrics import metric_score
from .leaderboard import Selection
from .records import OK, Record
from .statistics import Interval, anatomy_interval

__all__ = [
    "COSTS",
    "FAILS",
    "HOLDS",
    "OPEN",
    "POPULATION_METRICS",
    "UNTESTED",
    "Better",
    "CostRatio",
    "Evidence",
    "Hypothesis",
    "LargerGain",
    "Outcome",
    "Quantity",
    "Run",
    "Trend",
    "verdict_of",
]

HOLDS, FAILS, OPEN, UNTESTED = "holds", "fails", "not decided", "not tested"
POPULATION_METRICS = ("kid",)
COSTS = {
    "seconds": "seconds",
    "peak_mb": "peak memory",
    "iterations": "iterations",
    "settling_iterations": "iterations until settled",
    "settling_seconds": "seconds until settled",
}

Key = tuple[str, int, int]  # sample, repeat, seed
PopulationDifference = Callable[["Run", "Run", str, str], Interval | None]


@dataclass(frozen=True)
class Run:
    """One method on one task.

    Args:
        task: name of the task.
        method: ``bundle`` or ``bundle:variant``.
    """

    task: str
    method: str


@dataclass(frozen=True)
class Quantity:
    """What is compared.

    Args:
        modality: modality of the result.
        metric: its metric, with ``@region`` for one inside a region.
    """

    modality: str
    metric: str

    def __str__(self) -> str:
        return f"{self.modality} {self.metric}"


@dataclass(frozen=True)
class Evidence:
    """What claims are tested on.

    Args:
        selection: the records that count.
        population: the difference (first run minus second) of a metric of :data:`POPULATION_METRICS` of a modality, or
            ``None`` where the features of the images were not kept.
    """

    selection: Selection
    population: PopulationDifference = field(default=lambda first, second, modality, metric: None)

    def records(self, run: Run) -> list[Record]:
        """Return the results of a run."""
        return [r for r in self.selection.records if (r.task, r.method, r.status) == (run.task, run.method, OK)]

    def values(self, run: Run, quantity: Quantity) -> dict[Key, tuple[str, float]]:
        """Return ``(sample, repeat, seed) -> (anatomy, value)``."""
        found = {}
        for r in self.records(run):
            value = r.metrics.get(quantity.modality, {}).get(quantity.metric)
            if value is not None:
                found[r.sample, r.repeat, r.seed] = (r.anatomy, value)
        return found

    def gain(self, start: Run, end: Run, quantity: Quantity) -> dict[Key, tuple[str, float]]:
        """Return how much better ``end`` is than ``start`` on every sample that both have."""
        first, second = self.values(start, quantity), self.values(end, quantity)
        name = quantity.metric
        return {
            key: (anatomy, metric_score(name, value) - metric_score(name, first[key][1]))
            for key, (anatomy, value) in second.items()
            if key in first
        }


@dataclass(frozen=True)
class Outcome:
    """What the records say about one part of a hypothesis.

    Args:
        text: what is asked, one line.
        measured: the measured number with its interval, ``None`` without results.
        threshold: what the interval has to lie above (for a ratio ``at_most``: below).
        verdict: ``"holds"``, ``"fails"``, ``"not decided"`` or ``"not tested"``.
        metric: metric that the number is a difference of; ``"ratio"`` for a ratio.
        note: why it was not tested, where that is known.
    """

    text: str
    measured: Interval | None
    threshold: float
    verdict: str
    metric: str
    note: str = ""


class Hypothesis(Protocol):
    """One test of a claim."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run it needs."""
        ...

    def check(self, evidence: Evidence) -> list[Outcome]:
        """Return what the records say, part by part."""
        ...


@dataclass(frozen=True)
class Better:
    """Every run is better than the one after it: the paired interval lies above the margin.

    Args:
        runs: at least two, the best first.
        quantity: what is compared; which direction is better follows from the metric, and for one that is best at a
            value of its own (bias, recovery of contrast, coverage) the distance to that value counts.
        margin: how much better, in the unit of the metric; negative: not worse by more than that.
    """

    runs: tuple[Run, ...]
    quantity: Quantity
    margin: float = 0.0

    def check(self, evidence: Evidence) -> list[Outcome]:
        """Return one outcome a neighbouring pair."""
        return [self._pair(first, second, evidence) for first, second in pairwise(self.runs)]

    def _pair(self, first: Run, second: Run, evidence: Evidence) -> Outcome:
        text = f"{_versus(first, 'better than', second)}{_margin(self.margin)} in {self.quantity}"
        if self.quantity.metric in POPULATION_METRICS:
            difference = evidence.population(second, first, self.quantity.modality, self.quantity.metric)
            return _outcome(text, difference, self.margin, self.quantity.metric)
        pairs = evidence.gain(second, first, self.quantity)
        return _outcome(text, _interval(pairs), self.margin, self.quantity.metric)


@dataclass(frozen=True)
class LargerGain:
    """One step improves more than others do: the difference of the differences, sample by sample, lies above a margin.

    Args:
        gain: ``(from, to)``, the step with the larger gain.
        than: the steps with smaller gains.
        quantity: what is compared.
        margin: by how much.
    """

    gain: tuple[Run, Run]
    than: tuple[tuple[Run, Run], ...]
    quantity: Quantity
    margin: float = 0.0

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run it needs."""
        return tuple(dict.fromkeys(run for step in (self.gain, *self.than) for run in step))

    def check(self, evidence: Evidence) -> list[Outcome]:
        """Return one outcome a smaller step."""
        large = evidence.gain(*self.gain, self.quantity)
        outcomes = []
        for step in self.than:
            small = evidence.gain(*step, self.quantity)
            pairs = {k: (a, v - small[k][1]) for k, (a, v) in large.items() if k in small}
            steps = (
                f"gain ({_versus(self.gain[0], 'to', self.gain[1])}) larger than ({_versus(step[0], 'to', step[1])})"
            )
            text = f"{steps}{_margin(self.margin)} in {self.quantity}"
            outcomes.append(_outcome(text, _interval(pairs), self.margin, self.quantity.metric))
        return outcomes


@dataclass(frozen=True)
class CostRatio:
    """A run costs so many times what another does, or so much: geometric mean over samples and anatomies.

    Args:
        cost: one of :data:`COSTS`.
        of: run in the numerator.
        to: run in the denominator; without one the cost itself counts, in seconds, MiB or iterations.
        threshold: the ratio, or the cost, that is claimed.
        direction: whether it is at least or at most that.
    """

    cost: Literal["seconds", "peak_mb", "iterations", "settling_iterations", "settling_seconds"]
    of: Run
    to: Run | None
    threshold: float
    direction: Literal["at_least", "at_most"] = "at_least"

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run it needs."""
        return (self.of,) if self.to is None else (self.of, self.to)

    def check(self, evidence: Evidence) -> list[Outcome]:
        """Return one outcome; results of different devices are not compared."""
        what, asked = COSTS[self.cost], f"{self.direction.replace('_', ' ')} {self.threshold:g}"
        text = f"{self.of.task}: {what} of {self.of.method} {asked}"
        if self.to is not None:
            text = f"{_versus(self.of, 'over', self.to)}: ratio of {what} {asked}"
        records = [evidence.records(run) for run in self.runs]
        devices = {r.device for rows in records for r in rows}
        if len(devices) > 1 and "iterations" not in self.cost:
            return [_outcome(text, None, self.threshold, "ratio", note=f"devices differ: {', '.join(sorted(devices))}")]
        costs = [
            {(r.sample, r.repeat, r.seed): (r.anatomy, c) for r in rows if (c := _cost(r, self.cost))}
            for rows in records
        ]
        logs = {
            k: (a, math.log(v / (1.0 if self.to is None else costs[1][k][1])))
            for k, (a, v) in costs[0].items()
            if k in costs[-1]
        }
        ratio = _mapped(_interval(logs), math.exp)
        outcome = _outcome(text, ratio, self.threshold, "ratio")
        if self.direction == "at_least" or outcome.verdict not in (HOLDS, FAILS):
            return [outcome]
        flipped = FAILS if outcome.verdict == HOLDS else HOLDS
        return [Outcome(text, ratio, self.threshold, flipped, "ratio")]


@dataclass(frozen=True)
class Trend:
    """A number rises or falls along a family of tasks: the slope of every anatomy's line, in the claimed direction.

    The number is the metric of the runs, or with ``against`` how much better the runs are than those. The slope is that
    of a least-squares line through the anatomy's means against the value (or its base-2 logarithm).

    Args:
        runs: one run a task of the family, at least three.
        values: the number in which the tasks differ, one a run.
        quantity: what is measured.
        direction: ``"rises"`` or ``"falls"``.
        scale: ``"linear"`` or ``"log"``.
        against: runs to compare with, one a run, or none.
        margin: how steep, in the unit of the metric a unit (or a doubling) of the value.
    """

    runs: tuple[Run, ...]
    values: tuple[float, ...]
    quantity: Quantity
    direction: Literal["rises", "falls"]
    scale: Literal["linear", "log"] = "linear"
    against: tuple[Run, ...] = ()
    margin: float = 0.0

    def check(self, evidence: Evidence) -> list[Outcome]:
        """Return one outcome, over the anatomies that have every task."""
        tasks = f"{self.runs[0].task} ... {self.runs[-1].task}"
        what = f"{self.quantity} of {self.runs[0].method}"
        if self.against:
            what = f"advantage of {self.runs[0].method} over {self.against[0].method} in {self.quantity}"
        unit = "a doubling" if self.scale == "log" else "a unit"
        text = f"{tasks}: {what} {self.direction} with the value{_margin(self.margin)} ({unit})"
        columns: list[Mapping[Key, tuple[str, float]]] = [evidence.values(r, self.quantity) for r in self.runs]
        if self.against:
            columns = [evidence.gain(o, r, self.quantity) for r, o in zip(self.runs, self.against, strict=True)]
        x = np.log2(self.values) if self.scale == "log" else np.asarray(self.values, float)
        sign = 1.0 if self.direction == "rises" else -1.0
        means = [_means(column) for column in columns]
        anatomies = sorted(set.intersection(*map(set, means)))
        slopes = [(a, sign * float(np.polyfit(x, [m[a] for m in means], 1)[0])) for a in anatomies]
        return [_outcome(text, anatomy_interval(slopes) if slopes else None, self.margin, self.quantity.metric)]


def verdict_of(measured: Interval | None, threshold: float) -> str:
    """Return what an interval says of a threshold that it is claimed to lie above."""
    if measured is None or measured.low is None or measured.high is None:
        return UNTESTED
    return HOLDS if measured.low > threshold else FAILS if measured.high < threshold else OPEN


def _cost(record: Record, cost: str) -> float | None:
    """Return what a result cost; ``None`` where that was not recorded."""
    value = record.settling.get(cost) if cost not in ("seconds", "peak_mb") else getattr(record, cost)
    return None if value is None else float(value)


def _outcome(text: str, measured: Interval | None, threshold: float, metric: str, *, note: str = "") -> Outcome:
    if measured is not None and measured.low is None:
        note = note or "one anatomy allows no interval"
    return Outcome(text, measured, threshold, verdict_of(measured, threshold), metric, note)


def _interval(pairs: Mapping[Key, tuple[str, float]]) -> Interval | None:
    return anatomy_interval(pairs.values()) if pairs else None


def _means(column: Mapping[Key, tuple[str, float]]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for anatomy, value in column.values():
        groups.setdefault(anatomy, []).append(value)
    return {anatomy: float(np.mean(values)) for anatomy, values in groups.items()}


def _mapped(interval: Interval | None, function: Callable[[float], float]) -> Interval | None:
    if interval is None:
        return None
    low, high = (None if v is None else function(v) for v in (interval.low, interval.high))
    return Interval(function(interval.mean), low, high, interval.anatomies, interval.samples)


def _versus(first: Run, words: str, second: Run) -> str:
    """Return a sentence on two runs that says once what they share."""
    if first.task == second.task:
        return f"{first.task}: {first.method} {words} {second.method}"
    if first.method == second.method:
        return f"{first.method}: {first.task} {words} {second.task}"
    return f"{first.method} on {first.task} {words} {second.method} on {second.task}"


def _margin(margin: float) -> str:
    return f" by more than {margin:g}" if margin else ""
