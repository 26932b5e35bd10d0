"""From warped labels to soft tissue memberships: the fat and muscle split, meninges, partial volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .morphology import dilate
from .random_fields import gaussian_smooth
from .tissues import TISSUES, label_to_tissue, tissue_index

__all__ = ["Membership", "soft_memberships", "tissue_map"]

_SOFT_TISSUE_LABEL, _CSF_LABEL = 507, 24
_THRESHOLD = 4e-3  # memberships below are dropped


@dataclass(frozen=True)
class Membership:
    """Voxels that contain some of one tissue.

    Args:
        tissue: index in ``TISSUES``.
        index: ``(n,)`` flat voxel indices, int64.
        fraction: ``(n,)`` share of the tissue in each voxel, in (0, 1].
    """

    tissue: int
    index: Tensor
    fraction: Tensor


def tissue_map(
    labels: Tensor,
    *,
    box: Tensor,
    midplane_mm: Tensor,
    depth_mm: Tensor,
    eye_mm: Tensor,
    noise: Tensor,
    subcutaneous_mm: float,
) -> Tensor:
    """Assign one tissue class to every voxel.

    Unspecific soft tissue is split: fat lies under the skin, in the orbit, over the vault and in streaks; the rest,
    and the temporal fossa, is muscle. CSF that touches bone becomes dura, CSF in the midplane away from the brain's
    middle falx.

    Args:
        labels: ``(X, Y, Z)`` anatomical labels.
        box: ``(3, X, Y, Z)`` position in the cerebrum's bounding box, each axis -1 to 1.
        midplane_mm: ``(X, Y, Z)`` distance to the plane between the hemispheres in mm.
        depth_mm: ``(X, Y, Z)`` distance to the outer air in mm.
        eye_mm: ``(X, Y, Z)`` distance to eye, eye muscle or optic nerve in mm.
        noise: ``(X, Y, Z)`` smooth unit-variance noise that roughens the borders of fat.
        subcutaneous_mm: thickness of skin and subcutaneous fat in mm.

    Returns:
        ``(X, Y, Z)`` uint8 index in ``TISSUES``.
    """
    table = label_to_tissue().to(labels.device)
    tissue = table[labels.long()].to(torch.uint8)
    fat, dura = tissue_index("fat", "dura")
    bone = tissue_index("cortical_bone", "cancellous_bone")
    x, y, z = box[0].abs(), box[1], box[2]
    temporal_fossa = (x > 0.72) & (y > -0.35) & (y < 0.75) & (z < 0.2)
    is_fat = depth_mm < subcutaneous_mm + 1.2 * noise
    is_fat |= (eye_mm < 14) | ((z > -0.4) & ~temporal_fossa) | (noise > 1.3)
    tissue[(labels == _SOFT_TISSUE_LABEL) & is_fat] = fat

    is_bone = (tissue == bone[0]) | (tissue == bone[1])
    near_bone = dilate(is_bone, 1)
    outer = (y.square() + (z + 0.1).square()) > 0.3
    falx = (midplane_mm.abs() < 0.6) & outer & (z > -0.3)
    tissue[(labels == _CSF_LABEL) & (near_bone | falx)] = dura
    return tissue


def soft_memberships(tissue: Tensor, *, spacing_mm: Sequence[float]) -> Iterator[Membership]:
    """Blur every class with its own border width and normalise the shares to one per voxel.

    Args:
        tissue: ``(X, Y, Z)`` uint8 index in ``TISSUES``.
        spacing_mm: voxel size in mm.

    Yields:
        One record per class that occurs; air comes first.
    """
    total = torch.zeros(tissue.shape, device=tissue.device)
    parts: list[tuple[int, Tensor, Tensor]] = []
    present = torch.bincount(tissue.reshape(-1).long(), minlength=len(TISSUES)).tolist()
    for number, parameters in enumerate(TISSUES.values()):
        if not present[number]:
            continue
        mask = tissue == number
        box = _bounding_box(mask, margin=4)
        share = gaussian_smooth(mask[box].float(), [parameters.blur_mm / s for s in spacing_mm])
        total[box] += share
        local = (share > _THRESHOLD).nonzero()
        values = share[tuple(local.T)]
        offset = torch.tensor([s.start for s in box], device=tissue.device)
        i, j, k = (local + offset).T
        parts.append((number, (i * tissue.shape[1] + j) * tissue.shape[2] + k, values))
    flat = total.reshape(-1)
    for number, index, values in parts:
        yield Membership(number, index, values / flat[index])


def _bounding_box(mask: Tensor, *, margin: int) -> tuple[slice, slice, slice]:
    plane, ranges = mask.any(dim=0), []
    for line in (mask.any(dim=2).any(dim=1), plane.any(dim=1), plane.any(dim=0)):
        index = line.nonzero()
        ranges.append(slice(max(int(index[0]) - margin, 0), min(int(index[-1]) + margin + 1, len(line))))
    return ranges[0], ranges[1], ranges[2]
