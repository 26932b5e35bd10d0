"""A folder of archives as a zoo: manifest, signature, lists for stock MONAI, and a Hugging Face repository a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..harness.workspace import work_folder
from ..transfer import file_sha256
from .archives import archive_name, extract, parse_archive_name, read_archive
from .install import checked_members
from .installed import installed_faults
from .manifest import MANIFEST, Entry, Manifest, entry_of, select
from .pack import write_listing
from .signature import sign
from .source import Source

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["publish", "verify", "verify_installed"]

HUGGINGFACE = "huggingface"
# large binary files, as the hub stores them; the suffixes that our archives hold
GIT_ATTRIBUTES = "".join(f"*.{s} filter=lfs diff=lfs merge=lfs -text\n" for s in ("gz", "h5", "npz", "png", "pt"))


def publish(folder: Path, key: Ed25519PrivateKey, *, url: str = "", huggingface: bool = True) -> Manifest:
    """Make a zoo of a folder of archives, check it as a user would, and return its manifest.

    Args:
        folder: folder with archives of :func:`multirecon.zoo.pack.pack`.
        key: signs the manifest; always the same one.
        url: address under which the folder will be served.
        huggingface: also write ``huggingface/NAME`` with the files of one repository a bundle.

    Raises:
        ValueError: if an archive is not in order, differs from the one published before, or the manifest there is
            signed by another key.
    """
    archives = sorted(folder.glob("*.zip"))
    if not archives:
        raise ValueError(f"folder: expected archives of `multirecon pack`, got none in {str(folder)!r}")
    entries = []
    for path in archives:
        name, version = parse_archive_name(path.name)
        entries.append(entry_of(name, version, read_archive(path, name), file_sha256(path), path.stat().st_size))
    previous = Source(str(folder)).manifest(key.public_key()) if (folder / MANIFEST).exists() else Manifest(0)
    _check_unchanged(previous, entries)
    manifest = Manifest(previous.serial, tuple(entries))
    if manifest.dump() != previous.dump():
        manifest = Manifest(previous.serial + 1, tuple(entries))
    with work_folder(folder.absolute()) as work:
        write_listing(folder.absolute(), work, url)
        if huggingface:
            for entry in select(manifest, ()):
                _write_repository(folder, entry, work / entry.name)
        (work / MANIFEST).write_bytes(sign(manifest.dump(), key) + manifest.dump())
        (work / MANIFEST).replace(folder / MANIFEST)
        verify(Source(str(folder)), key.public_key(), work)
    return manifest


def _check_unchanged(previous: Manifest, entries: list[Entry]) -> None:
    now = {entry.file: entry for entry in entries}
    for entry in previous.entries:
        if entry.file in now and now[entry.file].sha256 != entry.sha256:
            raise ValueError(f"archive {entry.file!r}: expected the published content ({entry.sha256[:12]}), got "
                             f"{now[entry.file].sha256[:12]}: raise the bundle's version")  # fmt: skip


def _write_repository(folder: Path, entry: Entry, staged: Path) -> None:
    extract(read_archive(folder / archive_name(entry.name, entry.version), entry.name), staged)
    (staged / ".gitattributes").write_text(GIT_ATTRIBUTES, encoding="utf-8")
    faults = installed_faults(staged, entry)
    if faults:
        raise ValueError(f"repository of {entry.name!r}: {'; '.join(faults)}")
    target = folder / HUGGINGFACE / entry.name
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    staged.replace(target)


def verify(source: Source, key: Ed25519PublicKey | None, scratch: Path, *, progress: bool = True) -> Manifest:
    """Check signature, sizes, checksums, form and stamps of everything that a zoo offers.

    Args:
        source: the zoo.
        key: its public key; without one, the signature is not looked at.
        scratch: folder for archives of a remote zoo while they are looked at.
        progress: show progress bars.

    Raises:
        ValueError: on the first fault.
    """
    manifest = source.manifest(key)
    for entry in manifest.entries:
        part = scratch / f".verify-{entry.file}"
        try:
            source.fetch(entry, part, progress=progress)
            checked_members(part, entry)
        finally:
            part.unlink(missing_ok=True)
    return manifest


def verify_installed(manifest: Manifest, bundle_dir: Path) -> dict[str, list[str]]:
    """Return the faults of every bundle of a folder that a zoo knows, against the version that it says to be.

    Args:
        manifest: the zoo's.
        bundle_dir: folder of bundles, downloaded by whatever tool.

    Raises:
        ValueError: if the folder has none of the zoo's bundles.
    """
    from ..bundle.folder import discover

    faults = {}
    known = {entry.name for entry in manifest.entries}
    for bundle in discover(bundle_dir):
        if bundle.name in known:
            try:
                (entry,) = select(manifest, [f"{bundle.name}:{bundle.version}"])
                faults[f"{bundle.name} {bundle.version}"] = installed_faults(bundle.root, entry)
            except ValueError as error:
                faults[f"{bundle.name} {bundle.version}"] = [str(error)]
    if not faults:
        raise ValueError(f"bundle_dir: expected some of {sorted(known)}, got none in {str(bundle_dir)!r}")
    return faults
