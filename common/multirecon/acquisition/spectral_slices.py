"""Slices of spectral CT: phantoms as material densities and attenuation images at single energies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from torch.utils.data import Dataset

from ..data.cached_slices import CachedSlices
from ..data.datasets import PhantomSlices
from ..data.materials import materials_from_hu
from ..data.vessels import Contrast, draw_contrast
from ..operators import mass_attenuation

__all__ = ["BASIS", "CONTRAST", "CachedSpectralSlices", "SpectralSlices", "attenuation_at", "channel_mixing"]

BASIS = ("water", "bone")
CONTRAST = "iodine"
"""Third material of subjects with a contrast agent."""


def attenuation_at(hu: Tensor, energies_kev: Sequence[float]) -> Tensor:
    """Return the attenuation in 1/cm at some photon energies of CT numbers, ``(B, energies, H, W)``.

    Args:
        hu: CT numbers in HU, ``(B, 1, H, W)``.
        energies_kev: photon energies in keV.

    Example:
        >>> attenuation_at(torch.zeros(1, 1, 1, 1), [60.0, 80.0]).flatten()
        tensor([0.2059, 0.1837])
    """
    mixing = mass_attenuation(BASIS, energies_kev).T.to(hu)
    return torch.einsum("km,bmhw->bkhw", mixing, torch.cat(materials_from_hu(hu), dim=1))


class SpectralSlices(Dataset[dict[str, Any]]):
    """Phantom slices as material densities and attenuation images at single energies.

    Water and bone are found from the CT numbers of the twice finer grid; everything else is linear in them, so that
    the block means of ``fine`` are ``image``. Items are those of :class:`~multirecon.data.datasets.PhantomSlices` with
    these channels, and ``materials_fine`` ``(2, 2H, 2W)`` in g/cm^3.

    With ``contrast`` there is iodine as a third material, in a share of the subjects, dissolved in the blood of vessels
    and in inserts inside the brain (:func:`~multirecon.data.vessels.draw_contrast`; the phantom's own ``iodine`` is not
    used). An item then has ``contrast``, a mapping of places (``"vessel"``, ``"insert_2"`` ...) to the share of every
    pixel that lies there, ``(1, H, W)``; all zero in a subject without contrast agent.

    Args:
        split: as for ``PhantomSlices``.
        seeds: as for ``PhantomSlices``.
        modalities: channel groups in order: ``"materials"`` (water, bone and with ``contrast`` iodine, in g/cm^3) or
            keys of ``energies_kev``.
        energies_kev: energies in keV of the attenuation images (1/cm) of each other modality, one a channel.
        contrast: settings of ``draw_contrast``, ``{}`` for its defaults; None: no iodine.
        **settings: further arguments of ``PhantomSlices`` (slices, shape, spacing_mm, anatomies, ...).

    Raises:
        ValueError: on a modality without energies.

    Example:
        >>> tiny = {"spacing_mm": (3.75, 3.75, 3.75), "matrix": 64}
        >>> data = SpectralSlices("test", modalities=["ct_low"], energies_kev={"ct_low": [60.0]}, slices=1,
        ...                       anatomies=["mni152"], shape=(64, 64), spacing_mm=3.75, config=tiny)
        >>> data[0]["image"].shape, data[0]["materials_fine"].shape
        (torch.Size([1, 64, 64]), torch.Size([2, 128, 128]))
    """

    def __init__(
        self,
        split: str,
        seeds: int | Sequence[int] = 1,
        *,
        modalities: Sequence[str] = ("materials",),
        energies_kev: Mapping[str, Sequence[float]] | None = None,
        contrast: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.modalities = tuple(modalities)
        self.contrast = None if contrast is None else dict(contrast)
        self.materials = BASIS if contrast is None else (*BASIS, CONTRAST)
        sample = None if contrast is None else draw_contrast("", 0, **{**contrast, "share": 1.0})
        # what an item without contrast agent has zeros for
        self._places = () if sample is None else ("vessel", *(f"insert_{c:g}" for c in sample.inserts.mg_ml))
        self._agents: dict[tuple[str, int], Contrast | None] = {}
        self.phantoms = PhantomSlices(split, seeds, **{**settings, "modalities": ["ct"], "ct_unit": "HU", "fine": True})
        self.mixing = channel_mixing(modalities, energies_kev, self.materials)

    @property
    def samples(self) -> tuple[tuple[str, int], ...]:
        """Pairs (anatomy, seed)."""
        return self.phantoms.samples

    def __len__(self) -> int:
        return len(self.phantoms)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one slice."""
        item = self.phantoms[index]
        materials = torch.stack(materials_from_hu(item["fine"][0]))
        places: dict[str, dict[str, Tensor]] = {}
        if self.contrast is not None:
            iodine, places = self._iodine(item)
            materials = torch.cat([materials, iodine])
        fine = torch.einsum("km,mhw->khw", self.mixing, materials)
        return {**item, "image": avg_pool2d(fine, 2), "fine": fine, "materials_fine": materials, **places}

    def _iodine(self, item: Mapping[str, Any]) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """Return iodine in g/cm^3 on the fine grid ``(1, 2H, 2W)``, and where it is on the plain one."""
        anatomy, seed, _ = str(item["id"]).split("/")
        brain = interpolate(item["brain"][None], scale_factor=2.0, mode="bilinear")[0]
        pixel = self.phantoms.spacing_mm / 2
        key = anatomy, int(seed)
        if key not in self._agents:
            self._agents[key] = draw_contrast(*key, **(self.contrast or {}))
        agent = self._agents[key]
        if agent is None:
            zero = torch.zeros_like(brain)
            return zero, {"contrast": {n: avg_pool2d(zero, 2) for n in self._places}}
        iodine, places = agent.draw(
            float(item["affine"][2, 3]),
            shape=brain.shape[1:],
            spacing_mm=(pixel, pixel),
            thickness_mm=self.phantoms.config.spacing_mm[2],
        )
        return brain * iodine, {"contrast": {n: avg_pool2d(brain * share, 2) for n, share in places.items()}}


