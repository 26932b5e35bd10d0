"""Slices simulated once, stored compactly and memory-mapped: what training on a CPU reads.

A set is a folder with one sub-folder per subject, ``ANATOMY_SEED``, that holds one ``.npy`` array per modality, the
region map and the brain mask. A subject's folder appears whole or not at all, so a build that was killed goes on where
it stopped, and more seeds can be added later. MR is stored in one byte (value = code / 200), CT (compressed scale) and
PET in float16: about 180 kB for a slice of 128 x 128 with all seven modalities.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..files import atomic_path
from .anatomies import list_anatomies
from .datasets import STACK, as_config, to_unit
from .materials import unit_to_hu
from .phantoms import Phantom, PhantomConfig, simulate
from .phantoms_render import MR
from .splits import check_samples, sample_seed, split_anatomies, split_of

__all__ = ["CachedSlices", "build", "info"]

STORED = (*MR, "ct", "pet_fdg", "pet_amyloid")
FORMAT = 1
_MR_CODES = 200.0
RECORD = "subject.json"


def build(
    output_dir: str | Path,
    split: str,
    seeds: int | Sequence[int] = 1,
    *,
    modalities: Sequence[str] = STORED,
    stride: int = 2,
    shape: Sequence[int] = (128, 128),
    spacing_mm: float = 1.875,
    anatomies: Sequence[str] | None = None,
    config: PhantomConfig | Mapping[str, Any] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Simulate subjects of one split into a folder; subjects that are there already are left alone.

    Args:
        output_dir: folder of the set; made if missing.
        split: split whose anatomies are used; the folder holds one split only.
        seeds: seeds per anatomy, ``n`` for 0 to n - 1; all anatomies of the first seed come first.
        modalities: what to store.
        stride: take every ``stride``-th useful slice.
        shape: ``(H, W)``.
        spacing_mm: pixel size in mm.
        anatomies: names instead of all anatomies of the split.
        config: phantom knobs.
        device: where to simulate.
        progress: show a progress bar.

    Returns:
        ``info(output_dir)``.

    Raises:
        ValueError: if an anatomy belongs to another split, or the folder was built with other settings.
    """
    chosen = as_config(config)
    unknown = [m for m in modalities if m not in STORED]
    if unknown or not modalities:
        raise ValueError(f"modalities: expected names out of {STORED}, got {list(modalities)}")
    if stride < 1:
        raise ValueError(f"stride: expected at least 1, got {stride}")
    names = anatomies if anatomies is not None else split_anatomies(split, list_anatomies())
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    samples = [(name, sample_seed(name, seed, split)) for seed in numbers for name in names]
    check_samples(split, samples)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "format": FORMAT,
        "split": split,
        "modalities": list(modalities),
        "stride": stride,
        "shape": [int(n) for n in shape],
        "spacing_mm": float(spacing_mm),
        "config": json.loads(json.dumps(asdict(chosen))),
    }
    agree_on_settings(folder, settings)
    todo = [s for s in samples if not (folder / subject_name(*s) / RECORD).exists()]
    for anatomy, seed in tqdm(todo, desc=f"{split} set", unit="subject", disable=not progress or None):
        phantom = simulate(anatomy, seed, config=chosen, device=device)
        _write_subject(folder, phantom, settings)
    return info(folder)


