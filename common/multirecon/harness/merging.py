"""Joining the results of several runs: shards, machines, days."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ..files import atomic_path
from .records import Record, RecordFile, consistent, latest, read_records
from .side_files import FEATURES
from .workspace import IMAGES, RECORDS, TASKS

__all__ = ["merge_folders"]


def merge_folders(folders: Sequence[Path], output: Path) -> tuple[int, list[Record]]:
    """Append what several folders hold to ``output``, in an order that does not depend on theirs.

    Args:
        folders: output folders of :func:`multirecon.harness.runner.evaluate`.
        output: folder of the joined results; what it holds already counts too.

    Returns:
        The number of its records, and those refused because their data differ from the others'.

    Raises:
        ValueError: if no folder is given, or one holds no records.
    """
    if not folders:
        raise ValueError("folders: expected at least one output folder of `multirecon evaluate`, got none")
    found = [record for folder in folders for record in read_records(folder / RECORDS)[0]]
    held = RecordFile(output / RECORDS).records()
    # sorted before the vote, so that a draw does not depend on the order of the folders
    kept, refused = consistent(sorted([*held, *found], key=Record.to_line))
    file = RecordFile(output / RECORDS)
    for record in latest(kept):
        if record not in held:
            file.append(record)
    for folder in folders:
        for name in (IMAGES, FEATURES, TASKS):
            _copy_missing(folder / name, output / name)
    return len(latest(file.records())), refused


def _copy_missing(source: Path, target: Path) -> None:
    for path in sorted(p for p in source.rglob("*") if p.is_file() and not p.name.startswith(".part-")):
        place = target / path.relative_to(source)
        if not place.exists():
            with atomic_path(place) as draft:
                shutil.copyfile(path, draft)
