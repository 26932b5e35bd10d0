"""Families of tasks that differ in one number: a metric against that number, for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .leaderboard import Board, Column
from .statistics import Interval

__all__ = ["Sweep", "SweepPoint", "find_sweeps", "read_points"]


@dataclass(frozen=True)
class SweepPoint:
    """A task's place in a family.

    Args:
        name: name of the family.
        label: what the number is, the label of the axis.
        value: the number of this task.
        scale: ``"linear"`` or ``"log"``, of the axis.
    """

    name: str
    label: str
    value: float
    scale: str = "linear"


@dataclass(frozen=True)
class Sweep:
    """A family with its results.

    Args:
        name: name of the family.
        label: what the number is.
        scale: scale of its axis.
        tasks: ``(value, task)``, by value.
        columns: modality and metric that every task has, whole images only.
        methods: methods with results at two values or more.
        values: ``(method, column) -> [(value, mean with interval)]``.
    """

    name: str
    label: str
    scale: str
    tasks: tuple[tuple[float, str], ...]
    columns: tuple[Column, ...]
    methods: tuple[str, ...]
    values: Mapping[tuple[str, Column], Sequence[tuple[float, Interval]]]


def read_points(values: Sequence[Mapping[str, Any]]) -> tuple[SweepPoint, ...]:
    """Return the families that the entry ``sweeps`` of a task file names.

    Raises:
        TypeError, ValueError: if it is no such entry.
    """
    points = tuple(SweepPoint(**{**v, "value": float(v["value"])}) for v in values)
    if any(p.scale not in ("linear", "log") or (p.scale == "log" and p.value <= 0) for p in points):
        raise ValueError(f"sweeps: expected a linear scale, or a log scale and values > 0, got {values}")
    return points


def find_sweeps(
    tables: Sequence[Board], points: Mapping[str, Sequence[SweepPoint]], order: Sequence[str]
) -> list[Sweep]:
    """Return the families of which a method has results at two values or more.

    Args:
        tables: the boards.
        points: task -> its places in families.
        order: methods in the order in which they are shown.
    """
    families: dict[str, dict[float, tuple[SweepPoint, Board]]] = {}
    for board in tables:
        for point in points.get(board.task, ()):
            families.setdefault(point.name, {})[point.value] = (point, board)
    sweeps = [_sweep(name, places, order) for name, places in families.items()]
    return sorted((s for s in sweeps if s.methods and s.columns), key=lambda s: s.name)


def _sweep(name: str, places: Mapping[float, tuple[SweepPoint, Board]], order: Sequence[str]) -> Sweep:
    items = sorted(places.items())
    first = items[0][1][0]
    answered = [board for _, (_, board) in items if board.columns]
    columns = tuple(c for c in (answered[0].columns if answered else ()) if "@" not in c[1] and c[1] != "residual")
    columns = tuple(c for c in columns if all(c in board.columns for board in answered))
    values: dict[tuple[str, Column], list[tuple[float, Interval]]] = {}
    for value, (_, board) in items:
        for row in board.rows:
            for column in columns:
                if column in row.values:
                    values.setdefault((row.method, column), []).append((value, row.values[column]))
    values = {key: found for key, found in values.items() if len(found) > 1}
    methods = tuple(m for m in order if any(key[0] == m for key in values))
    tasks = tuple((value, board.task) for value, (_, board) in items)
    return Sweep(name, first.label, first.scale, tasks, columns, methods, values)
