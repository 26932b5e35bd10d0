"""`multirecon convert` and `multirecon info`: every format becomes a measurement whose model fits its data."""

import numpy as np
import pytest
import raw_files as raw
import torch
from scipy import ndimage

from multirecon.__main__ import main
from multirecon.conversion import Options, convert, describe, kspace_measurement, projections_measurement
from multirecon.data.io import Sinogram, read_data_exchange, read_kspace_array, write_interfile_sinogram
from multirecon.inputs import LoadInputd
from multirecon.measurement import Measurement
from multirecon.operators import MaskedFourier, ParallelBeam, PETProjector
from multirecon.reconstruction.analytic import fbp
from multirecon.solvers import conjugate_gradient


def _convert(path, output, **options):
    notes = convert(path, output, Options(**options))
    return Measurement.load(output), notes


def test_kspace_is_explained_by_a_real_image(tmp_path):
    data, image = raw.coil_data(nx=48, ny=40, coils=6, sigma=2e-3)
    mask = np.zeros((48, 40), bool)
    mask[:, ::2] = True
    mask[:, 8:32] = True
    np.save(tmp_path / "k.npy", 1e-4 * data * mask)
    m, notes = _convert(tmp_path / "k.npy", tmp_path / "k.h5", modality="t2", spacing_mm=(2.0, 2.5))
    assert m.space.names == ("t2",)
    assert m.space.spacing_mm == (2.0, 2.5)
    assert notes == []
    scale = m.metadata["scale"]
    assert scale == pytest.approx(1e-4 * 1.5, rel=0.25)  # the brightest part of the image is 1.5
    sigma = float(m.likelihood["t2"].sigma)
    assert 1.5e-3 < sigma * scale / 1e-4 < 2e-2  # an upper estimate: edges reach the outermost samples
    assert torch.equal(m.operator["t2"].mask[0] > 0, torch.from_numpy(mask))
    A = m.operator["t2"]
    result = conjugate_gradient(A.gram, A.adjoint(m.y["t2"]), damping=1e-3, max_iterations=30)
    found = result.x[0, 0].numpy() * scale / 1e-4
    inside = ndimage.binary_erosion(image > 0, iterations=3)
    assert np.abs(found - image)[inside].mean() < 0.08
    assert m.batch_size == 1


def test_kspace_of_one_coil_slices_and_unit(tmp_path):
    path = raw.fastmri(tmp_path, single=True)
    middle, _ = _convert(path, tmp_path / "a.h5")
    assert middle.batch_size == 1
    every, notes = _convert(path, tmp_path / "b.h5", slices=(0, 1, 2), keep_scale=True, complex_image=True)
    assert every.batch_size == 3
    assert every.metadata["scale"] == 1.0
    assert every.operator["t1"].real_image is False
    assert any("modality 't1'" in n for n in notes)
    torch.testing.assert_close(middle.y["t1"][0] * middle.metadata["scale"], every.y["t1"][1])


