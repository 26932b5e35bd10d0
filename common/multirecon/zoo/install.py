"""Archives into a folder of bundles: checked before they are unpacked, put in place as a whole, upgraded in place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # not a POSIX system: two downloads into one folder are the user's to avoid
    fcntl = None  # type: ignore[assignment]

from ..files import atomic_path
from ..transfer import file_sha256
from .archives import extract, read_archive
from .installed import RECORD, read_record, strange_files, write_record
from .manifest import Entry, entry_of, select
from .signature import fingerprint
from .source import Source

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["checked_members", "download"]

STATE, PARTS, STAGING = ".zoo.json", ".parts", ".staging"


def download(
    source: Source,
    names: Sequence[str],
    bundle_dir: Path,
    *,
    key: Ed25519PublicKey | None = None,
    allow_downgrade: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    pause_s: float = 1.0,
) -> list[Path]:
    """Bring bundles into a folder, and return their folders there.

    The manifest's signature is checked before anything of it is used, size and SHA-256 of an archive before it is
    opened, its form and stamp before it is unpacked. What a broken connection left is continued. A bundle of another
    version is replaced as a whole; files that a user added to it move to the new one.

    Args:
        source: the zoo.
        names: ``NAME`` or ``NAME:VERSION``; all if empty.
        bundle_dir: folder of the bundles.
        key: the zoo's public key; without one, what the server says is believed.
        allow_downgrade: accept an older version than the one there, and an older manifest than the one seen last.
        overwrite: replace bundles whose files were edited.
        progress: show progress bars.
        pause_s: wait before a broken connection is tried again.

    Raises:
        ValueError: if anything does not fit; nothing of it is left behind.
        OSError: if the server cannot be reached; a part of an archive stays, to go on from.
    """
    manifest = source.manifest(key)
    chosen = select(manifest, names)
    signer = fingerprint(key) if key is not None else f"unsigned {source.place}"
    with _opened(bundle_dir):
        _recover(bundle_dir)
        state = _read_state(bundle_dir)
        seen = state.get(signer, 0)
        if manifest.serial < seen and not allow_downgrade:
            raise ValueError(f"manifest: expected number {seen} (seen before) or later, got {manifest.serial}: "
                             "an old manifest hides newer versions")  # fmt: skip
        folders = []
        for entry in chosen:
            folder = bundle_dir / entry.name
            if _needed(folder, entry, allow_downgrade=allow_downgrade, overwrite=overwrite):
                _install(source, entry, bundle_dir, overwrite=overwrite, progress=progress, pause_s=pause_s)
            folders.append(folder)
        if state.get(signer) != manifest.serial:
            with atomic_path(bundle_dir / STATE) as draft:
                draft.write_text(json.dumps({**state, signer: manifest.serial}, indent=2), encoding="utf-8")
    return folders


def checked_members(archive: Path, entry: Entry) -> dict[str, bytes]:
    """Return the members of an archive that is what the manifest says, to the last byte.

    Raises:
        ValueError: if size, SHA-256, form, metadata or the stamped package differ.
    """
    if archive.stat().st_size != entry.size:
        raise ValueError(f"archive {entry.file!r}: expected {entry.size} bytes, got {archive.stat().st_size}")
    digest = file_sha256(archive)
    if digest != entry.sha256:
        raise ValueError(f"archive {entry.file!r}: expected SHA-256 {entry.sha256}, got {digest}")
    members = read_archive(archive, entry.name)
    found = entry_of(entry.name, entry.version, members, digest, entry.size)
    if found != entry:
        raise ValueError(f"archive {entry.file!r}: expected what the manifest says, got {found}")
    return members


def _needed(folder: Path, entry: Entry, *, allow_downgrade: bool, overwrite: bool) -> bool:
    """Whether an archive has to be brought; refuse what must not be replaced."""
    if not folder.exists():
        return True
    record = read_record(folder)
    if record is None:
        raise ValueError(f"bundle_dir: expected a free name or a bundle that this command brought, got {str(folder)!r} "
                         "(move it away first)")  # fmt: skip
    if record["version"] == entry.version and record["sha256"] != entry.sha256:
        raise ValueError(f"{entry.name} {entry.version}: expected the content of before ({record['sha256'][:12]}), got "
                         f"{entry.sha256[:12]}: a published version never changes")  # fmt: skip
    if record["version"] > entry.version and not allow_downgrade:
        raise ValueError(f"{entry.name}: expected version {record['version']} (there now) or later, got "
                         f"{entry.version} (--allow_downgrade accepts it)")  # fmt: skip
    edited = strange_files(folder, record)["edited"]
    if edited and not overwrite and record["version"] != entry.version:
        raise ValueError(
            f"{entry.name}: expected the files as they came, got {edited} edited (--overwrite replaces them)"
        )
    return bool(record["version"] != entry.version or (edited and overwrite))


def _install(
    source: Source, entry: Entry, bundle_dir: Path, *, overwrite: bool, progress: bool, pause_s: float
) -> None:
    # the name holds the hash: a part is only ever continued by the same archive
    part = bundle_dir / PARTS / f"{entry.file}.{entry.sha256[:12]}.part"
    part.parent.mkdir(exist_ok=True)
    staged = bundle_dir / STAGING / entry.name
    try:
        members = _fetched(source, entry, part, progress=progress, pause_s=pause_s)
        _check_added(bundle_dir / entry.name, members, overwrite=overwrite)
        extract(members, staged)
        write_record(staged, entry.version, entry.sha256, members)
        _put(staged, bundle_dir / entry.name)
        part.unlink()
    except ValueError:
        part.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(staged.parent, ignore_errors=True)
    print(f"{entry.name} {entry.version} in {bundle_dir / entry.name}")


def _fetched(source: Source, entry: Entry, part: Path, *, progress: bool, pause_s: float) -> dict[str, bytes]:
    """Return the members of an archive, brought from the source; start anew where an old part was no good."""
    resumed = part.exists()
    try:
        source.fetch(entry, part, progress=progress, pause_s=pause_s)
        return checked_members(part, entry)
    except ValueError:
        part.unlink(missing_ok=True)
        if not resumed:
            raise
    return _fetched(source, entry, part, progress=progress, pause_s=pause_s)


def _check_added(folder: Path, members: dict[str, bytes], *, overwrite: bool) -> None:
    """Refuse to lose a file that a user added and that the new version has too."""
    record = read_record(folder)
    added = set(strange_files(folder, record)["added"]) & set(members) if record else set()
    if added and not overwrite:
        raise ValueError(f"{folder.name}: expected no file of yours where the new version has one, got {sorted(added)} "
                         "(--overwrite replaces them)")  # fmt: skip


def _put(staged: Path, target: Path) -> None:
    """Put a finished folder in the place of the old one; killed at any moment, :func:`_recover` ends it."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        os.rename(target, old)
    os.rename(staged, target)
    _finish(old, target)


