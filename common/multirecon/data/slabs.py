"""Three-dimensional slabs of phantoms as a torch data set, one per subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..units import hu_to_attenuation
from .anatomies import list_anatomies
from .datasets import STACK, as_config
from .phantoms import VOLUMES, PhantomConfig, simulate
from .splits import check_samples, sample_seed, split_anatomies

__all__ = ["PhantomSlabs"]


class PhantomSlabs(Dataset[dict[str, Any]]):
    """Slabs of simulated subjects of one split, in the middle of the useful slices; simulated anew at every access.

    An item holds ``image`` ``(C, H, W, D)`` (CT in 1/cm); with ``fine`` also ``fine`` ``(C, 2H, 2W, 2D)``, whose 2 x 2
    x 2 block means are ``image``, and ``attenuation_fine``; ``attenuation`` and ``brain`` ``(1, H, W, D)``; ``id``
    ``"anatomy/seed/z"`` with the first slice; ``affine`` ``(4, 4)`` in mm.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"out_of_distribution"``.
        seeds: seeds per anatomy, ``n`` for 0 to n - 1.
        modalities: volumes that make up the image, in channel order.
        depth: number of voxels along z.
        shape: ``(H, W)``.
        spacing_mm: voxel size in mm, twice that of the phantom.
        fine: also give the twice finer grid.
        anatomies: names instead of all anatomies of the split.
        config: phantom knobs, a record or a mapping of its fields.
        device: where to simulate; items lie on the CPU.

    Raises:
        ValueError: if an anatomy belongs to another split or an argument has no meaning.

    Example:
        >>> data = PhantomSlabs("test", 1, depth=4, shape=(32, 32), spacing_mm=7.5, anatomies=["mni152"],
        ...                     config={"spacing_mm": (3.75, 3.75, 3.75), "matrix": 64})
        >>> data[0]["image"].shape
        torch.Size([5, 32, 32, 4])
    """

    def __init__(
        self,
        split: str,
        seeds: int | Sequence[int] = 1,
        *,
        modalities: Sequence[str] = STACK,
        depth: int = 24,
        shape: Sequence[int] = (128, 128),
        spacing_mm: float = 1.875,
        fine: bool = False,
        anatomies: Sequence[str] | None = None,
        config: PhantomConfig | Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        unknown = [m for m in modalities if m not in VOLUMES]
        if unknown or not modalities:
            raise ValueError(f"modalities: expected names out of {VOLUMES}, got {list(modalities)}")
        self.split, self.modalities, self.depth, self.fine = split, tuple(modalities), depth, fine
        self.shape, self.spacing_mm = (int(shape[0]), int(shape[1])), spacing_mm
        self.config, self.device = as_config(config), device
        self.samples = tuple(
            (name, sample_seed(name, seed, split))
            for seed in (range(seeds) if isinstance(seeds, int) else seeds)
            for name in (anatomies if anatomies is not None else split_anatomies(split, list_anatomies()))
        )
        check_samples(split, self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Simulate one subject and return its slab."""
        phantom = simulate(*self.samples[index], config=self.config, device=self.device)
        useful = phantom.useful_slices
        start = useful.start + max(0, (len(useful) - 2 * self.depth) // 2)
        names = list(dict.fromkeys((*self.modalities, "attenuation_511")))
        grid: dict[str, Any] = {"shape": self.shape, "spacing_mm": self.spacing_mm}
        plain = phantom.slab(start, self.depth, names=[*names, "brain"], **grid)
        affine = phantom.slice_affine(start, **grid)
        affine[2, 3] += phantom.spacing_mm[2] / 2  # a voxel covers two slices
        affine[2, 2] = self.spacing_mm
        item: dict[str, Any] = {
            "image": self._stack(plain),
            "attenuation": plain["attenuation_511"][None].cpu(),
            "brain": plain["brain"][None].cpu(),
            "id": f"{phantom.anatomy}/{phantom.seed}/{start}",
            "affine": affine,
        }
        if self.fine:
            finer = phantom.slab(start, self.depth, names=names, oversample=2, **grid)
            item["fine"] = self._stack(finer)
            item["attenuation_fine"] = finer["attenuation_511"][None].cpu()
        return item

    def _stack(self, volumes: Mapping[str, Tensor]) -> Tensor:
        channels = [volumes[m].cpu() for m in self.modalities]
        return torch.stack(
            [hu_to_attenuation(v) if m == "ct" else v for m, v in zip(self.modalities, channels, strict=True)]
        )
