"""Projections of Data Exchange, MATLAB and Interfile: axes, angles, gain, the rotation axis."""

import numpy as np
import pytest
import raw_files
import scipy.io

from multirecon.data.io import (
    Sinogram,
    direct_planes,
    estimate_axis,
    read_data_exchange,
    read_interfile_sinogram,
    read_matlab,
    read_matlab_sinogram,
    write_interfile_sinogram,
)
from multirecon.data.io.matlab import matlab_arrays
from multirecon.data.io.rotation_axis import axis_of_mass, axis_of_opposite_views


def test_data_exchange(tmp_path):
    data = read_data_exchange(raw_files.exchange(tmp_path))
    lines, angles = raw_files.disc_projections()
    np.testing.assert_allclose(data.angles, angles)
    assert data.gain == pytest.approx(2.0, rel=0.1)
    # the error of -log of n photons is 1 / sqrt(n): 10000 photons, thinned by up to exp(-0.96)
    assert np.abs(data.line_integrals() - lines).max() < 6 * np.exp(0.48) / 100
    assert data.white.mean() == pytest.approx(20100, rel=0.01)
    assert read_data_exchange(tmp_path / "scan.h5", rows=[1]).values.shape == (1, 60, 80)


def test_data_exchange_units_and_absences(tmp_path):
    def edit(file):
        file["exchange/theta"][...] = np.deg2rad(file["exchange/theta"][...])
        file["exchange/theta"].attrs["units"] = "radians"
        del file["exchange/data_dark"]
        pixel = file.create_dataset("measurement/instrument/detector/actual_pixel_size_x", data=6.5)
        pixel.attrs["units"] = "micron"

    data = read_data_exchange(raw_files.exchange(tmp_path, edit=edit, dark=0.0))
    np.testing.assert_allclose(data.angles, raw_files.disc_projections()[1])
    assert data.bin_spacing_mm == pytest.approx(0.0065)
    assert "no dark fields" in data.notes[0]


@pytest.mark.parametrize(("views", "last"), [(60, 180.0), (61, 180.0), (90, 360.0), (45, 200.0)])
@pytest.mark.parametrize("axis", [43.3, 36.0, 39.5])
def test_rotation_axis_by_both_ways(views, last, axis):
    lines, angles = raw_files.disc_projections(views=views, last=last, axis=axis)
    noisy = lines + 0.02 * np.random.default_rng(0).normal(size=lines.shape)
    assert axis_of_opposite_views(noisy, angles) == pytest.approx(axis, abs=0.2)
    assert axis_of_mass(lines, angles) == pytest.approx(axis, abs=0.05)
    assert estimate_axis(noisy, angles) == axis_of_opposite_views(noisy, angles)


def test_rotation_axis_of_a_limited_arc():
    lines, angles = raw_files.disc_projections(last=100.0)
    with pytest.raises(ValueError, match="two views half a turn apart"):
        axis_of_opposite_views(lines, angles)
    assert estimate_axis(lines, angles) == pytest.approx(43.3, abs=0.05)
    with pytest.raises(ValueError, match="45 degrees"):
        estimate_axis(lines[:, :5], angles[:5])


def test_matlab_axes(tmp_path):
    raw_files.matlab(tmp_path)
    sinogram = read_matlab_sinogram(tmp_path / "sino.mat")
    np.testing.assert_array_equal(sinogram.values[0], np.arange(60).reshape(10, 6).T)
    np.testing.assert_array_equal(read_matlab(raw_files.matlab73(tmp_path)), np.arange(60).reshape(10, 6))
    assert matlab_arrays(tmp_path / "v73.mat")["counts"][0] == (10, 6)
    assert read_matlab_sinogram(tmp_path / "v73.mat", layout="vb").values.shape == (1, 10, 6)
    raw_files.matlab(tmp_path, "two.mat", a=np.ones((2, 3)), b=np.ones((2, 4)))
    assert read_matlab(tmp_path / "two.mat", dataset="b").shape == (2, 4)


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_classes_as_scipy_writes_them(tmp_path, compressed):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.random((3, 4)),
        "b": rng.integers(-9, 9, (3, 4, 2)).astype("i2"),
        "c": (rng.random((2, 2)) + 1j).astype("c8"),
        "d": np.array([[True, False]]),
        "a_long_name": np.array([[1, 2]], "u1"),
    }
    others = {"text": "x", "cell": np.array([[1, "b"]], object)}
    scipy.io.savemat(tmp_path / "a.mat", {**arrays, **others}, do_compression=compressed)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read_matlab(tmp_path / "a.mat", dataset=name), array)
    assert matlab_arrays(tmp_path / "a.mat")["cell"] == ((1, 2), "cell")
    with pytest.raises(ValueError, match="dataset: expected one of"):
        read_matlab(tmp_path / "a.mat", dataset="text")
    scipy.io.savemat(tmp_path / "v4.mat", {"a": arrays["a"]}, format="4")
    np.testing.assert_array_equal(read_matlab(tmp_path / "v4.mat"), arrays["a"])


