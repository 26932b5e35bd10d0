"""MONAI Label serves bundles: which of them, with which options, and the folder that its stock application reads.

The application ``monaibundle`` of MONAI Label runs any bundle that has MONAI's standard keys: it hands over one image
(several modalities on the last axis), shows ``displayable_configs`` as options, and returns one image on the same grid.
Nothing of MONAI Label is imported here; its server has an environment of its own (``ci/interop_env.sh label``).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bundle import Bundle, discover, find

__all__ = ["APP", "application_of", "options", "prepare", "refusal", "servable", "start_command"]

APP = "monaibundle"
OPTIONS = "displayable_configs"


def refusal(bundle: Bundle) -> str | None:
    """Return why MONAI Label cannot serve a bundle, or ``None`` where it can."""
    try:
        config = _inference(bundle)
    except ValueError as error:
        return str(error)
    if "source" not in config or "image" not in bundle.metadata.get("multirecon", {}).get("accepts", ["image"]):
        return "takes measurement files (raw data), and MONAI Label hands over images"
    if not bundle.weights.is_file():
        return "has no weights (models/model.pt)"
    return None


def options(bundle: Bundle) -> dict[str, Any]:
    """Return the options that a client sees, with their defaults."""
    return dict(_inference(bundle).get(OPTIONS, {}))


def servable(bundles: Sequence[str] = (), folder: str | os.PathLike[str] | None = None) -> list[Bundle]:
    """Return the bundles that MONAI Label can serve.

    Args:
        bundles: names or folders; all that it can serve by default.
        folder: where names are looked up; see :func:`multirecon.bundle.discover`.

    Raises:
        ValueError: if one that is named cannot be served, none can, or archives disagree about their multirecon.
    """
    if bundles:
        chosen = [find(b, folder) for b in bundles]
        reasons = [f"{b.name} {reason}" for b in chosen if (reason := refusal(b))]
        if reasons:
            raise ValueError(f"bundles: expected bundles that take images, got: {'; '.join(reasons)}")
    else:
        chosen = [b for b in discover(folder) if refusal(b) is None]
        if not chosen:
            raise ValueError(f"bundles: expected bundles that take images, got none in {str(folder or 'bundles')!r}")
    _check_one_package(chosen)
    return chosen


def application_of(python: str | os.PathLike[str]) -> Path:
    """Return the folder of the application in the environment of an interpreter that has MONAI Label.

    Raises:
        ValueError: if it has none.
    """
    code = "import sys; print(sys.prefix)"
    try:
        done = subprocess.run([os.fspath(python), "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"python: expected an interpreter, got {str(python)!r} ({error})") from None
    place = Path(done.stdout.strip()) / "monailabel" / "sample-apps" / APP
    if not (place / "main.py").is_file():
        expected = "an interpreter that has MONAI Label (ci/interop_env.sh label makes one)"
        raise ValueError(f"python: expected {expected}, got {str(python)!r}")
    return place


def prepare(app: str | os.PathLike[str], bundles: Sequence[Bundle], *, template: str | os.PathLike[str]) -> Path:
    """Make the application's folder with copies of bundles in ``model/``; whole, or not at all.

    Args:
        app: the folder to make; it must not exist, or be an empty folder.
        bundles: what to serve, see :func:`servable`.
        template: the stock application, see :func:`application_of`.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder holds something already.
    """
    target = Path(app).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"app: expected a new or empty folder, got {str(app)!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as name:
        draft = Path(name) / target.name
        unwanted = shutil.ignore_patterns("__pycache__", "eval", "*.ts", "*.pyc")
        shutil.copytree(template, draft, ignore=unwanted)
        for bundle in bundles:
            shutil.copytree(bundle.root, draft / "model" / bundle.name, ignore=unwanted)
        os.replace(draft, target)
    return target


def start_command(
    app: str | os.PathLike[str],
    studies: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    python: str | os.PathLike[str] = "python",
) -> list[str]:
    """Return the words that start the server: offline, without trainers and without the SAM2 model.

    Args:
        app: a folder made by :func:`prepare`.
        studies: folder of the images.
        host: address to listen on.
        port: port to listen on.
        python: interpreter of MONAI Label's environment.
    """
    names = sorted(p.name for p in (Path(app) / "model").iterdir() if (p / "configs").is_dir())
    # any `zoo_source` but the default keeps the server from asking for the public zoo's list, which needs a network
    conf = {"models": ",".join(names), "zoo_source": "local", "sam2": "false", "skip_trainers": "true"}
    words = [os.fspath(python), "-m", "monailabel.main", "start_server", "--app", os.fspath(app)]
    words += ["--studies", os.fspath(studies), "--host", host, "--port", str(port)]
    return words + [word for key, value in conf.items() for word in ("--conf", key, value)]


def list_bundles(folder: str = "") -> None:
    """List what MONAI Label can serve with which options, and why it cannot serve the others.

    Args:
        folder: folder of the bundles; by default the setting MULTIRECON_BUNDLES, else ./bundles.
    """
    for bundle in discover(folder or None):
        reason = refusal(bundle)
        shown = " ".join(f"{k}={json.dumps(v)}" for k, v in options(bundle).items()) if reason is None else reason
        print(f"{'serves' if reason is None else 'not':7} {bundle.name:28} {shown}")


def prepare_app(app: Path, python: str, *, bundles: tuple[str, ...] = (), folder: str = "") -> None:
    """Make the folder of a MONAI Label server and print the command that starts it.

    Args:
        app: the folder to make.
        python: interpreter of MONAI Label's environment (`ci/interop_env.sh label` makes one).
        bundles: names or folders, separated by commas; every bundle that takes images by default.
        folder: folder of the bundles; by default the setting MULTIRECON_BUNDLES, else ./bundles.
    """
    chosen = servable(bundles, folder or None)
    target = prepare(app, chosen, template=application_of(python))
    print(f"{len(chosen)} bundles in {app}: {', '.join(b.name for b in chosen)}")
    print(f"start: {shlex.join(start_command(target, 'STUDIES', python=python))}")


def _inference(bundle: Bundle) -> dict[str, Any]:
    path = bundle.configs / "inference.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{bundle.name}: expected a readable configs/inference.json, got {error}") from None
    return config if isinstance(config, dict) else {}


def _check_one_package(bundles: Sequence[Bundle]) -> None:
    """Refuse archives that carry different copies of multirecon: in one server the first one's would serve them all."""
    copies: dict[str, str] = {}
    for bundle in bundles:
        stamp = bundle.metadata.get("multirecon", {}).get("package")
        if stamp:
            copies.setdefault(f"{stamp['version']} ({stamp['sha256'][:12]})", bundle.name)
    if len(copies) > 1:
        told = ", ".join(f"{copy} of {name}" for copy, name in sorted(copies.items()))
        raise ValueError(f"bundles: expected archives with one multirecon, as one server shares it, got {told}")
