"""What is in a file, as label and text, one line each."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import torch

from ..data.io import (
    FORMATS,
    detect_format,
    direct_planes,
    estimate_axis,
    read_castor,
    read_data_exchange,
    read_interfile_image,
    read_interfile_sinogram,
    read_ismrmrd,
    read_nifti,
    read_npy,
    scan_dicom,
)
from ..data.io.checks import open_hdf5
from ..data.io.fastmri import read_fastmri
from ..data.io.kspace import KSpace, find_arrays
from ..data.io.matlab import matlab_arrays
from ..data.io.volume import Volume
from ..measurement import Measurement
from ..operators import calibration_size

__all__ = ["describe"]

Lines = list[tuple[str, str]]


def describe(path: str | os.PathLike[str]) -> Lines:
    """Return what is in a file (or a folder of DICOM files), its format first.

    Args:
        path: any of the formats of :data:`multirecon.data.io.FORMATS`; the content decides which.

    Raises:
        ValueError: if it is none of them, or damaged.
    """
    kind = detect_format(path)
    return [("format", FORMATS[kind]), *_DESCRIBERS[kind](path)]


def _measurement(path: Any) -> Lines:
    m = Measurement.load(path)
    space = m.space
    blocks = [
        ("block", f"{n}: {m.operator[n].kind}, {m.likelihood[n].kind}, {tuple(y.shape)} {str(y.dtype)[6:]}")
        for n, y in m.y.items()
    ]
    return [
        ("image", ", ".join(f"{i.name} [{i.unit}]" for i in space.modalities)),
        ("grid", f"{_by(space.shape)}, {_by(space.spacing_mm)} mm"),
        *blocks,
        ("missing", ", ".join(m.missing) or "nothing"),
        ("samples", str(m.batch_size)),
        ("metadata", str(m.metadata)),
        ("sha256", m.fingerprint()),
    ]


def _volume(volume: Volume) -> Lines:
    values = volume.values
    low, middle, high = np.percentile(values, [1, 50, 99])
    return [
        ("grid", f"{_by(values.shape)}, {_by(volume.spacing_mm)} mm, {volume.orientation} (as read)"),
        ("values", f"{values.min():g} to {values.max():g} {volume.unit}"),
        ("shares", f"percentiles 1, 50, 99: {low:g}, {middle:g}, {high:g}"),
        ("affine", "; ".join(" ".join(f"{v:.6g}" for v in row) for row in volume.affine[:3])),
        *_notes(volume.notes),
    ]  # fmt: skip


def _dicom(path: Any) -> Lines:
    series = scan_dicom(path)
    head = series.headers[0]
    spacing = [float(v) for v in head.PixelSpacing]
    steps = sorted({round(float(s), 3) for s in np.diff(series.positions_mm)})
    what = " ".join(str(head.get(n, "")) for n in ("Modality", "Manufacturer", "SeriesDescription") if head.get(n))
    return [
        ("series", f"{head.SeriesInstanceUID} ({what})"),
        ("slices", f"{len(series.files)} of {head.Columns} x {head.Rows} pixels, {spacing[1]:g} x {spacing[0]:g} mm"),
        ("steps", f"{', '.join(f'{s:g}' for s in steps) or 'none'} mm along the normal"),
        ("complete", "yes" if series.regular else "no: --gaps interpolate or keep is needed"),
        *_notes(series.notes),
    ]


def _kspace(kspace: KSpace) -> Lines:
    slices, coils = kspace.data.shape[:2]
    mask = kspace.mask[0]
    centre = calibration_size(torch.from_numpy(mask))
    spacing = "unknown voxel size" if kspace.spacing_mm is None else f"{_by(kspace.spacing_mm)} mm"
    return [
        ("k-space", f"{slices} slices, {coils} coils, {_by(kspace.spatial)}, {spacing}"),
        ("sampled", f"{kspace.mask.mean():.1%}, fully sampled centre {_by(centre)} (first slice)"),
        *((k, str(v)) for k, v in kspace.metadata.items() if k not in ("source", "format")),
        *_notes(kspace.notes),
    ]


def _array(path: Any) -> Lines:
    if h5py.is_hdf5(path):
        with open_hdf5(path, "an HDF5 file") as file:
            found = find_arrays(file, smallest=1)
    else:
        array = read_npy(path)
        found = {"array": (array.shape, str(array.dtype))}
        if np.iscomplexobj(array) and array.ndim > 2:
            share = float((array != 0).any(axis=0).mean())
            return [
                ("array", f"{_by(array.shape)} {array.dtype}"),
                ("sampled", f"{share:.1%} if the first axis is coils"),
            ]
    return [("dataset", f"{name}: {_by(shape)} {dtype}") for name, (shape, dtype) in found.items()] or [
        ("empty", "no arrays")
    ]


def _matlab(path: Any) -> Lines:
    return [("variable", f"{n}: {_by(shape)} {kind}") for n, (shape, kind) in matlab_arrays(path).items()]


def _exchange(path: Any) -> Lines:
    data = read_data_exchange(path)
    degrees = np.degrees(data.angles)
    lines = data.line_integrals()
    pitch = "unknown width" if data.bin_spacing_mm is None else f"{data.bin_spacing_mm:g} mm"
    rows, views, bins = data.values.shape
    return [
        ("views", f"{views} from {degrees.min():g} to {degrees.max():g} degrees"),
        ("detector", f"{rows} rows, {bins} bins of {pitch}"),
        ("readings", f"white {data.white.mean():.5g}, dark {data.dark.mean():.5g}, {data.gain:.3g} a photon"),
        ("lines", f"-log transmission up to {lines.max():.3g}"),
        ("axis", f"column {estimate_axis(lines, data.angles):.2f} of {bins} (centre {(bins - 1) / 2:g})"),
        *_notes(data.notes),
    ]


def _sinogram(path: Any) -> Lines:
    data = read_interfile_sinogram(path)
    pitch = "unknown width" if data.bin_spacing_mm is None else f"{data.bin_spacing_mm:g} mm"
    planes, views, bins = data.values.shape
    return [
        ("planes", f"{planes}, of which direct: {len(direct_planes(data).values)}"),
        ("views", str(views)),
        ("bins", f"{bins} of {pitch}"),
        ("counts", f"{data.values.sum(dtype=np.float64):.6g} in all, {data.values.min():g} to {data.values.max():g}"),
        *_notes(data.notes),
    ]


def _castor(path: Any) -> Lines:
    data = read_castor(path)
    events = data.events
    return [
        ("mode", data.mode),
        ("scanner", data.scanner or "unnamed"),
        ("lines", str(len(events)))
        if data.mode == "normalization"
        else ("events", f"{len(events)}, {data.counts:.6g} counts in {data.duration_s:g} s"),
        ("fields", ", ".join(events.dtype.names or ())),
        ("crystals", f"{events['crystals'].min()} to {events['crystals'].max()}"),
    ]


def _notes(notes: tuple[str, ...]) -> Lines:
    return [("note", note) for note in notes]


def _by(values: Any) -> str:
    return " x ".join(f"{v:g}" for v in values)


_DESCRIBERS: dict[str, Callable[[Any], Lines]] = {
    "measurement": _measurement,
    "nifti": lambda path: _volume(read_nifti(path)),
    "interfile_image": lambda path: _volume(read_interfile_image(path)),
    "dicom": _dicom,
    "ismrmrd": lambda path: _kspace(read_ismrmrd(path, crop=False)),
    "fastmri": lambda path: _kspace(read_fastmri(path, slices=[0], crop=False)),
    "array": _array,
    "data_exchange": _exchange,
    "matlab": _matlab,
    "interfile_sinogram": _sinogram,
    "castor": _castor,
}
