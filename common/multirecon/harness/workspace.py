"""Folders of a run: where measurements wait, where results lie, and what a killed run left behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

try:
    import fcntl
except ImportError:  # not a POSIX system: leftovers of killed runs stay
    fcntl = None  # type: ignore[assignment]

from ..files import atomic_path
from .records import Record

__all__ = [
    "IMAGES",
    "RECORDS",
    "SAMPLES",
    "TASKS",
    "WORK",
    "image_file",
    "load_image",
    "save_image",
    "save_zoom",
    "trust_file",
    "work_folder",
    "write_json",
    "write_text",
    "zoom_of",
]

RECORDS, IMAGES, TASKS, SAMPLES, WORK = "records.jsonl", "images", "tasks", "samples", ".work"
KEPT = (IMAGES, TASKS, SAMPLES, "features")


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """Make a private folder below ``output/.work``; remove it at the end, and first those of runs that were killed."""
    parent = output / WORK
    parent.mkdir(parents=True, exist_ok=True)
    # Under one lock, a folder is either being used (its own lock is held) or was left behind by a killed run.
    with _locked(parent / ".lock"):
        for left in parent.glob("run-*") if fcntl is not None else ():
            _remove_abandoned(left)
        if fcntl is not None and not any(parent.glob("run-*")):  # nobody is writing: drafts are leftovers too
            for kept in KEPT:
                for draft in (output / kept).rglob(".part-*"):
                    draft.unlink(missing_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove a run's folder unless its owner still holds its lock."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR)
    except OSError:  # killed while it was made or removed
        shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass
    finally:
        os.close(lock)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_path(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def image_file(output: Path, record: Record, *, truth: bool = False) -> Path:
    """Return where the stack of a record (or the truth of its question) is kept for the report's panels."""
    key = json.dumps(record.question if truth else record.key)
    kind = "truth" if truth else _plain(record.method)
    name = f"{_plain(record.sample)}_{kind}_{hashlib.sha256(key.encode()).hexdigest()[:12]}.npy"
    return output / IMAGES / _plain(record.task) / name


def trust_file(output: Path, record: Record) -> Path:
    """Return where the trust maps ``(M, *shape)`` of a record's stack are kept."""
    return image_file(output, record).with_suffix(".trust.npy")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:60] or "unnamed"


def save_image(path: Path, stack: np.ndarray) -> None:
    """Write a stack as a NumPy file, whole or not at all."""
    with atomic_path(path) as draft, draft.open("wb") as stream:
        np.save(stream, stack.astype(np.float32, copy=False), allow_pickle=False)


def load_image(path: Path) -> np.ndarray | None:
    """Return the stack of a file, or ``None`` where there is none that can be read."""
    try:
        stack: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return stack


def save_zoom(output: Path, record: Record, regions: Mapping[str, Tensor], *, margin: int = 4) -> None:
    """Keep the box around the largest lesion of a 2D sample, where it has any, beside its truth.

    Lesions are scattered over a head: a box around all of them would show nothing larger.
    """
    masks = [m for name, m in regions.items() if "lesion" in name and m.ndim == 2 and bool(m.any())]
    if not masks:
        return
    parts, _ = ndimage.label(torch.stack(masks).any(0).numpy(), structure=np.ones((3, 3)))
    inside = torch.from_numpy(parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1).nonzero()
    low = (inside.min(0).values - margin).clamp_min(0).tolist()
    high = (inside.max(0).values + margin + 1).tolist()
    box = [low[0], min(high[0], masks[0].shape[0]), low[1], min(high[1], masks[0].shape[1])]
    write_json(image_file(output, record, truth=True).with_suffix(".json"), {"zoom": box})


def zoom_of(outputs: Sequence[Path], record: Record) -> tuple[int, int, int, int] | None:
    """Return the box that :func:`save_zoom` kept, or ``None``."""
    for output in outputs:
        try:
            text = image_file(output, record, truth=True).with_suffix(".json").read_text(encoding="utf-8")
            a, b, c, d = map(int, json.loads(text)["zoom"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return a, b, c, d
    return None