def _finish(old: Path, target: Path) -> None:
    """Move what a user added from the old folder into the new one, and remove the old one."""
    if not old.exists():
        return
    if not target.exists():  # killed between the two renames
        os.rename(old, target)
        return
    record = read_record(old)
    for name in strange_files(old, record)["added"] if record else ():
        if not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.rename(old / name, target / name)
    # the record goes last: until then the folder says which of its files are whose
    for path in sorted(old.iterdir()):
        if path.name != RECORD:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(old)


def _recover(bundle_dir: Path) -> None:
    """Clean up after a download that was killed."""
    shutil.rmtree(bundle_dir / STAGING, ignore_errors=True)
    for old in sorted(bundle_dir.glob(".*.old")):
        _finish(old, bundle_dir / old.name[1 : -len(".old")])
    for draft in bundle_dir.glob(".part-*"):
        draft.unlink()


@contextmanager
def _opened(bundle_dir: Path) -> Iterator[None]:
    """Hold the folder for this process alone; take away again what was made for nothing."""
    made = not bundle_dir.exists()
    bundle_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(bundle_dir, os.O_RDONLY) if fcntl is not None else None
    try:
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        for folder in [bundle_dir / PARTS, *([bundle_dir] if made else [])]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def _read_state(bundle_dir: Path) -> dict[str, Any]:
    path = bundle_dir / STATE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
