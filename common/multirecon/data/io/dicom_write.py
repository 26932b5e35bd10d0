"""DICOM series out: derived images with the right geometry, references to their source and UIDs of their own."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ...files import atomic_path
from .checks import check_finite, refusal, require
from .dicom import DicomSeries
from .volume import Volume

__all__ = ["write_dicom"]

_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4", "PT": "1.2.840.10008.5.1.4.1.1.128"}
_FROM_PATIENT = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "StudyInstanceUID", "StudyDate",
    "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "PatientPosition", "BodyPartExamined",
)  # fmt: skip
_MAY_BE_EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                 "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
                 "PatientPosition")  # fmt: skip
_FROM_SERIES = ("KVP", "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "RepetitionTime",
                "EchoTime", "EchoTrainLength", "RescaleType", "Units", "CountsSource", "SeriesType", "CorrectedImage",
                "DecayCorrection", "CollimatorType", "RadiopharmaceuticalInformationSequence")  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CT": {"KVP": None, "RescaleType": "HU", "AcquisitionNumber": None},
    "MR": {"ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": "", "MRAcquisitionType": "",
           "RepetitionTime": None, "EchoTime": None, "EchoTrainLength": None},
    "PT": {"Units": "BQML", "CountsSource": "EMISSION", "SeriesType": ["STATIC", "IMAGE"], "CorrectedImage": "",
           "DecayCorrection": "NONE", "CollimatorType": "NONE", "FrameReferenceTime": 0},
}  # fmt: skip
_CODE = {"CodeValue": "121322", "CodingSchemeDesignator": "DCM",
         "CodeMeaning": "Source image for image processing operation"}  # fmt: skip


def write_dicom(
    volume: Volume,
    folder: str | os.PathLike[str],
    *,
    source: DicomSeries | None = None,
    modality: str = "",
    description: str = "multirecon",
    series_number: int = 900,
    derivation: str = "",
) -> list[Path]:
    """Write a volume as a series of derived images, one file a slice, and return the files.

    With a source series, patient, study and frame of reference are its own (the series and its images are new), and
    every slice refers to the source images that it overlaps. Axes are turned to left, posterior, superior; CT numbers
    are stored as they are (rounded to 1 HU), other values are scaled to 16 bits.

    Args:
        volume: three axes; the two within a slice must be perpendicular.
        folder: an empty or new folder.
        source: series that the volume was made from.
        modality: ``"CT"``, ``"MR"`` or ``"PT"``; by default the source's.
        description: series description.
        series_number: number of the series.
        derivation: what was done, in words.

    Raises:
        ValueError: if the volume cannot be said in DICOM, or the folder is not empty.
    """
    pydicom = require("pydicom")
    kind = modality or (str(source.headers[0].Modality) if source is not None else "")
    if kind not in _CLASSES:
        raise refusal("modality", f"one of {sorted(_CLASSES)}", repr(kind))
    turned = volume.reoriented("LPS")
    if turned.values.ndim != 3:
        raise refusal("volume", "three axes", turned.values.shape)
    check_finite(turned.values, "volume", "volume")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ turned.affine
    axes = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    if abs(float(axes[:, 0] @ axes[:, 1])) > 1e-4:
        raise refusal("volume", "perpendicular axes within a slice", f"the affine {np.round(affine, 4).tolist()}")
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise refusal("folder", "a new or empty folder", repr(str(folder)))
    stored, slope, intercept, signed = _stored(turned.values, kind)
    common = _common(pydicom, kind, source, description=description, number=series_number, derivation=derivation)
    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    normal = np.cross(axes[:, 0], axes[:, 1])
    height = abs(float(affine[:3, 2] @ normal))
    files = []
    for k in range(turned.values.shape[2]):
        dataset = pydicom.Dataset()
        dataset.update(common)
        place = affine[:3, 3] + affine[:3, 2] * k
        dataset.SOPInstanceUID = pydicom.uid.generate_uid()
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = _decimals(place)
        dataset.ImageOrientationPatient = _decimals([*axes[:, 0], *axes[:, 1]])
        dataset.PixelSpacing = _decimals([spacing[1], spacing[0]])
        dataset.SliceThickness = _decimals([height])[0]
        if kind != "CT":
            dataset.SpacingBetweenSlices = _decimals([height])[0]
        dataset.SliceLocation = _decimals([float(place @ normal)])[0]
        if kind == "PT":
            dataset.ImageIndex, dataset.NumberOfSlices = k + 1, turned.values.shape[2]
        _pixels(dataset, np.ascontiguousarray(stored[:, :, k].T), signed=signed)
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        references = _references(pydicom, source, place, normal, height)
        if references:
            dataset.SourceImageSequence = pydicom.Sequence(references)
        file = target / f"{k + 1:04d}.dcm"
        _save(pydicom, dataset, file)
        files.append(file)
    return files


def _stored(values: NDArray[np.float32], kind: str) -> tuple[NDArray[Any], str, str, bool]:
    """Return integers, slope and intercept as they stand in the file, and whether the integers have a sign."""
    low, high = float(values.min()), float(values.max())
    if kind == "CT":
        if low < -32768 or high > 32767:
            raise refusal("volume", "CT numbers of 16 bits", f"{low:g} to {high:g}")
        return np.rint(values).astype(np.int16), "1", "0", True
    # PET images are defined by a slope alone; so are others that are not negative
    offset = min(low, 0.0)
    slope, intercept = _decimals([(high - offset) / 65535 or 1.0])[0], _decimals([offset])[0]
    steps = np.rint((values.astype(np.float64) - float(intercept)) / float(slope))
    return np.clip(steps, 0, 65535).astype(np.uint16), slope, intercept, False


def _common(
    pydicom: Any, kind: str, source: DicomSeries | None, *, description: str, number: int, derivation: str
) -> Any:
    """Return what all slices share."""
    dataset = pydicom.Dataset()
    head = None if source is None else source.headers[0]
    for name in _FROM_PATIENT + (_FROM_SERIES if head is not None and head.get("Modality") == kind else ()):
        if head is not None and name in head:
            dataset[name] = head[name]
    now = datetime.now(UTC)
    for name in _MAY_BE_EMPTY:
        if name not in dataset:
            setattr(dataset, name, "")
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if name not in dataset:
            setattr(dataset, name, pydicom.uid.generate_uid())
    for name, value in _DEFAULTS[kind].items():
        if name not in dataset:
            setattr(dataset, name, value)
    dataset.SOPClassUID = _CLASSES[kind]
    dataset.Modality = kind
    dataset.ImageType = ["DERIVED", "SECONDARY", *(["AXIAL"] if kind == "CT" else [])]
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid()
    dataset.SeriesNumber = number
    dataset.SeriesDescription = description[:64]
    dataset.DerivationDescription = (derivation or f"Reconstructed with multirecon {__version__}")[:1024]
    dataset.Manufacturer, dataset.ManufacturerModelName = "multirecon", "multirecon"
    dataset.SoftwareVersions = __version__
    dataset.ContentDate = dataset.SeriesDate = dataset.InstanceCreationDate = now.strftime("%Y%m%d")
    dataset.ContentTime = dataset.SeriesTime = dataset.InstanceCreationTime = now.strftime("%H%M%S")
    return dataset


def _references(
    pydicom: Any, source: DicomSeries | None, place: NDArray[np.float64], normal: NDArray[np.float64], height: float
) -> list[Any]:
    """Return references to the source images that a slice overlaps, else to all of them."""
    if source is None:
        return []
    turn = float(source.axes[:, 2] @ normal)
    ends = source.positions_mm * np.sign(turn)
    near = np.abs(ends - place @ normal) <= height if abs(turn) > 0.999 else np.ones(len(ends), bool)
    chosen = near if near.any() else np.ones(len(ends), bool)
    result = []
    for index in np.nonzero(chosen)[0]:
        item, code = pydicom.Dataset(), pydicom.Dataset()
        for name, value in _CODE.items():
            setattr(code, name, value)
        item.ReferencedSOPClassUID = source.headers[index].SOPClassUID
        item.ReferencedSOPInstanceUID = source.headers[index].SOPInstanceUID
        item.PurposeOfReferenceCodeSequence = pydicom.Sequence([code])
        result.append(item)
    return result


def _pixels(dataset: Any, pixels: NDArray[Any], *, signed: bool) -> None:
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()


def _save(pydicom: Any, dataset: Any, file: Path) -> None:
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta = meta
    with atomic_path(file) as draft:
        dataset.save_as(draft, enforce_file_format=True)


def _decimals(values: Any) -> list[str]:
    """Return numbers as decimal strings of at most 16 characters, as DICOM wants them."""
    return [require("pydicom.valuerep").format_number_as_ds(float(v)) for v in values]
