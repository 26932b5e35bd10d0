"""Validation data for the tuner: a few slices of the validation anatomies, measured once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from ..data.splits import EMBEDDED, split_of
from ..measurement import Measurement
from ..reconstruction.tuning import block_kind
from ..tasks import Task

__all__ = ["REPRESENTATIVE", "SPLIT", "Case", "ValidationData", "validation_task"]

SPLIT = "validation"
REPRESENTATIVE = (
    "flair_x4",
    "flair_x4c",
    "flair_x4_t1",
    "flair_x4c_t1",
    "hadamard_8pct",
    "ct_sparse60",
    "ct_lowdose",
    "ct_sparse60_scanner_b",
    "pet_counts_5",
    "pet_counts_50",
    "dect_sparse",
    "spectralct_lowdose",
    "materials_lowdose",
    "petct3d_lowdose",
)
"""Tasks that together have every kind of block; those about robustness are left out where a kind has another task."""


@dataclass(frozen=True, eq=False)
class Case:
    """One measurement of a validation sample.

    Args:
        task: name of the task.
        sample: id of the sample, ``anatomy/seed/slice``.
        measurement: the data.
        truth: the true stack ``(1, C, *shape)``.
    """

    task: str
    sample: str
    measurement: Measurement
    truth: Tensor

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the data."""
        return self.measurement.fingerprint()

    @cached_property
    def kinds(self) -> dict[str, list[str]]:
        """Kind of block -> its modalities, clean ones left out."""
        kinds: dict[str, list[str]] = {}
        for name in self.measurement.available:
            if name not in self.measurement.clean:
                kinds.setdefault(block_kind(self.measurement, name), []).append(name)
        return kinds


def validation_task(task: Task, *, slices: int = 1) -> Task:
    """Return the task with a few slices of the validation anatomies in the place of its evaluation sets.

    On the embedded anatomy, which has validation seeds and no validation anatomy, two seeds are taken.

    Args:
        task: the task.
        slices: slices a subject, where the data are slices.

    Raises:
        ValueError: if a sample would belong to another split.
    """
    dataset = {**task.config["dataset"], "split": SPLIT, "seeds": 1}
    if "depth" not in dataset:
        dataset["slices"] = slices
    changed = replace(task, config={**task.config, "dataset": dataset, "sets": {SPLIT: {}}})
    subjects = _subjects(changed)
    if subjects == [EMBEDDED]:
        dataset["seeds"] = 2
        subjects = _subjects(changed)
    return changed


def _subjects(task: Task) -> list[str]:
    """Return the anatomies of a validation task.

    Raises:
        ValueError: if a sample belongs to another split, or to none that is known.
    """
    samples: Iterable[tuple[str, int]] = task.samples(SPLIT).samples  # type: ignore[attr-defined]
    wrong = sorted({f"{a} seed {s}" for a, s in samples if split_of(a, s) != SPLIT})
    if wrong:
        raise ValueError(f"task {task.name!r}: expected samples of the split {SPLIT!r} only, got {', '.join(wrong)}")
    return list(dict.fromkeys(anatomy for anatomy, _ in samples))


class ValidationData:
    """Measurements of validation samples, simulated once and used in every trial of every bundle.

    Args:
        tasks: the tasks; only their validation samples are ever made, see :func:`validation_task`.
        slices: slices a subject.

    Raises:
        ValueError: if there is no task, or a task has samples of another split.
    """

    def __init__(self, tasks: Sequence[Task], *, slices: int = 1) -> None:
        if not tasks or slices < 1:
            raise ValueError(f"tasks, slices: expected at least one of each, got {len(tasks)} and {slices}")
        self.tasks = {task.name: validation_task(task, slices=slices) for task in tasks}
        self._cases: dict[str, list[Case]] = {}

    def cases(self, name: str) -> list[Case]:
        """Return the measurements of a task."""
        if name not in self._cases:
            task = self.tasks[name]
            samples = task.samples(SPLIT)
            items = [samples[index] for index in range(len(samples))]
            self._cases[name] = [Case(name, str(item["id"]), *task.measure(item)) for item in items]
        return self._cases[name]
