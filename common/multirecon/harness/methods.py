"""Methods: bundles and their inference variants, the rows of every table."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..bundle.folder import Bundle, discover, find

__all__ = ["Method", "find_methods", "select_methods"]


@dataclass(frozen=True)
class Method:
    """A bundle, or one of its inference variants.

    Args:
        bundle: the bundle.
        variant: ``NAME`` of the overlay ``configs/inference_NAME.json``, empty for the plain ``inference.json``.
    """

    bundle: Bundle
    variant: str = ""

    @property
    def name(self) -> str:
        """``bundle`` or ``bundle:variant``."""
        return f"{self.bundle.name}:{self.variant}" if self.variant else self.bundle.name

    @property
    def root(self) -> Path:
        """The bundle's folder."""
        return self.bundle.root

    @property
    def config_files(self) -> list[Path]:
        """The config files in the order in which they are laid over each other."""
        overlays = [f"inference_{self.variant}.json"] if self.variant else []
        return [self.bundle.configs / name for name in ("inference.json", *overlays)]

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


def find_methods(root: str | os.PathLike[str] | None = None) -> list[Method]:
    """Return every bundle and every variant below a folder, sorted by name; see :func:`multirecon.bundle.discover`."""
    return [Method(bundle, variant) for bundle in discover(root) for variant in ("", *bundle.variants)]


def select_methods(names: Sequence[str] = (), root: str | os.PathLike[str] | None = None) -> list[Method]:
    """Return methods by ``NAME``, ``NAME:VARIANT`` or a bundle's folder, in the given order; all where none is named.

    Raises:
        ValueError: on an unknown name or variant.
    """
    if not names:
        return find_methods(root)
    chosen = []
    for name in names:
        plain, _, variant = name.partition(":")
        bundle = find(plain, root)
        if variant and variant not in bundle.variants:
            raise ValueError(f"variant of {bundle.name!r}: expected one of {list(bundle.variants)}, got {variant!r}")
        chosen.append(Method(bundle, variant))
    return list(dict.fromkeys(chosen))
