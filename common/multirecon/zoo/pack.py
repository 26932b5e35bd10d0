"""A bundle as one file that runs with nothing of this collection installed: ``multirecon pack``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import multirecon

from ..bundle.contract import Inspection, run_check
from ..bundle.folder import Bundle
from ..bundle.package import STAMP, package_files, package_hash
from ..harness.workspace import work_folder, write_json
from .archives import archive_name, digests, parse_archive_name, write_archive
from .manifest import MANIFEST
from .readme import archive_readme
from .sample import sample_measurement

__all__ = ["PACKAGE_REQUIREMENTS", "archive_members", "pack", "write_listing"]

# What the packed multirecon imports, in the tested versions (held against ci/constraints.txt by a test). The names of
# torch, MONAI and NumPy are fields of their own in a bundle's metadata.
PACKAGE_REQUIREMENTS = {
    "PyWavelets": "1.9.0",
    "fire": "0.7.1",
    "h5py": "3.16.0",
    "jsonschema": "4.26.0",
    "matplotlib": "3.11.2",
    "nibabel": "5.4.2",
    "pytorch-ignite": "0.5.5",
    "scipy": "1.17.1",
    "tqdm": "4.70.1",
}
# Left behind by runs and tools. Everything else in the folder of a bundle that fulfils the contract is the bundle.
LEFT_OUT = ("eval", "data", "__pycache__", "sample", "multirecon")
LEFT_OUT_SUFFIXES = (".pyc", ".ts", ".onnx", ".log")
# The archive's own copy comes first, also before a folder of that name in the current directory, which Python prefers.
FIRST_ON_PATH = "$sys.path.insert(0, os.path.abspath(@bundle_root))"
IMPORTS = ("$import os", "$import sys")


def pack(bundles: Sequence[Bundle], output: Path, *, url: str = "") -> list[Path]:
    """Write one archive a bundle, ``model_info.json`` and an args file a bundle, each whole or not at all.

    Equal bundles and an equal ``multirecon`` give equal bytes.

    Args:
        bundles: the bundles, in a checkout.
        output: folder of the archives; other versions in it are kept and listed too.
        url: address under which the folder will be served; by default that of the folder itself.

    Returns:
        The archives.

    Raises:
        ValueError: if a bundle breaks the contract, or its version is there already with other content.
    """
    output = output.absolute()
    written = []
    with work_folder(output) as work:
        for bundle in bundles:
            target = output / archive_name(bundle.name, bundle.version)
            draft = write_archive(archive_members(bundle), work / target.name)
            if target.exists() and digests(target) != digests(draft):
                target.unlink() if _unpublished(output, target.name) else _refuse(target)
            draft.replace(target)
            written.append(target)
            print(f"{target.stat().st_size / 1e6:7.2f} MB  {digests(target)['sha256'][:16]}  {target.name}")
        write_listing(output, work, url)
    return written


def _unpublished(output: Path, file: str) -> bool:
    """Whether a signed manifest does not name the archive yet: then it may still be replaced."""
    manifest = output / MANIFEST
    return not manifest.is_file() or file not in manifest.read_text(encoding="utf-8")


def _refuse(target: Path) -> None:
    raise ValueError(f"output: expected another version or equal content, got a published {target.name} that differs "
                     "(raise the bundle's version: an archive never changes once it is out)")  # fmt: skip


def archive_members(bundle: Bundle) -> dict[str, bytes]:
    """Return what the archive of a bundle holds: path inside the archive -> content.

    Raises:
        ValueError: if its files or metadata break the contract.
    """
    look = Inspection(bundle)
    faults = [fault for check in ("files", "metadata") for fault in run_check(check, look)]
    if faults:
        raise ValueError(f"bundle {bundle.name!r}: {'; '.join(faults)}")
    members = {}
    for path in sorted(p for p in bundle.root.rglob("*") if p.is_file()):
        parts = path.relative_to(bundle.root).parts
        if parts[0] in LEFT_OUT or "__pycache__" in parts or path.suffix in LEFT_OUT_SUFFIXES:
            continue
        if not any(part.startswith(".") for part in parts):
            members["/".join(parts)] = path.read_bytes()
    for name in [n for n in members if re.fullmatch(r"configs/[^/]+\.json", n)]:
        members[name] = _first_on_path(members[name])
    metadata = stamped_metadata(bundle)
    members["configs/metadata.json"] = _json(metadata)
    members |= package_members()
    file, content = sample_measurement(bundle)
    members[f"sample/{file}"] = content
    members["README.md"] = archive_readme(metadata).encode()
    return {f"{bundle.name}/{name}": content for name, content in members.items()}


def stamped_metadata(bundle: Bundle) -> dict[str, Any]:
    """Return the metadata with the packed ``multirecon`` and every package that it needs."""
    metadata = dict(bundle.metadata)
    metadata["required_packages_version"] = dict(
        sorted({**PACKAGE_REQUIREMENTS, **metadata["required_packages_version"]}.items())
    )
    metadata["multirecon"] = {**metadata["multirecon"], "package": package_stamp()}
    return metadata


def package_stamp() -> dict[str, str]:
    """Return version and content hash of the imported ``multirecon``."""
    return {"version": multirecon.__version__, "sha256": package_hash()}


def package_members() -> dict[str, bytes]:
    """Return the files of the packed ``multirecon``, with its stamp."""
    root = Path(multirecon.__file__).parent
    members = {f"multirecon/{p.relative_to(root).as_posix()}": p.read_bytes() for p in package_files(root)}
    members[f"multirecon/{STAMP}"] = _json(package_stamp())
    return members


def _first_on_path(config: bytes) -> bytes:
    """Let the initialisation of a config put the archive's own folder first on Python's path."""
    content = json.loads(config)
    if "imports" in content:
        content["imports"] = [*content["imports"], *(i for i in IMPORTS if i not in content["imports"])]
    if ("run" in content and "imports" in content) or "initialize" in content:
        content["initialize"] = [FIRST_ON_PATH, *content.get("initialize", [])]
    return _json(content)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode()


def write_listing(output: Path, work: Path, url: str = "") -> dict[str, dict[str, Any]]:
    """Write ``model_info.json`` and the args files for every archive of a folder; return the former.

    ``NAME.json`` holds what ``python -m monai.bundle download --args_file NAME.json`` needs for the latest version.

    Args:
        output: folder of the archives.
        work: folder on the same disk, for files that are not whole yet.
        url: address under which the archives are served; by default that of their folder.
    """
    base = url.rstrip("/") or output.absolute().as_uri()
    listing: dict[str, dict[str, Any]] = {}
    latest: dict[str, str] = {}
    for path in sorted(output.glob("*.zip")):
        name, version = parse_archive_name(path.name)
        listing[path.stem] = {**digests(path), "size": path.stat().st_size, "source": f"{base}/{path.name}"}
        latest[name] = max(latest.get(name, ""), version)
    files: dict[str, Mapping[str, Any]] = {"model_info.json": listing}
    for name, version in latest.items():
        source = f"{base}/{archive_name(name, version)}"
        files[f"{name}.json"] = {"name": name, "url": source, "bundle_dir": "bundles"}
    for file, content in files.items():
        write_json(work / file, content)
        (work / file).replace(output / file)
    return listing
