"""The parts of the MONAI Deploy operators that need no SDK: items, the runner, writers."""

import importlib
import importlib.util
import json
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from contract.promises import BUNDLES, CPU

from multirecon.acquisition import Acquisition, CartesianMR
from multirecon.bundle import find, load
from multirecon.data.io import Volume, read_dicom, scan_dicom, write_dicom, write_nifti
from multirecon.interop.deploy.images import (
    Reconstruction,
    dicom_items,
    file_items,
    item_of_image,
    load_item,
    load_series,
    sdk_parts,
)
from multirecon.interop.deploy.runner import BundleRunner, bundle_in
from multirecon.interop.deploy.writers import save_dicom, save_measurement, save_nifti
from multirecon.measurement import Measurement
from multirecon.space import ImageSpace

AFFINE = np.array([[-6.0, 0, 0, 90.0], [0, -6.0, 0, 80.0], [0, 0, 5.0, -12.0], [0, 0, 0, 1.0]])


def blob(shape=(30, 28, 2), scale=400.0):
    grids = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape[:2]], indexing="ij")
    image = scale * (grids[0] ** 2 + 0.7 * grids[1] ** 2 < 0.6) * (1 + 0.3 * grids[0])
    return np.repeat(image[..., None], shape[2], -1).astype(np.float32)


@pytest.fixture
def scan(tmp_path):
    """A folder with one raw measurement of two slices, and the measurement."""
    space = ImageSpace(["flair"], (32, 32), (6.0, 6.0))
    fine = torch.from_numpy(blob((64, 64, 2), 1.0)).permute(2, 0, 1)[:, None].contiguous()
    affines = torch.from_numpy(AFFINE).repeat(2, 1, 1)
    affines[1, 2, 3] += 5
    acquisition = Acquisition(space, {"flair": CartesianMR(3)}, key="deploy", oversample=2)
    measurement = acquisition({"flair": fine}, ["a", "b"], affine=affines)
    measurement.save(tmp_path / "raw" / "scan.h5")
    return tmp_path / "raw", measurement


@pytest.fixture
def picture(tmp_path):
    """A folder with one NIfTI image."""
    (tmp_path / "images").mkdir()
    nib.save(nib.Nifti1Image(blob(), AFFINE), tmp_path / "images" / "head.nii.gz")
    return tmp_path / "images"


def files(folder):
    return {p.name: nib.load(p) for p in sorted(folder.glob("*.nii.gz")) if not p.name.endswith("_trust.nii.gz")}


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, image in expected.items():
        np.testing.assert_array_equal(ours[name].get_fdata(), image.get_fdata())
        np.testing.assert_allclose(ours[name].affine, image.affine, atol=1e-5)
        assert ours[name].get_data_dtype() == np.float32


@pytest.mark.parametrize("kind", ["raw", "images"])
def test_the_runner_gives_what_the_workflow_gives(kind, scan, picture, tmp_path):
    """Item by item, without MONAI's evaluator: the same numbers, bit for bit, raw data and images alike."""
    folder = {"raw": scan[0], "images": picture}[kind]
    bundle = find("sense_mr", BUNDLES)
    load(bundle, dataset_dir=str(folder), output_dir=str(tmp_path / "run"), device=CPU,
         **{"displayable_configs#seed": 4}).run()  # fmt: skip
    runner = BundleRunner(bundle, options={"seed": 4}, device="cpu")
    for item in file_items(folder, images=kind == "images"):
        save_nifti(runner(load_item(item)), tmp_path / "ours")
    assert_same(files(tmp_path / "ours"), files(tmp_path / "run"))


def test_items_are_found_by_kind(scan, picture):
    raw, measurement = scan
    assert [i["id"] for i in file_items(raw, images=False)] == ["scan"]
    assert [i["id"] for i in file_items(picture / "head.nii.gz", images=True)] == ["head"]
    loaded = load_item(file_items(raw, images=False)[0])
    assert loaded["image"].fingerprint() == measurement.fingerprint()
    with pytest.raises(ValueError, match="input: expected measurement files"):
        file_items(picture, images=False)
    with pytest.raises(ValueError, match="input: expected images"):
        file_items(raw, images=True)


