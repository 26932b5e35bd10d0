"""What the public model zoo asks of an upload besides: packages, logging, large files, a new version."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from monai.bundle import ConfigParser, workflows

from .folder import Bundle

__all__ = ["large_file_faults", "logging_faults", "published_faults", "requirement_faults"]

# Fields of their own in the metadata, or part of the bundle's archive.
STATED_ELSEWHERE = {"torch", "monai", "numpy", "multirecon"}
HASHES = {"sha256": 64, "sha512": 128}  # MD5 and SHA-1 can be forged


def requirement_faults(bundle: Bundle) -> list[str]:
    """Every stated package exists here, and every package that the bundle's modules import is stated.

    The public zoo installs ``name==version`` of each before it looks at a bundle, so versions have to be whole ones.
    """
    stated = bundle.metadata.get("required_packages_version", {})
    faults = []
    for name, version in stated.items():
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"required_packages_version: expected packages that are installed, got {name!r}")
        if not re.fullmatch(r"\d+(\.\d+)+([a-z]+\d+)?", str(version)):
            faults.append(f"required_packages_version.{name}: expected a released version, got {version!r}")
    known = {_plain(name) for name in (*stated, *STATED_ELSEWHERE)}
    owners = importlib.metadata.packages_distributions()
    own = {path.stem for path in bundle.root.glob("*.py")}
    for path in sorted(bundle.root.glob("*.py")):
        for module in sorted(_imported(path) - own - set(sys.stdlib_module_names)):
            if not {_plain(o) for o in owners.get(module, [module])} & known:
                faults.append(f"{path.name}: imports {module!r}, which required_packages_version does not name")
    return faults


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def logging_faults(bundle: Bundle) -> list[str]:
    """``configs/logging.conf`` is one that MONAI applies: classes of the standard library, plain values."""
    check = getattr(workflows, "_reject_executable_logging_config", None)
    path = bundle.configs / "logging.conf"
    if check is None or not path.is_file():  # MONAI before 1.6.1 applies any
        return []
    try:
        check(str(path))
    except ValueError as error:
        return [f"configs/logging.conf: {' '.join(str(error).replace(str(path), '').split())}"]
    return []


def large_file_faults(bundle: Bundle) -> list[str]:
    """``large_files.yml``, where there is one, names files inside the bundle by address and a hash nobody can forge."""
    path = bundle.root / "large_files.yml"
    if not path.exists():
        return []
    try:
        entries = ConfigParser.load_config_file(str(path))["large_files"]
        return [f"large_files.yml: {fault}" for entry in entries for fault in _large_file(entry)]
    except Exception as error:  # whatever the parser of YAML raises
        line = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        return [f"large_files.yml: expected a list 'large_files' of path, url, hash_type and hash_val, got {line}"]


def _large_file(entry: Mapping[str, Any]) -> list[str]:
    path, kind = PurePosixPath(entry["path"]), entry.get("hash_type")
    faults = []
    if path.is_absolute() or ".." in path.parts or "\\" in entry["path"]:
        faults.append(f"path: expected a file inside the bundle, got {entry['path']!r}")
    if not str(entry.get("url", "")).startswith("https://"):
        faults.append(f"url of {path}: expected https://..., got {entry.get('url')!r}")
    if kind not in HASHES or not re.fullmatch(rf"[0-9a-f]{{{HASHES.get(kind, 0)}}}", str(entry.get("hash_val"))):
        faults.append(f"hash of {path}: expected hash_type of {list(HASHES)} and its digits, got {kind!r}")
    return faults


def published_faults(bundle: Bundle, listing: Path) -> list[str]:
    """The version is not in a zoo's ``model_info.json`` yet: a published one never changes.

    Args:
        bundle: the bundle.
        listing: the file.
    """
    published = json.loads(listing.read_text(encoding="utf-8"))
    if f"{bundle.name}_v{bundle.version}" in published:
        return [f"version: expected one that is not in {listing.name} yet, got {bundle.version!r}"]
    return []
