"""DICOM series in: files grouped, ordered by position, checked for gaps, and put on a grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ...hdf5 import DEFLATE_RATIO
from .checks import FormatError, check_finite, existing_file, reading, refusal, require
from .volume import Volume

__all__ = ["GAPS", "DicomSeries", "is_dicom", "read_dicom", "scan_dicom"]

GAPS = ("refuse", "interpolate", "keep")
_NEEDED = ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "BitsAllocated",
           "PixelRepresentation", "SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID")  # fmt: skip
_UNITS = {"CT": "HU", "BQML": "Bq/mL", "CNTS": "counts", "GML": "SUV", "PROPCNTS": "counts"}
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_MM = 1e-2
_SAME_STEP = 0.02  # of a step: positions are often rounded


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the prefix of DICOM files."""
    with open(path, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """One series, headers only, ordered along the normal of its slices.

    Args:
        files: the files in order.
        headers: their datasets without pixels.
        positions_mm: ``(slices,)`` position along the normal in mm.
        notes: what was noticed, one line each.
        missing_mm: positions between slices where the smallest step says that one is missing.
    """

    files: tuple[Path, ...]
    headers: tuple[Any, ...]
    positions_mm: NDArray[np.float64]
    notes: tuple[str, ...]
    missing_mm: tuple[float, ...] = field(default=())

    @property
    def axes(self) -> NDArray[np.float64]:
        """``(3, 3)`` unit vectors along columns, rows and the normal, as the columns of a matrix (LPS)."""
        return _axes(self.headers[0])

    @property
    def regular(self) -> bool:
        """Whether slices are equally spaced (or there are not two)."""
        steps = np.diff(self.positions_mm)
        return len(steps) == 0 or bool(np.ptp(steps) <= max(_SAME_STEP * steps.min(), _SAME_MM))

    @property
    def tilt_deg(self) -> float:
        """Angle between the normal of the slices and the line along which they are stacked, in degrees."""
        if len(self.headers) < 2:
            return 0.0
        path = _position(self.headers[-1]) - _position(self.headers[0])
        return float(np.degrees(np.arccos(np.clip(path @ self.axes[:, 2] / np.linalg.norm(path), -1, 1))))

    def volume(self, *, gaps: str = "refuse", untilt: bool = False) -> Volume:
        """Read the pixels and return them on a grid, axes turned to RAS+, in the unit of the rescaled values.

        Args:
            gaps: what to do about unequal steps: ``"refuse"``, ``"interpolate"`` (linearly, to the smallest step), or
                ``"keep"`` the slices as they are, at a mean distance that is not true of each.
            untilt: shift the slices of a tilted gantry onto a rectangular grid (linear interpolation); without it the
                affine holds the shear.

        Raises:
            ValueError: if a file is damaged, or slices are missing and ``gaps`` is ``"refuse"``.
        """
        if gaps not in GAPS:
            raise refusal("gaps", f"one of {GAPS}", repr(gaps))
        notes = list(self.notes)
        if not self.regular and gaps == "refuse":
            raise refusal("gaps", "equally spaced slices, or gaps=interpolate or keep", self._gap_text())
        if untilt and not self.regular and gaps == "keep":
            raise refusal("untilt", "equally spaced slices, or gaps=interpolate", self._gap_text())
        slices = [_pixels(f, h) for f, h in zip(self.files, self.headers, strict=True)]
        values = np.stack(slices, axis=-1)  # (column, row, slice)
        first, last = _position(self.headers[0]), _position(self.headers[-1])
        count = len(slices)
        if count == 1:
            step = self.axes[:, 2] * _thickness(self.headers[0])
        else:
            step = (last - first) / (count - 1)
            if not self.regular and gaps == "interpolate":
                values, count = _even(values, self.positions_mm)
                step = (last - first) / (count - 1)
                notes.append(f"slices interpolated to {count} at {np.linalg.norm(step):.4g} mm")
            elif not self.regular:
                notes.append("slices kept at unequal distances: the affine holds their mean")
        spacing = [float(v) for v in self.headers[0].PixelSpacing]
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = self.axes[:, 0] * spacing[1], self.axes[:, 1] * spacing[0]
        affine[:3, 2], affine[:3, 3] = step, first
        if untilt and self.tilt_deg > 0.05:
            values, affine = _untilt(values, affine, self.axes[:, 2])
            notes.append("gantry tilt removed by interpolation within slices")
        head = self.headers[0]
        facts = {"source": f"DICOM series {head.SeriesInstanceUID}", "format": "dicom",
                 "modality": str(head.get("Modality", ""))}  # fmt: skip
        return Volume(values, _LPS @ affine, _unit(head), tuple(notes), facts).reoriented()

    def _gap_text(self) -> str:
        steps = sorted(set(np.round(np.diff(self.positions_mm), 3).tolist()))
        lost = f"slices missing at {[round(p, 2) for p in self.missing_mm[:8]]} mm, " if self.missing_mm else ""
        return f"{lost}steps of {steps} mm"


def read_dicom(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, series: str = "", gaps: str = "refuse",
    untilt: bool = False
) -> Volume:  # fmt: skip
    """Read one series as a volume: :func:`scan_dicom`, then :meth:`DicomSeries.volume`."""
    return scan_dicom(path, series=series).volume(gaps=gaps, untilt=untilt)


def scan_dicom(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, series: str = "") -> DicomSeries:
    """Read the headers of a series and put the slices in order.

    Args:
        path: a folder, one file, or several files; other files in a folder are left out.
        series: UID of the series (or its last characters), needed where there are several.

    Raises:
        ValueError: if there is no DICOM file, several series, tags are missing, or slices do not belong together.
    """
    pydicom = require("pydicom")
    files = _find(path)
    groups: dict[str, list[tuple[Path, Any]]] = {}
    for file in files:
        with reading(file, "a DICOM image"):
            head = pydicom.dcmread(file, stop_before_pixels=True)
            _check_head(head, file)
            groups.setdefault(str(head.SeriesInstanceUID), []).append((file, head))
    chosen = [uid for uid in groups if uid.endswith(series)]
    if len(chosen) != 1:
        listed = "; ".join(f"{uid} ({len(members)} files)" for uid, members in sorted(groups.items()))
        raise refusal("series", f"one series{f' ending in {series!r}' if series else ''}", listed)
    with reading(path if isinstance(path, str | os.PathLike) else files[0], "a DICOM series"):
        return _ordered(groups[chosen[0]])


def _find(path: Any) -> list[Path]:
    if not isinstance(path, str | os.PathLike):
        return [existing_file(p) for p in path]
    root = Path(path)
    if root.is_dir():
        files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.stat().st_size and is_dicom(p)]
        if not files:
            raise refusal("path", "a folder with DICOM files", f"none in {str(path)!r}")
        return files
    if not is_dicom(existing_file(root)):
        raise refusal("path", "a DICOM file", f"another format in {str(path)!r}")
    return [root]


