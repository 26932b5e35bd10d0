"""What a user hands to a bundle: measurement files, images, or nothing (the embedded default)."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import Dataset
from monai.transforms import EnsureChannelFirst, LoadImage, MapTransform

from .measurement import Measurement

__all__ = ["IMAGE_SUFFIXES", "InputFolder", "LoadInputd", "find_inputs"]

MEASUREMENT_SUFFIXES = (".h5", ".hdf5")
IMAGE_SUFFIXES = (".nii.gz", ".nii")


def find_inputs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return one ``{"image": path, "id": name}`` for every measurement or image file of a folder, sorted by name.

    A sub-folder is one sample whose images (one modality a file, sorted by name) become channels.

    Raises:
        ValueError: if the folder does not exist or holds nothing readable.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"dataset_dir: expected an existing folder, got {str(folder)!r}")
    items: list[dict[str, Any]] = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            images = sorted(str(p) for p in entry.iterdir() if p.name.lower().endswith(IMAGE_SUFFIXES))
            if images:
                items.append({"image": images, "id": entry.name})
        elif entry.name.lower().endswith(MEASUREMENT_SUFFIXES + IMAGE_SUFFIXES):
            items.append({"image": str(entry), "id": entry.name.split(".")[0]})
    if not items:
        raise ValueError(
            f"dataset_dir: expected measurement files {list(MEASUREMENT_SUFFIXES)} or images {list(IMAGE_SUFFIXES)} "
            f"in {str(folder)!r}, got none"
        )
    return items


class LoadInputd(MapTransform):
    """Load a measurement file as a Measurement, or one or several image files as a stack ``(C, X, Y, Z)``.

    Several files are stacked as channels in the given order and must share their grid; a 4-D image has its modalities
    on the last axis. What is loaded already (a tensor, a Measurement) passes through, so that MONAI Label and Deploy,
    which drop loading transforms, and simulated samples use the same configuration.

    Args:
        keys: keys of the items to load.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)
        self._load = LoadImage(reader="NibabelReader", image_only=True, ensure_channel_first=False, dtype=torch.float32)
        self._channel_first = EnsureChannelFirst(channel_dim="no_channel")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its keys loaded.

        Raises:
            ValueError: if files cannot be read, or their grids differ.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._one(item[key])
        return item

    def _one(self, value: Any) -> Any:
        if not isinstance(value, str | os.PathLike | list | tuple):
            return value
        paths = [value] if isinstance(value, str | os.PathLike) else list(value)
        if len(paths) == 1 and str(paths[0]).lower().endswith(MEASUREMENT_SUFFIXES):
            return Measurement.load(paths[0])
        images = [self._image(path) for path in paths]
        grids = {(tuple(i.shape[1:]), tuple(i.affine.flatten().round(decimals=3).tolist())) for i in images}
        if len(grids) > 1:
            raise ValueError(f"image: expected files on one grid, got shapes {[tuple(i.shape[1:]) for i in images]}")
        stack = images[0] if len(images) == 1 else torch.cat(images)
        if not torch.isfinite(stack).all():
            raise ValueError(f"image: expected finite values, got NaN or Inf in {[str(p) for p in paths]}")
        return stack

    def _image(self, path: str | os.PathLike[str]) -> Any:
        if not Path(path).is_file():
            raise ValueError(f"image: expected an existing file, got {str(path)!r}")
        try:
            image = self._load(str(path))
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{path}: expected a readable image, got {reason[:200]}") from error
        if image.ndim == 4:
            return image.movedim(-1, 0)
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3:
            raise ValueError(f"{path}: expected 2 to 4 axes, got shape {tuple(image.shape)}")
        return self._channel_first(image)


class InputFolder(Dataset):
    """The data set of an inference: the files of a folder, or a default where no folder is named.

    Args:
        dataset_dir: folder of measurement files and images; empty for the default.
        default: data set of simulated samples used where no folder is named.
        transform: applied to each item that comes from a folder.

    Raises:
        ValueError: if the folder holds nothing readable, or neither folder nor default is given.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike[str] = "",
        *,
        default: Sequence[Mapping[str, Any]] | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self._default = None
        if not str(dataset_dir):
            if default is None:
                raise ValueError("dataset_dir: expected a folder of measurements or images, got nothing")
            self._default = default
            super().__init__(data=[], transform=None)
        else:
            super().__init__(data=find_inputs(dataset_dir), transform=transform)

    def __len__(self) -> int:
        return len(self.data) if self._default is None else len(self._default)

    def __getitem__(self, index: int) -> Any:
        """Return item ``index``, loaded."""
        return super().__getitem__(index) if self._default is None else self._default[index]
