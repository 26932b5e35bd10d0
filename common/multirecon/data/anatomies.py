"""Head label maps from which phantoms are simulated: a folder of them, or the embedded default.

The setting ``MULTIRECON_ANATOMIES`` names a folder of label maps (``training_seg_XX.nii.gz`` of SynthSeg, called
``"XX"``, or any ``NAME.nii.gz`` with the same labels). Without it the only anatomy is the embedded ``"mni152"``.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from .label_repair import crop_to_head, repair
from .splits import EMBEDDED
from .tissues import label_names

__all__ = ["Anatomy", "anatomies_folder", "anatomy_digest", "list_anatomies", "load_anatomy"]

SETTING = "MULTIRECON_ANATOMIES"
_PREFIX, _SUFFIX = "training_seg_", ".nii.gz"
_EMBEDDED_FILE = Path(__file__).parent / "embedded" / "mni152.nii.gz"
_CEREBRUM = (2, 3, 41, 42)
_DISTANCE_STEP = 2  # voxels


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One repaired whole-head label map, cropped to the head.

    Args:
        name: name of the anatomy, ``"01"`` or ``"mni152"``.
        labels: ``(X, Y, Z)`` int16 labels in RAS+ order, 1 mm voxels.
        affine: ``(4, 4)`` float64 voxel-to-RAS matrix in mm.
    """

    name: str
    labels: Tensor
    affine: Tensor

    @cached_property
    def brain_box(self) -> Tensor:
        """``(2, 3)`` lowest and highest voxel index of the cerebrum along x, y, z."""
        return self._box(torch.isin(self.labels, torch.tensor(_CEREBRUM, dtype=torch.int16)))

    @cached_property
    def head_box(self) -> Tensor:
        """``(2, 3)`` lowest and highest voxel index of the head over the levels of the upper 60 % of the cerebrum.

        The nose and neck lie below these levels, so the middle of this box is where axial slices are centred.
        """
        low, high = (int(v) for v in self.brain_box[:, 2])
        head = self.labels > 0
        head[..., : low + int(0.4 * (high - low))] = False
        return self._box(head)

    @cached_property
    def distances(self) -> Tensor:
        """``(4, X/2, Y/2, Z/2)`` distance in mm to the outer air, an eye, enclosed air and a lateral ventricle.

        Sampled at every second voxel and capped at 60 mm, which is all that the simulation needs.
        """
        labels = self.labels[::_DISTANCE_STEP, ::_DISTANCE_STEP, ::_DISTANCE_STEP].numpy()
        found, _ = ndimage.label(np.pad(labels == 0, 1, constant_values=True))
        found = found[1:-1, 1:-1, 1:-1]
        outer = np.bincount(found.ravel())[1:].argmax() + 1
        targets = (
            found == outer,
            np.isin(labels, (506, 508, 530)),
            (labels == 0) & (found != outer),
            np.isin(labels, (4, 43)),
        )
        maps = [
            ndimage.distance_transform_edt(~t) * _DISTANCE_STEP if t.any() else np.full(t.shape, 60.0) for t in targets
        ]
        return torch.from_numpy(np.stack(maps).clip(0, 60).astype(np.float32))

    @cached_property
    def midplane(self) -> tuple[float, float, float]:
        """``(a, b, c)`` of the plane ``x = a + b y + c z`` between the hemispheres, in voxels."""
        left = torch.isin(self.labels, torch.tensor(_CEREBRUM[:2], dtype=torch.int16))
        right = torch.isin(self.labels, torch.tensor(_CEREBRUM[2:], dtype=torch.int16))
        x = torch.arange(self.labels.shape[0])[:, None, None]
        inner_left, inner_right = (x * left).amax(0), torch.where(right, x, 10_000).amin(0)
        y, z = ((inner_left > 0) & ((inner_right - inner_left).abs() < 8)).nonzero().T
        middle = 0.5 * (inner_left[y, z] + inner_right[y, z]).double()
        design = torch.stack([torch.ones(len(y)), y, z], dim=1).double()
        a, b, c = (float(v) for v in torch.linalg.lstsq(design, middle).solution)
        return a, b, c

    @staticmethod
    def _box(mask: Tensor) -> Tensor:
        index = mask.nonzero()
        return torch.stack([index.amin(0), index.amax(0)])


