"""Tissue classes: physical parameters, their spread, and the table that maps anatomical labels onto them.

Relaxation times hold at 3 T in ms, proton density relative to CSF, CT numbers in HU at 120 kVp, FDG relative to
cortical grey matter, florbetapir relative to cerebellar grey matter (amyloid-negative), all before any scanner blur.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

__all__ = [
    "REGIONS",
    "TISSUES",
    "Tissue",
    "label_names",
    "label_to_region",
    "label_to_tissue",
    "mirrored_labels",
    "tissue_index",
]


@dataclass(frozen=True)
class Tissue:
    """Physical parameters of one tissue class.

    Args:
        name: class name.
        t1: longitudinal relaxation time in ms.
        t2: transverse relaxation time in ms.
        t2star: effective transverse relaxation time in ms.
        proton_density: relative to CSF.
        hu: CT number in HU.
        fdg: FDG uptake relative to cortical grey matter.
        amyloid: florbetapir uptake relative to cerebellar grey matter.
        blur_mm: standard deviation of the border's smoothing in mm.
        texture: relative amplitude of the relaxation texture.
        hu_texture: amplitude of the CT texture in HU.
        spread_hu: standard deviation of the class's CT number between subjects in HU.
    """

    name: str
    t1: float
    t2: float
    t2star: float
    proton_density: float
    hu: float
    fdg: float
    amyloid: float
    blur_mm: float = 0.9
    texture: float = 0.05
    hu_texture: float = 1.2
    spread_hu: float = 1.5


# Relaxation: Wansapura 1999, Stanisz 2005, Lu 2005, Gelman 2001, Lin 2001, de Bazelaire 2004; PET: guideline ratios.
# Cortex, white matter and iron-rich nuclei were then adjusted until ratios and spectra matched real images
# (docs/data.md).
_ROWS = (
    Tissue("air", 1000, 1, 1, 0.0, -1000, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0),
    Tissue("csf", 4300, 1800, 700, 1.00, 8, 0.06, 0.2, 0.52, 0.02, 1.2, 2.0),
    Tissue("cortical_gm", 1270, 87, 54, 0.82, 38, 1.0, 1.05, 0.52, 0.06),
    Tissue("white_matter", 940, 75, 47, 0.73, 29, 0.28, 1.75, 0.52, 0.032),
    Tissue("caudate", 1180, 84, 40, 0.80, 38, 1.05, 1.2, 0.9, 0.05),
    Tissue("putamen", 1100, 79, 34, 0.79, 39, 1.15, 1.25, 1.1, 0.06),
    Tissue("pallidum", 950, 66, 21, 0.74, 41, 0.7, 1.5, 1.2, 0.07, 1.2, 4.0),
    Tissue("thalamus", 1020, 79, 44, 0.77, 36, 0.95, 1.45, 1.6, 0.06),
    Tissue("ventral_dc", 1050, 77, 38, 0.77, 35, 0.8, 1.5, 1.4, 0.06),
    Tissue("hippocampus_amygdala", 1330, 96, 54, 0.83, 37, 0.62, 1.15, 0.8, 0.06),
    Tissue("cerebellar_gm", 1300, 88, 54, 0.82, 38, 0.78, 1.0, 0.52, 0.06),
    Tissue("cerebellar_wm", 950, 74, 46, 0.71, 31, 0.4, 1.6, 0.9, 0.05),
    Tissue("brainstem", 1000, 79, 46, 0.74, 31, 0.52, 1.85, 1.1, 0.06),
    Tissue("wm_lesion", 1220, 112, 65, 0.80, 25, 0.22, 1.4, 1.2, 0.10),
    Tissue("choroid_plexus", 1700, 125, 45, 0.88, 45, 0.3, 0.9, 0.8, 0.15, 30.0, 10.0),
    Tissue("artery", 1660, 150, 60, 0.75, 42, 0.16, 0.6, 0.8, 0.05),
    Tissue("vein", 1600, 60, 18, 0.75, 54, 0.16, 0.6, 0.8, 0.05, 1.2, 4.0),
    Tissue("optic_nerve", 1000, 80, 50, 0.74, 30, 0.25, 1.1),
    Tissue("spinal_cord", 1000, 78, 48, 0.74, 32, 0.35, 1.4),
    Tissue("eye", 4000, 800, 300, 0.98, 10, 0.08, 0.15, 0.9, 0.02),
    Tissue("eye_muscle", 1300, 45, 30, 0.75, 48, 0.45, 0.5, 0.9, 0.1, 5.0),
    Tissue("muscle", 1250, 40, 26, 0.74, 52, 0.12, 0.35, 0.9, 0.12, 6.0, 3.0),
    Tissue("fat", 370, 90, 30, 0.68, -95, 0.04, 0.25, 0.9, 0.10, 6.0, 5.0),
    Tissue("skin", 900, 55, 25, 0.72, 35, 0.12, 0.55, 0.9, 0.2, 6.0, 5.0),
    Tissue("mucosa", 1700, 110, 40, 0.85, 30, 0.3, 0.8, 0.9, 0.2, 4.0, 4.0),
    Tissue("cortical_bone", 300, 1.2, 0.6, 0.15, 1250, 0.05, 0.35, 0.8, 0.2, 70.0, 70.0),
    Tissue("cancellous_bone", 600, 70, 10, 0.75, 520, 0.13, 0.65, 0.9, 0.3, 70.0, 60.0),
    Tissue("dura", 1300, 45, 22, 0.5, 56, 0.15, 0.6, 0.8, 0.1, 2.0, 3.0),
)
TISSUES: dict[str, Tissue] = {tissue.name: tissue for tissue in _ROWS}

REGIONS = (
    "air",
    "csf",
    "cortical_gm",
    "white_matter",
    "deep_gm",
    "cerebellum",
    "brainstem",
    "lesion",
    "vessel",
    "bone",
    "soft_tissue",
)
_REGION_OF = {
    "air": ("air",),
    "csf": ("csf", "choroid_plexus", "dura"),
    "cortical_gm": ("cortical_gm",),
    "white_matter": ("white_matter",),
    "deep_gm": ("caudate", "putamen", "pallidum", "thalamus", "ventral_dc", "hippocampus_amygdala"),
    "cerebellum": ("cerebellar_gm", "cerebellar_wm"),
    "brainstem": ("brainstem", "spinal_cord"),
    "lesion": ("wm_lesion",),
    "vessel": ("artery", "vein"),
    "bone": ("cortical_bone", "cancellous_bone"),
    "soft_tissue": ("optic_nerve", "eye", "eye_muscle", "muscle", "fat", "skin", "mucosa", "soft_tissue"),
}


def tissue_index(*names: str) -> list[int]:
    """Return the positions of tissue classes in ``TISSUES``.

    Raises:
        ValueError: if a name is unknown.
    """
    order = list(TISSUES)
    for name in names:
        if name not in TISSUES:
            raise ValueError(f"names: expected tissue classes out of {order}, got {name!r}")
    return [order.index(name) for name in names]


@cache
def _table() -> tuple[tuple[int, str, str], ...]:
    text = files("multirecon.data.embedded").joinpath("labels.csv").read_text(encoding="utf-8")
    return tuple((int(row["label"]), row["name"], row["tissue"]) for row in csv.DictReader(text.splitlines()))


@cache
def label_names() -> dict[int, str]:
    """Return label number -> anatomical name."""
    return {label: name for label, name, _ in _table()}


@cache
def label_to_tissue() -> Tensor:
    """Return the lookup table label -> tissue index, ``(531,)`` int64; unspecific soft tissue reads as muscle."""
    table = torch.full((max(label_names()) + 1,), -1, dtype=torch.int64)
    for label, _, tissue in _table():
        table[label] = tissue_index("muscle" if tissue == "soft_tissue" else tissue)[0]
    return table


@cache
def label_to_region() -> Tensor:
    """Return the lookup table tissue index -> index in ``REGIONS``, ``(len(TISSUES),)`` uint8."""
    table = torch.zeros(len(TISSUES), dtype=torch.uint8)
    for region, members in _REGION_OF.items():
        for name in members:
            if name in TISSUES:
                table[tissue_index(name)[0]] = REGIONS.index(region)
    return table


@cache
def mirrored_labels() -> Tensor:
    """Return the lookup table that swaps left and right labels, ``(531,)`` int16."""
    by_name = {name: label for label, name in label_names().items()}
    table = torch.arange(max(by_name.values()) + 1, dtype=torch.int16)
    for name, label in by_name.items():
        if name.startswith("left "):
            other = by_name["right " + name.removeprefix("left ")]
            table[label], table[other] = other, label
    return table
