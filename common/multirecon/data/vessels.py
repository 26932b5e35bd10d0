"""Contrast agent in a head: trees of vessels full of iodinated blood, and inserts of known concentration.

Both are curves in space, in the phantom's frame (RAS in mm, origin in the middle of head and cerebrum), so that they
can be drawn on any slice and any grid without the volume. What lies inside the brain is the subject's mask's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, radians, sin
from typing import Any

import torch
from torch import Tensor

from .random_fields import uniform

__all__ = ["Contrast", "Inserts", "VesselTree", "draw_contrast", "grow_vessels"]

# an ellipsoid well inside the cerebrum of every anatomy, in mm: vessels that reach it turn along it
_HALF_AXES_MM = (56.0, 74.0, 52.0)
# where the right-hand trees enter, where they go first, and their radius in mm: middle, anterior, posterior artery
_ROOTS = (
    ((10.0, 8.0, -46.0), (0.8, 0.15, 0.5), 2.6),
    ((3.0, 14.0, -46.0), (0.05, 0.5, 0.85), 2.0),
    ((8.0, -18.0, -46.0), (0.45, -0.75, 0.5), 2.0),
)
_STEP_MM = 2.0
_BRANCH_MM = (14.0, 28.0)
_SMALLEST_MM = 0.8
_LONGEST_MM = 110.0
_SUBSAMPLES = 3  # heights at which a slice's thickness is sampled


@dataclass(frozen=True)
class VesselTree:
    """Vessels as tubes between points.

    Args:
        start: ``(N, 3)`` first points of the segments in mm.
        end: ``(N, 3)`` last points in mm.
        radius: ``(N,)`` radii in mm.
    """

    start: Tensor
    end: Tensor
    radius: Tensor

    def share(self, z_mm: float, *, shape: Sequence[int], spacing_mm: Sequence[float], thickness_mm: float) -> Tensor:
        """Return the share of every pixel of a slice that lies in vessels, ``(H, W)`` in [0, 1].

        Args:
            z_mm: height of the slice.
            shape: ``(H, W)`` of a centred grid.
            spacing_mm: its pixel size.
            thickness_mm: thickness of the slice.
        """
        place = _points(shape, spacing_mm)
        total = torch.zeros(tuple(shape))
        for k in range(_SUBSAMPLES):
            height = z_mm + ((k + 0.5) / _SUBSAMPLES - 0.5) * thickness_mm
            total += self._disc(place, height, min(spacing_mm)) / _SUBSAMPLES
        return total

    def _disc(self, place: Tensor, height: float, pixel_mm: float) -> Tensor:
        """Return the share of every pixel at one height, its edge blurred over a pixel."""
        low = torch.minimum(self.start, self.end) - self.radius[:, None] - pixel_mm
        high = torch.maximum(self.start, self.end) + self.radius[:, None] + pixel_mm
        inside = torch.zeros(place.shape[:2])
        rows, columns = place[:, 0, 0].contiguous(), place[0, :, 1].contiguous()
        for k in ((low[:, 2] < height) & (height < high[:, 2])).nonzero().flatten().tolist():
            first, last = (torch.searchsorted(rows, edge[k, 0]) for edge in (low, high))
            left, right = (torch.searchsorted(columns, edge[k, 1]) for edge in (low, high))
            window = (slice(int(first), int(last)), slice(int(left), int(right)))
            near = place[window]
            a, b = self.start[k], self.end[k]
            away = torch.cat([near, near.new_full((*near.shape[:2], 1), height)], dim=2) - a
            along = (away @ (b - a) / (b - a).square().sum()).clamp(0, 1)
            distance = (away - along[..., None] * (b - a)).norm(dim=2)
            share = (0.5 + (self.radius[k] - distance) / pixel_mm).clamp(0, 1)
            inside[window] = torch.maximum(inside[window], share)
        return inside


@dataclass(frozen=True)
class Inserts:
    """Rods along z of known concentration.

    Args:
        mg_ml: concentration of each in mg/mL.
        centre: ``(N, 2)`` their places in mm.
        radius_mm: their radius.
    """

    mg_ml: tuple[float, ...]
    centre: Tensor
    radius_mm: float

    def share(self, index: int, *, shape: Sequence[int], spacing_mm: Sequence[float]) -> Tensor:
        """Return the share of every pixel that lies in one rod, ``(H, W)`` in [0, 1]."""
        distance = (_points(shape, spacing_mm) - self.centre[index]).norm(dim=-1)
        return (0.5 + (self.radius_mm - distance) / min(spacing_mm)).clamp(0, 1)


@dataclass(frozen=True)
class Contrast:
    """What one subject was given.

    Args:
        blood_mg_ml: iodine in its vessels in mg/mL.
        vessels: where they run.
        inserts: rods of known concentration.
    """

    blood_mg_ml: float
    vessels: VesselTree
    inserts: Inserts

    def draw(
        self, z_mm: float, *, shape: Sequence[int], spacing_mm: Sequence[float], thickness_mm: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return iodine in g/cm^3 of a slice ``(H, W)``, and the shares of its pixels by place.

        The places are ``"vessel"`` and, an insert each, ``"insert_2"`` for 2 mg/mL.

        Args:
            z_mm: height of the slice.
            shape: ``(H, W)`` of a centred grid.
            spacing_mm: its pixel size.
            thickness_mm: thickness of the slice.
        """
        grid: dict[str, Any] = {"shape": shape, "spacing_mm": spacing_mm}
        rods = {f"insert_{c:g}": self.inserts.share(k, **grid) for k, c in enumerate(self.inserts.mg_ml)}
        free = 1 - torch.stack([*rods.values(), torch.zeros(tuple(shape))]).amax(0)
        vessel = free * self.vessels.share(z_mm, thickness_mm=thickness_mm, **grid)
        iodine = self.blood_mg_ml * vessel
        for c, rod in zip(self.inserts.mg_ml, rods.values(), strict=True):
            iodine = iodine + c * rod
        return 1e-3 * iodine, {"vessel": vessel, **rods}


