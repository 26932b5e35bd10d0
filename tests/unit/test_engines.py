import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from multirecon.acquisition import Acquisition, CleanImage, block_mean
from multirecon.engines import PrepareMeasurement, SampleLog, SaveReconstructions, collate, require, safe_name
from multirecon.measurement import Measurement
from multirecon.space import ImageSpace, Modality

SPACE = ImageSpace(["t1", Modality("ct", unit="1/cm", scale=0.2)], (6, 8), (2.0, 2.0))
ACQUISITION = Acquisition(SPACE, {"t1": CleanImage(0.1)}, key="t", oversample=2)


def items(n=2):
    g = torch.Generator().manual_seed(0)
    fine = torch.rand(n, 2, 12, 16, generator=g)
    affines = [torch.diag(torch.tensor([i + 1.0, i + 1.0, i + 1.0, 1.0], dtype=torch.float64)) for i in range(n)]
    return [
        {"image": block_mean(fine[i : i + 1], 2)[0], "fine": fine[i], "id": f"s{i}", "affine": affines[i]}
        for i in range(n)
    ]


def test_simulated_batch_and_truth():
    measurement, truth = PrepareMeasurement(ACQUISITION)(collate(items()), "cpu")
    assert isinstance(measurement, Measurement)
    assert measurement.batch_size == 2
    assert truth.shape == (2, 2, 6, 8)
    assert torch.equal(measurement.space.affine[1], torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64)))


def test_channels_are_picked_by_name():
    prepare = PrepareMeasurement(ACQUISITION, modalities=["ct", "t1"])
    batch = collate(items())
    measurement, truth = prepare(batch, "cpu")
    assert torch.equal(truth[:, 0], batch["image"][:, 1])
    assert (measurement.y["t1"][:, 0] - batch["image"][:, 1]).abs().max() < 0.6


def test_training_noise_varies_and_evaluation_noise_does_not():
    batch = collate(items())
    fixed, varied = PrepareMeasurement(ACQUISITION), PrepareMeasurement(ACQUISITION, vary=True)
    assert fixed(batch)[0].fingerprint() == fixed(batch)[0].fingerprint()
    assert varied(batch)[0].fingerprint() != varied(batch)[0].fingerprint()


def test_measurement_files_are_batches_of_their_own():
    measurement = PrepareMeasurement(ACQUISITION)(collate(items()))[0]
    batch = collate([{"image": measurement, "id": "m"}])
    assert batch["id"] == ["m"]
    assert PrepareMeasurement()(batch)[1] is None
    with pytest.raises(ValueError, match="batch_size"):
        collate([{"image": measurement}, {"image": measurement}])


def test_missing_fine_grid_is_named():
    batch = collate([{k: v for k, v in item.items() if k != "fine"} for item in items()])
    with pytest.raises(ValueError, match="refined 2x"):
        PrepareMeasurement(ACQUISITION)(batch)


def run_save(tmp_path, pred, inputs, ids, **kwargs):
    engine = Engine(lambda e, b: None)
    engine.state.output = {"image": inputs, "pred": pred}
    engine.state.batch = {"id": ids}
    SaveReconstructions(tmp_path / "out", **kwargs)(engine)
    return sorted(p.name for p in (tmp_path / "out").iterdir())


def test_saved_files_have_grid_unit_and_name(tmp_path):
    measurement, truth = PrepareMeasurement(ACQUISITION)(collate(items()))
    truth[:, 1] = 0.1929
    names = run_save(tmp_path, MetaTensor(truth), measurement, ["a/0/1", "b<script>"])
    assert names == [
        "a-0-1_ct.nii.gz", "a-0-1_ct.png", "a-0-1_t1.nii.gz", "a-0-1_t1.png", "a-0-1_trust.nii.gz",
        "b-script_ct.nii.gz", "b-script_ct.png", "b-script_t1.nii.gz", "b-script_t1.png", "b-script_trust.nii.gz",
    ]  # fmt: skip
    image = nib.load(tmp_path / "out" / "b-script_t1.nii.gz")
    assert np.allclose(image.affine, np.diag([2, 2, 2, 1]))
    assert np.allclose(image.get_fdata()[..., 0], truth[1, 0])
    assert np.allclose(nib.load(tmp_path / "out" / "a-0-1_ct.nii.gz").get_fdata(), 0.0, atol=1e-3)
    trust = nib.load(tmp_path / "out" / "b-script_trust.nii.gz")
    assert trust.shape == (6, 8, 1, 2)
    assert np.allclose(trust.affine, image.affine)
    assert np.all(trust.get_fdata()[..., 0] > 0.5)  # a noisy image of t1
    assert np.all(trust.get_fdata()[..., 1] == 0)  # no measurement of ct


def test_results_of_images_are_in_the_units_of_files_already(tmp_path):
    space = ImageSpace([Modality("ct", unit="1/cm")], (4, 5), (1.0, 1.0))
    pred = MetaTensor(torch.full((1, 1, 4, 5), 40.0), affine=torch.eye(4))
    run_save(tmp_path, pred, torch.zeros(1), ["i"], space=space, png=False)
    assert np.allclose(nib.load(tmp_path / "out" / "i_ct.nii.gz").get_fdata(), 40.0)


def test_one_target_of_several_modalities_is_saved_under_its_name(tmp_path):
    space = ImageSpace(["t1", "flair"], (4, 5), (1.0, 1.0))
    pred = MetaTensor(torch.rand(1, 1, 4, 5), affine=torch.eye(4), meta={"modalities": ["flair"]})
    assert run_save(tmp_path, pred, torch.zeros(1), ["i"], space=space, png=False) == ["i_flair.nii.gz"]


def test_trust_maps_may_be_left_out(tmp_path):
    measurement, truth = PrepareMeasurement(ACQUISITION)(collate(items()))
    names = run_save(tmp_path, MetaTensor(truth), measurement, ["a", "b"], trust=False, modalities=["t1"], png=False)
    assert names == ["a_t1.nii.gz", "b_t1.nii.gz"]


def test_volume_is_saved_as_volume(tmp_path):
    pred = MetaTensor(torch.rand(1, 1, 4, 5, 6), affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    space = ImageSpace(["t1"], (4, 5), (1.0, 1.0))
    assert run_save(tmp_path, pred, torch.zeros(1), ["v"], space=space, png=False) == ["v_t1.nii.gz"]
    image = nib.load(tmp_path / "out" / "v_t1.nii.gz")
    assert image.shape == (4, 5, 6)
    assert np.allclose(np.diag(image.affine), [1, 2, 3, 1])


def test_guard_and_names():
    require(True, "fine")
    with pytest.raises(ValueError, match="empty"):
        require([], "dataset: empty")
    assert safe_name("../../etc/passwd") == "etc-passwd"
    assert safe_name("///") == "sample"


def test_training_log_names_every_sample(tmp_path):
    path = tmp_path / "new" / "samples.csv"
    for start in (0, 2):  # the second run appends, as a resumed one does
        engine = Engine(lambda e, b: None)
        SampleLog(path).attach(engine)
        engine.run([{"id": [f"01/0/{start}", "02/0/7"]}, {"id": [f"03/1/{start}"]}])
    assert path.read_text().splitlines() == [
        "iteration,samples", "1,01/0/0 02/0/7", "2,03/1/0", "1,01/0/2 02/0/7", "2,03/1/2",
    ]  # fmt: skip
    silent = Engine(lambda e, b: None)
    SampleLog(tmp_path / "none.csv", write=False).attach(silent)
    silent.run([{"id": ["a"]}])
    assert not (tmp_path / "none.csv").exists()
