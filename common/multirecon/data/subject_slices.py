"""The slices of one simulated subject, kept in a file: simulating a head takes half a minute, reading it none.

The twice finer grid is what is stored; the plain grid is its block mean, so both always agree exactly. Values are
rounded to steps far below their texture before anything uses them: a subject is the same whether it was read or
simulated.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..files import atomic_path, cache_folder
from .anatomies import anatomy_digest
from .phantoms import VOLUMES, PhantomConfig, simulate

__all__ = ["PACKAGED_SLICES", "SubjectSlices", "spread_slices", "stored_subject", "subject_key", "subject_slices"]

# Raise it when the simulated values change: stored subjects of another version are not read.
PHANTOM_VERSION = 2
PACKAGED_SLICES = "multirecon.data.embedded"
_STEP = {"ct": 1.0, "attenuation_511": 1e-5, "iodine": 1e-6}  # HU, 1/cm, g/cm^3; other volumes: _DEFAULT_STEP
_DEFAULT_STEP = 1 / 512
_MASKS = ("brain", "ms", "infarct", "pet_hot", "pet_cold")


@dataclass(frozen=True)
class SubjectSlices:
    """Resampled slices of one subject.

    Attributes:
        fine: volume or mask -> ``(N, 2H, 2W)`` float32, units of ``Phantom`` (CT in HU).
        regions: ``(N, H, W)`` uint8 region codes.
        affines: ``(N, 4, 4)`` voxel-to-RAS matrices of the plain grid in mm.
        z: slice numbers.
    """

    fine: Mapping[str, Tensor]
    regions: Tensor
    affines: Tensor
    z: tuple[int, ...]

    def plain(self, name: str) -> Tensor:
        """Return ``(N, H, W)``: the block means of the fine grid."""
        return avg_pool2d(self.fine[name][:, None], 2)[:, 0]


def spread_slices(useful: range, count: int) -> list[int]:
    """Return ``count`` slice numbers spread evenly over ``useful``, its outer tenths left out."""
    if count < 1 or count > len(useful):
        raise ValueError(f"slices: expected 1 to {len(useful)} slices per subject, got {count}")
    if count > 0.8 * len(useful):
        return [useful[round(i * (len(useful) - 1) / max(count - 1, 1))] for i in range(count)]
    return [useful[int((0.1 + 0.8 * (i + 0.5) / count) * len(useful))] for i in range(count)]


def subject_slices(
    anatomy: str,
    seed: int,
    config: PhantomConfig,
    *,
    slices: int,
    shape: tuple[int, int],
    spacing_mm: float,
    names: Sequence[str] = VOLUMES,
    device: str = "cpu",
) -> SubjectSlices:
    """Return the slices of a subject: from the package, from the user's cache, or simulated (and then cached).

    Args:
        anatomy: name of the anatomy.
        seed: seed to simulate with.
        config: phantom knobs.
        slices: number of slices, spread evenly over the useful ones.
        shape: ``(H, W)`` of the plain grid.
        spacing_mm: its pixel size in mm.
        names: volumes that must be there (the package keeps a few of them only).
        device: where to simulate.
    """
    key = subject_key(anatomy, seed, config, slices=slices, shape=shape, spacing_mm=spacing_mm)
    stored = stored_subject(key, names)
    if stored is not None:
        return _decode(stored)
    phantom = simulate(anatomy, seed, config=config, device=device)
    z = spread_slices(phantom.useful_slices, slices)
    grid: dict[str, Any] = {"shape": shape, "spacing_mm": spacing_mm}
    stored_names = [*VOLUMES, *(m for m in _MASKS if m in phantom.masks)]
    fine = phantom.slices(z, names=stored_names, oversample=2, **grid)
    arrays = {f"fine_{name}": _encode(name, values.cpu()) for name, values in fine.items()}
    arrays["regions"] = phantom.region_slices(z, **grid).cpu().numpy()
    arrays["affines"] = np.stack([phantom.slice_affine(k, **grid).numpy() for k in z])
    arrays["z"] = np.asarray(z)
    folder = cache_folder()
    if folder is not None:
        _store(folder / "subjects" / f"{key}.npz", arrays)
    return _decode(arrays)


def subject_key(
    anatomy: str, seed: int, config: PhantomConfig, *, slices: int, shape: tuple[int, int], spacing_mm: float
) -> str:
    """Return the name of the file of a subject: a hash of everything that its values depend on."""
    facts = [PHANTOM_VERSION, anatomy, anatomy_digest(anatomy), seed, asdict(config), slices, list(shape), spacing_mm]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def stored_subject(key: str, names: Sequence[str] = VOLUMES) -> dict[str, np.ndarray] | None:
    """Return the arrays of a stored subject that has the named volumes, or None.

    An unreadable file of the cache counts as absent.
    """
    packaged = resources.files(PACKAGED_SLICES) / f"{key}.npz"
    with resources.as_file(packaged) as path:
        arrays = _read(path) if path.is_file() else {}
        if arrays and all(f"fine_{name}" in arrays for name in names):
            return arrays
    folder = cache_folder()
    cached = folder / "subjects" / f"{key}.npz" if folder is not None else None
    if cached is None or not cached.is_file():
        return None
    try:
        return _read(cached)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _store(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        write_subject(path, arrays)
    except OSError:
        return  # a cache that cannot be written costs time, not results


def write_subject(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of a subject, whole or not at all."""
    with atomic_path(path) as draft, draft.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def _encode(name: str, values: Tensor) -> np.ndarray:
    step = 1 / 255 if name in _MASKS else _STEP.get(name, _DEFAULT_STEP)
    codes = torch.round(values / step).to(torch.int16).numpy()
    # Differences along a row compress to half the size.
    return np.diff(codes, axis=-1, prepend=np.int16(0))


def _decode(arrays: Mapping[str, np.ndarray]) -> SubjectSlices:
    fine = {}
    for key, values in arrays.items():
        if key.startswith("fine_"):
            name = key.removeprefix("fine_")
            step = 1 / 255 if name in _MASKS else _STEP.get(name, _DEFAULT_STEP)
            fine[name] = torch.from_numpy(np.cumsum(values, axis=-1, dtype=np.int16)).float() * step
    return SubjectSlices(
        fine=fine,
        regions=torch.from_numpy(arrays["regions"]),
        affines=torch.from_numpy(arrays["affines"]),
        z=tuple(int(k) for k in arrays["z"]),
    )
