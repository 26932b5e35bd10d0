"""Bundles found by scanning a folder: no registry, no list."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["BUNDLES_SETTING", "Bundle", "find_bundles", "select_bundles"]

BUNDLES_SETTING = "MULTIRECON_BUNDLES"


@dataclass(frozen=True)
class Bundle:
    """One row of a table: a bundle, or one of its inference variants.

    Args:
        root: the bundle's folder.
        variant: ``NAME`` of the overlay ``configs/inference_NAME.json``, empty for the plain ``inference.json``.
    """

    root: Path
    variant: str = ""

    @property
    def name(self) -> str:
        """Name of the bundle's folder."""
        return self.root.name

    @property
    def method(self) -> str:
        """``bundle`` or ``bundle:variant``."""
        return f"{self.name}:{self.variant}" if self.variant else self.name

    @property
    def config_files(self) -> list[Path]:
        """The config files in the order in which they are laid over each other."""
        files = [self.root / "configs" / "inference.json"]
        return [*files, self.root / "configs" / f"inference_{self.variant}.json"] if self.variant else files

    @cached_property
    def version(self) -> str:
        """Version stated in ``metadata.json``."""
        metadata = json.loads((self.root / "configs" / "metadata.json").read_text(encoding="utf-8"))
        return str(metadata.get("version", ""))

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the files in ``models/``."""
        return _hash(self.root, self.root.glob("models/*.pt"))

    @cached_property
    def content(self) -> str:
        """SHA-256 of configs, code and weights: everything in the bundle that can change a result."""
        files = [*self.root.glob("configs/*"), *self.root.rglob("*.py"), *self.root.glob("models/*.pt")]
        return _hash(self.root, files)


def _hash(root: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in files if p.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}|{path.stat().st_size}|".encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def find_bundles(where: str | os.PathLike[str] | None = None) -> list[Bundle]:
    """Return every bundle and variant below a folder, sorted by name.

    Args:
        where: the folder that holds the bundles; by default the setting ``MULTIRECON_BUNDLES``, else ``./bundles``.

    Raises:
        ValueError: if the folder does not exist or holds no bundle.
    """
    folder = Path(where or os.environ.get(BUNDLES_SETTING) or "bundles").absolute()
    if not folder.is_dir():
        raise ValueError(f"bundles: expected a folder (or set {BUNDLES_SETTING}), got {str(folder)!r}")
    roots = sorted(path.parents[1] for path in folder.glob("*/configs/metadata.json"))
    found = []
    for root in roots:
        overlays = sorted(p.stem.removeprefix("inference_") for p in root.glob("configs/inference_*.json"))
        found += [Bundle(root, variant) for variant in ("", *overlays)]
    if not found:
        raise ValueError(f"bundles: expected folders with configs/metadata.json, got none in {str(folder)!r}")
    return found


def select_bundles(names: Sequence[str] = (), where: str | os.PathLike[str] | None = None) -> list[Bundle]:
    """Return the named bundles (``NAME``, ``NAME:VARIANT`` or a bundle's folder) in the given order; all by default.

    Raises:
        ValueError: on an unknown name.
    """
    if not names:
        return find_bundles(where)
    chosen: list[Bundle] = []
    for name in names:
        plain, _, variant = name.partition(":")
        if Path(plain, "configs", "metadata.json").is_file():
            options = find_bundles(Path(plain).absolute().parent)
            plain = Path(plain).absolute().name
        else:
            options = find_bundles(where)
        match = [b for b in options if b.name == plain and b.variant == variant]
        if not match:
            raise ValueError(f"bundles: expected some of {sorted(b.method for b in options)}, got {name!r}")
        chosen += [b for b in match if b not in chosen]
    return chosen