def test_interfile_segments(tmp_path):
    sinogram = read_interfile_sinogram(raw_files.interfile_sinogram(tmp_path))
    # file order: segment, view, axial position, bin; segments of 1, 2, 1 planes, 4 views, 5 bins
    flat = np.arange(80, dtype=np.float32)
    middle = flat[20:60].reshape(4, 2, 5).swapaxes(0, 1)
    np.testing.assert_array_equal(
        sinogram.values, np.concatenate([flat[:20].reshape(1, 4, 5), middle, flat[60:].reshape(1, 4, 5)])
    )
    direct = direct_planes(sinogram)
    np.testing.assert_array_equal(direct.values, middle)
    assert "2 of 4 planes" in direct.notes[-1]
    assert sinogram.bin_spacing_mm == 2.5
    assert sinogram.plane_spacing_mm == pytest.approx(6.0)  # ring distance: no axial compression
    np.testing.assert_allclose(sinogram.angles, np.arange(4) * np.pi / 4)


def test_interfile_projections_of_version_3(tmp_path):
    lines = [
        "!number format := unsigned integer",
        "!number of bytes per pixel := 2",
        "imagedata byte order := LITTLEENDIAN",
        "!matrix size [1] := 5",
        "!matrix size [2] := 3",
        "!number of projections := 4",
        "!extent of rotation := 360",
        "!direction of rotation := CW",
        "start angle := 90",
        "scaling factor (mm/pixel) [1] := 4.4",
    ]
    path = raw_files.interfile_sinogram(tmp_path, lines, np.arange(60, dtype="<u2").tobytes())
    sinogram = read_interfile_sinogram(path)
    np.testing.assert_array_equal(sinogram.values, np.arange(60).reshape(4, 3, 5).swapaxes(0, 1))
    np.testing.assert_allclose(sinogram.angles, np.pi / 2 * np.array([1, 0, -1, -2]))
    assert sinogram.bin_spacing_mm == 4.4


def test_interfile_sinogram_round_trip(tmp_path):
    values = np.random.default_rng(0).random((3, 8, 9)).astype(np.float32)
    sinogram = Sinogram(values, 0.3 + np.arange(8) * np.pi / 8, 2.0, 3.0)
    again = read_interfile_sinogram(write_interfile_sinogram(sinogram, tmp_path / "a.hs"))
    np.testing.assert_array_equal(again.values, values)
    np.testing.assert_allclose(again.angles, sinogram.angles)
    assert (again.bin_spacing_mm, again.plane_spacing_mm) == pytest.approx((2.0, 3.0))
    with pytest.raises(ValueError, match="angles: expected views spread evenly"):
        write_interfile_sinogram(Sinogram(values, np.arange(8.0)), tmp_path / "b.hs")


@pytest.mark.realdata
def test_measured_tooth(real_data):
    data = read_data_exchange(real_data / "ct_raw" / "tooth.h5")
    assert data.values.shape == (2, 181, 640)
    lines = data.line_integrals()
    for rows in (slice(None), slice(0, 1), slice(1, 2)):
        assert abs(estimate_axis(lines[rows], data.angles) - 296) < 1


@pytest.mark.realdata
def test_measured_transmission(real_data):
    blank, scan = (read_matlab_sinogram(real_data / "pet_transmission" / f"phan_{n}.mat") for n in ("blank", "trans"))
    assert blank.values.shape == scan.values.shape == (1, 192, 160)
    assert blank.values.sum() == pytest.approx(1.76e6, rel=0.01)
    assert scan.values.sum() == pytest.approx(0.92e6, rel=0.01)