def draw_contrast(
    anatomy: str,
    seed: int,
    *,
    share: float = 0.75,
    blood_mg_ml: Sequence[float] = (3.0, 10.0),
    insert_mg_ml: Sequence[float] = (2.0, 5.0, 10.0),
    insert_radius_mm: float = 6.0,
) -> Contrast | None:
    """Return the contrast agent of a subject, or None for one that was given none; the same for every slice.

    Args:
        anatomy: name of the anatomy.
        seed: seed of the subject.
        share: share of subjects that are given any.
        blood_mg_ml: range of the iodine concentration of blood, drawn uniformly.
        insert_mg_ml: concentrations of the inserts, on a ring around the middle in random order.
        insert_radius_mm: radius of the inserts.

    Raises:
        ValueError: on a share outside [0, 1], or concentrations or radii that are not positive.

    Example:
        >>> subject = draw_contrast("mni152", 0, share=1.0)
        >>> 3 <= subject.blood_mg_ml <= 10, subject.inserts.mg_ml
        (True, (2.0, 5.0, 10.0))
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {share}")
    if len(blood_mg_ml) != 2 or not 0 < blood_mg_ml[0] <= blood_mg_ml[1]:
        raise ValueError(f"blood_mg_ml: expected a range (low, high) of positive numbers, got {list(blood_mg_ml)}")
    if any(c <= 0 for c in insert_mg_ml) or len(set(insert_mg_ml)) < len(insert_mg_ml) or not insert_radius_mm > 0:
        raise ValueError(f"insert_mg_ml, insert_radius_mm: expected different positive numbers and > 0, "
                         f"got {list(insert_mg_ml)} and {insert_radius_mm}")  # fmt: skip
    generator = _stream(anatomy, seed, "contrast")
    given = uniform(0, 1, generator) < share
    blood = uniform(float(blood_mg_ml[0]), float(blood_mg_ml[1]), generator)
    turn = uniform(0, 2 * pi, generator)
    count = len(insert_mg_ml)
    places = [turn + 2 * pi * k / max(count, 1) for k in torch.randperm(count, generator=generator).tolist()]
    ring = [(0.45 * _HALF_AXES_MM[0] * cos(p), 0.45 * _HALF_AXES_MM[1] * sin(p)) for p in places]
    if not given:
        return None
    inserts = Inserts(tuple(map(float, insert_mg_ml)), torch.tensor(ring).reshape(count, 2), insert_radius_mm)
    return Contrast(blood, grow_vessels(_stream(anatomy, seed, "vessels")), inserts)


def grow_vessels(generator: torch.Generator) -> VesselTree:
    """Grow six arterial trees from the base of the brain, three a side.

    A branch is a smooth random walk: its direction drifts, and turns along the brain's surface where it meets it. After
    14 to 28 mm it parts in two, whose cubed radii sum to the parent's (Murray's law), until it is 0.8 mm thin.

    Args:
        generator: source of all randomness.

    References:
        murray1926
    """
    axes = torch.tensor(_HALF_AXES_MM)
    segments: list[tuple[Tensor, Tensor, float]] = []
    stack: list[tuple[Tensor, Tensor, float, float]] = []
    for side in (1.0, -1.0):
        for place, heading, size in _ROOTS:
            flip = torch.tensor([side, 1.0, 1.0])
            thick = size * uniform(0.9, 1.1, generator)
            stack.append((flip * torch.tensor(place), _unit(flip * torch.tensor(heading)), thick, 0.0))
    while stack:
        point, direction, radius, travelled = stack.pop()
        length, drift = uniform(*_BRANCH_MM, generator), torch.zeros(3)
        for _ in range(round(length / _STEP_MM)):
            drift = 0.8 * drift + 0.08 * torch.randn(3, generator=generator)
            direction = _unit(direction + drift)
            outward = _unit(point / axes**2)
            if float((point / axes).norm()) > 0.9 and float(direction @ outward) > 0:
                direction = _unit(direction - (direction @ outward) * outward + 1e-3 * torch.tensor([0.0, 0.0, 1.0]))
            following = point + _STEP_MM * direction
            segments.append((point, following, radius))
            point = following
        travelled += length
        part = uniform(0.3, 0.7, generator)
        axis = _unit(torch.linalg.cross(direction, torch.randn(3, generator=generator)))
        for share, sign in ((part, 1.0), (1 - part, -1.0)):
            thin = radius * share ** (1 / 3)
            angle = sign * radians(uniform(20.0, 40.0, generator))
            turned = cos(angle) * direction + sin(angle) * axis
            if thin >= _SMALLEST_MM and travelled < _LONGEST_MM:
                stack.append((point, turned, thin, travelled))
    starts, ends, radii = zip(*segments, strict=True)
    return VesselTree(torch.stack(starts), torch.stack(ends), torch.tensor(radii))


def _stream(anatomy: str, seed: int, purpose: str) -> torch.Generator:
    digest = hashlib.sha256(f"contrast|{anatomy}|{seed}|{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _unit(v: Tensor) -> Tensor:
    return v / v.norm().clamp_min(1e-9)


def _points(shape: Sequence[int], spacing_mm: Sequence[float]) -> Tensor:
    """Return the places ``(H, W, 2)`` in mm of the pixels of a centred grid."""
    axes = [(torch.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
