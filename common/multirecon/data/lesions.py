"""Lesions: soft masks in [0, 1] of white matter lesions, infarcts, microbleeds and PET-only foci."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .random_fields import gaussian_smooth, random_field, uniform
from .tissues import TISSUES, tissue_index

__all__ = ["LesionDraw", "draw_lesions"]

_BLUR_MM = 0.8
_BRAIN = (
    "cortical_gm",
    "white_matter",
    "caudate",
    "putamen",
    "thalamus",
    "cerebellar_gm",
    "hippocampus_amygdala",
)


@dataclass(frozen=True)
class LesionDraw:
    """How many lesions of each kind one phantom gets; zero leaves a kind out.

    Args:
        ms: number of MS-like white matter lesions.
        infarct: number of infarcts (0 or 1).
        microbleeds: number of microbleeds.
        pet_hot: number of foci of raised tracer uptake with no counterpart in MR and CT.
        pet_cold: number of foci of reduced uptake likewise.
    """

    ms: int = 0
    infarct: int = 0
    microbleeds: int = 0
    pet_hot: int = 0
    pet_cold: int = 0


def draw_lesions(
    draw: LesionDraw,
    *,
    tissue: Tensor,
    box: Tensor,
    ventricle_mm: Tensor,
    spacing_mm: Sequence[float],
    stream: Callable[[str], torch.Generator],
) -> dict[str, Tensor]:
    """Place lesions at random.

    Args:
        draw: numbers of lesions.
        tissue: ``(X, Y, Z)`` index in ``TISSUES``.
        box: ``(3, X, Y, Z)`` position in the cerebrum's bounding box, each axis -1 to 1.
        ventricle_mm: ``(X, Y, Z)`` distance to the lateral ventricles in mm.
        spacing_mm: voxel size in mm.
        stream: gives the CPU generator of each kind, so that one kind does not move another.

    Returns:
        ``"ms"``, ``"infarct"``, ``"microbleed"``, ``"pet_hot"``, ``"pet_cold"`` -> ``(X, Y, Z)`` float32 in [0, 1];
        kinds that were not drawn are missing.
    """
    white = _is(tissue, "white_matter", "wm_lesion")
    masks: dict[str, Tensor] = {}

    if draw.ms:
        generator = stream("ms")
        rough = 0.35 * random_field(tissue.shape, spacing_mm, sigma_mm=3.0, generator=generator, device=tissue.device)
        centres = _pick(white & (ventricle_mm > 2) & (ventricle_mm < 18), draw.ms, generator)
        union = torch.zeros(tissue.shape, dtype=torch.bool, device=tissue.device)
        for centre in centres:
            axes = [uniform(2.0, 5.5, generator) for _ in range(3)]
            _paint(union, centre, axes, spacing_mm, rough)
        masks["ms"] = _soften(union & white, spacing_mm)
    if draw.infarct:
        generator = stream("infarct")
        side = 1.0 if uniform(0, 1, generator) < 0.5 else -1.0
        middle = (
            side * uniform(0.45, 0.65, generator),
            uniform(-0.5, 0.3, generator),
            uniform(-0.05, 0.4, generator),
        )
        radius = uniform(0.22, 0.38, generator)
        rough = random_field(tissue.shape, spacing_mm, sigma_mm=8.0, generator=generator, device=tissue.device)
        level = sum(((box[i] - m) / radius).abs() ** 2.5 for i, m in enumerate(middle))
        region = (level + 0.5 * rough < 1) & (white | _is(tissue, "cortical_gm"))
        masks["infarct"] = _soften(region, spacing_mm)
    if draw.microbleeds:
        generator = stream("microbleed")
        candidates = white | _is(tissue, "cortical_gm", "thalamus", "putamen")
        union = torch.zeros(tissue.shape, dtype=torch.bool, device=tissue.device)
        for centre in _pick(candidates, draw.microbleeds, generator):
            _paint(union, centre, [uniform(1.2, 2.5, generator)] * 3, spacing_mm, None)
        masks["microbleed"] = _soften(union, spacing_mm)
    brain = _is(tissue, *_BRAIN)
    for name, count in (("pet_hot", draw.pet_hot), ("pet_cold", draw.pet_cold)):
        if count:
            generator = stream(name)
            union = torch.zeros(tissue.shape, dtype=torch.bool, device=tissue.device)
            for centre in _pick(brain, count, generator):
                _paint(union, centre, [uniform(4.0, 10.0, generator)] * 3, spacing_mm, None)
            masks[name] = _soften(union & brain, spacing_mm)
    return masks


def _is(tissue: Tensor, *names: str) -> Tensor:
    table = torch.zeros(len(TISSUES), dtype=torch.bool, device=tissue.device)
    table[tissue_index(*names)] = True
    return table[tissue.long()]


def _pick(candidates: Tensor, count: int, generator: torch.Generator) -> list[tuple[int, ...]]:
    places = candidates.nonzero()
    if len(places) == 0:
        return []
    chosen = torch.randint(len(places), (count,), generator=generator)
    return [tuple(int(v) for v in places[i]) for i in chosen]


def _paint(
    union: Tensor, centre: Sequence[int], axes_mm: Sequence[float], spacing_mm: Sequence[float], rough: Tensor | None
) -> None:
    """Add one ellipsoid to ``union`` in place, its border moved by ``rough``."""
    reach = [int(1.6 * a / s) + 2 for a, s in zip(axes_mm, spacing_mm, strict=True)]
    box = tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(centre, reach, strict=True))
    level = torch.zeros(union[box].shape, device=union.device)
    for axis in range(3):
        line = torch.arange(box[axis].start, box[axis].start + level.shape[axis], device=union.device)
        distance = ((line - centre[axis]) * (spacing_mm[axis] / axes_mm[axis])) ** 2
        level += distance.view([-1 if i == axis else 1 for i in range(3)])
    if rough is not None:
        level = level + rough[box]
    union[box] |= level < 1


def _soften(region: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    return gaussian_smooth(region.float(), [_BLUR_MM / s for s in spacing_mm]).clamp_(0, 1)
