"""K-space of plain arrays, ISMRMRD and fastMRI: places, masks, oversampling, noise, geometry."""

import h5py
import ismrmrd
import numpy as np
import pytest
import raw_files

from multirecon.data.io import read_fastmri, read_ismrmrd, read_kspace_array


def _images(kspace):
    axes = tuple(range(2, kspace.data.ndim))
    return np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(kspace.data, axes), axes=axes, norm="ortho"), axes)


@pytest.mark.parametrize("layout", ["cxy", "xyc", "yxc", "cxyr", "rxyc"])
def test_layouts(tmp_path, layout):
    data = raw_files.coil_data()[0]
    array = data if "r" not in layout else np.stack([data.real, data.imag])
    letters = "cxy" if "r" not in layout else "rcxy"
    np.save(tmp_path / "k.npy", array.transpose([letters.index(a) for a in layout]))
    kspace = read_kspace_array(tmp_path / "k.npy", layout=layout)
    np.testing.assert_array_equal(kspace.data, data[None])
    assert kspace.mask.shape == (1, 32, 24)


def test_plain_hdf5_big_endian_and_corner(tmp_path):
    data = raw_files.coil_data()[0]
    with h5py.File(tmp_path / "k.h5", "w") as file:
        file["scan/data"] = np.fft.ifftshift(data, (1, 2)).astype(">c8")
        file["other"] = np.ones((3, 3))
    kspace = read_kspace_array(tmp_path / "k.h5", centred=False)
    np.testing.assert_array_equal(kspace.data[0], data)
    assert kspace.metadata["dataset"] == "scan/data"


def test_ismrmrd_lines_find_their_places(tmp_path):
    path = raw_files.ismrmrd_file(tmp_path, slices=2)
    kspace = read_ismrmrd(path, whiten=False)
    assert kspace.data.shape == (2, raw_files.COILS, raw_files.NX, raw_files.NY)
    assert kspace.spacing_mm == (2.0, 3.0)
    for s in range(2):
        expected = raw_files.coil_data(seed=s)[0]
        keep = np.arange(raw_files.NY) != 3  # that line lacks a sample
        np.testing.assert_allclose(kspace.data[s][..., keep], expected[..., keep], atol=1e-5)
        np.testing.assert_allclose(kspace.data[s], expected, atol=0.05)
    assert kspace.mask[:, 1:].all()
    assert kspace.mask[0, 0].tolist() == [y != 3 for y in range(raw_files.NY)]


def test_ismrmrd_geometry_whitening_and_undersampling(tmp_path):
    lines = raw_files.standard_lines(skipped=(2, 5, 20))
    kspace = read_ismrmrd(
        raw_files.ismrmrd_file(tmp_path, acquisitions=[a for a in lines if a.idx.kspace_encode_step_1 != 3])
    )
    assert sorted(np.nonzero(~kspace.mask[0].any(0))[0]) == [2, 3, 5, 20]
    assert kspace.spatial == (raw_files.NX, raw_files.NY)
    assert "decorrelated" in kspace.notes[0]
    # the position of the slice (10, 20, 30 mm, LPS) is where the zero of the centred transform lies
    np.testing.assert_allclose(kspace.affines[0] @ (raw_files.NX // 2, raw_files.NY // 2, 0, 1), (-10, -20, 30, 1))
    np.testing.assert_allclose(np.linalg.norm(kspace.affines[0][:3, :3], axis=0), (2, 3, 5))


def test_ismrmrd_noise_becomes_white(tmp_path):
    rng = np.random.default_rng(0)
    mixing = np.tril(rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4))) + 2 * np.eye(4)

    def noise(n):
        return (mixing @ (rng.normal(size=(4, n)) + 1j * rng.normal(size=(4, n)))).astype(np.complex64)

    lines = [raw_files.acquisition(noise(4000), 0, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])]
    lines += [raw_files.acquisition(noise(2 * raw_files.NX), y) for y in range(raw_files.NY)]
    path = raw_files.ismrmrd_file(tmp_path, acquisitions=lines)
    before, after = read_ismrmrd(path, crop=False, whiten=False).data[0], read_ismrmrd(path, crop=False).data[0]
    covariance = [np.cov(d.reshape(4, -1)) for d in (before, after)]
    assert np.trace(covariance[1]).real == pytest.approx(np.trace(covariance[0]).real, rel=0.1)
    off = [np.abs(c - np.diag(np.diag(c))).max() / np.abs(c).max() for c in covariance]
    assert off[0] > 0.3
    assert off[1] < 0.1


def test_ismrmrd_averages_frames_and_asymmetric_echo(tmp_path):
    data = raw_files.coil_data()[0]
    lines = []
    for y in range(raw_files.NY):
        lines += [raw_files.acquisition(data[:, :, y] * w, y, average=a) for a, w in enumerate((0.5, 1.5))]
        lines.append(raw_files.acquisition(3 * data[:, 8:, y], y, contrast=1, centre=raw_files.NX // 2 - 8))
    path = raw_files.ismrmrd_file(tmp_path, header=raw_files.xml(oversampling=1), acquisitions=lines)
    np.testing.assert_allclose(read_ismrmrd(path).data[0], data, atol=1e-5)
    echo = read_ismrmrd(path, frame=1)
    np.testing.assert_allclose(echo.data[0][:, 8:], 3 * data[:, 8:], atol=1e-5)
    assert not echo.mask[0, :8].any()
    assert echo.mask[0, 8:].all()
    with pytest.raises(ValueError, match="frame: expected 0 to 1"):
        read_ismrmrd(path, frame=2)


@pytest.mark.parametrize("single", [False, True])
def test_fastmri(tmp_path, single):
    path = raw_files.fastmri(tmp_path, single=single)
    kspace = read_fastmri(path, slices=[2, 0])
    expected = np.stack([raw_files.coil_data(seed=s)[0] for s in (2, 0)])
    np.testing.assert_allclose(kspace.data, expected[:, :1] if single else expected, atol=1e-5)
    assert kspace.spacing_mm == (2.0, 3.0)
    assert kspace.metadata["acquisition"] == "AXT2"
    assert read_fastmri(path, crop=False).spatial == (64, 24)


def test_fastmri_mask_and_missing_header(tmp_path):
    mask = np.ones(24, np.uint8)
    mask[::3] = 0
    kspace = read_fastmri(raw_files.fastmri(tmp_path, mask=mask, slices=1))
    assert (kspace.mask[0].any(0) == mask.astype(bool)).all()
    assert not kspace.data[..., ::3].any()
    plain = read_fastmri(raw_files.fastmri(tmp_path, header=False, slices=1, name="b.h5"))
    assert plain.spacing_mm is None
    assert "no ISMRMRD header" in plain.notes[-1]


@pytest.mark.realdata
def test_measured_kspace(real_data):
    kspace = read_kspace_array(real_data / "kspace" / "cartesian_ksp.npy")
    assert kspace.data.shape == (1, 8, 230, 180)
    assert kspace.mask.mean() == pytest.approx(0.124, abs=5e-4)
