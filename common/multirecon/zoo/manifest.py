"""The list of a zoo's archives that its owner signs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..bundle.naming import check_name, check_version
from ..bundle.package import content_hash, is_packed
from .archives import MAX_BYTES, archive_name

__all__ = ["MANIFEST", "Entry", "Manifest", "entry_of", "select"]

# One file, so that content and signature appear together: the first line is the signature of all that follows.
MANIFEST = "manifest.signed"
MAX_MANIFEST_BYTES = 4 << 20
FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One archive.

    Args:
        name: the bundle.
        version: its version.
        size: bytes of the archive.
        sha256: of the archive.
        tree: of the unpacked files, see :func:`multirecon.bundle.package.content_hash`.
        package: version of the ``multirecon`` inside.
        task: what the bundle does, in one line.
    """

    name: str
    version: str
    size: int
    sha256: str
    tree: str
    package: str
    task: str

    @property
    def file(self) -> str:
        """File name of the archive."""
        return archive_name(self.name, self.version)

    def check(self) -> None:
        """Check every field; what a manifest says becomes file names and sizes.

        Raises:
            ValueError: naming the field.
        """
        check_name(self.name)
        check_version(self.version)
        for key in ("sha256", "tree"):
            if not re.fullmatch(r"[0-9a-f]{64}", getattr(self, key)):
                raise ValueError(f"{key}: expected 64 hexadecimal digits, got {getattr(self, key)!r}")
        if not 0 < self.size <= MAX_BYTES:
            raise ValueError(f"size: expected 1 to {MAX_BYTES} bytes, got {self.size}")
        if not self.task.isprintable():
            raise ValueError(f"task: expected one line of text, got {self.task!r}")


@dataclass(frozen=True)
class Manifest:
    """What a zoo offers.

    Args:
        serial: grows with every change, so that an old manifest is noticed.
        entries: the archives.
    """

    serial: int
    entries: tuple[Entry, ...] = field(default_factory=tuple)

    def dump(self) -> bytes:
        """Return the content of the manifest file; equal manifests give equal bytes."""
        entries = sorted(self.entries, key=lambda e: (e.name, e.version))
        content = {
            "format": FORMAT,
            "serial": self.serial,
            "archives": [{**asdict(e), "file": e.file} for e in entries],
        }
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def parse(cls, content: bytes) -> Manifest:
        """Return the manifest in a file.

        Raises:
            ValueError: if it is not one.
        """
        try:
            found = json.loads(content)
            if found["format"] != FORMAT:
                raise ValueError(f"format: expected {FORMAT}, got {found['format']!r}")
            manifest = cls(_typed(found, "serial", int), tuple(_entry(item) for item in found["archives"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            line = " ".join(str(error).split())[:200]
            raise ValueError(f"manifest: expected what `multirecon zoo publish` writes, got {line}") from None
        names = [(e.name, e.version) for e in manifest.entries]
        if len(set(names)) < len(names):
            raise ValueError("manifest: expected every version of a bundle once, got one twice")
        return manifest


def _entry(item: Mapping[str, Any]) -> Entry:
    kinds = {name: int if name == "size" else str for name in Entry.__dataclass_fields__}
    entry = Entry(**{name: _typed(item, name, kind) for name, kind in kinds.items()})
    entry.check()
    if item["file"] != entry.file:
        raise ValueError(f"file: expected {entry.file!r}, got {item['file']!r}")
    return entry


def _typed(item: Mapping[str, Any], key: str, kind: type) -> Any:
    value = item[key]
    if type(value) is not kind:
        raise ValueError(f"{key}: expected {kind.__name__}, got {value!r}")
    return value


def entry_of(name: str, version: str, members: Mapping[str, bytes], digest: str, size: int) -> Entry:
    """Return the entry of an archive from its content, which has to be consistent with itself.

    Args:
        name: the bundle that the archive is called after.
        version: its version there.
        members: what :func:`multirecon.zoo.archives.read_archive` returned.
        digest: SHA-256 of the archive.
        size: bytes of the archive.

    Raises:
        ValueError: if its metadata name another bundle or version, or another ``multirecon`` than the one inside.
    """
    try:
        metadata = json.loads(members["configs/metadata.json"])
        found, stamp, task = (
            (metadata["name"], metadata["version"]),
            metadata["multirecon"]["package"],
            metadata["task"],
        )
        stated = stamp["version"], stamp["sha256"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"archive of {name!r}: expected metadata with the stamp of `multirecon pack`") from None
    if found != (name, version):
        raise ValueError(f"archive of {name!r} {version}: expected its own metadata, got those of {found}")
    package = {n.removeprefix("multirecon/"): c for n, c in members.items() if n.startswith("multirecon/")}
    if set(package) - {n for n in package if is_packed(n.split("/"))} != {"packed.json"}:
        raise ValueError(f"archive of {name!r}: expected nothing in multirecon/ that its hash does not count")
    actual = content_hash((n, c) for n, c in package.items() if n != "packed.json")
    if actual != stated[1]:
        raise ValueError(f"archive of {name!r}: expected multirecon with SHA-256 {stated[1]}, got {actual}")
    entry = Entry(name, version, size, digest, content_hash(members.items()), str(stated[0]), str(task))
    entry.check()
    return entry


def select(manifest: Manifest, names: Sequence[str]) -> list[Entry]:
    """Return the entries asked for: ``NAME`` (its latest version) or ``NAME:VERSION``; the latest of all if none is.

    Raises:
        ValueError: on an unknown name or version.
    """
    versions: dict[str, dict[str, Entry]] = {}
    for entry in manifest.entries:
        versions.setdefault(entry.name, {})[entry.version] = entry
    chosen = []
    for wanted in dict.fromkeys(names or sorted(versions)):
        name, _, version = wanted.partition(":")
        if name not in versions:
            raise ValueError(f"name: expected one of {sorted(versions)}, got {name!r}")
        version = version or max(versions[name])
        if version not in versions[name]:
            raise ValueError(f"version of {name!r}: expected one of {sorted(versions[name])}, got {version!r}")
        chosen.append(versions[name][version])
    return chosen
