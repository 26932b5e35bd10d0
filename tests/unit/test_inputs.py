import nibabel as nib
import numpy as np
import pytest
import torch

from multirecon.acquisition import Acquisition, CleanImage
from multirecon.inputs import InputFolder, LoadInputd, find_inputs
from multirecon.measurement import Measurement
from multirecon.space import ImageSpace

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def save_image(path, shape=(4, 5, 6), affine=AFFINE, value=1.0):
    nib.save(nib.Nifti1Image(np.full(shape, value, dtype=np.float32), affine), path)
    return path


def save_measurement(path):
    space = ImageSpace(["t1"], (4, 4), (1.0, 1.0))
    Acquisition(space, {"t1": CleanImage()})({"t1": torch.ones(1, 1, 4, 4)}, ["a"]).save(path)


def test_folder_of_mixed_inputs(tmp_path):
    save_measurement(tmp_path / "b.h5")
    save_image(tmp_path / "a.nii.gz")
    (tmp_path / "c").mkdir()
    save_image(tmp_path / "c" / "1_t1.nii.gz")
    save_image(tmp_path / "c" / "2_ct.nii.gz", value=2.0)
    (tmp_path / "notes.txt").write_text("ignored")
    data = InputFolder(tmp_path, transform=LoadInputd("image"))
    assert [item["id"] for item in find_inputs(tmp_path)] == ["a", "b", "c"]
    assert data[0]["image"].shape == (1, 4, 5, 6)
    assert np.allclose(data[0]["image"].affine, AFFINE)
    assert isinstance(data[1]["image"], Measurement)
    assert data[2]["image"][:, 0, 0, 0].tolist() == [1.0, 2.0]


def test_four_axes_are_modalities(tmp_path):
    save_image(tmp_path / "a.nii.gz", shape=(4, 5, 6, 2))
    assert InputFolder(tmp_path, transform=LoadInputd("image"))[0]["image"].shape == (2, 4, 5, 6)


def test_what_is_loaded_already_passes_through():
    image = torch.rand(2, 4, 4, 4)
    assert LoadInputd("image")({"image": image})["image"] is image


def test_default_is_used_only_without_a_folder(tmp_path):
    default = [{"image": torch.zeros(1, 2, 2), "id": "d"}]
    assert len(InputFolder("", default=default)) == 1
    assert InputFolder("", default=default)[0]["id"] == "d"
    save_image(tmp_path / "a.nii.gz")
    assert InputFolder(tmp_path, default=default)[0]["id"] == "a"


def test_empty_and_missing_folders_fail(tmp_path):
    with pytest.raises(ValueError, match="got none"):
        InputFolder(tmp_path)
    with pytest.raises(ValueError, match="existing folder"):
        InputFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got nothing"):
        InputFolder("")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: (p / "a.nii.gz").write_bytes(b"not an image"), "expected a readable image"),
        (lambda p: (p / "a.h5").write_bytes(b"not hdf5"), "expected a readable measurement"),
        (lambda p: save_image(p / "a.nii.gz", value=float("nan")), "finite"),
    ],
)
def test_unreadable_files_are_named(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        LoadInputd("image")(find_inputs(tmp_path)[0])


def test_files_on_different_grids_are_refused(tmp_path):
    (tmp_path / "s").mkdir()
    save_image(tmp_path / "s" / "a.nii.gz")
    save_image(tmp_path / "s" / "b.nii.gz", affine=np.diag([1.0, 2.0, 4.0, 1.0]))
    with pytest.raises(ValueError, match="one grid"):
        LoadInputd("image")(find_inputs(tmp_path)[0])
