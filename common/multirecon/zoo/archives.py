"""Archives of bundles: one form that is written byte for byte the same everywhere, and nothing else is read.

A member is stored, not compressed, so that an archive cannot unpack to more than its own size; members lie one behind
the other in the order of their names, without folders, links, comments, extra fields or gaps. Whatever differs is
refused before anything is unpacked.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..bundle.naming import check_name, check_version
from ..files import atomic_path

__all__ = ["archive_name", "digests", "extract", "parse_archive_name", "read_archive", "write_archive"]

MAX_MEMBERS = 10_000
MAX_BYTES = 1 << 30  # weights beyond this belong into files of their own
# The epoch of the format: a date of today would make every archive another one.
DATE = (1980, 1, 1, 0, 0, 0)
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_LOCAL_HEADER = 30  # bytes before the name of a member
# What the root of a bundle's archive may hold besides modules that carry its name: its folder comes first on Python's
# path, where a stray torch.py would be imported in the place of torch.
ROOT_ENTRIES = ("LICENSE", "README.md", "configs", "docs", "large_files.yml", "models", "multirecon", "sample")


def archive_name(name: str, version: str) -> str:
    """Return the file name that MONAI's tools parse.

    Example:
        >>> archive_name("sense_mr", "0.1.1")
        'sense_mr_v0.1.1.zip'
    """
    return f"{check_name(name)}_v{check_version(version)}.zip"


def parse_archive_name(file: str) -> tuple[str, str]:
    """Return name and version in a file name.

    Raises:
        ValueError: if it is not ``NAME_vX.Y.Z.zip``.
    """
    found = re.fullmatch(r"([a-z0-9_]+)_v([0-9.]+)\.zip", file)
    if found is None:
        raise ValueError(f"archive: expected a file NAME_vX.Y.Z.zip, got {file!r}")
    return check_name(found[1]), check_version(found[2])


def write_archive(members: Mapping[str, bytes], path: str | os.PathLike[str]) -> Path:
    """Write an archive, whole or not at all, and return its path; equal members give equal bytes.

    Args:
        members: name inside the archive, such as ``sense_mr/LICENSE`` -> content.
        path: the archive.
    """
    with atomic_path(path) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, DATE)
            info.create_system = 3  # unix, whatever it is packed on
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, members[name])
    return Path(path)


def digests(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the checksums of a file: ``sha256``, and ``checksum``, the SHA-1 that MONAI's lists carry."""
    found = {"sha256": hashlib.sha256(), "checksum": hashlib.sha1(usedforsecurity=False)}
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            for digest in found.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in found.items()}


def read_archive(path: str | os.PathLike[str], name: str) -> dict[str, bytes]:
    """Return the members of a bundle's archive, names relative to the bundle's folder; nothing is unpacked.

    Args:
        path: the archive.
        name: the bundle it has to hold.

    Raises:
        ValueError: naming the first member that is not in the form that :func:`write_archive` writes.
    """
    with _opened(path) as archive:
        infos = archive.infolist()
        _check_layout(archive, infos, Path(path).stat().st_size)
        _check_names([info.filename for info in infos], name)
        content = {}
        for info in infos:
            try:
                content[info.filename.removeprefix(f"{name}/")] = archive.read(info)
            except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
                raise ValueError(f"archive member {info.filename!r}: {error}") from None
    return content


def extract(members: Mapping[str, bytes], folder: Path) -> None:
    """Write members that :func:`read_archive` returned into a folder that must not exist yet."""
    folder.mkdir(parents=True)
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"archive: expected an existing file, got {str(file)!r}")
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"archive {file.name!r}: expected a whole ZIP file, got {error}") from None
    with archive:
        yield archive


def _check_layout(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], size: int) -> None:
    """Stored regular files, one behind the other, that fill the archive."""
    if not 0 < len(infos) <= MAX_MEMBERS or size > MAX_BYTES:
        raise ValueError(
            f"archive: expected 1 to {MAX_MEMBERS} members and at most {MAX_BYTES} bytes, got {len(infos)} and {size}"
        )
    if archive.comment:
        raise ValueError("archive: expected no comment")
    end = 0
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)
        plain = info.orig_filename == info.filename and not info.extra and not info.comment and not info.flag_bits
        if kind not in (0, stat.S_IFREG) or info.is_dir():
            raise ValueError(f"archive member {info.filename!r}: expected a plain file, got a folder or a link")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or not plain:
            raise ValueError(f"archive member {info.filename!r}: expected a stored file without extra fields")
        if info.header_offset != end:
            raise ValueError(f"archive member {info.filename!r}: expected at byte {end}, got {info.header_offset}")
        end += _LOCAL_HEADER + len(info.filename.encode()) + info.file_size
    if archive.start_dir != end:
        raise ValueError(f"archive: expected the list of members at byte {end}, got {archive.start_dir}")


def _check_names(names: list[str], bundle: str) -> None:
    """Plain relative names inside the bundle's folder, each once on every file system."""
    seen: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        if not all(re.fullmatch(_PART, part) and not part.endswith(".") for part in parts):
            raise ValueError(f"archive member {name!r}: expected a relative path of letters, digits, '.', '_' and '-'")
        if parts[0] != bundle or len(parts) < 2:
            raise ValueError(f"archive member {name!r}: expected a path inside the folder {bundle!r}")
        own = len(parts) == 2 and re.fullmatch(rf"{bundle}(_[a-z0-9_]+)?\.py", parts[1])
        if parts[1] not in ROOT_ENTRIES and not own:
            raise ValueError(f"archive member {name!r}: does not belong into a bundle")
        key = name.lower()
        if key in seen:
            raise ValueError(f"archive member {name!r}: the same file as {seen[key]!r} where case does not count")
        seen[key] = name
    folders = {key.rsplit("/", depth)[0] for key in seen for depth in range(1, key.count("/") + 1)}
    for key in sorted(folders & seen.keys()):
        raise ValueError(f"archive member {seen[key]!r}: both a file and a folder")
    if names != sorted(names):
        raise ValueError("archive: expected members in the order of their names")
