"""Repairs of whole-head label maps: loose specks, and air holes inside the subarachnoid space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .tissues import REGIONS, label_to_region, label_to_tissue

__all__ = ["crop_to_head", "repair"]

_CSF = 24
_INTRACRANIAL = ("csf", "cortical_gm", "white_matter", "deep_gm", "cerebellum", "brainstem", "lesion", "vessel")


def crop_to_head(labels: NDArray[np.int16], margin: int = 4) -> tuple[slice, slice, slice]:
    """Return the box of the labels above zero, grown by ``margin`` voxels."""
    boxes = ndimage.find_objects((labels > 0).astype(np.uint8))
    if not boxes:
        raise ValueError("labels: expected at least one voxel above zero, got an empty map")
    x, y, z = (
        slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in zip(boxes[0], labels.shape, strict=True)
    )
    return x, y, z


def repair(labels: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the map without specks outside the head and without air inside the subarachnoid space.

    The head is the largest connected component of ``labels > 0`` after an opening. A hole is a component of label zero
    that does not reach the outer air; it becomes CSF when most of its border is brain or CSF, while true sinuses,
    bordered by bone, mucosa and soft tissue, stay air.

    Args:
        labels: ``(X, Y, Z)`` label map.
    """
    labels = labels.copy()
    head = labels > 0
    opened, count = ndimage.label(ndimage.binary_opening(head))
    if count:
        core = opened == 1 + int(np.argmax(np.bincount(opened.ravel())[1:]))
        labels[head & ~ndimage.binary_dilation(core, iterations=2)] = 0
    inside = label_to_region().numpy()[label_to_tissue().numpy()[labels]]
    intracranial = np.isin(inside, [REGIONS.index(name) for name in _INTRACRANIAL])
    air, count = ndimage.label(np.pad(labels == 0, 1, constant_values=True))
    air = air[1:-1, 1:-1, 1:-1]
    outer = np.bincount(air.ravel())[1:].argmax() + 1
    for index, box in enumerate(ndimage.find_objects(air), start=1):
        if index == outer or box is None:
            continue
        grown = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
        hole = air[grown] == index
        border = ndimage.binary_dilation(hole) & ~hole
        if intracranial[grown][border].mean() > 0.7:
            labels[grown][hole] = _CSF
    return labels
