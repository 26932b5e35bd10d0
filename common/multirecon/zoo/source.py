"""Where a zoo lies: a folder, or the address of one on a web server."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..transfer import fetch, read_url
from .manifest import MANIFEST, MAX_MANIFEST_BYTES, Entry, Manifest
from .signature import check_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """A zoo, by its address.

    Args:
        place: folder, or address that begins with ``http://`` or ``https://``.
    """

    place: str

    @property
    def remote(self) -> bool:
        """Whether it lies on a web server."""
        return self.place.startswith(("http://", "https://"))

    def manifest(self, key: Ed25519PublicKey | None) -> Manifest:
        """Read the manifest, and check its signature where a key is given.

        Raises:
            ValueError: if there is none, it is not one, or the signature is not the key's.
            OSError: if the server cannot be reached.
        """
        signature, _, content = self._read(MANIFEST, MAX_MANIFEST_BYTES).partition(b"\n")
        if key is not None:  # before anything of it is looked at
            check_signature(content, signature, key)
        return Manifest.parse(content)

    def fetch(self, entry: Entry, part: Path, *, progress: bool = True, pause_s: float = 1.0) -> None:
        """Bring an archive into the file ``part``, going on from what is there.

        Raises:
            ValueError: if more arrives than the manifest says.
            OSError: if it cannot be had.
        """
        if self.remote:
            address = f"{self.place.rstrip('/')}/{entry.file}"
            fetch(address, part, progress=progress, limit=entry.size, pause_s=pause_s)
            return
        path = Path(self.place) / entry.file
        if not path.is_file():
            raise ValueError(f"archive: expected the file {entry.file!r} in {self.place!r}, got none")
        if path.stat().st_size > entry.size:
            raise ValueError(f"{path}: expected {entry.size} bytes, got {path.stat().st_size}")
        shutil.copyfile(path, part)

    def _read(self, name: str, limit: int) -> bytes:
        if self.remote:
            return read_url(f"{self.place.rstrip('/')}/{name}", limit=limit)
        path = Path(self.place) / name
        if not path.is_file():
            raise ValueError(f"source: expected a folder with {name!r}, got none in {self.place!r}")
        if path.stat().st_size > limit:
            raise ValueError(f"{path}: expected at most {limit} bytes, got {path.stat().st_size}")
        return path.read_bytes()
