"""Reconstructed images as a BIDS derivative, with the provenance of the reconstruction in every sidecar."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.io.bids import SUFFIXES, write_bids
from ..data.io.nifti import read_nifti

__all__ = ["BIDS_FOLDER", "check_bids", "copy_to_bids"]

BIDS_FOLDER = "bids"


def check_bids(modalities: Sequence[str]) -> None:
    """Raise ValueError on a modality that BIDS has no name for."""
    unknown = [name for name in modalities if name not in SUFFIXES]
    if unknown:
        raise ValueError(f"subject: expected images of {sorted(SUFFIXES)} (BIDS names no others), got {unknown}")


def copy_to_bids(
    output: Path,
    images: Sequence[Path],
    modalities: Sequence[str],
    *,
    subject: str,
    method: str,
    provenance: Mapping[str, Any],
) -> list[Path]:
    """Write the images of some modalities into ``output / "bids"`` and return their new files.

    Samples of one measurement (slices, say) become runs. The method is the entity ``rec``.

    Args:
        output: folder of the reconstruction.
        images: files that it wrote.
        modalities: the modalities wanted.
        subject: label of the subject.
        method: name of the method.
        provenance: plain values that go into every sidecar, beside the source and its hash.
    """
    label = re.sub(r"[^A-Za-z0-9]", "", method)
    source = provenance["measurement"]
    written = []
    for modality in modalities:
        found = sorted(p for p in images if p.name.endswith(f"_{modality}.nii.gz"))
        for number, path in enumerate(found, start=1):
            run = {"run": str(number)} if len(found) > 1 else {}
            volume = read_nifti(path, unit="HU" if modality == "ct" else "1")
            written.append(
                write_bids(volume, output / BIDS_FOLDER, modality, entities={"sub": subject, "rec": label, **run},
                           sources=[f"{source['file']} (sha256 of the data {source['sha256']})"],
                           provenance={"method": provenance["method"], "versions": provenance["versions"],
                                       "seconds": provenance["seconds"], "created": provenance["created"]})
            )  # fmt: skip
    return written
