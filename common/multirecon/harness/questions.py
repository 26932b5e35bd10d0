"""What every method is asked: a task's measurements, simulated once, and the truths that stay in this process."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.tissues import REGIONS
from ..measurement import Measurement
from ..space import ImageSpace
from .workspace import write_json

__all__ = ["Answerable", "Question", "Questions", "TaskLike", "places", "regions", "shown_samples", "tissues"]

SHARES = ("brain", "lesion", "pet_lesion")
TISSUES = ("cortical_gm", "white_matter")


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
        tissues: masks of tissues, in which only bias and spread over noise realisations are taken.
        places: masks of contrast agent, in which only materials are measured.
    """

    file: Path
    fingerprint: str
    measurement: Measurement
    truth: Tensor
    regions: Mapping[str, Tensor]
    tissues: Mapping[str, Tensor] = field(default_factory=dict)
    places: Mapping[str, Tensor] = field(default_factory=dict)


class Questions:
    """The questions of one task, and their measurements on demand.

    Building a sample may take long (a whole head is simulated for its slices): samples that were built to learn their
    names are kept until they are measured, and the names are kept in ``catalogue``, so that a run that goes on builds
    only what it needs.

    Args:
        task: the task.
        set_name: evaluation set.
        folder: where measurement files are kept.
        catalogue: file of the samples' names; only for tasks with a ``config``, by which a stale file is told.
        repeats: noise realisations a sample; the default is the task's.
        limit: first samples of the set only.

    Raises:
        ValueError: if the set is empty, or two of its samples share an id.
    """

    def __init__(
        self,
        task: TaskLike,
        *,
        set_name: str,
        folder: Path,
        catalogue: Path | None = None,
        repeats: int | None = None,
        limit: int | None = None,
    ) -> None:
        self.task = task
        self.folder = folder
        self.repeats = repeats or task.repeats
        self._samples = task.samples(set_name)
        self._built: dict[int, Mapping[str, Any]] = {}
        self._ready: dict[Question, Answerable] = {}
        count = len(self._samples) if limit is None else min(limit, len(self._samples))
        names = self._names(count, set_name, catalogue)
        if not names or len({name for name, _ in names}) != len(names):
            shown = [name for name, _ in names[:8]]
            raise ValueError(f"task {task.name!r}, set {set_name!r}: expected samples of different ids, got {shown}")
        self.all = [
            Question(task.name, index, name, anatomy, repeat)
            for index, (name, anatomy) in enumerate(names)
            for repeat in range(self.repeats)
        ]
        self.shown = shown_samples([anatomy for _, anatomy in names])

    def _names(self, count: int, set_name: str, catalogue: Path | None) -> list[tuple[str, str]]:
        """Return ``(id, anatomy)`` of the first samples, from the catalogue where it fits."""
        origin = _origin(self.task, set_name)
        if catalogue is not None and origin:
            try:
                held = json.loads(catalogue.read_text(encoding="utf-8"))
                if held["origin"] == origin and len(held["samples"]) >= count:
                    return [(str(name), str(anatomy)) for name, anatomy in held["samples"][:count]]
            except (OSError, ValueError, KeyError, TypeError):
                pass  # none yet, or damaged: it is written again
        for index in range(count):
            self._built[index] = self._samples[index]
        names = [(str(item["id"]), _anatomy(item)) for item in self._built.values()]
        if catalogue is not None and origin:
            write_json(catalogue, {"origin": origin, "samples": names})
        return names

    def prepare(self, question: Question) -> Answerable:
        """Return the question with its data, simulated the first time.

        Raises:
            ValueError: if the sample is not the one that the question names.
        """
        if question not in self._ready:
            item = self._built.get(question.index) or self._samples[question.index]
            if str(item["id"]) != question.sample:
                raise ValueError(f"sample {question.index}: expected {question.sample!r}, got {item['id']!r}: "
                                 "the data of the task have changed (use another output folder)")  # fmt: skip
            measurement, truth = self.task.measure(item, question.repeat)
            if question.repeat == self.repeats - 1:
                self._built.pop(question.index, None)
            # what the file says about its origin would be enough to draw the same noise again
            measurement = replace(measurement, metadata={"simulated": True})
            number = f"{len(self._ready) + 1:05d}"
            file = measurement.save(self.folder / number / f"{number}.h5")
            self._ready[question] = Answerable(
                file,
                measurement.fingerprint(),
                measurement,
                torch.as_tensor(truth).cpu().float(),
                regions(item),
                tissues(item),
                places(item),
            )
        return self._ready[question]


def shown_samples(anatomies: Sequence[str], count: int = 3) -> frozenset[int]:
    """Return the samples that the report shows: the middle one of every anatomy first, then those around it.

    Args:
        anatomies: anatomy of every sample, in the order of the set.
        count: number of samples.

    Example:
        >>> sorted(shown_samples(["a"] * 8 + ["b"] * 8, 3)), sorted(shown_samples(["a"] * 8, 3))
        ([2, 4, 12], [2, 4, 6])
    """
    groups: dict[str, list[int]] = {}
    for index, anatomy in enumerate(anatomies):
        groups.setdefault(anatomy, []).append(index)
    chosen: dict[int, None] = {}
    for share in (0.5, 0.25, 0.75, 0.0):
        chosen |= dict.fromkeys(group[int(share * len(group))] for group in groups.values())
    return frozenset(list(chosen)[:count])


def regions(item: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the masks ``(*shape)`` in which metrics are also taken: the item's ``regions``, brain and lesions.

    Shares of a voxel become masks at one half.
    """
    given = item.get("regions")
    masks = (
        {str(n): torch.as_tensor(np.asarray(m)) > 0.5 for n, m in given.items()} if isinstance(given, Mapping) else {}
    )
    for name in SHARES:
        if name in item:
            masks[name] = torch.as_tensor(np.asarray(item[name]))[0] > 0.5
    return masks


def places(item: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the masks ``(*shape)`` of vessels and inserts with contrast agent: the item's ``contrast`` above 1/2."""
    return {str(n): torch.as_tensor(share)[0] > 0.5 for n, share in dict(item.get("contrast") or {}).items()}


def tissues(item: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the masks ``(*shape)`` of cortical grey and of white matter, where the item's ``regions`` are an index."""
    index = item.get("regions")
    if not isinstance(index, Tensor):
        return {}
    masks = {name: index[0] == REGIONS.index(name) for name in TISSUES}
    return {name: mask for name, mask in masks.items() if bool(mask.any())}


def _anatomy(item: Mapping[str, Any]) -> str:
    """Return the anatomy of an item, by default what its id ``anatomy/seed/slice`` begins with."""
    return str(item.get("anatomy") or str(item["id"]).partition("/")[0])


def _origin(task: TaskLike, set_name: str) -> str:
    """Return a hash of what the names of a set depend on; empty for a task without a ``config``."""
    config = getattr(task, "config", None)
    if config is None:
        return ""
    text = json.dumps([config, set_name, os.environ.get("MULTIRECON_ANATOMIES", "")], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
