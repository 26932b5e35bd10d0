"""Task specifications: what is measured, what is wanted, and on which samples.

A task is a JSON file in MONAI's config syntax, so that it can be laid over a bundle's ``inference.json``; but it is
data, not code: objects come from a fixed table of targets, and expressions (``$``) and macros (``%``) are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from .. import acquisition as acquisition_package
from ..acquisition import Acquisition, CleanImage, fine_maps
from ..acquisition.spectral_slices import BASIS, CONTRAST
from ..measurement import Measurement
from ..space import ImageSpace
from .faults import explain_fault

__all__ = ["TARGETS", "Task", "explain_fault", "load", "names", "replace_table", "schema", "table"]

TARGETS = frozenset(
    {
        "multirecon.space.ImageSpace",
        "multirecon.data.datasets.PhantomSlices",
        "multirecon.data.slabs.PhantomSlabs",
    }
    | {f"multirecon.acquisition.{name}" for name in acquisition_package.__all__}
)


MATERIALS = (*BASIS, CONTRAST)
"""Names of the channels of the modality ``materials``, in order."""
FAMILIES = ("mr", "ct", "pet", "pet_mr", "pet_ct", "spectral_ct", "synthesis")


@dataclass(frozen=True, eq=False)
class Task:
    """One question, asked of every bundle alike.

    Args:
        name: the task's name; it seeds the noise.
        description: one sentence.
        space: image space of the unknown stack.
        targets: modalities that are evaluated.
        metrics: names of the metrics.
        repeats: noise realisations a sample.
        acquisition: how data are made.
        config: the JSON content.
    """

    name: str
    description: str
    space: ImageSpace
    targets: tuple[str, ...]
    metrics: tuple[str, ...]
    repeats: int
    acquisition: Acquisition
    config: Mapping[str, Any] = field(repr=False)

    @property
    def channels(self) -> dict[str, tuple[str, ...]]:
        """Names of the channels of every target that has several: its energies, or its materials."""
        energies = self.config["dataset"].get("energies_kev", {})
        found: dict[str, tuple[str, ...]] = {}
        for name in self.targets:
            count = self.space[name].channels
            if name == "materials":
                found[name] = MATERIALS[:count]
            elif count > 1 and len(energies.get(name, ())) == count:
                found[name] = tuple(f"{energy:g} keV" for energy in energies[name])
        return found

    def samples(self, set_name: str = "small") -> Sequence[Mapping[str, Any]]:
        """Return the data set of the named evaluation set (``"small"``, ``"full"``), indexable, with truths.

        Raises:
            ValueError: on an unknown set.
        """
        sets = self.config["sets"]
        if set_name not in sets:
            raise ValueError(f"set of task {self.name!r}: expected one of {sorted(sets)}, got {set_name!r}")
        return _build({**self.config["dataset"], **sets[set_name]}, self.config)

    def measure(self, item: Mapping[str, Any], repeat: int = 0) -> tuple[Measurement, Tensor]:
        """Return the measurement (a batch of one) of a sample and its truth ``(1, C, *shape)``."""
        names = list(self.config["dataset"].get("modalities", self.space.names))
        widths = [self.space[n].channels if n in self.space else 1 for n in names]
        batch = {key: value[None] for key, value in item.items() if isinstance(value, Tensor)}
        maps = {**fine_maps(batch), **dict(zip(names, batch["fine"].split(widths, dim=1), strict=True))}
        measurement = self.acquisition(maps, [str(item["id"])], repeat=repeat, affine=item.get("affine"))
        channels = dict(zip(names, batch["image"].split(widths, dim=1), strict=True))
        return measurement, torch.cat([channels[n] for n in self.space.names], dim=1)


def names() -> list[str]:
    """Return the names of the tasks that ship with the package."""
    folder = resources.files(__name__)
    return sorted(p.name[: -len(".json")] for p in folder.iterdir() if p.name.endswith(".json") and p.name != SCHEMA)


SCHEMA = "task.schema.json"


def schema() -> dict[str, Any]:
    """Return the JSON schema of task files."""
    return json.loads(resources.files(__name__).joinpath(SCHEMA).read_text(encoding="utf-8"))


_HEADER = ("task", "family", "measured", "missing", "targets", "data hold, model does not", "noise key")
_MARKS = "<!-- table of tasks: begin -->", "<!-- table of tasks: end -->"


def table() -> str:
    """Return the catalogue of the package's tasks as a Markdown table, ordered by family and name."""
    tasks = sorted((load(name) for name in names()), key=lambda t: (FAMILIES.index(t.config["family"]), t.name))
    rows = [_HEADER, ("---",) * len(_HEADER), *(_row(task) for task in tasks)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def replace_table(page: str) -> str:
    """Return the text of ``docs/tasks.md`` with the table of this version between its marks.

    Raises:
        ValueError: if the page lacks the marks.
    """
    begin, end = _MARKS
    head, mark, rest = page.partition(begin)
    _, other, tail = rest.partition(end)
    if not mark or not other:
        raise ValueError(f"page: expected the marks {begin!r} and {end!r}")
    return f"{head}{begin}\n\n{table()}\n\n{end}{tail}"


def _row(task: Task) -> tuple[str, ...]:
    scans = task.acquisition.scans
    clean = [name for name, scan in scans.items() if scan.describe() == CleanImage().describe()]
    data = [f"`{name}`: {scan.describe()}" for name, scan in scans.items() if name not in clean]
    given = [f"clean {', '.join(f'`{n}`' for n in clean)}"] if clean else []
    missing = [f"`{n}`" for n in task.space.names if n not in scans]
    unknown = [f"`{name}`: {', '.join(m)}" for name, scan in scans.items() if (m := scan.mismatch())]
    return (
        f"`{task.name}`",
        str(task.config["family"]),
        "; ".join(data + given),
        ", ".join(missing),
        ", ".join(f"`{n}`" for n in task.targets),
        "; ".join(unknown),
        f"`{task.acquisition.key}`",
    )


def load(task: str | os.PathLike[str]) -> Task:
    """Return a task by its name, or from a JSON file.

    Raises:
        ValueError: on an unknown name, or a file that is not a valid task (naming the key).
    """
    text, where = _read(task)
    try:
        config = json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    fault = next(iter(jsonschema.Draft202012Validator(schema()).iter_errors(config)), None)
    if fault is not None:
        raise ValueError(f"{where}: {explain_fault(fault, whole='task')}")
    _refuse_code(config, where)
    parts = {key: _build(config[key], config) for key in ("space", "acquisition")}
    unknown = sorted(set(config["targets"]) - set(parts["space"].names))
    if unknown:
        raise ValueError(f"{where}: targets: expected some of {list(parts['space'].names)}, got {unknown}")
    return Task(
        name=config["name"],
        description=config["description"],
        space=parts["space"],
        targets=tuple(config["targets"]),
        metrics=tuple(config["metrics"]),
        repeats=config.get("repeats", 1),
        acquisition=parts["acquisition"],
        config=config,
    )


def _read(task: str | os.PathLike[str]) -> tuple[str, str]:
    text = str(task)
    if text in names():
        return resources.files(__name__).joinpath(f"{text}.json").read_text(encoding="utf-8"), f"task {text!r}"
    path = Path(task)
    if path.suffix != ".json" or not path.is_file():
        raise ValueError(f"task: expected one of {names()} or a JSON file, got {text!r}")
    return path.read_text(encoding="utf-8"), str(path)


def _refuse_code(value: Any, where: str, key: str = "") -> None:
    """Raise ValueError on anything that MONAI's parser would execute or fetch."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name == "_target_" and item not in TARGETS:
                raise ValueError(f"{where}: {key}._target_: expected one of {sorted(TARGETS)}, got {item!r}")
            _refuse_code(item, where, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_code(item, where, f"{key}.{index}")
    elif isinstance(value, str) and (value.startswith(("$", "%")) or (value.startswith("@") and value != "@space")):
        raise ValueError(f"{where}: {key}: expected a plain value or '@space', got {value!r}")


def _build(value: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    parser = ConfigParser({"value": dict(value), "space": config["space"]})
    try:
        return parser.get_parsed_content("value")
    except RuntimeError as error:
        # MONAI wraps what a constructor raised; the cause is the clear line.
        cause = error.__cause__ or error
        line = " ".join(str(cause).split())
        if not isinstance(cause, ValueError) or "expected" not in line:
            line = f"{value.get('_target_')}: expected arguments that fit it, got {type(cause).__name__}: {line}"
        raise ValueError(f"task {config.get('name')!r}: {line}") from error


def _no_number(text: str) -> Any:
    raise ValueError(f"expected finite numbers, got {text}")