def _check_head(head: Any, file: Path) -> None:
    frames = head.get("NumberOfFrames")
    if frames is not None and int(frames) > 1:
        raise refusal("path", "one image a file (no enhanced multi-frame objects)", f"{frames} frames in {str(file)!r}")
    lacking = [name for name in _NEEDED if head.get(name) in (None, "", [])]
    if lacking:
        raise refusal("path", f"the tags {', '.join(lacking)}", f"none in {str(file)!r}")
    if (
        int(head.get("SamplesPerPixel", 1)) != 1
        or head.get("PhotometricInterpretation", "MONOCHROME2") != "MONOCHROME2"
    ):
        raise refusal("path", "grey values (MONOCHROME2)",
                      f"{head.get('PhotometricInterpretation')!r} in {str(file)!r}")  # fmt: skip
    if len(head.ImagePositionPatient) != 3 or len(head.ImageOrientationPatient) != 6 or len(head.PixelSpacing) != 2:
        raise refusal(
            "path", "a position of 3, an orientation of 6 and a pixel spacing of 2 numbers", f"others in {str(file)!r}"
        )
    spacing = np.array(head.PixelSpacing, np.float64)
    if not np.isfinite([*_position(head), *_axes(head).ravel(), *spacing]).all() or (spacing <= 0).any():
        raise refusal("path", "a finite position and pixel spacing > 0", f"others in {str(file)!r}")
    if np.abs(_axes(head).T @ _axes(head) - np.eye(3)).max() > 1e-2:
        raise refusal("path", "an orthonormal orientation", f"{list(head.ImageOrientationPatient)} in {str(file)!r}")
    if head.get("Modality") == "CT" and head.get("RescaleSlope") is None:
        raise refusal("path", "the tag RescaleSlope of CT", f"none in {str(file)!r}")


