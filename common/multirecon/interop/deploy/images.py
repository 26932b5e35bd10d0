"""Images between files, this package and the SDK: what was measured goes in, named float32 volumes come out."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor

from ...data.io import DicomSeries, Volume, scan_dicom
from ...data.io.dicom import is_dicom
from ...inputs import IMAGE_SUFFIXES, LoadInputd, find_inputs

__all__ = ["Reconstruction", "dicom_items", "file_items", "item_of_image", "sdk_parts"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One image of a result.

    Args:
        sample: name of what was reconstructed.
        modality: key of the image.
        volume: values ``(X, Y, Z[, channels])`` in float32 with their affine and unit (CT in HU).
        source: DICOM series that the images came from.
    """

    sample: str
    modality: str
    volume: Volume
    source: DicomSeries | None = None


def file_items(path: str | os.PathLike[str], *, images: bool) -> list[dict[str, Any]]:
    """Return ``{"image": path or paths, "id": name}`` for every image, or measurement, of a folder or a single file.

    Args:
        path: folder or file.
        images: whether images (NIfTI) are wanted, or measurement files (HDF5).

    Raises:
        ValueError: if there is none of the kind.
    """
    place = Path(path)
    found = find_inputs(place if place.is_dir() else place.parent)
    if not place.is_dir():
        found = [item for item in found if item["image"] == str(place)]
    chosen = [item for item in found if _is_image(item["image"]) == images]
    if not chosen:
        kind = f"images {list(IMAGE_SUFFIXES)}" if images else "measurement files ['.h5', '.hdf5']"
        raise ValueError(f"input: expected {kind} in {str(path)!r}, got none")
    return chosen


def load_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the item with its files loaded, as ``monai.bundle run`` loads them: a stack in the file's orientation."""
    given = cast("dict[Hashable, Any]", dict(item))
    return {str(key): value for key, value in LoadInputd(keys="image")(given).items()}


def dicom_items(path: str | os.PathLike[str]) -> list[DicomSeries]:
    """Return the DICOM series of a folder: its own images, or one series a sub-folder.

    Raises:
        ValueError: if there is none, or a folder mixes series.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"input: expected a folder of DICOM images, got {str(path)!r}")
    folders = [root] if _holds_dicom(root) else [p for p in sorted(root.iterdir()) if p.is_dir() and _holds_dicom(p)]
    if not folders:
        raise ValueError(f"input: expected DICOM images in {str(path)!r} or in its sub-folders, got none")
    return [scan_dicom(folder) for folder in folders]


def load_series(series: DicomSeries) -> dict[str, Any]:
    """Return an item ``{"image": (1, X, Y, Z) in RAS+, "id": name, "source": series}``; CT in HU."""
    volume = series.volume()
    name = "_".join(str(getattr(series.headers[0], key, "") or "") for key in ("SeriesDescription", "SeriesNumber"))
    return {"image": _stack(volume), "id": name.strip("_") or series.files[0].parent.name, "source": series}


def item_of_image(image: Any, name: str = "image") -> dict[str, Any]:
    """Return an item of an SDK ``Image``: ``(Z, Y, X)`` in memory, as its DICOM operators make them.

    Args:
        image: object with ``asnumpy()`` and ``metadata()``.
        name: name of the sample where the metadata state none.

    Raises:
        ValueError: if the metadata hold no affine.
    """
    metadata = dict(image.metadata() or {})
    if metadata.get("nifti_affine_transform") is not None:
        affine = np.asarray(metadata["nifti_affine_transform"], np.float64)
    elif metadata.get("affine") is not None:
        affine = np.asarray(metadata["affine"], np.float64)
        affine = _LPS_TO_RAS @ affine if "LPS" in str(metadata.get("space", "")).upper() else affine
    else:
        raise ValueError(f"image: expected an affine in its metadata, got {sorted(map(str, metadata))}")
    values = np.asarray(image.asnumpy(), np.float32)
    if values.ndim not in (3, 4):
        raise ValueError(f"image: expected axes (Z, Y, X[, channels]), got shape {values.shape}")
    volume = Volume(np.ascontiguousarray(np.swapaxes(values, 0, 2)), affine)
    return {"image": _stack(volume), "id": str(metadata.get("SeriesDescription") or name)}


def sdk_parts(result: Reconstruction) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the array ``(Z, Y, X[, channels])`` of an SDK ``Image``, float32, and its metadata."""
    values, affine = result.volume.values, result.volume.affine
    metadata = {
        "affine": affine,
        "original_affine": affine,
        "nifti_affine_transform": affine,
        "dicom_affine_transform": _LPS_TO_RAS @ affine,
        "spacing": np.asarray(result.volume.spacing_mm),
        "space": "RAS",
        "unit": result.volume.unit,
        "modality": result.modality,
        "SeriesDescription": result.sample,
    }
    return np.ascontiguousarray(np.swapaxes(values, 0, 2)), metadata


def _stack(volume: Volume) -> MetaTensor:
    values = volume.values if volume.values.ndim == 4 else volume.values[..., None]
    stack = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))
    return MetaTensor(stack, affine=torch.from_numpy(volume.affine))


def _is_image(value: Any) -> bool:
    return isinstance(value, list) or str(value).lower().endswith(IMAGE_SUFFIXES)


def _holds_dicom(folder: Path) -> bool:
    return any(_dicom_files(folder))


def _dicom_files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and is_dicom(p))
