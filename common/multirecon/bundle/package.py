"""Which ``multirecon`` is imported: an archive carries its own copy, and two archives in one server may disagree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import multirecon

__all__ = ["STAMP", "check_package", "content_hash", "is_packed", "package_files", "package_hash"]

# An archive leaves out what only the collection itself needs, so these do not count.
NOT_PACKED = ("harness", "interop", "zoo", "__pycache__")
# Written into an archive's copy: version and hash of the package that it was made from.
STAMP = "packed.json"


def package_files(folder: Path | None = None) -> Iterator[Path]:
    """Yield the files of the package that an archive carries, in a fixed order.

    Args:
        folder: folder of a ``multirecon`` package; the default is the imported one.
    """
    root = folder or Path(multirecon.__file__).parent
    for path in sorted(root.rglob("*"), key=lambda p: p.relative_to(root).as_posix()):
        parts = path.relative_to(root).parts
        if not path.is_file() or path.suffix == ".pyc" or "__pycache__" in parts:
            continue
        if is_packed(parts):
            yield path


def is_packed(parts: Sequence[str]) -> bool:
    """Whether an archive carries, and the hash counts, the file of a ``multirecon`` with this relative path."""
    return parts[0] not in (*NOT_PACKED, STAMP) and not any(part.startswith(".") for part in parts)


def content_hash(files: Iterable[tuple[str, bytes]]) -> str:
    """Return the SHA-256 of files given as (relative path, content), in the order of their paths."""
    digest = hashlib.sha256()
    for name, content in sorted(files):
        digest.update(f"{name}|".encode())
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


@cache
def package_hash(folder: Path | None = None) -> str:
    """Return the SHA-256 of the package as an archive carries it: equal hashes mean the same code and tables."""
    root = folder or Path(multirecon.__file__).parent
    return content_hash((path.relative_to(root).as_posix(), path.read_bytes()) for path in package_files(root))


def check_package(metadata: Mapping[str, Any]) -> None:
    """Check that the imported ``multirecon`` is the one that a packed bundle was made with.

    The metadata of a bundle in a checkout carry no stamp, and nothing is checked.

    Args:
        metadata: content of the bundle's ``configs/metadata.json``.

    Raises:
        ValueError: in one line, naming both versions and where the imported package lies.
    """
    stamp = metadata.get("multirecon", {}).get("package")
    if not stamp:
        return
    here = Path(multirecon.__file__).parent
    if stamp["version"] == multirecon.__version__ and stamp["sha256"] == package_hash():
        return
    raise ValueError(
        f"multirecon: bundle {metadata.get('name')!r} was packed with version {stamp['version']} "
        f"({stamp['sha256'][:12]}), but version {multirecon.__version__} ({package_hash()[:12]}) "
        f"is imported from {here}; "
        "run the bundle in a process of its own, or pack it again with the installed version"
    )
