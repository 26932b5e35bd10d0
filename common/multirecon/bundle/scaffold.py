"""A new bundle from an existing one: ``multirecon new NAME --like OTHER``."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from .contract import verify
from .folder import Bundle, find
from .loader import on_path
from .naming import check_name
from .weights import fresh_network, weights_hash, write_weights

__all__ = ["new"]

FIRST_VERSION = "0.1.0"
# Measured or generated for the old bundle: numbers, pictures, weights, tuned settings.
NOT_COPIED = ("models", "eval", "data", "__pycache__", "docs", "tuning*.json", "large_files.yml")
TEXT = (".json", ".py", ".conf", ".md", ".txt")


def new(
    name: str, *, like: str, root: str | os.PathLike[str] | None = None, authors: str | None = None, seed: int = 0
) -> Path:
    """Copy a bundle as the start of a new one and return its folder, complete or not at all.

    Configs and the bundle's own module are copied and renamed; version, changelog, description, authors and the model
    card are the new bundle's own; weights, controls, tuned settings and results are not taken along. ``model.pt`` holds
    freshly drawn weights, so that the new bundle runs and passes the contract at once.

    Args:
        name: name of the new bundle.
        like: name or folder of the bundle to start from.
        root: folder of the bundles, see :func:`multirecon.bundle.discover`; the new one is made beside ``like``.
        authors: who is named in the metadata.
        seed: of the initial weights.

    Returns:
        Path of the new folder.

    Raises:
        ValueError: on a name that some tool cannot live with, an existing folder, an unknown ``like``, or a copy that
            breaks the contract.
    """
    check_name(name)
    source = find(like, root)
    target = source.root.parent / name
    if target.exists():
        raise ValueError(f"name: expected a name that is free, got {name!r} ({target} exists)")
    if name in sys.stdlib_module_names or name in sys.modules:
        raise ValueError(f"name: expected a name that no Python module has, got {name!r}")
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
    try:
        # The folder carries the final name, so that metadata, module and folder agree while they are checked.
        bundle = Bundle(staging / name)
        _copy(source, bundle)
        _write_metadata(source, bundle, authors)
        _write_card(source, bundle)
        _write_weights(bundle, seed)
        faults = [f"{check}: {fault}" for check, found in verify(bundle).items() for fault in found]
        if faults:
            raise ValueError(f"like: expected a bundle that passes the contract, got {'; '.join(faults)}")
        os.chmod(bundle.root, 0o755)
        os.rename(bundle.root, target)
    finally:
        _forget(staging / name)
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _copy(source: Bundle, bundle: Bundle) -> None:
    shutil.copytree(source.root, bundle.root, ignore=shutil.ignore_patterns(*NOT_COPIED, "*.ts", "*.pyc", ".*"))
    for path in sorted(p for p in bundle.root.rglob("*") if p.is_file()):
        os.chmod(path, 0o644)  # the source may be read-only
        if path.suffix in TEXT:
            path.write_text(_renamed(path.read_text(encoding="utf-8"), source.name, bundle.name), encoding="utf-8")
        if path.stem.startswith(source.name):
            path.rename(path.with_name(bundle.name + path.name.removeprefix(source.name)))


def _renamed(text: str, old: str, new: str) -> str:
    """Replace the old bundle's name, also where it begins the name of a module."""
    return re.sub(rf"(?<![A-Za-z0-9_]){re.escape(old)}(?=$|[^A-Za-z0-9])", new, text)


def _write_metadata(source: Bundle, bundle: Bundle, authors: str | None) -> None:
    content: dict[str, Any] = bundle.metadata
    content |= {
        "name": bundle.name,
        "version": FIRST_VERSION,
        "changelog": {FIRST_VERSION: f"started from {source.name} {source.version}"},
        "task": content["task"],
        "description": f"A new method, started from {source.name}; nothing is claimed of it yet",
        "authors": authors or f"The authors of {bundle.name}",
        "copyright": f"Copyright the authors of {bundle.name}, Apache License 2.0",
        "references": [],
    }
    content.pop("data_source", None)
    own = content["multirecon"]
    for key in ("controls", "package", "weights"):
        own.pop(key, None)
    # True again once models/model.pt has been trained and the card says on what.
    own["learned"] = False
    _write_json(bundle.configs / "metadata.json", content)


def _write_weights(bundle: Bundle, seed: int) -> None:
    on_path(bundle)
    config = json.loads((bundle.configs / "inference.json").read_text(encoding="utf-8"))
    state = fresh_network(config, seed=seed).state_dict()
    write_weights(state, bundle.weights)
    content = bundle.metadata
    content["multirecon"]["weights"] = {"source": "initialised", "seed": seed, "sha256": weights_hash(state)}
    _write_json(bundle.configs / "metadata.json", content)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_card(source: Bundle, bundle: Bundle) -> None:
    folder = bundle.root / "docs"
    folder.mkdir()
    card = resources.files(__package__).joinpath("card.md").read_text(encoding="utf-8")
    filled = card.format(name=bundle.name, like=source.name, version=source.version)
    (folder / "README.md").write_text(filled, encoding="utf-8")


def _forget(root: Path) -> None:
    """Undo the imports made while the bundle was checked: they name a folder that is about to go."""
    if str(root) in sys.path:
        sys.path.remove(str(root))
    for module in [m for m in sys.modules if m == root.name or m.startswith(f"{root.name}_")]:
        path = getattr(sys.modules[module], "__file__", None)
        if path is not None and Path(path).is_relative_to(root):
            del sys.modules[module]
