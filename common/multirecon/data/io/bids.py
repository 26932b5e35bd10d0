"""Results as a BIDS derivative: names by entity, JSON sidecars, and where everything came from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...files import atomic_path
from .checks import refusal
from .nifti import write_nifti
from .volume import Volume

__all__ = ["SUFFIXES", "bids_name", "write_bids"]

BIDS_VERSION = "1.10.0"
#: modality -> (folder, entities that the modality brings, suffix); CT follows the proposed extension of BIDS
SUFFIXES: dict[str, tuple[str, dict[str, str], str]] = {
    "t1": ("anat", {}, "T1w"),
    "t2": ("anat", {}, "T2w"),
    "flair": ("anat", {}, "FLAIR"),
    "t2star": ("anat", {}, "T2starw"),
    "ct": ("ct", {}, "ct"),
    "pet_fdg": ("pet", {"trc": "18FFDG"}, "pet"),
    "pet_amyloid": ("pet", {"trc": "amyloid"}, "pet"),
}
_ORDER = ("sub", "ses", "sample", "task", "acq", "ce", "trc", "rec", "dir", "run", "space", "res", "desc")


def bids_name(modality: str, entities: Mapping[str, str]) -> tuple[str, str]:
    """Return folder and name (without extension) of an image, entities in the order that BIDS prescribes.

    Args:
        modality: a key of :data:`SUFFIXES`.
        entities: entity -> label of letters and digits; ``sub`` is needed.

    Raises:
        ValueError: on an unknown modality or entity, or a label of other characters.

    Example:
        >>> bids_name("t1", {"sub": "07", "desc": "recon", "rec": "tv"})
        ('sub-07/anat', 'sub-07_rec-tv_desc-recon_T1w')
    """
    if modality not in SUFFIXES:
        raise refusal("modality", f"one of {sorted(SUFFIXES)}", repr(modality))
    folder, own, suffix = SUFFIXES[modality]
    given = {**own, **entities}
    if "sub" not in given or set(given) - set(_ORDER):
        raise refusal("entities", f"sub and others of {_ORDER}", sorted(given))
    for name, label in given.items():
        if not re.fullmatch(r"[A-Za-z0-9]+", label):
            raise refusal(f"entities[{name!r}]", "letters and digits", repr(label))
    place = "/".join([f"sub-{given['sub']}", *([f"ses-{given['ses']}"] if "ses" in given else []), folder])
    return place, "_".join([*(f"{name}-{given[name]}" for name in _ORDER if name in given), suffix])


def write_bids(
    volume: Volume,
    root: str | os.PathLike[str],
    modality: str,
    *,
    entities: Mapping[str, str],
    sources: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write an image, its JSON sidecar and (once) the description of the data set; return the image's path.

    Args:
        volume: the image.
        root: folder of the derivative data set.
        modality: a key of :data:`SUFFIXES`.
        entities: see :func:`bids_name`; ``desc`` is ``"recon"`` unless given.
        sources: what it was made from (files, ``bids:`` URIs, hashes of measurements).
        provenance: plain values on the method, its parameters and its weights.

    Raises:
        ValueError: as :func:`bids_name`, or if a value of the provenance is not plain.
    """
    place, name = bids_name(modality, {"desc": "recon", **entities})
    software = {"Name": "multirecon", "Version": __version__}
    sidecar = {
        "Description": f"{modality} image by {entities.get('rec', 'reconstruction')}",
        "Units": volume.unit,
        "Sources": list(sources),
        "Notes": list(volume.notes),
        "GeneratedBy": [{**software, **({"Parameters": dict(provenance)} if provenance else {})}],
    }
    try:
        text = json.dumps(sidecar, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise refusal("provenance", "plain, finite values", str(error)) from None
    folder = Path(root)
    image = write_nifti(volume, folder / place / f"{name}.nii.gz")
    _write(folder / place / f"{name}.json", text)
    if not (folder / "dataset_description.json").exists():
        about = {"Name": "Reconstructed images", "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative",
                 "GeneratedBy": [software]}  # fmt: skip
        _write(folder / "dataset_description.json", json.dumps(about, indent=2))
    return image


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")
