"""Conversion on the command line; see :mod:`multirecon.__main__`. Imports wait for the call, so that help is quick."""

from __future__ import annotations

from pathlib import Path

__all__ = ["convert", "info"]


def convert(
    raw: Path,
    output: Path,
    *,
    modality: str = "",
    slices: str = "",
    frame: int = 0,
    dataset: str = "",
    layout: str = "",
    corner: bool = False,
    keep_oversampling: bool = False,
    complex_image: bool = False,
    keep_scale: bool = False,
    calibration: int = 32,
    spacing_mm: str = "",
    size: int | None = None,
    bin_spacing_mm: float | None = None,
    axis: float | None = None,
    arc_deg: float | None = None,
    every: int = 1,
    blank: str = "",
    background: str = "",
    efficiency: str = "",
    attenuation: str = "",
    scanner: str = "",
    normalization: str = "",
    oblique: bool = False,
    series: str = "",
    gaps: str = "refuse",
    untilt: bool = False,
    source: str = "",
    reference: str = "",
    reference_modality: str = "",
    subject: str = "",
) -> None:
    """Turn a raw data file into a measurement file, or an image into another image format.

    The content of the file decides its format. OUTPUT ends in .h5; for images it may also end in .nii, .nii.gz or
    .hdr (Interfile), or be a folder (new: DICOM; with --subject: BIDS). An option that means nothing for the format is
    refused.

    Args:
        raw: file, or folder of DICOM files.
        output: what to write.
        modality: key of the image, such as t1, ct or pet_fdg.
        slices: slices, detector rows or planes, such as 3,5,8 or 0-9; k-space: the middle one by default; images: only
            with a reference.
        frame: ISMRMRD: number of the contrast, phase, repetition and set.
        dataset: HDF5 dataset or MATLAB variable.
        layout: axes of an array, a letter each: c coil, s slice, x y z image, r real/imaginary; b bin, v view, p plane.
        corner: k-space: the zero frequency is at index 0 rather than N // 2.
        keep_oversampling: k-space: keep the readout oversampling.
        complex_image: k-space: the unknown is complex rather than real.
        keep_scale: k-space: keep the unit of the file (else 1 is the 99th percentile of the image).
        calibration: k-space: size of the centre that coil maps come from, at most.
        spacing_mm: voxel size in mm along each axis, such as 0.9,0.9.
        size: projections: pixels along each side of the image.
        bin_spacing_mm: projections: bin width in mm.
        axis: projections: column of the rotation axis (Data Exchange: estimated by default).
        arc_deg: sinograms: angle covered by the views in degrees.
        every: projections: take every n-th view.
        blank: sinograms: blank scan; makes a transmission measurement.
        background: sinograms: expected randoms and scatter in counts.
        efficiency: sinograms: detection efficiencies.
        attenuation: sinograms: attenuation image in 1/cm at 511 keV.
        scanner: CASToR: crystal table (.lut).
        normalization: CASToR list-mode data: normalization file (every line with its correction factors).
        oblique: Interfile: keep the oblique segments, as one volume.
        series: DICOM: UID of the series, or its last characters.
        gaps: DICOM: refuse, interpolate or keep unequal steps between slices.
        untilt: DICOM: put the slices of a tilted gantry on a rectangular grid.
        source: folder of the DICOM series that a DICOM output is derived from.
        reference: images: a clean image beside this one, on whose grid (or one of spacing_mm) the result will lie.
        reference_modality: key of that image, such as t1.
        subject: images: label of the subject; OUTPUT is a folder then and becomes a BIDS derivative.
    """
    from .convert import convert as run
    from .options import Options

    options = Options(
        modality=modality, slices=_whole_numbers(slices), frame=frame, dataset=dataset, layout=layout, corner=corner,
        keep_oversampling=keep_oversampling, complex_image=complex_image, keep_scale=keep_scale,
        calibration=calibration, spacing_mm=_numbers(spacing_mm), size=size, bin_spacing_mm=bin_spacing_mm, axis=axis,
        arc_deg=arc_deg, every=every, blank=blank, background=background, efficiency=efficiency,
        attenuation=attenuation, scanner=scanner, normalization=normalization, oblique=oblique, series=series,
        gaps=gaps, untilt=untilt, source=source, reference=reference, reference_modality=reference_modality,
        subject=subject,
    )  # fmt: skip
    for note in run(raw, output, options):
        print(f"note       {note}")
    print(f"written    {output}")


def info(file: str) -> None:
    """Say what is in a file: a measurement, raw data, sinograms, images; or in every measurement of a folder.

    Args:
        file: a file of any format that convert reads, a folder of DICOM files, or a folder of measurement files.
    """
    from ..data.io.checks import refusal
    from ..data.io.detect import detect_format
    from .describe import describe

    root = Path(file)
    measurements = sorted(root.glob("*.h5")) if root.is_dir() else []
    if root.is_dir() and not measurements:
        try:
            detect_format(root)
        except ValueError:
            raise refusal("file", "a folder with measurement files *.h5 or DICOM files", f"none in {file!r}") from None
    for one in measurements or [root]:
        if measurements:
            print(f"file       {one}")
        for label, text in describe(one):
            print(f"{label:10} {text}")


def _whole_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of ``3,5,8-10``."""
    result: list[int] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or len(part) > 12:
            raise ValueError(f"slices: expected whole numbers such as 3,5,8-10, got {text!r}")
        stop = int(last if dash else first)
        if not int(first) <= stop < int(first) + 100_000:
            raise ValueError(f"slices: expected an ascending range, got {part!r}")
        result += range(int(first), stop + 1)
    return tuple(result)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(p) for p in text.split(",") if p.strip())
    except ValueError:
        raise ValueError(f"spacing_mm: expected numbers such as 0.9,0.9, got {text!r}") from None
