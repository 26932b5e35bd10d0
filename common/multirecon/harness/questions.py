"""What every method is asked: a task's measurements, simulated once, and the truths that stay in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..measurement import Measurement
from ..space import ImageSpace

__all__ = ["Answerable", "Question", "Questions", "TaskLike"]


class TaskLike(Protocol):
    """What the harness needs of a task; :class:`multirecon.tasks.Task` is one."""

    @property
    def name(self) -> str:
        """Name of the task."""
        ...

    @property
    def description(self) -> str:
        """One sentence."""
        ...

    @property
    def space(self) -> ImageSpace:
        """Image space of the unknown stack."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """Modalities that are evaluated."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""
        ...

    @property
    def repeats(self) -> int:
        """Noise realisations a sample."""
        ...

    def samples(self, set_name: str = "small") -> Sequence[Mapping[str, Any]]:
        """Return the samples of an evaluation set."""
        ...

    def measure(self, item: Mapping[str, Any], repeat: int = 0) -> tuple[Measurement, Tensor]:
        """Return the measurement of a sample, and its truth."""
        ...


@dataclass(frozen=True)
class Question:
    """One measurement of one sample: what a method is asked once.

    Args:
        task: name of the task.
        index: position of the sample in its set.
        sample: id of the sample.
        anatomy: the anatomy it comes from.
        repeat: number of the noise realisation.
    """

    task: str
    index: int
    sample: str
    anatomy: str
    repeat: int


@dataclass(frozen=True, eq=False)
class Answerable:
    """A question with its data on the disk, and what the answer is compared with.

    Args:
        file: the measurement file, under a name that says nothing.
        fingerprint: SHA-256 of the data.
        measurement: the measurement itself.
        truth: the true stack ``(1, C, *shape)``.
        regions: masks ``(*shape)`` by name.
    """

    file: Path
    fingerprint: str
    measurement: Measurement
    truth: Tensor
    regions: Mapping[str, Tensor]


class Questions:
    """The questions of one task, and their measurements on demand.

    Args:
        task: the task.
        set_name: evaluation set.
        folder: where measurement files are kept.
        repeats: noise realisations a sample; the default is the task's.
        limit: first samples of the set only.

    Raises:
        ValueError: if the set is empty, or two of its samples share an id.
    """

    def __init__(
        self, task: TaskLike, *, set_name: str, folder: Path, repeats: int | None = None, limit: int | None = None
    ) -> None:
        self.task = task
        self.folder = folder
        self._samples = task.samples(set_name)
        count = len(self._samples) if limit is None else min(limit, len(self._samples))
        items = [self._samples[i] for i in range(count)]
        names = [str(item["id"]) for item in items]
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"task {task.name!r}, set {set_name!r}: expected samples of different ids, got {names[:8]}"
            )
        self.all = [
            Question(task.name, index, name, str(item.get("anatomy", name)), repeat)
            for index, (name, item) in enumerate(zip(names, items, strict=True))
            for repeat in range(repeats or task.repeats)
        ]
        self._ready: dict[Question, Answerable] = {}

    def prepare(self, question: Question) -> Answerable:
        """Return the question with its data, simulated the first time."""
        if question not in self._ready:
            item = self._samples[question.index]
            measurement, truth = self.task.measure(item, question.repeat)
            # what the file says about its origin would be enough to draw the same noise again
            measurement = replace(measurement, metadata={"simulated": True})
            number = f"{len(self._ready) + 1:05d}"
            file = measurement.save(self.folder / number / f"{number}.h5")
            self._ready[question] = Answerable(
                file, measurement.fingerprint(), measurement, torch.as_tensor(truth).cpu().float(), _regions(item)
            )
        return self._ready[question]


def _regions(item: Mapping[str, Any]) -> dict[str, Tensor]:
    return {str(n): torch.as_tensor(np.asarray(m)).bool() for n, m in dict(item.get("regions") or {}).items()}
