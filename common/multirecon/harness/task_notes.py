"""What a run noted about its tasks, as the report reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..metrics import ReportingRange
from ..space import ImageSpace
from .sweeps import SweepPoint, read_points
from .workspace import TASKS

__all__ = ["TaskInfo", "read_tasks"]


@dataclass(frozen=True)
class TaskInfo:
    """What the report knows of a task.

    Args:
        description: one sentence.
        targets: modalities that are evaluated.
        space: image space of the stacks.
        ranges: modality -> how it is stated.
        measured: measured modality -> what its data are.
        sweeps: its places in families of tasks.
    """

    description: str
    targets: tuple[str, ...]
    space: ImageSpace
    ranges: Mapping[str, ReportingRange] = field(default_factory=dict)
    measured: Mapping[str, str] = field(default_factory=dict)
    sweeps: tuple[SweepPoint, ...] = ()


def read_tasks(folder: Path) -> dict[str, TaskInfo]:
    """Return the tasks that a run described in ``folder/tasks``; a file that cannot be read is left out."""
    found = {}
    for path in sorted((folder / TASKS).glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            ranges = {n: ReportingRange(**{**r, "window": tuple(r["window"])}) for n, r in values["ranges"].items()}
            found[str(values["name"])] = TaskInfo(
                str(values["description"]),
                tuple(values["targets"]),
                ImageSpace(**values["space"]),
                ranges,
                {str(n): str(text) for n, text in values.get("measured", {}).items()},
                read_points(values.get("sweeps", ())),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found
