"""Environments with exactly the packages that an archive names, and nothing else."""

import importlib.metadata as metadata
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """Return the installed distributions that `pip install REQUIREMENTS` would bring here, by name."""
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(r) for r in requirements]
    while waiting:
        wanted = waiting.pop()
        distribution = found.setdefault(plain(wanted.name), metadata.distribution(wanted.name))
        if distribution.version not in wanted.specifier:
            raise AssertionError(f"{wanted} is documented, {distribution.version} is installed")
        for extra in ("", *wanted.extras):
            if (plain(wanted.name), extra) in seen:
                continue
            seen.add((plain(wanted.name), extra))
            for line in distribution.requires or []:
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append(inner)
    return found


def fresh_environment(folder: Path, requirements: Iterable[str]) -> Path:
    """Make a virtual environment that shows these packages, what they need, and nothing else; return its Python.

    The files are linked from the running environment, so that nothing is downloaded: a package that the list forgets
    is missing, whatever else is installed here.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for distribution in closure(requirements).values():
        for file in distribution.files or []:
            top = file.parts[0]
            source, target = Path(str(distribution.locate_file(top))), site / top
            if top in ("..", "__pycache__", "nvidia") or target.is_symlink() or not source.exists():
                continue
            target.symlink_to(source)
        inner = {
            file.parts[1] for file in distribution.files or [] if file.parts[0] == "nvidia" and len(file.parts) > 2
        }
        for name in inner:  # the folder `nvidia` is shared by many distributions
            (site / "nvidia").mkdir(exist_ok=True)
            if not (site / "nvidia" / name).exists():
                (site / "nvidia" / name).symlink_to(Path(str(distribution.locate_file(f"nvidia/{name}"))))
    return folder / "bin" / "python"


def run(python: Path, *words: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user does who has nothing of this collection, offline."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MULTIRECON"))}
    environment = {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1", **settings}
    return subprocess.run(
        [str(python), *words], cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False
    )


def has(python: Path, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return run(python, "-c", code, cwd=Path("/")).returncode == 0


if __name__ == "__main__":
    print(fresh_environment(Path(sys.argv[1]), sys.argv[2:]))
