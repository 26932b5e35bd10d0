"""From any readable file to a Measurement, or from an image to another image format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data.io import (
    FORMATS,
    KSpace,
    Sinogram,
    Volume,
    detect_format,
    read_castor,
    read_data_exchange,
    read_dicom,
    read_fastmri,
    read_interfile_image,
    read_interfile_sinogram,
    read_ismrmrd,
    read_kspace_array,
    read_matlab,
    read_matlab_sinogram,
    read_nifti,
    read_npy,
)
from ..data.io.castor import read_crystals
from ..data.io.checks import check_counts, refusal
from ..data.io.fastmri import count_slices
from ..data.io.kspace import to_axes
from ..measurement import Measurement
from .castor import castor_measurement
from .grids import mixed_grid_measurement
from .images import image_measurement, write_derivative, write_image
from .kspace import kspace_measurement
from .oblique import oblique_measurement
from .options import Options
from .projections import emission_measurement, projections_measurement, transmission_measurement

__all__ = ["convert"]

_KSPACE = ("modality", "slices", "keep_oversampling", "complex_image", "keep_scale", "calibration", "spacing_mm")
_SINOGRAM = ("modality", "slices", "size", "bin_spacing_mm", "axis", "arc_deg", "every", "blank", "background",
             "efficiency", "attenuation")  # fmt: skip
_IMAGE_MODALITY = {"CT": "ct", "MR": "t1", "PT": "pet_fdg"}
_DICOM_MODALITY = {"ct": "CT", "t1": "MR", "t2": "MR", "flair": "MR", "t2star": "MR", "pet_fdg": "PT",
                   "pet_amyloid": "PT"}  # fmt: skip


def convert(path: str | os.PathLike[str], output: str | os.PathLike[str], options: Options | None = None) -> list[str]:
    """Read a file, write a Measurement (``.h5``) or an image (other names), and return what is worth telling.

    Args:
        path: file, or folder of DICOM files; its content decides the format.
        output: ``.h5``; for images also ``.nii``, ``.nii.gz``, ``.hdr`` or a folder (DICOM).
        options: what the file does not say.

    Raises:
        ValueError: naming the argument that does not fit; nothing is written then.
    """
    choices = options or Options()
    kind = detect_format(path)
    if kind == "measurement":
        raise refusal("raw", "a file to convert", f"a measurement file already: {str(path)!r}")
    if Path(output).resolve() == Path(path).resolve():
        raise refusal("output", "another file than the one read", repr(str(output)))
    if kind in ("nifti", "dicom", "interfile_image"):
        return _image(path, kind, output, choices)
    if not str(output).lower().endswith((".h5", ".hdf5")):
        raise refusal("output", f"a name ending in .h5 for {FORMATS[kind]}", repr(str(output)))
    measurement = _READERS[kind](path, choices)
    measurement.save(output)
    name = measurement.available[0]
    notes = list(measurement.metadata.get("notes", []))
    if not choices.modality:
        notes.append(f"taken for modality {name!r} (modality says otherwise)")
    return notes


def _image(path: Any, kind: str, output: str | os.PathLike[str], options: Options) -> list[str]:
    beside = ("reference_modality", "slices", "spacing_mm") if options.reference else ()
    own = ("series", "gaps", "untilt") if kind == "dicom" else ()
    options.only(FORMATS[kind], "modality", "source", "subject", "reference", *beside, *own)
    volume = _volume(path, kind, options)
    modality = options.modality or _IMAGE_MODALITY.get(str(volume.metadata.get("modality", "")), "")
    measured = str(output).lower().endswith((".h5", ".hdf5"))
    if not modality and (measured or options.subject):
        raise refusal("modality", "the key of the image, such as t1 or ct", "none")
    for name in ("source", "subject") if measured else ("reference",):
        if getattr(options, name):
            what = "a measurement" if measured else "an image"
            raise refusal(name, f"no such option for {what}", repr(getattr(options, name)))
    notes = list(volume.notes)
    if measured and options.reference:
        measurement = _beside_reference(volume, modality, options)
        measurement.save(output)
        notes = list(measurement.metadata["notes"])
    elif measured:
        image_measurement(volume, modality).save(output)
    elif options.subject:
        write_derivative(volume, path, output, modality=modality, subject=options.subject)
    else:
        write_image(volume, output, source=options.source, modality=_DICOM_MODALITY.get(modality, ""))
    return notes


def _beside_reference(volume: Volume, modality: str, options: Options) -> Measurement:
    kind = detect_format(options.reference)
    if kind not in ("nifti", "dicom", "interfile_image"):
        raise refusal("reference", "an image", FORMATS[kind])
    reference = _volume(options.reference, kind, Options(modality=options.reference_modality, gaps=options.gaps))
    name = options.reference_modality or _IMAGE_MODALITY.get(str(reference.metadata.get("modality", "")), "")
    return mixed_grid_measurement(volume, modality, reference, name, spacing_mm=options.spacing_mm,
                                  slices=options.slices)  # fmt: skip


def _volume(path: Any, kind: str, options: Options) -> Volume:
    if kind == "dicom":
        return read_dicom(path, series=options.series, gaps=options.gaps, untilt=options.untilt)
    unit = {"ct": "HU"}.get(options.modality, "1")
    return read_nifti(path, unit=unit) if kind == "nifti" else read_interfile_image(path)


def _of_kspace(kspace: KSpace, options: Options) -> Measurement:
    return kspace_measurement(
        kspace,
        modality=options.modality or "t1",
        spacing_mm=options.spacing_mm,
        real_image=not options.complex_image,
        keep_scale=options.keep_scale,
        calibration=options.calibration,
    )


def _fastmri(path: Any, options: Options) -> Measurement:
    options.only(FORMATS["fastmri"], *_KSPACE)
    slices = options.slices or (count_slices(path) // 2,)
    return _of_kspace(read_fastmri(path, slices=slices, crop=not options.keep_oversampling), options)


def _ismrmrd(path: Any, options: Options) -> Measurement:
    options.only(FORMATS["ismrmrd"], *_KSPACE, "frame")
    kspace = read_ismrmrd(path, slices=options.slices or None, frame=options.frame, crop=not options.keep_oversampling)
    return _of_kspace(kspace if options.slices else _middle(kspace), options)


def _array(path: Any, options: Options) -> Measurement:
    if set(options.layout.lower()) & set("bv"):
        options.only("a sinogram in a plain array", *_SINOGRAM, "layout")
        return _of_sinogram(_array_sinogram(path, options.layout), options)
    options.only("k-space in a plain array", *_KSPACE, "dataset", "layout", "corner")
    kspace = read_kspace_array(path, layout=options.layout, dataset=options.dataset, centred=not options.corner)
    return _of_kspace(kspace.select(options.slices) if options.slices else _middle(kspace), options)


def _middle(kspace: KSpace) -> KSpace:
    return kspace.select([len(kspace.data) // 2])


def _array_sinogram(path: Any, layout: str) -> Sinogram:
    array = read_npy(path)
    if np.iscomplexobj(array):
        raise refusal("path", "real counts", f"{array.dtype} in {str(path)!r}")
    values = to_axes(array, layout, path=path, allowed="pvb", order="pvb").astype(np.float32)
    return Sinogram(check_counts(values, path), metadata={"source": Path(path).name, "format": "array"})


def _data_exchange(path: Any, options: Options) -> Measurement:
    options.only(FORMATS["data_exchange"], "modality", "slices", "axis", "size", "bin_spacing_mm", "every")
    return projections_measurement(
        read_data_exchange(path, rows=options.slices or None),
        modality=options.modality or "ct",
        axis=options.axis,
        size=options.size,
        bin_spacing_mm=options.bin_spacing_mm,
        every=options.every,
    )


def _matlab(path: Any, options: Options) -> Measurement:
    if set(options.layout.lower()) & set("cxyz"):
        options.only("k-space in a MATLAB array", *_KSPACE, "dataset", "layout", "corner")
        array = read_matlab(path, dataset=options.dataset)
        kspace = read_kspace_array(path, layout=options.layout, centred=not options.corner, array=array)
        return _of_kspace(kspace.select(options.slices) if options.slices else _middle(kspace), options)
    options.only("a sinogram in a MATLAB array", *_SINOGRAM, "dataset", "layout")
    return _of_sinogram(read_matlab_sinogram(path, layout=options.layout, dataset=options.dataset), options)


def _interfile(path: Any, options: Options) -> Measurement:
    options.only(FORMATS["interfile_sinogram"], *_SINOGRAM, "oblique")
    sinogram = read_interfile_sinogram(path)
    if not options.oblique:
        return _of_sinogram(sinogram, options)
    options.only("oblique segments", "oblique", "modality", "size", "bin_spacing_mm", "arc_deg", "background",
                 "efficiency", "attenuation")  # fmt: skip
    mu = _attenuation(options.attenuation)
    return oblique_measurement(
        sinogram,
        background=_beside(options.background, options, "background"),
        efficiency=_beside(options.efficiency, options, "efficiency"),
        attenuation=None if mu is None or mu.ndim != 3 else np.moveaxis(mu, 0, 2),
        modality=options.modality or "pet_fdg",
        size=options.size,
        bin_spacing_mm=options.bin_spacing_mm,
        arc_deg=options.arc_deg,
    )


def _of_sinogram(sinogram: Sinogram, options: Options) -> Measurement:
    geometry: dict[str, Any] = {
        "size": options.size,
        "bin_spacing_mm": options.bin_spacing_mm,
        "arc_deg": options.arc_deg,
        "every": options.every,
    }
    sinogram = _planes(sinogram, options)
    background = _beside(options.background, options, "background")
    blank = _beside(options.blank, options, "blank")
    if blank is not None:
        for name in ("efficiency", "attenuation"):
            if getattr(options, name):
                raise refusal(name, "no such option for a transmission scan", repr(getattr(options, name)))
        return transmission_measurement(sinogram, blank, background=background, modality=options.modality or "ct",
                                        axis=options.axis, **geometry)  # fmt: skip
    if options.axis is not None:
        raise refusal("axis", "no such option for an emission scan", options.axis)
    return emission_measurement(
        sinogram,
        background=background,
        efficiency=_beside(options.efficiency, options, "efficiency"),
        attenuation=_attenuation(options.attenuation),
        modality=options.modality or "pet_fdg",
        **geometry,
    )


def _planes(sinogram: Sinogram, options: Options) -> Sinogram:
    if not options.slices:
        return sinogram
    count = len(sinogram.values)
    if any(not 0 <= s < count for s in options.slices):
        raise refusal("slices", f"some of the planes 0 to {count - 1}", list(options.slices))
    return Sinogram(sinogram.values[list(options.slices)], sinogram.angles, sinogram.bin_spacing_mm,
                    sinogram.plane_spacing_mm, sinogram.notes, {**sinogram.metadata, "segments": []})  # fmt: skip


def _beside(path: str, options: Options, argument: str) -> Sinogram | None:
    """Read a sinogram that goes with the counts, of any format, in the same layout."""
    if not path:
        return None
    kind = detect_format(path)
    if kind == "interfile_sinogram":
        found = read_interfile_sinogram(path)
    elif kind == "matlab":
        found = read_matlab_sinogram(path, layout=options.layout)
    elif kind == "array" and options.layout:
        found = _array_sinogram(path, options.layout)
    else:
        raise refusal(argument, "a sinogram (Interfile, MATLAB, or an array with a layout)", FORMATS[kind])
    return _planes(found, options)


def _attenuation(path: str) -> np.ndarray | None:
    """Read an attenuation image: NIfTI ``(X, Y, Z)``, whose slices become planes, or an array ``(H, W)``."""
    if not path:
        return None
    kind = detect_format(path)
    if kind == "array":
        return read_npy(path, "attenuation").astype(np.float32)
    if kind not in ("nifti", "interfile_image"):
        raise refusal("attenuation", "an image", FORMATS[kind])
    volume = read_nifti(path) if kind == "nifti" else read_interfile_image(path)
    values = volume.values if volume.values.ndim == 3 else volume.values[..., 0]
    return values[..., 0] if values.shape[2] == 1 else np.moveaxis(values, 2, 0)


def _castor(path: Any, options: Options) -> Measurement:
    options.only(FORMATS["castor"], "modality", "scanner", "normalization", "size", "spacing_mm")
    if not options.scanner:
        raise refusal("scanner", "the crystal table (.lut) of the scanner", "none")
    return castor_measurement(
        read_castor(path),
        read_crystals(options.scanner),
        lines=read_castor(options.normalization) if options.normalization else None,
        modality=options.modality or "pet_fdg",
        size=options.size or 128,
        spacing_mm=options.spacing_mm,
    )


_READERS: dict[str, Callable[[Any, Options], Measurement]] = {
    "fastmri": _fastmri,
    "ismrmrd": _ismrmrd,
    "array": _array,
    "data_exchange": _data_exchange,
    "matlab": _matlab,
    "interfile_sinogram": _interfile,
    "castor": _castor,
}
