"""A bundle that was downloaded: which of its files came with the archive, and which did not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..bundle.package import content_hash
from ..transfer import file_sha256
from .manifest import Entry

__all__ = ["RECORD", "installed_faults", "read_record", "strange_files", "write_record"]

RECORD = ".multirecon.json"
# Results, and what tools leave: never part of an archive, never executed by a bundle.
OUTPUTS = ("eval", "data")


def write_record(folder: Path, version: str, sha256: str, members: Mapping[str, bytes]) -> None:
    """Note in a bundle's folder which archive it came from, with the SHA-256 of every file."""
    files = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(members.items())}
    content = {"version": version, "sha256": sha256, "files": files}
    (folder / RECORD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the note of :func:`write_record`, or ``None`` where the folder came another way."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def strange_files(folder: Path, record: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the relative names of files that were ``edited``, ``added`` or ``removed`` since they came."""
    known: Mapping[str, str] = record["files"]
    found = set(_files(folder))
    return {
        "edited": sorted(n for n in found & set(known) if file_sha256(folder / n) != known[n]),
        "added": sorted(found - set(known)),
        "removed": sorted(set(known) - found),
    }


def installed_faults(folder: Path, entry: Entry) -> list[str]:
    """Return how a bundle's folder, however it came, differs from the archive in a manifest; empty if it does not.

    Results (``eval``, ``data``), hidden files and Python's caches do not count.
    """
    files = [n for n in _files(folder) if n.split("/")[0] not in OUTPUTS and not n.startswith(".")]
    links = [n for n in files if (folder / n).is_symlink()]
    if links:
        return [f"expected plain files, got links {links[:3]}"]
    if content_hash((n, (folder / n).read_bytes()) for n in files) == entry.tree:
        return []
    record = read_record(folder)
    if record is None or record["sha256"] != entry.sha256:
        return [f"expected the files of version {entry.version} (hash {entry.tree[:12]}), got others"]
    strange = {kind: names for kind, names in strange_files(folder, record).items() if names}
    return [f"expected the files of version {entry.version}, got {strange}"]


def _files(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            f for f in folders if f != "__pycache__" and not (f.startswith(".") and place == str(folder))
        )
        links = [f for f in folders if (Path(place) / f).is_symlink()]
        for file in sorted([*files, *links]):
            name = (Path(place) / file).relative_to(folder).as_posix()
            if name != RECORD and not file.endswith(".pyc"):
                yield name
