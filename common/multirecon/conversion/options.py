"""What may be said about a conversion, and which format each of it is for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..data.io.checks import refusal

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """Options of :func:`multirecon.conversion.convert`; the defaults ask for nothing.

    Args:
        modality: key of the image, such as ``t1``, ``ct`` or ``pet_fdg``.
        slices: slices, detector rows or planes to take; all (k-space: the middle one) by default.
        frame: ISMRMRD: number of the contrast, phase, repetition and set.
        dataset: HDF5 dataset or MATLAB variable.
        layout: meaning of the axes of a plain or MATLAB array, one letter each.
        corner: plain k-space: the zero frequency is at index 0 rather than ``N // 2``.
        keep_oversampling: k-space: keep the readout oversampling.
        complex_image: k-space: the unknown is complex rather than real.
        keep_scale: k-space: keep the file's unit; without it 1 is the 99th percentile of the image.
        calibration: k-space: size of the centre that maps are estimated from, at most this along each axis.
        spacing_mm: voxel size along each axis in mm, where the file does not say (k-space) or another is wanted.
        size: pixels along each side of the image (projections).
        bin_spacing_mm: detector or radial bin width in mm, where the file does not say.
        axis: detector column of the rotation axis; estimated (Data Exchange) or central (sinograms) by default.
        arc_deg: angle covered by the views of a sinogram, where the file does not say.
        every: take every n-th view.
        blank: sinogram of the blank scan; makes a transmission measurement.
        background: sinogram of expected randoms and scatter, in counts.
        efficiency: sinogram of detection efficiencies.
        attenuation: image of the attenuation at 511 keV in 1/cm, on the grid of the result.
        scanner: CASToR: crystal table (``.lut``).
        normalization: CASToR list-mode data: normalization file, every line with its correction factors.
        oblique: Interfile: keep the oblique segments, as one volume.
        series: DICOM: UID of the series, or its last characters.
        gaps: DICOM: what to do about unequal steps: refuse, interpolate or keep.
        untilt: DICOM: put the slices of a tilted gantry on a rectangular grid.
        source: folder of the DICOM series that a DICOM output is derived from.
        reference: images: another image beside this one, whose grid (or one of ``spacing_mm``) the unknown lives on.
        reference_modality: key of that image.
        subject: images: label of the subject in a BIDS derivative.
    """

    modality: str = ""
    slices: tuple[int, ...] = ()
    frame: int = 0
    dataset: str = ""
    layout: str = ""
    corner: bool = False
    keep_oversampling: bool = False
    complex_image: bool = False
    keep_scale: bool = False
    calibration: int = 32
    spacing_mm: tuple[float, ...] = ()
    size: int | None = None
    bin_spacing_mm: float | None = None
    axis: float | None = None
    arc_deg: float | None = None
    every: int = 1
    blank: str = ""
    background: str = ""
    efficiency: str = ""
    attenuation: str = ""
    scanner: str = ""
    normalization: str = ""
    oblique: bool = False
    series: str = ""
    gaps: str = "refuse"
    untilt: bool = False
    source: str = ""
    reference: str = ""
    reference_modality: str = ""
    subject: str = ""

    def __post_init__(self) -> None:
        for name in ("size", "bin_spacing_mm", "arc_deg", "every", "calibration"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise refusal(name, "> 0", value)
        if any(not 0 < s < float("inf") for s in self.spacing_mm):
            raise refusal("spacing_mm", "numbers > 0", self.spacing_mm)

    def only(self, what: str, *allowed: str) -> None:
        """Raise ValueError if an option is set that means nothing here.

        Args:
            what: what is converted, in words.
            allowed: the options that mean something.
        """
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        strange = [name for name in given if name not in allowed]
        if strange:
            raise refusal(strange[0], f"no such option for {what} (it takes {', '.join(allowed) or 'none'})",
                          repr(getattr(self, strange[0])))  # fmt: skip
