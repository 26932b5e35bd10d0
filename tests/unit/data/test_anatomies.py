import nibabel as nib
import numpy as np
import pytest
import torch

from multirecon.data.anatomies import list_anatomies, load_anatomy
from multirecon.data.label_repair import crop_to_head, repair
from multirecon.data.tissues import label_names, mirrored_labels


def _ball(shape=(40, 40, 40), centre=(20, 20, 20), radius=15.0):
    grid = np.indices(shape)
    return sum((grid[i] - centre[i]) ** 2 for i in range(3)) < radius**2


@pytest.fixture
def small_head():
    """Nested balls: skin, bone, CSF, white matter."""
    labels = np.zeros((40, 40, 40), np.int16)
    for radius, label in ((16, 511), (13, 515), (11, 24), (8, 2)):
        labels[_ball(radius=radius)] = label
    return labels


def test_embedded_anatomy_is_the_default(embedded_only):
    assert list_anatomies() == ("mni152",)
    head = load_anatomy("mni152")
    assert head.labels.dtype == torch.int16
    assert head.affine.dtype == torch.float64
    assert torch.equal(head.affine[:3, :3], torch.eye(3, dtype=torch.float64))


def test_embedded_anatomy_has_plausible_volumes():
    labels = load_anatomy("mni152").labels

    def cm3(*wanted):
        return int(torch.isin(labels, torch.tensor(wanted, dtype=torch.int16)).sum()) / 1000

    assert 450 < cm3(2, 41) < 700
    assert 550 < cm3(3, 42) < 800
    assert 10 < cm3(10, 49) < 20  # thalamus
    assert 5 < cm3(11, 50) < 14  # caudate
    assert 6 < cm3(12, 51) < 15  # putamen
    assert 1.5 < cm3(13, 52) < 5  # pallidum
    assert 10 < cm3(4, 43) < 45  # lateral ventricles
    assert 100 < cm3(8, 47) < 180  # cerebellar cortex
    assert 12 < cm3(16) < 35  # brainstem
    assert 350 < cm3(515, 516) < 900  # bone


def test_embedded_anatomy_lies_the_right_way_round():
    """RAS: left labels at lower x than right ones, frontal sinus in front of the cerebellum, ventricles above it."""
    labels = load_anatomy("mni152").labels

    def centre(*wanted):
        mask = torch.isin(labels, torch.tensor(wanted, dtype=torch.int16))
        return mask.nonzero().double().mean(0)

    assert centre(3)[0] + 30 < centre(42)[0]
    assert centre(7, 8, 46, 47)[1] + 20 < centre(506)[1]
    assert centre(8, 47)[2] + 20 < centre(4, 43)[2]


def test_embedded_skull_encloses_the_brain_above_its_base():
    """From every brain voxel of a mid slice the way out meets bone."""
    head = load_anatomy("mni152")
    z = int(head.brain_box[:, 2].double().mean())
    plane = head.labels[:, :, z]
    brain = torch.isin(plane, torch.tensor([2, 3, 41, 42], dtype=torch.int16))
    bone = torch.isin(plane, torch.tensor([515, 516], dtype=torch.int16))
    from scipy import ndimage

    inside, _ = ndimage.label(~bone.numpy())
    assert set(np.unique(inside[brain.numpy()])).isdisjoint({inside[0, 0]})


def test_reads_a_folder_in_any_orientation_and_type(tmp_path, monkeypatch, small_head):
    asymmetric = small_head.copy()
    asymmetric[5:20, 20, 20] = 3
    affine = np.eye(4)
    stored = nib.Nifti1Image(asymmetric.astype(np.float32), affine).as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt("LIA"))
    )
    nib.save(stored, tmp_path / "training_seg_01.nii.gz")
    nib.save(nib.Nifti1Image(asymmetric.astype(np.int32), affine), tmp_path / "own.nii.gz")
    monkeypatch.setenv("MULTIRECON_ANATOMIES", str(tmp_path))
    assert list_anatomies() == ("01", "own")
    first, second = load_anatomy("01"), load_anatomy("own")
    assert torch.equal(first.labels, second.labels)
    assert torch.allclose(first.affine, second.affine)


def test_errors_name_what_is_wrong(tmp_path, monkeypatch, small_head, embedded_only):
    with pytest.raises(ValueError, match="expected one of"):
        load_anatomy("99")
    monkeypatch.setenv("MULTIRECON_ANATOMIES", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="MULTIRECON_ANATOMIES"):
        list_anatomies()
    monkeypatch.setenv("MULTIRECON_ANATOMIES", str(tmp_path))
    with pytest.raises(ValueError, match="found none"):
        list_anatomies()
    nib.save(nib.Nifti1Image(small_head, np.diag([2.0, 2, 2, 1])), tmp_path / "coarse.nii.gz")
    with pytest.raises(ValueError, match="1 mm"):
        load_anatomy("coarse")
    strange = small_head.copy()
    strange[20, 20, 20] = 77
    nib.save(nib.Nifti1Image(strange, np.eye(4)), tmp_path / "strange.nii.gz")
    with pytest.raises(ValueError, match=r"\[77\]"):
        load_anatomy("strange")


def test_repair_removes_specks_and_fills_holes_but_keeps_sinuses(small_head):
    broken = small_head.copy()
    broken[1:3, 1:3, 1:3] = 24  # speck in the air
    broken[20, 20, 29:31] = 0  # hole in the CSF
    broken[20, 20, 33] = 0  # sinus inside bone
    repaired = repair(broken)
    assert (repaired[1:3, 1:3, 1:3] == 0).all()
    assert (repaired[20, 20, 29:31] == 24).all()
    assert repaired[20, 20, 33] == 0
    untouched = np.ones_like(broken, bool)
    untouched[1:3, 1:3, 1:3] = untouched[20, 20, 29:34] = False
    assert np.array_equal(repaired[untouched], small_head[untouched])


def test_crop_refuses_an_empty_map():
    with pytest.raises(ValueError, match="labels"):
        crop_to_head(np.zeros((5, 5, 5), np.int16))


def test_mirroring_swaps_sides_and_is_its_own_inverse():
    table = mirrored_labels().long()
    assert torch.equal(table[table], torch.arange(len(table)))
    assert table[3] == 42
    assert table[24] == 24
    for label, name in label_names().items():
        if name.startswith("left "):
            assert label_names()[int(table[label])] == "right " + name.removeprefix("left ")


def test_midplane_separates_the_hemispheres():
    head = load_anatomy("mni152")
    a, b, c = head.midplane
    voxels = torch.isin(head.labels, torch.tensor([2, 3], dtype=torch.int16)).nonzero().double()
    side = voxels[:, 0] - (a + b * voxels[:, 1] + c * voxels[:, 2])
    assert (side < 2).double().mean() > 0.995


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["05", "10"])
def test_public_label_maps_load_and_are_repaired(name):
    if name not in list_anatomies():
        pytest.skip("MULTIRECON_ANATOMIES is not set")
    head = load_anatomy(name)
    labels = head.labels.numpy()
    assert np.array_equal(repair(labels), labels)  # nothing is left to repair
    assert 90 < int(head.brain_box[1, 2] - head.brain_box[0, 2]) < 160
