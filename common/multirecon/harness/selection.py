"""Which method for this measurement: recorded results on the most similar task, applicability, and a time budget."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..measurement import Measurement
from ..metrics import HIGHER_IS_BETTER, METRICS
from .acquisitions import acquisition_distance, acquisition_text, default_targets, describe_acquisition
from .leaderboard import Row, boards, select
from .methods import Method
from .records import read_records
from .workspace import RECORDS, TASKS

__all__ = ["Candidate", "Choice", "RecordedTask", "choose", "read_leaderboard"]


@dataclass(frozen=True)
class RecordedTask:
    """A task of the leaderboard.

    Args:
        name: name of the task.
        targets: modalities that it evaluates.
        acquisition: see :func:`multirecon.harness.acquisitions.describe_acquisition`; empty where it was not noted.
        voxels: number of voxels of a sample.
        rows: method -> its row.
        contents: method -> SHA-256 of the bundle when its results were recorded.
    """

    name: str
    targets: tuple[str, ...]
    acquisition: Mapping[str, Any]
    voxels: int
    rows: Mapping[str, Row]
    contents: Mapping[str, str]


@dataclass(frozen=True)
class Candidate:
    """A method, and what speaks for or against it.

    Args:
        method: the method.
        refusal: why it is not used, in one line; empty for one that may be.
        task: the most similar task on which it has results.
        distance: that of the task from the measurement.
        score: mean of the metric over the targets; NaN without results.
        seconds: what it is expected to take.
        note: what else should be known.
        failures: its failures on that task; a method with some comes after those without.
    """

    method: Method
    refusal: str = ""
    task: str = ""
    distance: float = math.inf
    score: float = math.nan
    seconds: float = math.nan
    note: str = ""
    failures: int = 0


@dataclass(frozen=True)
class Choice:
    """The outcome: what was chosen, and everything that was considered.

    Args:
        acquisition: what was measured.
        targets: what is to be reconstructed.
        metric: what methods are ranked by.
        samples: number of samples in the file.
        nearest: ``(task, distance)``, nearest first.
        ranked: the methods that may be used, best first.
        refused: the others.
        budget: seconds allowed, or ``None``.
    """

    acquisition: Mapping[str, Any]
    targets: tuple[str, ...]
    metric: str
    samples: int
    nearest: tuple[tuple[str, float], ...]
    ranked: tuple[Candidate, ...]
    refused: tuple[Candidate, ...]
    budget: float | None = None

    def lines(self) -> list[str]:
        """Return the reasons in plain lines."""
        count = f"{self.samples} sample{'s' if self.samples > 1 else ''}"
        tasks = ", ".join(f"{name} ({distance:.2f})" for name, distance in self.nearest[:3])
        lines = [
            f"measured    {acquisition_text(self.acquisition)}; {count}",
            f"wanted      {', '.join(self.targets)}",
            f"similar     {tasks or 'no recorded task'} (tasks by distance; 0: the same acquisition)",
        ]
        lines += [f"refused     {c.method.name}: {_first(c.refusal)}" for c in self.refused]
        for place, c in enumerate(self.ranked, start=1):
            if math.isnan(c.score):
                lines.append(f"unranked    {c.method.name}: no recorded result on a similar task")
                continue
            unit = " dB" if self.metric == "psnr" else ""
            time = f"about {c.seconds:.3g} s" if math.isfinite(c.seconds) else "unknown time"
            lines.append(
                f"{place:<12}{c.method.name}: {self.metric} {c.score:.4g}{unit} on {c.task}, {time}"
                + (f" ({c.note})" if c.note else "")
            )
        if self.budget is not None:
            lines.append(f"budget      {self.budget:g} s")
        return lines

    @property
    def best(self) -> Candidate:
        """The method to use.

        Raises:
            ValueError: if no method is left, or none of those left has results on a similar task.
        """
        slow = [f"{c.method.name} ({c.seconds:.3g} s)" for c in self.refused if not math.isnan(c.score)]
        if slow and not any(not math.isnan(c.score) for c in self.ranked):
            raise ValueError(f"budget: expected one that a recorded method keeps, got {self.budget:g} s, less than "
                             f"{', '.join(slow)}")  # fmt: skip
        if not self.ranked:
            reasons = "; ".join(f"{c.method.name}: {_first(c.refusal)}" for c in self.refused)
            raise ValueError(f"method: expected one that takes this measurement, got none ({reasons})")
        if math.isnan(self.ranked[0].score):
            names = [c.method.name for c in self.ranked]
            raise ValueError(
                f"records: expected results of an applicable method on a similar task, got none (name one of {names})"
            )
        return self.ranked[0]


def _first(refusal: str) -> str:
    """Return the first of several reasons, and how many more there are."""
    first, *others = refusal.split("; ")
    return f"{first} (and {len(others)} more)" if others else first


def read_leaderboard(path: Path) -> list[RecordedTask]:
    """Return the tasks of a records file, or of the folder that holds it, with the descriptions in ``tasks/`` beside.

    Raises:
        ValueError: if there are no records.
    """
    file = path / RECORDS if path.is_dir() else path
    records = read_records(file)[0]
    if not records:
        raise ValueError(f"records: expected at least one result in {str(file)!r}, got none")
    selection = select(records)
    found = []
    for board in boards(selection):
        values = _described(file.parent / TASKS / f"{board.task}.json")
        rows = {row.method: row for row in board.rows if row.ok}
        if rows:
            contents = {r.method: r.content for r in selection.records if r.task == board.task}
            voxels = math.prod(values.get("space", {}).get("shape", [0]))
            found.append(
                RecordedTask(board.task, tuple(values.get("targets", ())), values.get("acquisition", {}), voxels,
                             rows, contents)
            )  # fmt: skip
    return found


def _described(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def choose(
    measurement: Measurement,
    methods: Sequence[Method],
    refusals: Mapping[str, str],
    tasks: Sequence[RecordedTask],
    *,
    targets: Sequence[str] = (),
    metric: str = "psnr",
    budget: float | None = None,
) -> Choice:
    """Rank methods for a measurement: by the most similar task on which each has results, then by the metric there.

    Args:
        measurement: the measurement.
        methods: the methods to consider.
        refusals: method name -> why it cannot take the measurement.
        tasks: the leaderboard.
        targets: modalities to reconstruct; see :func:`multirecon.harness.acquisitions.default_targets`.
        metric: ranks methods; the mean over the targets, on whole images.
        budget: seconds that the reconstruction may take, by the recorded time per voxel.

    Raises:
        ValueError: on an unknown target or metric, or a budget that is not positive.
    """
    acquisition = describe_acquisition(measurement)
    wanted = tuple(targets) or default_targets(acquisition)
    known = (*acquisition["blocks"], *acquisition["missing"])
    if not wanted:
        raise ValueError("targets: expected something to reconstruct, got a measurement of clean images alone")
    for target in wanted:
        if target not in known:
            raise ValueError(f"targets: expected some of {list(known)}, got {target!r}")
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {list(METRICS)}, got {metric!r}")
    if budget is not None and not budget > 0:
        raise ValueError(f"budget: expected seconds > 0, got {budget}")
    near: list[tuple[float, RecordedTask, dict[str, str]]] = []
    for task in tasks:
        if task.acquisition:
            found = acquisition_distance(acquisition, task.acquisition, wanted, task.targets)
            if found is not None:
                near.append((found[0], task, found[1]))
    near.sort(key=lambda entry: (entry[0], entry[1].name))
    voxels = measurement.batch_size * math.prod(measurement.space.shape)
    ranked: list[Candidate] = []
    refused: list[Candidate] = []
    for method in methods:
        candidate = Candidate(method, refusals.get(method.name, ""))
        if not candidate.refusal:
            candidate = _assess(candidate, near, metric, voxels)
            if budget is not None and not candidate.seconds <= budget and not math.isnan(candidate.score):
                time = f"about {candidate.seconds:.3g} s" if math.isfinite(candidate.seconds) else "unknown time"
                candidate = replace(candidate, refusal=f"{time} exceed the budget of {budget:g} s")
        (refused if candidate.refusal else ranked).append(candidate)
    sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
    ranked.sort(key=lambda c: (math.isnan(c.score), c.distance, c.failures > 0, sign * c.score, c.method.name))
    nearest = tuple((task.name, distance) for distance, task, _ in near)
    return Choice(acquisition, wanted, metric, measurement.batch_size, nearest, tuple(ranked), tuple(refused), budget)


def _assess(
    candidate: Candidate, near: Sequence[tuple[float, RecordedTask, dict[str, str]]], metric: str, voxels: int
) -> Candidate:
    """Return the candidate with its results on the nearest task that has some."""
    name = candidate.method.name
    for distance, task, counterpart in near:
        row = task.rows.get(name)
        if row is None:
            continue
        values = [row.values[m, metric].mean for m in counterpart.values() if (m, metric) in row.values]
        if len(values) != len(counterpart):
            continue
        notes = [f"failed on {row.failed} of {row.ok + row.failed}"] if row.failed else []
        if task.contents.get(name) != candidate.method.content:
            notes.append("recorded with another version of the bundle")
        seconds = row.seconds * voxels / task.voxels if row.seconds is not None and task.voxels else math.nan
        score = sum(values) / len(values)
        return replace(candidate, task=task.name, distance=distance, score=score, seconds=seconds,
                       note="; ".join(notes), failures=row.failed)  # fmt: skip
    return candidate
