"""A bundle as a folder, found by scanning."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

__all__ = ["BUNDLES_SETTING", "Bundle", "discover", "find"]

BUNDLES_SETTING = "MULTIRECON_BUNDLES"


@dataclass(frozen=True)
class Bundle:
    """The folder of one bundle; usable wherever a path is.

    Args:
        root: absolute path of the folder.
    """

    root: Path

    def __fspath__(self) -> str:
        return str(self.root)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.root.name

    @property
    def configs(self) -> Path:
        """Folder of the configs."""
        return self.root / "configs"

    @property
    def weights(self) -> Path:
        """The checkpoint of the main network."""
        return self.root / "models" / "model.pt"

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Content of ``configs/metadata.json``.

        Raises:
            ValueError: if it is missing or not a JSON object.
        """
        path = self.configs / "metadata.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: expected a JSON file, got {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
        return content

    @property
    def version(self) -> str:
        """Version in the metadata."""
        return str(self.metadata.get("version", ""))

    @property
    def learned(self) -> bool:
        """Whether the images depend on trained weights."""
        return bool(self._own.get("learned", False))

    @property
    def families(self) -> tuple[str, ...]:
        """Families of tasks the method is meant for."""
        family = self._own.get("family", ())
        return (family,) if isinstance(family, str) else tuple(family)

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the further checkpoints ``models/NAME.pt``."""
        return tuple(self._own.get("controls", {}))

    @property
    def quick(self) -> dict[str, Any]:
        """Overrides of ``inference.json`` with which one slice takes seconds."""
        return dict(self._own.get("quick", {}))

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the overlays ``configs/inference_NAME.json``, sorted."""
        return tuple(sorted(p.stem.removeprefix("inference_") for p in self.configs.glob("inference_*.json")))

    @property
    def _own(self) -> dict[str, Any]:
        own = self.metadata.get("multirecon", {})
        return own if isinstance(own, dict) else {}


def discover(root: str | os.PathLike[str] | None = None) -> list[Bundle]:
    """Return every bundle below a folder, sorted by name.

    Args:
        root: the folder that holds the bundles; by default the setting ``MULTIRECON_BUNDLES``, else ``./bundles``.

    Raises:
        ValueError: if the folder does not exist or holds no bundle.
    """
    folder = Path(root or os.environ.get(BUNDLES_SETTING) or "bundles").absolute()
    if not folder.is_dir():
        raise ValueError(f"bundles: expected a folder (or set {BUNDLES_SETTING}), got {str(folder)!r}")
    found = sorted(
        p.parents[1] for p in folder.glob("*/configs/metadata.json") if not p.parents[1].name.startswith(".")
    )
    if not found:
        raise ValueError(f"bundles: expected folders with configs/metadata.json, got none in {str(folder)!r}")
    return [Bundle(path) for path in found]


def find(bundle: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Bundle:
    """Return a bundle by its folder, or by its name below ``root`` (see :func:`discover`).

    Raises:
        ValueError: if there is none.
    """
    folder = Path(bundle)
    if (folder / "configs").is_dir():
        return Bundle(folder.absolute())
    if folder.name != str(bundle):
        raise ValueError(f"bundle: expected a folder with configs/, got {str(bundle)!r}")
    known = discover(root)
    match = [b for b in known if b.name == str(bundle)]
    if not match:
        raise ValueError(f"bundle: expected one of {[b.name for b in known]} or a folder, got {str(bundle)!r}")
    return match[0]
