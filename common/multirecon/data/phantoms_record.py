"""The record of one simulated subject: volumes, masks and their slices on a method's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .phantoms_render import MR
from .slices import region_slices, resample_slices
from .tissues import REGIONS

__all__ = ["BACKGROUND", "MR_HEADROOM", "VOLUMES", "Phantom", "brain_tissue"]

VOLUMES = (*MR, "ct", "pet_fdg", "pet_amyloid", "attenuation_511", "water", "bone", "iodine")
# MR value 1 = headroom x the 90th percentile over brain tissue: fat, fluid and lesions then stay near or below 1
MR_HEADROOM = {"t1": 2.0, "t2": 2.5, "flair": 1.8, "t2star": 1.6}
BACKGROUND = {"ct": -1000.0}
_TISSUE_REGIONS = ("cortical_gm", "white_matter", "deep_gm", "cerebellum", "brainstem", "lesion")


@dataclass(frozen=True, eq=False)
class Phantom:
    """One simulated subject.

    Volumes are ``(X, Y, Z)`` in RAS+ order. The origin of the frame is the middle of the head (x, y) and of the
    cerebrum (z). MR is scaled by a brain percentile (see ``MR_HEADROOM``), ``ct`` in HU, PET relative to cortical grey
    matter (FDG) or cerebellar grey matter (amyloid), ``attenuation_511`` in 1/cm, ``water``, ``bone`` and ``iodine``
    in g/cm^3.

    Args:
        anatomy: name of the anatomy.
        seed: seed it was simulated with.
        volumes: name -> ``(X, Y, Z)`` float32.
        labels: ``(X, Y, Z)`` int16 anatomical labels.
        regions: ``(X, Y, Z)`` uint8 index in ``REGIONS``; lesions drawn at random count as ``"lesion"``.
        masks: ``"ms"``, ``"infarct"``, ``"microbleed"``, ``"pet_hot"``, ``"pet_cold"`` -> ``(X, Y, Z)`` soft masks
        (missing
            where none was drawn) and ``"brain"``, the brain mask.
        affine: ``(4, 4)`` float64 voxel-to-RAS matrix in mm.
        parameters: what was drawn for this subject.
    """

    anatomy: str
    seed: int
    volumes: dict[str, Tensor]
    labels: Tensor
    regions: Tensor
    masks: dict[str, Tensor]
    affine: Tensor
    parameters: dict[str, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of every volume."""
        x, y, z = self.labels.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        x, y, z = (float(v) for v in torch.diagonal(self.affine)[:3])
        return x, y, z

    @property
    def useful_slices(self) -> range:
        """Slices that hold at least 5 cm^2 of brain tissue."""
        area = brain_tissue(self.regions).sum((0, 1)) * (self.spacing_mm[0] * self.spacing_mm[1] / 100)
        index = (area >= 5).nonzero().flatten()
        return range(int(index[0]), int(index[-1]) + 1) if len(index) else range(0)

    def slices(
        self,
        z_indices: Sequence[int],
        *,
        names: Sequence[str] = VOLUMES,
        shape: tuple[int, int] = (128, 128),
        spacing_mm: float = 1.875,
        oversample: int = 1,
    ) -> dict[str, Tensor]:
        """Resample axial slices to a centred grid by area averages.

        The mean over ``oversample`` x ``oversample`` blocks of a finer stack is the coarse stack of the same call with
        ``oversample=1``: data can be made from the fine one with the coarse one as truth.

        Args:
            z_indices: slice numbers.
            names: volumes or masks to resample.
            shape: ``(H, W)`` of the coarse grid, H along left-right and W along back-front.
            spacing_mm: pixel size of the coarse grid in mm.
            oversample: refinement of the grid, 1 or 2.

        Returns:
            name -> ``(len(z_indices), H * oversample, W * oversample)`` float32.

        Raises:
            ValueError: if a name, slice or refinement is not available.
        """
        sources = {**self.volumes, **self.masks}
        for name in names:
            if name not in sources:
                raise ValueError(f"names: expected volumes or masks out of {sorted(sources)}, got {name!r}")
        return {
            name: resample_slices(
                sources[name].float(),
                z_indices,
                volume_spacing_mm=self.spacing_mm[:2],
                shape=shape,
                spacing_mm=spacing_mm,
                oversample=oversample,
                outside=BACKGROUND.get(name, 0.0),
            )
            for name in names
        }

    def region_slices(
        self, z_indices: Sequence[int], *, shape: tuple[int, int] = (128, 128), spacing_mm: float = 1.875
    ) -> Tensor:
        """Return ``(len(z_indices), H, W)`` uint8 regions of the coarse grid, the commonest one of each pixel."""
        return region_slices(
            self.regions, z_indices, volume_spacing_mm=self.spacing_mm[:2], shape=shape, spacing_mm=spacing_mm
        )

    def slab(
        self,
        start: int,
        depth: int,
        *,
        names: Sequence[str] = VOLUMES,
        shape: tuple[int, int] = (128, 128),
        spacing_mm: float = 1.875,
        oversample: int = 1,
    ) -> dict[str, Tensor]:
        """Resample a slab to a centred grid of isotropic voxels; block means of the finer grid are the plain one.

        Args:
            start: first slice of the phantom.
            depth: number of plain voxels along z; each covers two slices of the phantom.
            names: volumes or masks to resample.
            shape: ``(H, W)`` of the plain grid.
            spacing_mm: its voxel size in mm, twice the phantom's slice distance.
            oversample: refinement of the grid, 1 or 2.

        Returns:
            name -> ``(H * oversample, W * oversample, depth * oversample)`` float32.

        Raises:
            ValueError: if the slab does not fit the phantom, or the voxels would not be isotropic.
        """
        step = self.spacing_mm[2]
        if abs(2 * step - spacing_mm) > 1e-6:
            raise ValueError(f"spacing_mm: expected twice the slice distance, {2 * step}, got {spacing_mm}")
        if start < 0 or depth < 1 or start + 2 * depth > self.shape[2]:
            raise ValueError(f"start: expected {2 * depth} slices within 0 to {self.shape[2]}, got {start}")
        fine = self.slices(
            range(start, start + 2 * depth), names=names, shape=shape, spacing_mm=spacing_mm, oversample=oversample
        )
        if oversample == 1:
            fine = {name: (stack[0::2] + stack[1::2]) / 2 for name, stack in fine.items()}
        return {name: stack.permute(1, 2, 0).contiguous() for name, stack in fine.items()}

    def slice_affine(self, z: int, *, shape: tuple[int, int] = (128, 128), spacing_mm: float = 1.875) -> Tensor:
        """Return the ``(4, 4)`` voxel-to-RAS matrix in mm of one resampled slice."""
        matrix = torch.diag(torch.tensor([spacing_mm, spacing_mm, self.spacing_mm[2], 1.0], dtype=torch.float64))
        matrix[:2, 3] = torch.tensor([-spacing_mm * (n - 1) / 2 for n in shape], dtype=torch.float64)
        matrix[2, 3] = self.affine[2, 3] + z * self.affine[2, 2]
        return matrix


def brain_tissue(regions: Tensor) -> Tensor:
    """Return the mask of brain tissue without CSF and vessels of a region map, any shape."""
    table = torch.zeros(256, dtype=torch.bool, device=regions.device)
    table[[REGIONS.index(name) for name in _TISSUE_REGIONS]] = True
    return table[regions.long()]