def _ordered(members: list[tuple[Path, Any]]) -> DicomSeries:
    reference = members[0][1]
    for file, head in members:
        for name in ("Rows", "Columns", "Modality"):
            if head.get(name) != reference.get(name):
                raise refusal(
                    "path", f"one {name} in a series", f"{reference.get(name)} and {head.get(name)} ({file.name})"
                )
        if not np.allclose(np.array(head.PixelSpacing, float), np.array(reference.PixelSpacing, float), rtol=1e-3):
            raise refusal("path", "one PixelSpacing in a series", f"another in {file.name}")
        if not np.allclose(_axes(head), _axes(reference), atol=1e-3):
            raise refusal("path", "one orientation in a series", f"another in {file.name} (a localiser?)")
    normal = _axes(reference)[:, 2]
    members = sorted(members, key=lambda m: (float(_position(m[1]) @ normal), int(m[1].get("InstanceNumber") or 0)))
    members, notes = _without_copies(members, normal)
    positions = np.array([_position(h) @ normal for _, h in members])
    heads = tuple(h for _, h in members)
    missing = _missing(positions)
    if missing:
        notes.append(f"{len(missing)} slices missing at {[round(p, 2) for p in missing[:8]]} mm")
    series = DicomSeries(tuple(f for f, _ in members), heads, positions, tuple(notes), tuple(missing))
    extra = [] if series.regular or missing else [series._gap_text()]
    if series.tilt_deg > 0.05:
        stated = heads[0].get("GantryDetectorTilt")
        extra.append(f"slices stacked {series.tilt_deg:.2f} degrees off their normal"
                     + (f" (gantry tilt {float(stated):g})" if stated not in (None, "") else ""))  # fmt: skip
    thick = sorted({float(h.SliceThickness) for h in heads if h.get("SliceThickness") not in (None, "")})
    if len(thick) > 1:
        extra.append(f"slice thickness varies: {thick} mm")
    return DicomSeries(series.files, heads, positions, (*notes, *extra), tuple(missing))


def _without_copies(
    members: list[tuple[Path, Any]], normal: NDArray[np.float64]
) -> tuple[list[tuple[Path, Any]], list[str]]:
    """Leave out files that repeat a slice; different images at one position do not make a volume."""
    kept: list[tuple[Path, Any]] = []
    copies: list[str] = []
    for file, head in members:
        if kept and abs(float((_position(head) - _position(kept[-1][1])) @ normal)) < _SAME_MM:
            if not np.array_equal(_pixels(file, head), _pixels(*kept[-1])):
                raise refusal("path", "one image at each position", f"two in {kept[-1][0].name} and {file.name}")
            copies.append(file.name)
        else:
            kept.append((file, head))
    return kept, [f"{len(copies)} duplicated slices left out: {', '.join(copies[:8])}"] if copies else []


def _missing(positions: NDArray[np.float64]) -> list[float]:
    """Return where slices are missing, if all steps are multiples of the smallest."""
    steps = np.diff(positions)
    if not len(steps):
        return []
    turns = np.round(steps / steps.min())
    if (np.abs(steps - turns * steps.min()) > np.maximum(_SAME_STEP * steps.min() * turns, _SAME_MM)).any():
        return []
    return [float(p + steps.min() * k) for p, n in zip(positions, turns, strict=False) for k in range(1, int(n))]