def test_ismrmrd_keeps_its_place(tmp_path):
    m, _ = _convert(raw.ismrmrd_file(tmp_path), tmp_path / "a.h5", modality="flair", calibration=20)
    assert isinstance(m.operator["flair"], MaskedFourier)
    # the position of the slice, LPS (10, 20, 30) mm, is the zero of the transform
    place = m.space.affine.reshape(4, 4) @ torch.tensor([raw.NX // 2, raw.NY // 2, 0, 1.0], dtype=torch.float64)
    assert place.tolist() == pytest.approx([-10, -20, 30, 1])


def test_projections_of_a_disc_off_the_axis(tmp_path):
    path = raw.exchange(tmp_path, views=90, white=2e5)
    m, notes = _convert(path, tmp_path / "a.h5", bin_spacing_mm=2.0, size=72)
    assert any("axis estimated at column 43" in n for n in notes)
    assert isinstance(m.operator["ct"], ParallelBeam)
    assert m.batch_size == 2
    assert m.space.affine[1, 2, 3] - m.space.affine[0, 2, 3] == 2.0
    # 0.04 a bin of 2 mm is 0.2 1/cm; its centre is (9, -4) bins from the axis
    disc = torch.zeros(1, 1, 72, 72)
    u = (torch.arange(72) - 35.5) * m.space.spacing_mm[0]
    disc[0, 0] = 0.2 * (((u[:, None] - 18) ** 2 + (u[None] + 8) ** 2) < 24**2)
    z = m.operator["ct"](disc)
    lines, _ = raw.disc_projections(views=90)
    assert (z[0, 0].numpy() - lines[0]).std() < 0.05
    predicted = m.likelihood["ct"].mean(z)
    assert float(((predicted - m.y["ct"][:1]) / m.y["ct"][:1]).abs().mean()) < 0.02
    image = fbp(m.operator["ct"], torch.from_numpy(read_data_exchange(path).line_integrals())[:1, None])
    core = ((u[:, None] - 18) ** 2 + (u[None] + 8) ** 2) < 16**2
    assert float(image[0, 0][core].mean()) == pytest.approx(0.2, rel=0.03)


def test_gain_makes_counts_poisson(tmp_path):
    data = read_data_exchange(raw.exchange(tmp_path, gain=4.0, white=40000.0, radius=0.01, frames=30))
    m = projections_measurement(data, axis=43.3, size=16)
    z = torch.zeros_like(m.y["ct"])
    deviance = 2 * float(m.likelihood["ct"].nll(z, m.y["ct"]).sum()) / z.numel()
    assert deviance == pytest.approx(1.0, abs=0.15)
    half = projections_measurement(data, axis=43.3, size=16, every=2)
    assert half.y["ct"].shape[2] == 30
    assert half.operator["ct"].angles == m.operator["ct"].angles[::2]


def _emission(tmp_path, planes=2, seed=0):
    A = PETProjector((24, 24), (4.0, 4.0), views=18, bins=24, bin_spacing_mm=4.0)
    x = torch.zeros(planes, 1, 24, 24)
    x[:, :, 8:16, 6:14] = 5.0
    y = torch.poisson(A(x), generator=torch.Generator().manual_seed(seed))[:, 0].numpy()
    return write_interfile_sinogram(Sinogram(y, None, 4.0, 3.0), tmp_path / "pet.hs"), A(x), x


def test_pet_sinogram_with_all_that_belongs_to_it(tmp_path):
    path, clean, x = _emission(tmp_path)
    m, notes = _convert(path, tmp_path / "a.h5", size=24)
    assert isinstance(m.operator["pet_fdg"], PETProjector)
    torch.testing.assert_close(m.operator["pet_fdg"](x), clean, atol=1e-4, rtol=1e-4)
    assert any("nothing but trues" in n for n in notes)
    flat = np.full(clean[:, 0].shape, 0.25, np.float32)
    write_interfile_sinogram(Sinogram(flat), tmp_path / "flat.hs")
    np.save(tmp_path / "mu.npy", np.full((24, 24), 0.05, np.float32))
    m, _ = _convert(path, tmp_path / "b.h5", size=24, modality="pet_amyloid", background=str(tmp_path / "flat.hs"),
                    efficiency=str(tmp_path / "flat.hs"), attenuation=str(tmp_path / "mu.npy"))  # fmt: skip
    A = m.operator["pet_amyloid"]
    factors = A.attenuation_factors(torch.full((1, 1, 24, 24), 0.05))
    torch.testing.assert_close(A(x), 0.25 * factors * clean, atol=1e-4, rtol=1e-4)
    assert float(m.likelihood["pet_amyloid"].background.mean()) == 0.25


def test_transmission_with_a_blank_scan(tmp_path):
    raw.matlab(tmp_path, "trans.mat", a=np.full((10, 6), 40.0))
    raw.matlab(tmp_path, "blank.mat", b=np.full((10, 6), 80.0))
    m, notes = _convert(
        tmp_path / "trans.mat", tmp_path / "a.h5", blank=str(tmp_path / "blank.mat"), bin_spacing_mm=3.0
    )
    assert m.y["ct"].shape == (1, 1, 6, 10)
    z = torch.full_like(m.y["ct"], np.log(2))
    torch.testing.assert_close(m.likelihood["ct"].mean(z), m.y["ct"])
    assert any("angles unknown" in n for n in notes)


def test_castor_histogram_of_a_ring(tmp_path):
    raw.crystal_table(tmp_path)
    m, _ = _convert(raw.castor_histogram(tmp_path), tmp_path / "a.h5", scanner=str(tmp_path / "ring.lut"), size=32)
    assert m.y["pet_fdg"].flatten().tolist() == [12.0, 3.0]
    # (random + scatter rate) * duration of 10 s
    assert m.likelihood["pet_fdg"].background.flatten().tolist() == pytest.approx([7.5, 3.75])
    # diameters: the square of side sqrt(2) * 100 mm is crossed on 14.14 cm by the first, on 20 cm by the diagonal
    predicted = m.operator["pet_fdg"](torch.ones(1, 1, 32, 32)).flatten().tolist()
    assert predicted == pytest.approx([14.142 / 2.0, 20.0 / 2.0], rel=0.03)
    with pytest.raises(ValueError, match="scanner: expected the crystal table"):
        convert(tmp_path / "scan.cdh", tmp_path / "b.h5")
    with pytest.raises(ValueError, match="scanner: expected a table of 302 crystals or more, got 8"):
        convert(raw.castor_list(tmp_path), tmp_path / "b.h5", Options(scanner=str(tmp_path / "ring.lut")))


def test_images_become_clean_measurements_and_other_images(tmp_path):
    series = raw.dicom(tmp_path)
    m, _ = _convert(series, tmp_path / "ct.h5")
    assert m.clean == ("ct",)
    assert m.space["ct"].unit == "1/cm"
    # -1024 HU of the lowest slice in 1/cm
    assert float(m.y["ct"][0, 0, 0, 0, 0]) == pytest.approx(0.1929 * (1 - 1.024), rel=1e-4)
    convert(series, tmp_path / "ct.nii.gz")
    convert(tmp_path / "ct.nii.gz", tmp_path / "ct.hdr")
    notes = convert(tmp_path / "ct.hdr", tmp_path / "back", Options(source=str(series)))
    assert any("orientation is not in the file" in n for n in notes)
    first, second = (dict(describe(tmp_path / name)) for name in ("ct.nii.gz", "back"))
    assert first["format"] == "NIfTI image"
    assert second["format"] == "DICOM series"
    again, _ = _convert(tmp_path / "back", tmp_path / "again.h5")
    torch.testing.assert_close(again.y["ct"], m.y["ct"], atol=1e-6, rtol=0)
    torch.testing.assert_close(again.space.affine, m.space.affine, atol=1e-6, rtol=0)


def test_what_is_written_is_what_bundles_load(tmp_path):
    _convert(raw.fastmri(tmp_path), tmp_path / "a.h5")
    loaded = LoadInputd("image")({"image": str(tmp_path / "a.h5")})["image"]
    assert isinstance(loaded, Measurement)
    assert loaded.metadata["simulated"] is False


FILES = {
    "multirecon measurement": lambda d: _convert(raw.fastmri(d), d / "m.h5") and d / "m.h5",
    "NIfTI image": raw.nifti,
    "DICOM series": raw.dicom,
    "ISMRMRD raw data": raw.ismrmrd_file,
    "fastMRI k-space": raw.fastmri,
    "plain array (NumPy or HDF5)": lambda d: np.save(d / "a.npy", raw.coil_data()[0]) or d / "a.npy",
    "Data Exchange projections": raw.exchange,
    "MATLAB array": raw.matlab73,
    "Interfile image": raw.interfile_image,
    "Interfile sinogram": raw.interfile_sinogram,
    "CASToR PET events": raw.castor_list,
}


@pytest.mark.parametrize("name", FILES)
def test_info_by_content_on_one_screen(tmp_path, name, capsys):
    path = FILES[name](tmp_path)
    if path.is_file() and name not in ("Interfile image", "Interfile sinogram", "CASToR PET events"):
        path = path.rename(path.with_name("renamed.bin"))
    assert main(["info", str(path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"format     {name}"
    assert 2 <= len(printed) <= 24
    assert all(line.strip() for line in printed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{d}/none", "{d}/o.h5"], "path: expected an existing file"),
        (["{d}/scan.h5", "{d}/o.nii"], "output: expected a name ending in .h5 for Data Exchange"),
        (["{d}/scan.h5", "{d}/scan.h5"], "output: expected another file"),
        (["{d}/scan.h5", "{d}/o.h5", "--layout", "vb"], "layout: expected no such option for Data Exchange"),
        (["{d}/scan.h5", "{d}/o.h5", "--axis", "500"], "axis: expected a column within the detector"),
        (["{d}/scan.h5", "{d}/o.h5", "--axis", "nan"], "axis: expected a column within the detector"),
        (["{d}/scan.h5", "{d}/o.h5", "--slices", "7"], "slices: expected some of the rows 0 to 1"),
        (["{d}/scan.h5", "{d}/o.h5", "--slices", "1-x"], "slices: expected whole numbers"),
        (["{d}/scan.h5", "{d}/o.h5", "--size", "-3"], "size: expected > 0"),
        (["{d}/scan.h5", "{d}/o.h5", "--modality", "C T"], "name: expected a lower-case identifier"),
        (["{d}/image.nii", "{d}/o.h5"], "modality: expected the key of the image"),
        (["{d}/image.nii", "{d}/o.mha"], "output: expected .h5, .nii"),
        (["{d}/image.nii", "{d}/o.h5", "--gaps", "keep"], "gaps: expected no such option for NIfTI image"),
        (["{d}/pet.hs", "{d}/o.h5", "--background", "{d}/image.nii"], "background: expected a sinogram"),
        (["{d}/pet.hs", "{d}/o.h5", "--background", "{d}/other.hs"], "background: expected shape"),
        (["{d}/pet.hs", "{d}/o.h5", "--axis", "3"], "axis: expected no such option for an emission scan"),
        (["{d}/pet.hs", "{d}/o.h5", "--attenuation", "{d}/image.nii"], "attenuation: expected shape"),
        (["{d}/k.npy", "{d}/o.h5", "--layout", "cx"], "layout: expected 3 different letters"),
        (["{d}/k.npy", "{d}/o.h5", "--spacing-mm", "1,1,1"], "spacing_mm: expected 2 numbers"),
        (["{d}/k.npy", "{d}/o.h5", "--calibration", "4"], "calibration: expected at least 12"),
    ],
)
def test_refusals_of_the_command_leave_nothing(tmp_path, words, message, capsys):
    raw.exchange(tmp_path)
    raw.nifti(tmp_path)
    _emission(tmp_path)
    write_interfile_sinogram(Sinogram(np.ones((2, 6, 24), np.float32)), tmp_path / "other.hs")
    np.save(tmp_path / "k.npy", raw.coil_data()[0])
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(["convert", *(w.format(d=tmp_path) for w in words)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.realdata
def test_measured_files(real_data, tmp_path):
    m, _ = _convert(real_data / "kspace" / "cartesian_ksp.npy", tmp_path / "k.h5", modality="t1")
    assert m.y["t1"].shape == (1, 8, 230, 180)
    zero_filled = m.back_projection()
    residual = m.y["t1"] - m.operator["t1"](zero_filled)
    assert float(torch.linalg.vector_norm(residual) / torch.linalg.vector_norm(m.y["t1"])) < 0.6
    again = kspace_measurement(read_kspace_array(real_data / "kspace" / "cartesian_ksp.npy"))
    assert again.fingerprint() == m.fingerprint()
    trans = real_data / "pet_transmission"
    m, _ = _convert(trans / "phan_trans.mat", tmp_path / "p.h5", blank=str(trans / "phan_blank.mat"))
    blank = m.likelihood["ct"].I0
    image = fbp(m.operator["ct"], torch.log(blank / m.y["ct"].clamp_min(1)))
    assert float(image[0, 0, 60:100, 60:100].mean()) > 5 * abs(float(image[0, 0, :20, :20].mean()))