def info(output_dir: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Return what a set holds.

    Args:
        output_dir: folder of the set.
        verify: also compare every file with its checksum.

    Returns:
        ``split``, ``subjects``, ``slices``, ``bytes``, ``modalities``, ``shape``, ``spacing_mm``, ``anatomies``
        (slices of each), ``clipped`` (largest share of MR pixels above the range of one byte), ``config``; of slices
        or of slabs.

    Raises:
        ValueError: if the folder is no set, or with ``verify`` if a file differs from its checksum.
    """
    folder = Path(output_dir)
    settings, records = read_set(folder)
    anatomies: dict[str, int] = {}
    total = 0
    for name, record in records.items():
        anatomies[record["anatomy"]] = anatomies.get(record["anatomy"], 0) + len(record["z"])
        for file, digest in record["sha256"].items():
            path = folder / name / file
            total += path.stat().st_size
            if verify and _digest(path) != digest:
                raise ValueError(f"output_dir: {path} does not match its checksum")
    return {
        **{k: v for k, v in settings.items() if k not in ("format", "kind")},
        "subjects": len(records),
        "slices": sum(anatomies.values()),
        "bytes": total,
        "anatomies": anatomies,
        "clipped": max((max(r["clipped"].values(), default=0.0) for r in records.values()), default=0.0),
    }


class CachedSlices(Dataset[dict[str, Any]]):
    """Memory-mapped slices of a set made by ``build``.

    An item holds ``image`` ``(C, H, W)`` float32, ``regions`` ``(1, H, W)`` uint8, ``brain`` ``(1, H, W)`` float32 in
    {0, 1} and ``id`` ``"anatomy/seed/z"``.

    Args:
        folder: folder of the set; subjects that are complete when the object is made are used.
        modalities: channels of the image, in order.
        units: ``"unit"`` for the scale of networks (about [0, 1]), ``"phantom"`` for CT in HU and relative PET.
        split: if given, refuse a set of another split.

    Raises:
        ValueError: if the folder is no set, holds no subject or lacks a modality, or belongs to another split.
    """

    def __init__(
        self, folder: str | Path, modalities: Sequence[str] = STACK, *, units: str = "unit", split: str | None = None
    ) -> None:
        if units not in ("unit", "phantom"):
            raise ValueError(f"units: expected 'unit' or 'phantom', got {units!r}")
        self.folder, self.modalities, self.units = Path(folder), tuple(modalities), units
        self.settings, records = read_set(self.folder, "slices")
        missing = [m for m in modalities if m not in self.settings["modalities"]]
        if missing:
            raise ValueError(f"modalities: expected names out of {self.settings['modalities']}, got {missing}")
        check_set(self.settings, records, split)
        self.index = [(name, i) for name, record in records.items() for i in range(len(record["z"]))]
        if not self.index:
            raise ValueError(f"folder: expected a set with at least one subject, got {str(folder)!r}")
        self._ids = [f"{r['anatomy']}/{r['seed']}/{z}" for r in records.values() for z in r["z"]]
        self._array = cache(lambda subject, file: np.load(self.folder / subject / f"{file}.npy", mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one slice."""
        batch = self.batch([index])
        return {key: value[0] for key, value in batch.items()}

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("CachedSlices: open the folder again in every process instead of sending the object")

    @property
    def ids(self) -> list[str]:
        """``"anatomy/seed/z"`` of every slice."""
        return self._ids

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Read several slices at once.

        Args:
            indices: slice numbers.

        Returns:
            ``image`` ``(B, C, H, W)`` float32, ``regions`` ``(B, 1, H, W)`` uint8, ``brain`` ``(B, 1, H, W)`` float32,
            ``id`` list of B names.
        """
        places = [self.index[i] for i in indices]

        def read(file: str) -> Tensor:
            return torch.from_numpy(np.stack([self._array(subject, file)[i] for subject, i in places]))

        channels = []
        for name in self.modalities:
            values = read(name).float()
            if name in MR:
                values /= _MR_CODES
            elif self.units == "phantom":
                values = unit_to_hu(values) if name == "ct" else values * float(1 / to_unit(name, torch.ones(())))
            channels.append(values)
        return {
            "image": torch.stack(channels, dim=1),
            "regions": read("regions")[:, None],
            "brain": read("brain").float()[:, None],
            "id": [self._ids[i] for i in indices],
        }


def subject_name(anatomy: str, seed: int) -> str:
    return f"{anatomy}_{seed:07d}"


def agree_on_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a new set, or compare them with those of the one that is there."""
    path = folder / "set.json"
    if path.exists():
        present = json.loads(path.read_text(encoding="utf-8"))
        different = [k for k in settings if present.get(k) != settings[k]]
        if different:
            key = different[0]
            raise ValueError(f"output_dir: {folder} holds a set with {key} {present.get(key)}, not {settings[key]}")
        return
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    _write_json(path, settings)


def check_set(settings: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], split: str | None) -> None:
    """Refuse a set of another split, or one that holds a sample of another split.

    Raises:
        ValueError: if so.
    """
    if split is not None:
        check_samples(split, [(r["anatomy"], r["seed"]) for r in records.values()])
        if settings["split"] != split:
            raise ValueError(f"split: expected a set of {split!r}, got one of {settings['split']!r}")


def read_set(folder: Path, kind: str | None = None) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the settings of a set and the record of every subject that is complete.

    Args:
        folder: folder of the set.
        kind: ``"slices"`` or ``"slabs"``, or None for either.

    Raises:
        ValueError: if the folder is no set of that kind.
    """
    path = folder / "set.json"
    if not path.exists():
        raise ValueError(f"folder: expected a set made by build (set.json), got {str(folder)!r}")
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings["format"] != FORMAT:
        raise ValueError(f"folder: expected format {FORMAT}, got {settings['format']} in {path}")
    if kind is not None and settings.get("kind", "slices") != kind:
        raise ValueError(f"folder: expected a set of {kind}, got one of {settings.get('kind', 'slices')} in {folder}")
    found = sorted(folder.glob(f"*/{RECORD}"))
    records = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in found}
    return settings, records


def _write_subject(folder: Path, phantom: Phantom, settings: Mapping[str, Any]) -> None:
    z = list(phantom.useful_slices)[:: settings["stride"]]
    height, width = settings["shape"]
    spacing_mm = settings["spacing_mm"]
    names = [*settings["modalities"], "brain"]
    images = phantom.slices(z, names=names, shape=(height, width), spacing_mm=spacing_mm)
    arrays: dict[str, NDArray[Any]] = {
        "regions": phantom.region_slices(z, shape=(height, width), spacing_mm=spacing_mm).cpu().numpy(),
        "brain": (images.pop("brain") >= 0.5).to(torch.uint8).cpu().numpy(),
    }
    clipped: dict[str, float] = {}
    for name, values in images.items():
        if name in MR:
            codes = (values * _MR_CODES).round()
            clipped[name] = float((codes > 255).float().mean())
            arrays[name] = codes.clamp(0, 255).to(torch.uint8).cpu().numpy()
        else:
            arrays[name] = to_unit(name, values).to(torch.float16).cpu().numpy()
    record = {
        "anatomy": phantom.anatomy,
        "seed": phantom.seed,
        "split": split_of(phantom.anatomy, phantom.seed),
        "z": z,
        "z_mm": [float(phantom.affine[2, 3] + i * phantom.affine[2, 2]) for i in z],
        "clipped": clipped,
        "parameters": phantom.parameters,
    }
    write_subject(folder, arrays, record)


def write_subject(folder: Path, arrays: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> None:
    """Write the folder of one subject, whole or not at all.

    Args:
        folder: folder of the set.
        arrays: one array for each file, by its name without the ending.
        record: ``anatomy``, ``seed`` and whatever else describes the subject; checksums are added.
    """
    name = subject_name(record["anatomy"], record["seed"])
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
    try:
        for file, array in arrays.items():
            np.save(temporary / f"{file}.npy", array)
        checksums = {f"{file}.npy": _digest(temporary / f"{file}.npy") for file in arrays}
        _write_json(temporary / RECORD, {**record, "sha256": checksums})
        os.replace(temporary, folder / name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with atomic_path(path) as draft:
        draft.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