def test_dicom_goes_in_and_out_with_its_study(tmp_path):
    """One series a sub-folder; the derived series keeps patient, study and place."""
    hu = np.round(blob(scale=60.0) - 20)
    write_dicom(Volume(hu, AFFINE, "HU"), tmp_path / "in" / "ct", modality="CT", description="head")
    (series,) = dicom_items(tmp_path / "in")
    item = load_series(series)
    assert item["id"] == "head_900"
    assert item["image"].shape == (1, *read_dicom(tmp_path / "in" / "ct").values.shape)
    result = Reconstruction("head", "ct", Volume(item["image"][0].numpy(), item["image"].affine.numpy(), "HU"), series)
    (folder,) = save_dicom([result], tmp_path / "out")
    assert folder.name == "head_ct"
    again, given = scan_dicom(folder), read_dicom(tmp_path / "in" / "ct")
    assert again.headers[0].StudyInstanceUID == series.headers[0].StudyInstanceUID
    assert again.headers[0].SeriesInstanceUID != series.headers[0].SeriesInstanceUID
    np.testing.assert_allclose(again.volume().values, given.values, atol=0.5)
    np.testing.assert_allclose(again.volume().affine, given.affine, atol=1e-3)
    with pytest.raises(ValueError, match="input: expected DICOM images"):
        dicom_items(tmp_path)


def test_images_of_the_sdk_keep_values_and_place():
    """Their axes run the other way (Z, Y, X); nothing is cast to 8 bits, and the way back is exact."""
    result = Reconstruction("s", "ct", Volume(blob() - 1000.5, AFFINE, "HU"))
    array, metadata = sdk_parts(result)
    assert array.dtype == np.float32
    assert array.shape == (2, 28, 30)
    image = SimpleNamespace(asnumpy=lambda: array, metadata=lambda: metadata)
    item = item_of_image(image)
    np.testing.assert_array_equal(item["image"][0].numpy(), result.volume.values)
    np.testing.assert_array_equal(item["image"].affine.numpy(), AFFINE)
    lps = {"affine": np.diag([-1.0, -1, 1, 1]) @ AFFINE, "space": "LPS"}
    item = item_of_image(SimpleNamespace(asnumpy=lambda: array, metadata=lambda: lps))
    np.testing.assert_array_equal(item["image"].affine.numpy(), AFFINE)
    with pytest.raises(ValueError, match="expected an affine"):
        item_of_image(SimpleNamespace(asnumpy=lambda: array, metadata=dict))


def test_raw_measurements_are_written_back(scan, picture, tmp_path):
    _, measurement = scan
    file = save_measurement({"image": measurement, "id": "a/b"}, tmp_path / "out")
    assert file.name == "a-b.h5"
    assert Measurement.load(file).fingerprint() == measurement.fingerprint()
    with pytest.raises(ValueError, match="expected a raw measurement"):
        save_measurement(load_item(file_items(picture, images=True)[0]), tmp_path / "out")


def test_spectral_images_keep_their_bins(tmp_path):
    volume = Volume(np.stack([blob(), 2 * blob(), 3 * blob()], -1), AFFINE, "1/cm")
    (file,) = save_nifti([Reconstruction("s", "ct_bins", volume)], tmp_path)
    assert nib.load(file).shape == (30, 28, 2, 3)
    array, _ = sdk_parts(Reconstruction("s", "ct_bins", volume))
    assert array.shape == (2, 28, 30, 3)


def test_the_model_folder_is_a_bundle_or_holds_one(tmp_path):
    root = find("sense_mr", BUNDLES).root
    assert bundle_in(root).name == "sense_mr"
    shutil.copytree(root, tmp_path / "models" / "sense_mr")
    assert bundle_in(tmp_path / "models").name == "sense_mr"
    shutil.copytree(root, tmp_path / "models" / "other_mr")
    with pytest.raises(ValueError, match=r"of one bundle, got \['other_mr', 'sense_mr'\]"):
        bundle_in(tmp_path / "models")
    with pytest.raises(ValueError, match="model: expected the folder of a bundle"):
        bundle_in(tmp_path / "nowhere")


def test_an_archive_of_another_multirecon_is_refused_in_one_line(tmp_path):
    copy = shutil.copytree(find("sense_mr", BUNDLES).root, tmp_path / "sense_mr")
    metadata = json.loads((copy / "configs" / "metadata.json").read_text())
    metadata["multirecon"]["package"] = {"version": "0.0.1", "sha256": "0" * 64}
    (copy / "configs" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"was packed with version 0\.0\.1") as refused:
        BundleRunner(copy, device="cpu")
    assert "\n" not in str(refused.value)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="stepps"):
        BundleRunner(find("sense_mr", BUNDLES), options={"stepps": 3}, device="cpu")


def test_without_the_sdk_one_line_says_what_is_missing():
    if importlib.util.find_spec("monai.deploy") is not None:
        return  # here it is installed: the import below works
    with pytest.raises(ImportError, match=r"expected the MONAI Deploy App SDK \(`ci/interop_env.sh deploy`"):
        importlib.import_module("multirecon.interop.deploy.operators")


def test_nifti_of_a_volume_is_what_the_loader_reads(tmp_path):
    file = write_nifti(Volume(blob(), AFFINE), tmp_path / "head.nii.gz")
    item = load_item(file_items(file, images=True)[0])
    np.testing.assert_array_equal(item["image"][0].numpy(), blob())
