"""Two images on grids of their own become one problem on one grid; images become BIDS derivatives."""

import json

import numpy as np
import pytest
import torch

from multirecon.__main__ import main
from multirecon.conversion import Options, convert, mixed_grid_measurement
from multirecon.data.io import Volume, read_nifti, write_nifti
from multirecon.measurement import Measurement
from multirecon.operators import Resample


def ball(shape, spacing, thickness=None, inner=0.5, level=(0.4, 1.0), turn=0.0):
    """A ball with a brighter one inside, averaged over the slice thickness, on a grid centred on it."""
    c, s = np.cos(turn), np.sin(turn)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    values = np.zeros(shape)
    heights = np.linspace(-0.5, 0.5, 9) * (thickness or 0.0)
    for dz in heights:
        r = np.sqrt(grid[..., 0] ** 2 + grid[..., 1] ** 2 + (grid[..., 2] + dz) ** 2)
        values += np.where(r < 14 * inner, level[1], np.where(r < 14, level[0], 0.0)) / len(heights)
    rng = np.random.default_rng(0)
    return Volume((1000 * (values + 0.004 * rng.normal(size=shape))).astype(np.float32), affine)


def pair(turn=0.0):
    return ball((32, 32, 32), (1.0, 1.0, 1.0), level=(0.9, 0.5)), ball((40, 40, 10), (0.8, 0.8, 3.0), 3.0, turn=turn)


def test_the_references_grid_by_default():
    t1, flair = pair()
    m = mixed_grid_measurement(flair, "flair", t1, "t1")
    assert m.space.names == ("flair", "t1")
    assert (m.space.shape, m.space.spacing_mm) == ((32, 32, 32), (1.0, 1.0, 1.0))
    assert m.clean == ("t1",)
    A = m.operator["flair"]
    assert isinstance(A, Resample)
    assert A.thickness_mm == (0.0, 0.0, 3.0)
    # the image on its fine grid explains the thick slices up to their noise (and its own interpolation)
    fine = ball((32, 32, 32), (1.0, 1.0, 1.0)).values
    scale = float(m.metadata["notes"][0].split()[-1])
    residual = A(torch.from_numpy(fine)[None, None] / scale) - m.y["flair"]
    assert float(residual.abs().median()) < 0.02
    assert 0.5 * 4 / scale < m.metadata["sigma"] < 6 * 4 / scale


def test_a_grid_along_the_slices_of_the_image():
    t1, flair = pair(turn=0.1)
    m = mixed_grid_measurement(flair, "flair", t1, "t1", spacing_mm=(1.0, 1.0, 1.0), slices=range(1, 9, 2))
    A = m.operator["flair"]
    assert A.separable  # although the image is oblique to the reference
    assert m.y["flair"].shape == (1, 1, 40, 40, 4)
    assert m.space.shape == (32, 32, 21)  # 3 steps of 6 mm and a thickness of 3 mm
    assert A.thickness_mm == (0.0, 0.0, 3.0)
    # the middle of the grid is that of the slices taken (number 4 of 0 to 9 lies at -1.5 mm)
    middle = m.space.affine @ torch.tensor([15.5, 15.5, 10, 1.0], dtype=torch.float64)
    assert middle[:3].tolist() == pytest.approx([0, 0, -1.5], abs=1e-9)
    # the reference is a ball wherever it is seen from
    inside = m.y["t1"][0, 0, 16, 16, 11:13]
    assert inside.tolist() == pytest.approx([0.5 / 0.9] * 2, abs=0.05)


@pytest.fixture
def files(tmp_path):
    t1, flair = pair()
    write_nifti(t1, tmp_path / "t1.nii.gz")
    write_nifti(flair, tmp_path / "flair.nii.gz")
    return tmp_path


def test_by_the_command(files, capsys):
    words = ["convert", f"{files}/flair.nii.gz", f"{files}/both.h5", "--modality", "flair", "--reference",
             f"{files}/t1.nii.gz", "--reference-modality", "t1", "--spacing-mm", "1,1,1",
             "--slices", "0-8"]  # fmt: skip
    assert main(words) == 0
    assert "t1 interpolated to the grid" in capsys.readouterr().out
    assert Measurement.load(files / "both.h5").available == ("flair", "t1")
    assert main(["info", f"{files}/both.h5"]) == 0
    assert "flair: resample" in capsys.readouterr().out


BESIDE = ["--reference", "{d}/t1.nii.gz", "--reference-modality", "t1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "{d}/t1.nii.gz"], "reference_modality: expected the key of another modality"),
        ([*BESIDE[:-1], "flair"], "reference_modality: expected the key of"),
        (["--reference", "{d}/both", "--reference-modality", "t1"], "path: expected an existing file"),
        (["--slices", "0-3"], "slices: expected no such option for NIfTI image"),
        ([*BESIDE, "--slices", "0,1,5"], "slices: expected evenly"),
        ([*BESIDE, "--slices", "7-12"], "slices: expected evenly"),
        ([*BESIDE, "--spacing-mm", "1,1"], "spacing_mm: expected 3"),
        ([*BESIDE, "--spacing-mm", ".01,.01,.01"], "spacing_mm: expected a grid of at most"),
        (["--subject", "01"], "subject: expected no such option for a measurement"),
    ],
)  # fmt: skip
def test_refusals(files, words, message, capsys):
    before = sorted(p.name for p in files.iterdir())
    arguments = ["convert", f"{files}/flair.nii.gz", f"{files}/out.h5", "--modality", "flair"]
    assert main([*arguments, *(w.format(d=files) for w in words)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in files.iterdir()) == before


def test_an_image_becomes_a_bids_derivative(files):
    convert(files / "t1.nii.gz", files / "bids", Options(modality="t1", subject="07"))
    image = files / "bids" / "sub-07" / "anat" / "sub-07_desc-recon_T1w.nii.gz"
    np.testing.assert_array_equal(read_nifti(image).values, read_nifti(files / "t1.nii.gz").values)
    sidecar = json.loads(image.with_name("sub-07_desc-recon_T1w.json").read_text())
    assert sidecar["Sources"] == ["t1.nii.gz"]
    assert len(sidecar["GeneratedBy"][0]["Parameters"]["sha256"]["t1.nii.gz"]) == 64
    assert (files / "bids" / "dataset_description.json").exists()
    with pytest.raises(ValueError, match="entities"):
        convert(files / "t1.nii.gz", files / "bids", Options(modality="t1", subject="0/7"))
    with pytest.raises(ValueError, match=r"output: expected a folder \(BIDS\)"):
        convert(files / "t1.nii.gz", files / "bids.nii.gz", Options(modality="t1", subject="07"))
