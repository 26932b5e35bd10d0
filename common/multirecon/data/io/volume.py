"""An image volume as files know it: values, where they lie, their unit, and what the reader noticed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from .checks import refusal

__all__ = ["Volume"]


@dataclass(frozen=True, eq=False)
class Volume:
    """Values on a grid.

    Args:
        values: ``(X, Y, Z)``, or ``(X, Y, Z, channels)``, float32, in ``unit``.
        affine: ``(4, 4)`` voxel-to-RAS matrix in mm; its axes may be sheared (a tilted gantry).
        unit: unit of the values.
        notes: what a reader noticed and did, one line each.
        metadata: plain values for provenance.

    Raises:
        ValueError: on another number of axes, or a matrix that is not finite and invertible.

    Example:
        >>> volume = Volume(np.zeros((4, 5, 6), np.float32), np.diag([2.0, 2.0, 3.0, 1.0]))
        >>> volume.spacing_mm
        (2.0, 2.0, 3.0)
    """

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    unit: str = "1"
    notes: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values, affine = np.asarray(self.values, np.float32), np.asarray(self.affine, np.float64)
        if values.ndim not in (3, 4) or 0 in values.shape:
            raise refusal("values", "shape (X, Y, Z) or (X, Y, Z, channels)", values.shape)
        if affine.shape != (4, 4) or not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise refusal("affine", "a 4 x 4 matrix with the last row (0, 0, 0, 1)", affine.tolist())
        scale = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.isfinite(affine).all() or (scale == 0).any() or abs(np.linalg.det(affine[:3, :3] / scale)) < 1e-6:
            raise refusal("affine", "a finite, invertible matrix", affine.tolist())
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between voxel centres along each axis in mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def orientation(self) -> str:
        """Anatomical direction of each axis, ``"RAS"`` for example."""
        return "".join(nib.aff2axcodes(self.affine))

    def reoriented(self, codes: str = "RAS") -> Volume:
        """Return the volume with axes permuted and flipped so that they point to ``codes``; no value is interpolated.

        Args:
            codes: three of ``LR``, ``PA``, ``IS``, one of each pair.
        """
        change = ornt_transform(io_orientation(self.affine), nib.orientations.axcodes2ornt(tuple(codes)))
        values = np.ascontiguousarray(apply_orientation(self.values, change))
        return replace(self, values=values, affine=self.affine @ inv_ornt_aff(change, self.values.shape[:3]))
