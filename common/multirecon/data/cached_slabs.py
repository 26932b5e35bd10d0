"""Volumes simulated once, stored compactly and memory-mapped: what training of a three-dimensional prior reads.

A set is a folder as that of :mod:`multirecon.data.cached_slices`, one sub-folder a subject, with one array a modality
on the grid of the phantom, twice finer than that of the method: every useful slice, slices first, in float16, physical
units (about 3.5 MB a subject for CT and PET at 128 x 128). A slab is a window of consecutive slices at any height, so
that shifts along z by half a voxel come with the set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import avg_pool3d
from torch.utils.data import Dataset
from tqdm import tqdm

from ..units import hu_to_attenuation
from .anatomies import list_anatomies
from .cached_slices import (
    FORMAT,
    RECORD,
    STORED,
    agree_on_settings,
    check_set,
    info,
    read_set,
    subject_name,
    write_subject,
)
from .datasets import as_config
from .phantoms import Phantom, PhantomConfig, simulate
from .splits import check_samples, sample_seed, split_anatomies, split_of

__all__ = ["CachedSlabs", "build"]


def build(
    output_dir: str | Path,
    split: str,
    seeds: int | Sequence[int] = 1,
    *,
    modalities: Sequence[str] = ("ct", "pet_fdg"),
    shape: Sequence[int] = (64, 64),
    spacing_mm: float = 3.75,
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
        shape: ``(H, W)`` of the method's grid; twice as many voxels are stored.
        spacing_mm: voxel size of the method's grid in mm.
        anatomies: names instead of all anatomies of the split.
        config: phantom knobs; by default those of a phantom with half the voxel size.
        device: where to simulate.
        progress: show a progress bar.

    Returns:
        What the set holds, as :func:`multirecon.data.cached_slices.info`.

    Raises:
        ValueError: if an anatomy belongs to another split, the folder was built with other settings, or the phantom's
            voxels are not half as large as those of the grid.
    """
    chosen = as_config(config or {"spacing_mm": (spacing_mm / 2,) * 3, "matrix": 2 * int(max(shape))})
    unknown = [m for m in modalities if m not in STORED]
    if unknown or not modalities:
        raise ValueError(f"modalities: expected names out of {STORED}, got {list(modalities)}")
    if any(abs(2 * s - spacing_mm) > 1e-6 for s in chosen.spacing_mm):
        raise ValueError(f"config: expected voxels of {spacing_mm / 2} mm, got {chosen.spacing_mm}")
    names = anatomies if anatomies is not None else split_anatomies(split, list_anatomies())
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    samples = [(name, sample_seed(name, seed, split)) for seed in numbers for name in names]
    check_samples(split, samples)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "format": FORMAT,
        "kind": "slabs",
        "split": split,
        "modalities": list(modalities),
        "shape": [int(n) for n in shape],
        "spacing_mm": float(spacing_mm),
        "config": json.loads(json.dumps(asdict(chosen))),
    }
    agree_on_settings(folder, settings)
    todo = [s for s in samples if not (folder / subject_name(*s) / RECORD).exists()]
    for anatomy, seed in tqdm(todo, desc=f"{split} set", unit="subject", disable=not progress or None):
        _write(folder, simulate(anatomy, seed, config=chosen, device=device), settings)
    return info(folder)


class CachedSlabs(Dataset[dict[str, Any]]):
    """Memory-mapped slabs of a set made by :func:`build`: every window of ``2 depth`` stored slices of every subject.

    An item holds ``image`` ``(C, H, W, D)`` float32 in physical units (CT in 1/cm), with ``fine`` also ``fine``
    ``(C, 2H, 2W, 2D)``, whose 2 x 2 x 2 block means are ``image``, and ``id`` ``"anatomy/seed/z"`` with the first slice
    of the phantom.

    Args:
        folder: folder of the set; subjects that are complete when the object is made are used.
        modalities: channels of the image, in order.
        depth: voxels of a slab along z; subjects with fewer are left out.
        step: stored slices (half voxels) between the first slices of two slabs.
        fine: also give the twice finer grid.
        split: if given, refuse a set of another split.

    Raises:
        ValueError: if the folder is no set of slabs, lacks a modality, holds no slab of that depth, or belongs to
            another split.
    """

    def __init__(
        self,
        folder: str | Path,
        modalities: Sequence[str] = ("ct", "pet_fdg"),
        *,
        depth: int = 16,
        step: int = 1,
        fine: bool = False,
        split: str | None = None,
    ) -> None:
        if depth < 1 or step < 1:
            raise ValueError(f"depth, step: expected >= 1, got {depth}, {step}")
        self.folder, self.modalities, self.depth, self.fine = Path(folder), tuple(modalities), depth, fine
        self.settings, records = read_set(self.folder, "slabs")
        missing = [m for m in modalities if m not in self.settings["modalities"]]
        if missing:
            raise ValueError(f"modalities: expected names out of {self.settings['modalities']}, got {missing}")
        check_set(self.settings, records, split)
        self.index = [
            (name, start, f"{record['anatomy']}/{record['seed']}/{record['z'][start]}")
            for name, record in records.items()
            for start in range(0, len(record["z"]) - 2 * depth + 1, step)
        ]
        if not self.index:
            raise ValueError(f"folder: expected a subject with {2 * depth} slices or more, got none in {str(folder)!r}")
        self._array = cache(lambda subject, file: np.load(self.folder / subject / f"{file}.npy", mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one slab."""
        subject, start, name = self.index[index]
        window = slice(start, start + 2 * self.depth)
        stored = np.stack([self._array(subject, m)[window] for m in self.modalities])
        image = torch.from_numpy(stored).float().permute(0, 2, 3, 1)
        item: dict[str, Any] = {"image": avg_pool3d(image, 2), "id": name}
        if self.fine:
            item["fine"] = image.contiguous()
        return item

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("CachedSlabs: open the folder again in every process instead of sending the object")

    @property
    def ids(self) -> list[str]:
        """``"anatomy/seed/z"`` of every slab."""
        return [name for _, _, name in self.index]


def _write(folder: Path, phantom: Phantom, settings: Mapping[str, Any]) -> None:
    useful = phantom.useful_slices
    height, width = settings["shape"]
    fine = phantom.slab(
        useful.start,
        len(useful) // 2,
        names=settings["modalities"],
        shape=(height, width),
        spacing_mm=settings["spacing_mm"],
        oversample=2,
    )
    arrays = {}
    for name, volume in fine.items():
        physical = hu_to_attenuation(volume) if name == "ct" else volume
        arrays[name] = physical.permute(2, 0, 1).to(torch.float16).cpu().contiguous().numpy()
    z = [useful.start + i for i in range(2 * (len(useful) // 2))]
    record = {
        "anatomy": phantom.anatomy,
        "seed": phantom.seed,
        "split": split_of(phantom.anatomy, phantom.seed),
        "z": z,
        "z_mm": [float(phantom.affine[2, 3] + i * phantom.affine[2, 2]) for i in z],
        "clipped": {},
        "parameters": phantom.parameters,
    }
    write_subject(folder, arrays, record)
