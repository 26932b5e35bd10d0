"""NIfTI, DICOM, Interfile images and BIDS: values, places, units."""

import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
import raw_files

from multirecon.data.io import (
    Volume,
    bids_name,
    read_dicom,
    read_interfile_image,
    read_nifti,
    scan_dicom,
    write_bids,
    write_dicom,
    write_interfile_image,
    write_nifti,
)


def _volume(shape=(5, 6, 7), affine=None):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    matrix = np.array([[2.0, 0, 0, 1], [0, 3, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]]) if affine is None else affine
    return Volume(values, matrix, "HU")


def _world(volume):
    """Return the positions of all voxels in mm and their values, in an order of their own."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.values.shape), indexing="ij"), -1).reshape(-1, 3)
    places = (index @ volume.affine[:3, :3].T + volume.affine[:3, 3]).round(3)
    order = np.lexsort(places.T)
    return places[order], volume.values.reshape(-1)[order]


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_nifti_comes_in_as_ras(tmp_path, big_endian, name):
    affine = np.array([[0, 0, -4.0, 10], [-2, 0, 0, 20], [0, 3, 0, 30], [0, 0, 0, 1]])
    path = raw_files.nifti(tmp_path, affine=affine, big_endian=big_endian, name=name)
    volume = read_nifti(path)
    assert volume.orientation == "RAS"
    assert volume.values.shape == (5, 3, 4)
    expected = Volume(np.arange(60, dtype=np.float32).reshape(3, 4, 5), affine)
    for a, b in zip(_world(volume), _world(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nifti_content_decides_not_the_suffix(tmp_path):
    path = raw_files.nifti(tmp_path).rename(tmp_path / "image.dat")
    assert read_nifti(path).values.shape == (3, 4, 5)


def test_nifti_scale_units_and_lack_of_orientation(tmp_path):
    image = nib.Nifti1Image(np.ones((2, 2, 2), np.int16), None)
    image.header.set_slope_inter(0.5, 3)
    image.header["pixdim"][1:4] = 0.002
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.spacing_mm == pytest.approx((2, 2, 2))
    assert "no orientation" in volume.notes[0]


def test_nifti_round_trip_keeps_shear(tmp_path):
    sheared = np.array([[2.0, 0, 0, 1], [0, 3, 0.9, 2], [0, 0, 4, 3], [0, 0, 0, 1]])
    volume = _volume(affine=sheared)
    again = read_nifti(write_nifti(volume, tmp_path / "s.nii.gz"))
    np.testing.assert_array_equal(again.values, volume.values)
    np.testing.assert_allclose(again.affine, sheared, atol=1e-6)
    with pytest.raises(ValueError, match=r"path: expected a name ending in \.nii"):
        write_nifti(volume, tmp_path / "s.mha")


def test_dicom_is_ordered_by_position_and_rescaled(tmp_path):
    volume = read_dicom(raw_files.dicom(tmp_path))
    # slice k holds 10 k: 2 * 10 k - 1024 HU; columns at 3 mm run to the left, rows at 2 mm to the back
    assert volume.values.shape == (5, 6, 4)
    assert volume.values[0, 0].tolist() == [-1024, -1004, -984, -964]
    assert volume.unit == "HU"
    assert volume.spacing_mm == (3.0, 2.0, 4.0)
    assert volume.orientation == "RAS"
    # LPS (-10, -20, 0) of the first column and row is RAS (10, 20, 0): the last index of both axes
    np.testing.assert_allclose(volume.affine @ (4, 5, 0, 1), (10, 20, 0, 1))
    assert volume.notes == ()


def test_dicom_pixel_axes(tmp_path):
    pixels = np.zeros((6, 5), np.int16)
    pixels[1, 3] = 1000  # row 1, column 3
    path = raw_files.dicom_slice(tmp_path / "a.dcm", 0, position=(0, 0, 0), pixels=pixels)
    volume = read_dicom(path)
    at = np.argwhere(volume.values == volume.values.max())[0]
    # DICOM PS3.3 C.7.6.2.1.1: column index times column spacing (3) along the row direction, row index times 2
    np.testing.assert_allclose((volume.affine @ (*at, 1))[:3], (-9, -2, 0))


def test_dicom_missing_slices_are_reported_and_filled(tmp_path):
    folder = raw_files.dicom(tmp_path, heights=(0, 4, 12, 16, 28))
    series = scan_dicom(folder)
    assert series.missing_mm == pytest.approx((8, 20, 24))
    assert not series.regular
    assert series.notes == ("3 slices missing at [8.0, 20.0, 24.0] mm",)
    with pytest.raises(ValueError, match=r"gaps: expected equally spaced.*missing at \[8.0, 20.0, 24.0\] mm"):
        series.volume()
    filled = series.volume(gaps="interpolate")
    assert filled.values.shape[2] == 8
    # pixels are linear in the slice number 0 1 [1.5] 2 3 [..] 4
    np.testing.assert_allclose(
        filled.values[0, 0], [-1024, -1004, -994, -984, -964, -957.333, -950.667, -944], atol=1e-2
    )
    assert filled.spacing_mm[2] == pytest.approx(4)
    assert series.volume(gaps="keep").values.shape[2] == 5


def test_dicom_duplicates(tmp_path):
    folder = raw_files.dicom(tmp_path)
    raw_files.dicom_slice(folder / "copy.dcm", 2, position=(-10, -20, 8))
    series = scan_dicom(folder)
    assert len(series.files) == 4
    assert "1 duplicated slices left out" in series.notes[0]
    raw_files.dicom_slice(folder / "other.dcm", 7, position=(-10, -20, 4))
    with pytest.raises(ValueError, match="one image at each position"):
        scan_dicom(folder)


def test_dicom_of_one_file_and_choice_of_series(tmp_path):
    folder = raw_files.dicom(tmp_path)
    for k in range(2):
        raw_files.dicom_slice(folder / f"b{k}.dcm", k, position=(0, 0, 5 * k), series="1.2.3.77")
    (folder / "LICENSE").write_text("not an image" * 20)
    with pytest.raises(
        ValueError, match=r"series: expected one series, got 1\.2\.3\.4 \(4 files\); 1\.2\.3\.77 \(2 files\)"
    ):
        scan_dicom(folder)
    assert read_dicom(folder, series=".77").values.shape[2] == 2


def _tilted(folder, count=12, tilt=20.0):
    """Write a tilted series of the function (x, y, z) -> 3 x + 2 y + 5 z of the world position."""
    t = np.radians(tilt)
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(t), -np.sin(t)])
    for k in range(count):
        start = np.array([-20.0, -30.0, 3.0 * k])
        j, i = np.meshgrid(np.arange(30), np.arange(20), indexing="ij")
        place = start + j[..., None] * 2 * column + i[..., None] * 2 * row
        pixels = np.rint(place @ (3, 2, 5)).astype(np.int16)
        raw_files.dicom_slice(folder / f"{k}.dcm", k, position=start, pixels=pixels, orientation=(*row, *column),
                              RescaleSlope="1", RescaleIntercept="0", PixelSpacing=[2.0, 2.0],
                              GantryDetectorTilt=str(tilt))  # fmt: skip
    return folder


@pytest.mark.parametrize("tilt", [20.0, -15.0])
def test_gantry_tilt(tmp_path, tilt):
    series = scan_dicom(_tilted(tmp_path, tilt=tilt))
    assert series.tilt_deg == pytest.approx(abs(tilt))
    assert "gantry tilt" in series.notes[-1]
    for untilt in (False, True):
        volume = series.volume(untilt=untilt)
        index = np.stack(np.meshgrid(*map(np.arange, volume.values.shape), indexing="ij"), -1)
        x, y, z = np.moveaxis(index @ volume.affine[:3, :3].T + volume.affine[:3, 3], -1, 0)
        inside = volume.values > volume.values.min()
        assert inside.mean() > 0.6
        off = np.abs(volume.values - (-3 * x - 2 * y + 5 * z))[inside]  # LPS to RAS
        # edges mix with the fill value in the slices that were moved; inside, rounding to whole numbers is left
        assert np.quantile(off, 0.9) < 1.01
        straight = np.abs(np.cross(volume.affine[:3, 0], volume.affine[:3, 1]) @ volume.affine[:3, 2])
        assert np.isclose(straight, np.prod(volume.spacing_mm)) == untilt


def test_dicom_out_is_derived_and_lies_in_the_same_place(tmp_path):
    source = scan_dicom(raw_files.dicom(tmp_path))
    volume = source.volume()
    files = write_dicom(volume, tmp_path / "out", source=source, derivation="test")
    again = scan_dicom(tmp_path / "out")
    for a, b in zip(_world(again.volume()), _world(volume), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    heads = [pydicom.dcmread(f) for f in files]
    old = pydicom.dcmread(source.files[0])
    first = heads[0]
    assert first.ImageType[:2] == ["DERIVED", "SECONDARY"]
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert first[name].value == old[name].value
    assert first.SeriesInstanceUID != old.SeriesInstanceUID
    uids = [h.SOPInstanceUID for h in heads]
    assert len({*uids, first.SeriesInstanceUID}) == len(uids) + 1
    assert all(pydicom.uid.UID(uid).is_valid and len(uid) <= 64 for uid in uids)
    for k, head in enumerate(heads):
        referred = {item.ReferencedSOPInstanceUID for item in head.SourceImageSequence}
        assert source.headers[k].SOPInstanceUID in referred
        assert len(referred) <= 3  # itself and its neighbours
    with pytest.raises(ValueError, match="folder: expected a new or empty folder"):
        write_dicom(volume, tmp_path / "out", source=source)


@pytest.mark.parametrize("modality", ["MR", "PT"])
def test_dicom_out_without_a_source(tmp_path, modality):
    volume = Volume(np.abs(_volume().values), _volume().affine)
    write_dicom(volume, tmp_path / "out", modality=modality)
    again = read_dicom(tmp_path / "out")
    np.testing.assert_allclose(again.values, volume.values, atol=2e-5 * volume.values.max())
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-6)


def test_interfile_image_of_other_hands(tmp_path):
    volume = read_interfile_image(raw_files.interfile_image(tmp_path))
    # x fastest, big-endian 16 bit times 0.5; x to the left and y to the back are flipped to RAS
    lps = 0.5 * np.arange(-2, 10).reshape(2, 2, 3).transpose(2, 1, 0)
    np.testing.assert_array_equal(volume.values, lps[::-1, ::-1])
    assert volume.spacing_mm == (2.0, 3.0, 4.0)
    np.testing.assert_allclose(volume.affine @ (1, 0.5, 0.5, 1), (0, 0, 0, 1))


def test_interfile_image_round_trip(tmp_path):
    volume = _volume()
    again = read_interfile_image(write_interfile_image(volume, tmp_path / "a.hdr"))
    np.testing.assert_array_equal(again.values, volume.values)
    np.testing.assert_allclose(again.affine, volume.affine)
    assert again.unit == "HU"
    assert (tmp_path / "a.img").stat().st_size == 4 * volume.values.size
    turned = np.array([[2.0, 1, 0, 0], [-1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(ValueError, match="parallel to the patient"):
        write_interfile_image(_volume(affine=turned), tmp_path / "b.hdr")


def test_bids(tmp_path):
    image = write_bids(_volume(), tmp_path, "pet_fdg", entities={"sub": "07", "ses": "1", "rec": "osem"},
                       sources=["sha256:12"], provenance={"method": "osem", "iterations": 4})  # fmt: skip
    assert image.relative_to(tmp_path).as_posix() == (
        "sub-07/ses-1/pet/sub-07_ses-1_trc-18FFDG_rec-osem_desc-recon_pet.nii.gz"
    )
    sidecar = json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Units"] == "HU"
    assert sidecar["Sources"] == ["sha256:12"]
    assert sidecar["GeneratedBy"][0]["Parameters"] == {"method": "osem", "iterations": 4}
    about = json.loads((tmp_path / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    for entities in ({"rec": "tv"}, {"sub": "0 7"}, {"sub": "1", "x": "2"}, {"sub": "../1"}):
        with pytest.raises(ValueError, match="entities"):
            bids_name("t1", entities)
    with pytest.raises(ValueError, match="modality"):
        bids_name("t7", {"sub": "1"})
    with pytest.raises(ValueError, match="provenance: expected plain"):
        write_bids(_volume(), tmp_path, "t1", entities={"sub": "1"}, provenance={"a": float("nan")})


@pytest.mark.realdata
def test_measured_head_ct(real_data):
    series = scan_dicom(real_data / "ct_head")
    assert len(series.files) == 8
    assert series.tilt_deg == pytest.approx(18.5, abs=1e-3)
    assert np.diff(series.positions_mm) == pytest.approx([8.004] * 2 + [5.083] + [13.997] * 4, abs=2e-3)
    with pytest.raises(ValueError, match="gaps: expected equally spaced slices"):
        series.volume()
    volume = series.volume(gaps="interpolate", untilt=True)
    assert volume.unit == "HU"
    assert volume.spacing_mm[2] == pytest.approx(5.08 * np.cos(np.radians(18.5)), abs=1e-3)