def _pixels(file: Path, head: Any) -> NDArray[np.float32]:
    """Return rescaled values ``(column, row)``."""
    pydicom = require("pydicom")
    with reading(file, "a DICOM image"):
        dataset = pydicom.dcmread(file)
        size = int(head.Rows) * int(head.Columns) * int(head.BitsAllocated) // 8
        if not 0 < size <= file.stat().st_size * DEFLATE_RATIO or "PixelData" not in dataset:
            raise refusal(
                "path", f"{head.Rows} x {head.Columns} pixels", f"{file.stat().st_size} bytes in {str(file)!r}"
            )
        if not dataset.file_meta.TransferSyntaxUID.is_compressed and len(dataset.PixelData) < size:
            raise refusal("path", f"{size} bytes of pixels", f"{len(dataset.PixelData)} in {str(file)!r}")
        try:
            raw = dataset.pixel_array
        except (RuntimeError, NotImplementedError) as error:
            name = dataset.file_meta.TransferSyntaxUID.name
            raise FormatError(
                f"path: expected pixels that can be unpacked here, got {name!r} in {str(file)!r} ({error})"
            ) from None
        slope, intercept = float(head.get("RescaleSlope") or 1.0), float(head.get("RescaleIntercept") or 0.0)
        values = raw.astype(np.float64).T * slope + intercept
    return check_finite(values.astype(np.float32), file)


def _position(head: Any) -> NDArray[np.float64]:
    return np.array([float(v) for v in head.ImagePositionPatient])


def _axes(head: Any) -> NDArray[np.float64]:
    cosines = np.array([float(v) for v in head.ImageOrientationPatient])
    return np.stack([cosines[:3], cosines[3:], np.cross(cosines[:3], cosines[3:])], axis=1)


def _thickness(head: Any) -> float:
    value = float(head.get("SpacingBetweenSlices") or head.get("SliceThickness") or 1.0)
    return value if value > 0 else 1.0


def _unit(head: Any) -> str:
    if head.get("Modality") == "CT":
        return "HU"
    return _UNITS.get(str(head.get("Units", "")), "1")


def _even(values: NDArray[np.float32], positions: NDArray[np.float64]) -> tuple[NDArray[np.float32], int]:
    """Return the slices at equal steps, the smallest there is (or a little less)."""
    span = positions[-1] - positions[0]
    count = int(np.ceil(span / np.diff(positions).min() - _SAME_STEP)) + 1
    wanted = np.linspace(positions[0], positions[-1], count)
    upper = np.clip(np.searchsorted(positions, wanted), 1, len(positions) - 1)
    weight = ((wanted - positions[upper - 1]) / (positions[upper] - positions[upper - 1])).astype(np.float32)
    return values[..., upper - 1] * (1 - weight) + values[..., upper] * weight, count


def _untilt(
    values: NDArray[np.float32], affine: NDArray[np.float64], normal: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Shift each slice within its plane so that the stack is rectangular; outside it is the least value."""
    count = values.shape[2]
    slide = affine[:3, 2] - (affine[:3, 2] @ normal) * normal
    shift = np.linalg.lstsq(affine[:3, :2], slide, rcond=None)[0]  # pixels that each further slice is displaced by
    grow = [int(np.ceil(abs(s) * (count - 1) - 1e-6)) for s in shift]
    front = [g if s < 0 else 0 for g, s in zip(grow, shift, strict=True)]
    size = [n + g for n, g in zip(values.shape, grow, strict=False)]
    result = np.empty((*size, count), np.float32)
    for k in range(count):
        offset = [-f - s * k for f, s in zip(front, shift, strict=True)]
        result[..., k] = ndimage.affine_transform(
            values[..., k], np.ones(2), offset, tuple(size), order=1, cval=values.min()
        )
    matrix = affine.copy()
    matrix[:3, 2] = (affine[:3, 2] @ normal) * normal
    matrix[:3, 3] = affine[:3, 3] - affine[:3, :2] @ np.array(front, float)
    return result, matrix
