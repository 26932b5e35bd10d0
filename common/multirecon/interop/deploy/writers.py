"""Results as files: NIfTI, DICOM, and the raw measurements themselves; no SDK needed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.io import write_dicom, write_nifti
from ...engines import safe_name
from ...measurement import Measurement
from .images import Reconstruction

__all__ = ["save_dicom", "save_measurement", "save_nifti"]

_CLASSES = {"ct": "CT", "pet": "PT"}


def save_nifti(results: Sequence[Reconstruction], folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``<sample>_<modality>.nii.gz`` for every image, float32 with its affine, and return the files."""
    return [write_nifti(r.volume, Path(folder) / f"{_stem(r)}.nii.gz") for r in results]


def save_dicom(results: Sequence[Reconstruction], folder: str | os.PathLike[str]) -> list[Path]:
    """Write a series of derived images into ``<sample>_<modality>/`` for every image, and return the folders.

    Patient, study and frame of reference are those of the DICOM series that was handed in, where one was. A stored
    image has 16 bits: CT numbers are rounded to 1 HU, other values are scaled.

    Raises:
        ValueError: on an image of several channels, or a folder that holds something already.
    """
    folders = []
    for result in results:
        target = Path(folder) / _stem(result)
        kind = _CLASSES.get(result.modality.split("_")[0], "MR")
        write_dicom(
            result.volume,
            target,
            source=result.source,
            modality=kind,
            description=f"multirecon {result.modality}",
            derivation=f"{result.modality} image estimated by multirecon",
        )
        folders.append(target)
    return folders


def save_measurement(item: Mapping[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write the raw measurement of an item as ``<id>.h5`` and return the file.

    Raises:
        ValueError: if the item holds an image.
    """
    measurement = item["image"]
    if not isinstance(measurement, Measurement):
        raise ValueError(f"item {item.get('id')!r}: expected a raw measurement, got {type(measurement).__name__}")
    return measurement.save(Path(folder) / f"{safe_name(str(item['id']))}.h5")


def _stem(result: Reconstruction) -> str:
    return f"{safe_name(result.sample)}_{result.modality}"
