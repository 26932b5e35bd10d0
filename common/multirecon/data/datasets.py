"""Phantom slices as a torch data set, simulated on demand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..units import hu_to_attenuation
from .anatomies import list_anatomies
from .materials import hu_to_unit
from .phantoms import VOLUMES, PhantomConfig
from .splits import check_samples, sample_seed, split_anatomies
from .subject_slices import spread_slices, subject_slices

__all__ = ["PET_UNIT", "STACK", "PhantomSlices", "as_config", "spread_slices", "to_unit"]

STACK = ("t1", "flair", "t2star", "ct", "pet_fdg")
# what 1 means on the scale of networks, relative to cortical (FDG) or cerebellar (amyloid) grey matter
PET_UNIT = {"pet_fdg": 1.5, "pet_amyloid": 2.5}
_LESIONS = ("ms", "infarct")
_PET_LESIONS = ("pet_hot", "pet_cold")
_CT_UNITS = ("1/cm", "HU", "unit")


def to_unit(name: str, values: Tensor) -> Tensor:
    """Bring one modality to the scale of networks, about [0, 1]: compressed CT, PET over ``PET_UNIT``, MR as it is.

    Args:
        name: name of the modality.
        values: values in the units of ``Phantom`` (CT in HU), any shape.
    """
    if name == "ct":
        return hu_to_unit(values)
    return values / PET_UNIT[name] if name in PET_UNIT else values


def as_config(config: PhantomConfig | Mapping[str, Any] | None) -> PhantomConfig:
    """Return a ``PhantomConfig`` from a record, a mapping of its fields (JSON) or None (defaults)."""
    if isinstance(config, PhantomConfig):
        return config
    unknown = set(config or {}) - set(PhantomConfig.__dataclass_fields__)
    if unknown:
        raise ValueError(f"config: expected fields of PhantomConfig, got also {sorted(unknown)}")
    return PhantomConfig(**(config or {}))


class PhantomSlices(Dataset[dict[str, Any]]):
    """Slices of simulated subjects of one split; subject by subject, a few kept in memory.

    An item is a dictionary: ``image`` ``(C, H, W)``; with ``fine`` also ``fine`` ``(C, 2H, 2W)``, whose 2 x 2 block
    means are ``image``; ``attenuation`` and ``attenuation_fine`` at 511 keV in 1/cm; ``regions`` ``(1, H, W)`` uint8
    index in
    ``REGIONS``; ``lesion``, ``pet_lesion`` and ``brain`` ``(1, H, W)`` shares in [0, 1]; ``id`` ``"anatomy/seed/z"``;
    ``affine`` ``(4, 4)`` in mm. H runs along left-right, W along back-front (RAS order).

    Args:
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"out_of_distribution"``.
        seeds: seeds per anatomy, ``n`` for 0 to n - 1.
        modalities: volumes that make up the image, in channel order.
        slices: number of slices per subject, spread evenly over the useful ones.
        shape: ``(H, W)``.
        spacing_mm: pixel size in mm.
        fine: also give the twice finer grid.
        ct_unit: ``"1/cm"`` (linear attenuation at 70 keV), ``"HU"`` or ``"unit"`` (the compressed scale of networks).
        anatomies: names instead of all anatomies of the split.
        config: phantom knobs, a record or a mapping of its fields.
        device: where to simulate; items lie on the CPU.
        cache: number of subjects whose slices are kept.

    Raises:
        ValueError: if an anatomy belongs to another split or an argument has no meaning.

    Example:
        >>> data = PhantomSlices("test", 1, slices=1, anatomies=["mni152"], shape=(64, 64), spacing_mm=3.75,
        ...                      config={"spacing_mm": (3.75, 3.75, 3.75), "matrix": 64})
        >>> len(data), data[0]["image"].shape, data.samples[0]
        (1, torch.Size([5, 64, 64]), ('mni152', 2000000))
    """

    def __init__(
        self,
        split: str,
        seeds: int | Sequence[int] = 1,
        *,
        modalities: Sequence[str] = STACK,
        slices: int = 8,
        shape: Sequence[int] = (128, 128),
        spacing_mm: float = 1.875,
        fine: bool = False,
        ct_unit: str = "1/cm",
        anatomies: Sequence[str] | None = None,
        config: PhantomConfig | Mapping[str, Any] | None = None,
        device: str = "cpu",
        cache: int = 4,
    ) -> None:
        unknown = [m for m in modalities if m not in VOLUMES]
        if unknown or not modalities:
            raise ValueError(f"modalities: expected names out of {VOLUMES}, got {list(modalities)}")
        if ct_unit not in _CT_UNITS:
            raise ValueError(f"ct_unit: expected one of {_CT_UNITS}, got {ct_unit!r}")
        if len(shape) != 2:
            raise ValueError(f"shape: expected (H, W), got {shape}")
        self.split, self.modalities, self.slices_per_subject = split, tuple(modalities), slices
        self.shape, self.spacing_mm, self.fine, self.ct_unit = (int(shape[0]), int(shape[1])), spacing_mm, fine, ct_unit
        self.config, self.device, self._limit = as_config(config), device, max(1, cache)
        self.samples = tuple(
            (name, sample_seed(name, seed, split))
            for seed in (range(seeds) if isinstance(seeds, int) else seeds)
            for name in (anatomies if anatomies is not None else split_anatomies(split, list_anatomies()))
        )
        if not self.samples:
            raise ValueError(f"seeds: expected at least one subject, got seeds {seeds!r} and anatomies {anatomies!r}")
        check_samples(split, self.samples)
        self._cache: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.samples) * self.slices_per_subject

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one slice; simulates its subject when it is not in memory."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        subject, number = divmod(index % len(self), self.slices_per_subject)
        if subject not in self._cache:
            self._cache[subject] = self._items(*self.samples[subject])
            while len(self._cache) > self._limit:
                self._cache.popitem(last=False)
        self._cache.move_to_end(subject)
        return dict(self._cache[subject][number])

    def _items(self, anatomy: str, seed: int) -> list[dict[str, Any]]:
        subject = subject_slices(
            anatomy,
            seed,
            self.config,
            slices=self.slices_per_subject,
            shape=self.shape,
            spacing_mm=self.spacing_mm,
            names=(*self.modalities, "attenuation_511"),
            device=self.device,
        )
        coarse = {name: subject.plain(name) for name in subject.fine}
        items = []
        for i, z in enumerate(subject.z):
            item: dict[str, Any] = {
                "image": self._stack(coarse, i),
                "attenuation": coarse["attenuation_511"][i][None],
                "regions": subject.regions[i][None],
                "lesion": _union(coarse, _LESIONS, i),
                "pet_lesion": _union(coarse, _PET_LESIONS, i),
                "brain": coarse["brain"][i][None],
                "id": f"{anatomy}/{seed}/{z}",
                "affine": subject.affines[i],
            }
            if self.fine:
                item["fine"] = self._stack(subject.fine, i)
                item["attenuation_fine"] = subject.fine["attenuation_511"][i][None]
            items.append(item)
        return items

    def _stack(self, volumes: Mapping[str, Tensor], i: int) -> Tensor:
        return torch.stack([self._scaled(name, volumes[name][i]) for name in self.modalities])

    def _scaled(self, name: str, values: Tensor) -> Tensor:
        if name == "ct" and self.ct_unit == "1/cm":
            return hu_to_attenuation(values)
        # only linear maps above: the block means of the fine grid stay exact; the compressed scale bends them
        return to_unit(name, values) if self.ct_unit == "unit" else values


def _union(masks: Mapping[str, Tensor], names: Sequence[str], i: int) -> Tensor:
    present = [masks[name][i] for name in names if name in masks]
    if not present:
        return torch.zeros_like(masks["brain"][i])[None]
    return torch.stack(present).amax(0)[None]
