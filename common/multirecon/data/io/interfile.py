"""Interfile images and sinograms, both ways: the keys of version 3.3 and those that STIR and CASToR add for PET."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .checks import refusal
from .interfile_header import InterfileHeader, read_header, read_raw, write_pair
from .sinogram import Sinogram
from .volume import Volume

__all__ = [
    "direct_planes",
    "interfile_kind",
    "read_interfile_image",
    "read_interfile_sinogram",
    "write_interfile_image",
    "write_interfile_sinogram",
]

_ORIENTATION = "orientation is not in the file: axes taken as left, posterior, superior"
_VIEWS = ("view", "angle")
_PLANES = ("axial coordinate", "plane", "z")


def interfile_kind(header: InterfileHeader) -> str:
    """Return ``"image"`` or ``"sinogram"``, from what the header describes."""
    labels = [header.label(i) for i in range(1, header.dimensions + 1)]
    if any(label in _VIEWS or label.startswith("tangential") for label in labels):
        return "sinogram"
    reconstructed = header.text("process status").lower() == "reconstructed"
    return "sinogram" if "number of projections" in header.keys and not reconstructed else "image"


def read_interfile_image(path: str | os.PathLike[str], *, unit: str = "") -> Volume:
    """Read an image, its axes turned to RAS+ (the format states no orientation: see the note).

    Args:
        path: the header.
        unit: unit of the values; by default what the header says.

    Raises:
        ValueError: if it is no image, or header and data disagree.
    """
    header = read_header(path)
    if interfile_kind(header) != "image":
        raise refusal("path", "an Interfile image", f"a sinogram in {str(path)!r}")
    depth = header.integer("number of slices", header.integer("total number of images", 1, least=1), least=1)
    size = [header.integer(f"matrix size[{i}]", None if i < 3 else depth, least=1) for i in (1, 2, 3)]
    extra = [header.integer(f"matrix size[{i}]", 1, least=1) for i in (4, 5)]
    if max(extra) > 1:
        raise refusal("path", "three axes", f"{size + extra} in {str(path)!r}")
    spacing = [
        header.number(f"scaling factor (mm/pixel)[{i}]", None if i < 3 else _thickness(header)) for i in (1, 2, 3)
    ]
    if min(spacing) <= 0:
        raise refusal("path", "voxel sizes > 0", f"{spacing} mm in {str(path)!r}")
    values = read_raw(header, (size[2], size[1], size[0])).transpose(2, 1, 0)
    centred = [-s * (n - 1) / 2 for n, s in zip(size, spacing, strict=True)]
    origin = [header.number(f"first pixel offset (mm)[{i}]", centred[i - 1]) for i in (1, 2, 3)]
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # x to the left, y to the back
    affine[:3, 3] = -origin[0], -origin[1], origin[2]
    stated = header.text("quantification units") or header.text("units")
    stated = "" if _is_number(stated) else stated
    facts: dict[str, Any] = {"source": Path(path).name, "format": "interfile"}
    return Volume(values, affine, unit or stated or "1", (_ORIENTATION,), facts).reoriented()


def read_interfile_sinogram(path: str | os.PathLike[str]) -> Sinogram:
    """Read sinograms: STIR's segments by axial position and view, or the projections of version 3.3.

    All planes are returned, segment by segment in file order; ``metadata["segments"]`` lists planes and ring
    differences of each, ``rings``, ``ring_spacing_mm`` and ``radius_mm`` describe the scanner where the header does.

    Args:
        path: the header.

    Raises:
        ValueError: if it is no sinogram, or header and data disagree.
    """
    header = read_header(path)
    if interfile_kind(header) != "sinogram":
        raise refusal("path", "an Interfile sinogram", f"an image in {str(path)!r}")
    return _projections(header) if "number of projections" in header.keys else _segments(header)


def _segments(header: InterfileHeader) -> Sinogram:
    axes = {header.label(i): i for i in range(1, header.dimensions + 1)}
    view = next((axes[name] for name in _VIEWS if name in axes), 0)
    plane = next((axes[name] for name in _PLANES if name in axes), 0)
    if not view or header.dimensions > 4:
        raise refusal("path", "axes tangential coordinate, view, axial coordinate, segment",
                      f"{sorted(axes)} in {str(header.path)!r}")  # fmt: skip
    bins = header.integer("matrix size[1]", least=1)
    views = header.integer(f"matrix size[{view}]", least=1)
    planes = header.integers(f"matrix size[{plane}]") if plane else [1]
    segments = header.integer(f"matrix size[{axes['segment']}]", least=1) if "segment" in axes else len(planes)
    planes = planes * segments if len(planes) == 1 else planes
    if len(planes) != segments or min(planes, default=0) < 1:
        raise refusal("path", f"{segments} numbers of planes > 0", f"{planes} in {str(header.path)!r}")
    low, high = (header.integers(f"{end} ring difference per segment") for end in ("minimum", "maximum"))
    if len(low) not in (0, segments) or len(low) != len(high):
        raise refusal("path", f"{segments} ring differences", f"{len(low)} and {len(high)} in {str(header.path)!r}")
    total = sum(planes)
    flat = read_raw(header, (total, views, bins))
    values = flat
    if view > plane > 0:  # planes vary faster than views, within each segment
        parts = np.split(flat.reshape(-1), np.cumsum([n * views * bins for n in planes])[:-1])
        values = np.concatenate([p.reshape(views, n, bins).swapaxes(0, 1) for p, n in zip(parts, planes, strict=True)])
    start = np.deg2rad(header.number("view offset (degrees)", 0.0))
    width = header.number("effective central bin size (cm)", header.number("default bin size (cm)", 0.0))
    rings = header.number("distance between rings (cm)", 0.0)
    # without axial compression direct planes lie a ring apart, with it also half way between two rings
    apart = 10 if any(a == b == 0 for a, b in zip(low, high, strict=True)) else 5
    listed = [{"planes": n, **({"differences": [low[i], high[i]]} if low else {})} for i, n in enumerate(planes)]
    notes = ["direction of the views is not in the file: the image may be mirrored"]
    if "arc correction" not in header.text("applied corrections").lower():
        notes.append("not arc-corrected: the bins are closer at the edge than the model assumes")
    return Sinogram(
        np.ascontiguousarray(values),
        start + np.arange(views) * np.pi / views,
        10 * width or None,
        apart * rings or None,
        tuple(notes),
        {"source": header.path.name, "format": "interfile", "segments": listed, **_scanner(header), **_content(header)},
    )


def _scanner(header: InterfileHeader) -> dict[str, float]:
    """Return what the header says about the detector cylinder, in mm."""
    found: dict[str, float] = {}
    if "number of rings" in header.keys:
        found["rings"] = header.integer("number of rings", least=1)
    if "inner ring diameter (cm)" in header.keys:
        depth = header.number("average depth of interaction (cm)", 0.0)
        found["radius_mm"] = 5 * header.number("inner ring diameter (cm)") + 10 * depth
    if "distance between rings (cm)" in header.keys:
        found["ring_spacing_mm"] = 10 * header.number("distance between rings (cm)")
    return found


def _projections(header: InterfileHeader) -> Sinogram:
    bins, planes = header.integer("matrix size[1]", least=1), header.integer("matrix size[2]", 1, least=1)
    views = header.integer("number of projections", least=1)
    values = read_raw(header, (views, planes, bins)).swapaxes(0, 1)
    extent = np.deg2rad(header.number("extent of rotation", 360.0))
    sign = -1.0 if header.text("direction of rotation").lower() == "cw" else 1.0
    angles = np.deg2rad(header.number("start angle", 0.0)) + sign * extent * np.arange(views) / views
    width = header.number("scaling factor (mm/pixel)[1]", 0.0)
    height = header.number("scaling factor (mm/pixel)[2]", 0.0)
    facts = {"source": header.path.name, "format": "interfile", "segments": [{"planes": planes}], **_content(header)}
    return Sinogram(np.ascontiguousarray(values), angles, width or None, height or None, (), facts)


def write_interfile_image(volume: Volume, path: str | os.PathLike[str]) -> Path:
    """Write an image as a header and a raw file ``.img``, x fastest, axes to left, posterior and superior.

    Args:
        volume: three axes; its own must be parallel to the patient's (the format cannot say otherwise).
        path: the header, ``.hdr`` or ``.hv``.

    Raises:
        ValueError: if the volume is oblique, sheared or has channels.
    """
    turned = volume.reoriented("LPS")
    if turned.values.ndim != 3:
        raise refusal("volume", "three axes", turned.values.shape)
    matrix = turned.affine[:3, :3]
    if np.abs(matrix - np.diag(np.diag(matrix))).max() > 1e-3 * np.abs(matrix).max():
        raise refusal("volume", "axes parallel to the patient's", f"the affine {np.round(matrix, 4).tolist()}")
    origin = turned.affine[:3, 3] * (-1, -1, 1)
    lines = ["!GENERAL DATA :=", "!GENERAL IMAGE DATA :=", "!type of data := PET", "!PET STUDY (General) :=",
             "!PET data type := Image", "process status := reconstructed", f"quantification units := {volume.unit}",
             "number of dimensions := 3"]  # fmt: skip
    for i, axis in enumerate("xyz"):
        lines += [f"matrix axis label [{i + 1}] := {axis}", f"!matrix size [{i + 1}] := {turned.values.shape[i]}",
                  f"scaling factor (mm/pixel) [{i + 1}] := {turned.spacing_mm[i]!r}",
                  f"first pixel offset (mm) [{i + 1}] := {float(origin[i])!r}"]  # fmt: skip
    lines += ["number of time frames := 1", "data offset in bytes[1] := 0"]
    return write_pair(path, lines, turned.values.transpose(2, 1, 0), suffix=".img")


def write_interfile_sinogram(sinogram: Sinogram, path: str | os.PathLike[str]) -> Path:
    """Write direct planes as a header and a raw file ``.s``, in the order bins, views, planes, one segment.

    Args:
        sinogram: the planes; views must be spread evenly over half a turn.
        path: the header, ``.hs``.

    Raises:
        ValueError: if the angles are others, which the format cannot say.
    """
    planes, views, bins = sinogram.values.shape
    angles = np.arange(views) * np.pi / views if sinogram.angles is None else sinogram.angles
    if not np.allclose(angles - angles[0], np.arange(views) * np.pi / views, atol=1e-4):
        raise refusal("angles", "views spread evenly over half a turn", f"{np.round(angles[:4], 5).tolist()} ...")
    lines = ["!GENERAL DATA :=", "!type of data := PET", "!PET STUDY (General) :=", "!PET data type := Emission",
             "applied corrections := {arc correction}", "number of dimensions := 4",
             "matrix axis label [4] := segment", "!matrix size [4] := 1",
             "matrix axis label [3] := axial coordinate", f"!matrix size [3] := {{ {planes} }}",
             "matrix axis label [2] := view", f"!matrix size [2] := {views}",
             "matrix axis label [1] := tangential coordinate", f"!matrix size [1] := {bins}",
             "minimum ring difference per segment := { 0 }", "maximum ring difference per segment := { 0 }",
             f"View offset (degrees) := {float(np.rad2deg(angles[0]))!r}"]  # fmt: skip
    if sinogram.bin_spacing_mm:
        lines.append(f"Default bin size (cm) := {sinogram.bin_spacing_mm / 10!r}")
    if sinogram.plane_spacing_mm:
        lines.append(f"Distance between rings (cm) := {sinogram.plane_spacing_mm / 10!r}")
    return write_pair(path, [*lines, "number of time frames := 1"], sinogram.values, suffix=".s")


def direct_planes(sinogram: Sinogram) -> Sinogram:
    """Return the planes of the segment whose ring differences lie around zero, with a note on what is left out."""
    segments = sinogram.metadata.get("segments") or []
    if len(segments) < 2:
        return sinogram
    starts = np.cumsum([0, *(s["planes"] for s in segments)])
    for start, segment in zip(starts, segments, strict=False):
        low, high = segment.get("differences", (1, 1))
        if low <= 0 <= high:
            values = sinogram.values[start : start + segment["planes"]]
            note = f"direct segment only: {segment['planes']} of {len(sinogram.values)} planes"
            return replace(sinogram, values=values, notes=(*sinogram.notes, note),
                           metadata={**sinogram.metadata, "segments": [segment]})  # fmt: skip
    raise refusal("path", "a segment with ring differences around 0", f"{segments[:4]} ...")


def _thickness(header: InterfileHeader) -> float:
    """Return the slice distance of version 3.3, whose slice thickness is in pixels."""
    return header.number("slice thickness (pixels)", 1.0) * header.number("scaling factor (mm/pixel)[1]")


def _content(header: InterfileHeader) -> dict[str, str]:
    text = header.text("pet data type") or header.text("type of data")
    return {"content": text.lower()} if text else {}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