def anatomies_folder() -> Path | None:
    """Return the folder that ``MULTIRECON_ANATOMIES`` names, or None without the setting.

    Raises:
        ValueError: if the setting names no folder.
    """
    setting = os.environ.get(SETTING, "").strip()
    if not setting:
        return None
    if not Path(setting).is_dir():
        raise ValueError(f"{SETTING}: expected a folder of label maps, got {setting!r}")
    return Path(setting)


def list_anatomies() -> tuple[str, ...]:
    """Return the names of the anatomies at hand: those of the folder, or the embedded one."""
    folder = anatomies_folder()
    if folder is None:
        return (EMBEDDED,)
    names = sorted(_name_of(path) for path in folder.glob(f"*{_SUFFIX}"))
    if not names:
        raise ValueError(f"{SETTING}: expected label maps *{_SUFFIX} in {str(folder)!r}, found none")
    return tuple(names)


def load_anatomy(name: str) -> Anatomy:
    """Load one anatomy: brought to RAS+, labels rounded to int16, repaired and cropped to the head.

    Args:
        name: one of ``list_anatomies()``, or ``"mni152"``, which is always at hand.

    Returns:
        The anatomy; the last few are kept in memory.

    Raises:
        ValueError: if there is no such anatomy, or its file is not a 1 mm map of known labels.

    Example:
        >>> head = load_anatomy("mni152")
        >>> head.labels.dtype, int(head.labels.max())
        (torch.int16, 530)
    """
    return _load(name, str(_file_of(name)))


def anatomy_digest(name: str) -> str:
    """Return the SHA-256 of the file of an anatomy.

    Raises:
        ValueError: if there is no such anatomy.
    """
    path = _file_of(name)
    return _digest(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: str, modified: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _file_of(name: str) -> Path:
    if name == EMBEDDED:
        return Path(str(_EMBEDDED_FILE))
    folder = anatomies_folder()
    if folder is None or name not in list_anatomies():
        raise ValueError(f"name: expected one of {list_anatomies()} or {EMBEDDED!r}, got {name!r}")
    path = folder / f"{_PREFIX}{name}{_SUFFIX}"
    return path if path.exists() else folder / f"{name}{_SUFFIX}"


@lru_cache(maxsize=4)
def _load(name: str, path: str) -> Anatomy:
    image = nib.as_closest_canonical(nib.load(path))
    values = np.asarray(image.dataobj)
    if values.ndim != 3 or not np.allclose(image.header.get_zooms()[:3], 1.0, atol=1e-3):
        raise ValueError(f"{path}: expected a 3D map of 1 mm voxels, got {values.shape}, {image.header.get_zooms()} mm")
    labels: NDArray[np.int16] = np.rint(values).astype(np.int16)
    if name == EMBEDDED:
        labels[labels > 200] += 300  # stored in one byte, see embedded/NOTICE.md
    unknown = set(np.unique(labels).tolist()) - set(label_names())
    if unknown:
        raise ValueError(f"{path}: expected the labels of data/embedded/labels.csv, got also {sorted(unknown)[:10]}")
    box = crop_to_head(labels)
    labels = repair(labels[box])
    inner = crop_to_head(labels)
    affine = torch.from_numpy(np.array(image.affine, dtype=np.float64))
    start = [outer.start + s.start for outer, s in zip(box, inner, strict=True)]
    affine[:3, 3] += affine[:3, :3] @ torch.tensor(start, dtype=torch.float64)
    return Anatomy(name, torch.from_numpy(np.ascontiguousarray(labels[inner])), affine)


def _name_of(path: Path) -> str:
    return path.name.removesuffix(_SUFFIX).removeprefix(_PREFIX)
