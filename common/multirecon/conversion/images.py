"""Images as Measurements (a clean modality), and written as images again, BIDS derivatives among them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from ..blocks import Blocks
from ..data.io import Volume, scan_dicom, write_bids, write_dicom, write_interfile_image, write_nifti
from ..data.io.checks import refusal
from ..likelihoods import BlockLikelihood, Gaussian
from ..measurement import Measurement
from ..operators import BlockDiagonal, Identity
from ..space import ImageSpace, Modality
from ..units import hu_to_attenuation

__all__ = ["image_measurement", "stack_values", "write_derivative", "write_image"]


def image_measurement(volume: Volume, modality: str) -> Measurement:
    """Return an image as the clean block of a Measurement, ``(1, 1, X, Y, Z)``; HU become 1/cm.

    Args:
        volume: one image; a CT must be in HU or 1/cm.
        modality: key of the image.

    Raises:
        ValueError: if it has channels, or a CT is in another unit.
    """
    values, unit, scale = stack_values(volume, modality)
    space = ImageSpace([Modality(modality, unit=unit, scale=scale)], values.shape, volume.spacing_mm,
                       torch.from_numpy(volume.affine))  # fmt: skip
    facts = {**volume.metadata, "simulated": False, "notes": list(volume.notes)}
    operator = BlockDiagonal(space, {modality: Identity((1, *values.shape))})
    return Measurement(
        Blocks({modality: values[None, None]}), operator, BlockLikelihood({modality: Gaussian(0.0)}), facts
    )


def stack_values(volume: Volume, modality: str) -> tuple[torch.Tensor, str, float]:
    """Return the values ``(X, Y, Z)`` of one image as a stack holds them, their unit and typical size.

    Args:
        volume: one image; a CT must be in HU or 1/cm.
        modality: key of the image.

    Raises:
        ValueError: if it has channels, or a CT is in another unit.
    """
    if volume.values.ndim != 3:
        raise refusal("path", "one image (three axes)", f"shape {volume.values.shape}")
    values = torch.from_numpy(np.ascontiguousarray(volume.values))
    if modality != "ct":
        return values, volume.unit, 1.0
    if volume.unit not in ("HU", "1/cm"):
        raise refusal("modality", "a CT image in HU or 1/cm", f"unit {volume.unit!r}")
    return hu_to_attenuation(values) if volume.unit == "HU" else values, "1/cm", 0.2


def write_image(volume: Volume, output: str | os.PathLike[str], *, source: str = "", modality: str = "") -> Path:
    """Write an image in the format that the name asks for: ``.nii``, ``.nii.gz``, ``.hdr``, ``.hv``, or a DICOM folder.

    Args:
        volume: the image.
        output: file, or folder (a name without a suffix) for DICOM.
        source: folder of the DICOM series that a DICOM output is derived from.
        modality: ``CT``, ``MR`` or ``PT`` for DICOM without a source.

    Raises:
        ValueError: on another name.
    """
    name = str(output).lower()
    if name.endswith((".nii", ".nii.gz")):
        return write_nifti(volume, output)
    if name.endswith((".hdr", ".hv")):
        return write_interfile_image(volume, output)
    if Path(name).suffix:
        raise refusal("output", ".h5, .nii, .nii.gz, .hdr, .hv or a folder (DICOM)", repr(str(output)))
    series = scan_dicom(source) if source else None
    write_dicom(volume, output, source=series, modality=modality)
    return Path(output)


def write_derivative(
    volume: Volume, path: str | os.PathLike[str], output: str | os.PathLike[str], *, modality: str, subject: str
) -> Path:
    """Write an image into a BIDS derivative, with name and hash of the file that it was read from.

    Args:
        volume: the image.
        path: file, or folder of DICOM files, that it was read from.
        output: folder of the data set.
        modality: key of the image.
        subject: label of the subject, letters and digits.

    Raises:
        ValueError: if modality or label are none that BIDS knows, or the output is a file.
    """
    if Path(output).suffix or Path(output).is_file():
        raise refusal("output", "a folder (BIDS)", repr(str(output)))
    source = Path(path)
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    return write_bids(volume, output, modality, entities={"sub": subject}, sources=[source.name],
                      provenance={"command": "convert", "sha256": hashes})  # fmt: skip
