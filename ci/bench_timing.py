"""Timing of candidates in turns, and the rows of the table of goals."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Candidate = Callable[[], object]


@dataclass
class Row:
    """One line of the table: the measured figure, the goal, and what it was computed from."""

    name: str
    value: float
    goal: float | None
    at_least: bool
    unit: str = "x"
    detail: str = ""

    @property
    def reached(self) -> bool:
        if self.goal is None:
            return True
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def markdown(self) -> str:
        value = f"{self.value:.2g}" if self.value < 0.01 else f"{self.value:.3g}"
        goal, mark = "", ""
        if self.goal is not None:
            goal = f"{'at least' if self.at_least else 'at most'} {self.goal:.3g} {self.unit}".strip()
            mark = "yes" if self.reached else "**no**"
        return f"| {self.name} | {goal} | {value} {self.unit} | {mark} | {self.detail} |"


@dataclass
class Settings:
    """How long to measure, and the optional library of parallelproj."""

    rounds: int
    budget_s: float
    parallelproj: ctypes.CDLL | None
    clock: Callable[[], float] = time.process_time


def race(candidates: dict[str, Candidate], settings: Settings) -> dict[str, float]:
    """Return the best time of every candidate in milliseconds; they take turns."""
    clock = settings.clock
    best = dict.fromkeys(candidates, float("inf"))
    for run in candidates.values():
        run()
    start = time.perf_counter()
    for number in range(settings.rounds):
        for name, run in candidates.items():
            repeat = 1 if best[name] > 0.02 else 5
            begin = clock()
            for _ in range(repeat):
                run()
            best[name] = min(best[name], (clock() - begin) / repeat)
        if number >= 2 and time.perf_counter() - start > settings.budget_s:
            break
    return {name: 1e3 * seconds for name, seconds in best.items()}


def ratios(title: str, times: dict[str, float], goals: Mapping[str, float | None]) -> list[Row]:
    """Return one row a peer: how many times slower than ours it is."""
    detail = ", ".join(f"{n} {t:.3g} ms" for n, t in times.items())
    print(f"{title}: {detail}", flush=True)
    return [
        Row(f"{title} against {n}", times[n] / times["ours"], goals[n], True, detail=detail)
        for n in goals
        if n in times
    ]


def same(a: object, b: object, tolerance: float, what: str) -> None:
    """Stop if two results differ by more than a relative tolerance."""
    x, y = (np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v) for v in (a, b))
    error = np.linalg.norm(x.ravel() - y.ravel()) / np.linalg.norm(y.ravel())
    if not error <= tolerance:
        raise SystemExit(f"{what}: the results differ by {error:.3g}, more than {tolerance:g}")