class CachedSpectralSlices(Dataset[dict[str, Any]]):
    """Cached slices as material densities and attenuation images at single energies; what training reads.

    The same channels as :class:`SpectralSlices`, from the CT numbers of the stored grid: on the edges of bone, where a
    pixel holds two tissues, they differ slightly from the block means of the finer grid.

    Args:
        folder: folder of a set made by ``multirecon dataset build``.
        modalities: channel groups, as for ``SpectralSlices``.
        energies_kev: as for ``SpectralSlices``.
        split: if given, refuse a set of another split.

    Raises:
        ValueError: on a modality without energies, or a folder that ``CachedSlices`` refuses.
    """

    def __init__(
        self,
        folder: str | Path,
        modalities: Sequence[str] = ("materials",),
        *,
        energies_kev: Mapping[str, Sequence[float]] | None = None,
        split: str | None = None,
    ) -> None:
        self.mixing = channel_mixing(modalities, energies_kev)
        self.slices = CachedSlices(folder, ["ct"], units="phantom", split=split)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one slice: ``image`` ``(C, H, W)`` in g/cm^3 and 1/cm, ``brain``, ``regions`` and ``id``."""
        item = self.slices[index]
        materials = torch.stack(materials_from_hu(item["image"][0]))
        return {**item, "image": torch.einsum("km,mhw->khw", self.mixing, materials)}


def channel_mixing(
    modalities: Sequence[str], energies_kev: Mapping[str, Sequence[float]] | None, materials: Sequence[str] = BASIS
) -> Tensor:
    """Return what makes the channels of modalities of the densities of materials, ``(C, materials)``.

    Raises:
        ValueError: on a modality without energies.
    """
    energies = dict(energies_kev or {})
    unknown = [m for m in modalities if m != "materials" and m not in energies]
    if unknown or not modalities:
        raise ValueError(f"modalities: expected 'materials' or keys of energies_kev {sorted(energies)}, "
                         f"got {list(modalities)}")  # fmt: skip
    eye = torch.eye(len(materials))
    return torch.cat([eye if m == "materials" else mass_attenuation(materials, energies[m]).T for m in modalities])
