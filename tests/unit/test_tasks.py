import copy
import importlib.util
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from contract.promises import unmeasured_as_image
from contract.reachability import leaks
from synthetic_head import item, pearson
from torch.nn.functional import avg_pool3d

from multirecon import tasks
from multirecon.acquisition import (
    Acquisition,
    CartesianMR,
    HadamardCamera,
    InverseCrime,
    Misregistered,
    PETScan,
    StackedCT,
)
from multirecon.acquisition.ct import TransmissionScan
from multirecon.likelihoods import Gaussian

ROOT = Path(__file__).resolve().parents[2]
SIZE, SPACING = 48, 5.0
COARSE, DEPTH = 24, 6  # of volumes, voxels of twice the spacing


def config_of(name):
    return json.loads((ROOT / "common/multirecon/tasks" / f"{name}.json").read_text(encoding="utf-8"))


@cache
def small_task(name, folder):
    """The task on a coarse grid; everything else as in its file."""
    config = config_of(name)
    if len(config["space"]["shape"]) == 3:
        config["space"].update(shape=[COARSE, COARSE, DEPTH], spacing_mm=[2 * SPACING] * 3)
    elif "hadamard" not in name:  # whose patterns are those of one grid
        config["space"].update(shape=[SIZE, SIZE], spacing_mm=[SPACING, SPACING])
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return tasks.load(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return lambda name: small_task(name, folder)


def sample(task):
    dataset = task.config["dataset"]
    if len(task.space.shape) == 2:
        return item(
            dataset["modalities"], task.space.shape[0], dataset.get("energies_kev"), iodine="contrast" in dataset
        )
    flat = item(dataset["modalities"], COARSE)
    # a slanted head: every fine slice lies one fine voxel beside the one below
    tall = {k: torch.stack([flat[k].roll(n, -1) for n in range(2 * DEPTH)], -1) for k in ("fine", "attenuation_fine")}
    return {**tall, "image": avg_pool3d(tall["fine"], 2), "id": flat["id"]}


def build_tasks():
    spec = importlib.util.spec_from_file_location("build_tasks", ROOT / "ci" / "build_tasks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_and_page_are_as_the_script_writes_them():
    folder = ROOT / "common/multirecon/tasks"
    held = {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.json") if p.name != tasks.SCHEMA}
    assert held == build_tasks().catalogue(), "run python ci/build_tasks.py"
    page = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    assert tasks.replace_table(page) == page, "run python ci/build_tasks.py"
    assert all(f"`{name}`" in page for name in tasks.names())


@pytest.mark.parametrize("name", tasks.names())
def test_what_every_task_asks(name):
    task = tasks.load(name)
    assert task.name == name
    assert set(task.config["sets"]) >= {"small", "full"}
    assert task.config["dataset"]["split"] == "test"
    coarse = {"3d": ((64, 64, 16), (3.75,) * 3), "hadamard": ((64, 64), (3.75, 3.75))}
    expected = next((grid for word, grid in coarse.items() if word in name), ((128, 128), (1.875, 1.875)))
    assert (task.space.shape, task.space.spacing_mm) == expected
    assert task.acquisition.oversample == 2
    assert not any(isinstance(scan, InverseCrime) for scan in task.acquisition.scans.values())
    # nothing that is handed over clean is asked for
    assert not [t for t in task.targets if (s := task.acquisition.scans.get(t)) and s.describe() == "clean image"]


@pytest.mark.parametrize("name", tasks.names())
def test_what_every_task_measures(name, small):
    task = small(name)
    asked = sample(task)
    measurement, truth = task.measure(asked)
    assert tuple(truth.shape) == (1, *task.space.stack_shape)
    assert measurement.available == tuple(n for n in task.space.names if n in task.acquisition.scans)
    assert set(measurement.missing) == set(task.space.names) - set(task.acquisition.scans)
    for block, y in measurement.y.items():
        scan, values = task.acquisition.scans[block], torch.view_as_real(y) if y.is_complex() else y
        assert torch.isfinite(values).all()
        assert float(values.abs().sum()) > 0
        if "sigma" not in measurement.likelihood[block].arguments():
            assert torch.equal(values, values.round())
            assert (values >= 0).all()
        if isinstance(scan, PETScan):
            emitting = truth[:, task.space.channels(block)] > 0.01 * asked["fine"][task.space.names.index(block)].max()
            trues = float(emitting.sum()) * scan.counts
            background = trues * (scan.scatter_fraction + scan.randoms_fraction)
            assert abs(float(y.sum()) - trues - background) < 5 * (trues + background) ** 0.5
        if measurement.operator.is_clean(block):
            clean = torch.equal(y, truth[:, task.space.channels(block)])
            assert clean != isinstance(scan, Misregistered)
    asked_for = unmeasured_as_image(measurement, truth)
    assert leaks(asked_for, measurement) == []
    again, _ = task.measure(asked)
    assert again.fingerprint() == measurement.fingerprint()
    if any("clean" not in scan.describe() for scan in task.acquisition.scans.values()):
        assert task.measure(asked, 1)[0].fingerprint() != measurement.fingerprint()


def quiet(scan):
    """The scan with so little noise that what its model does not know stands out."""
    scan = copy.copy(scan)
    if isinstance(scan, CartesianMR):
        scan.sigma = (1e-3,)
    elif isinstance(scan, HadamardCamera):
        scan.sigma = 1e-3
    elif isinstance(scan, StackedCT):
        scan.scan = quiet(scan.scan)
    elif isinstance(scan, TransmissionScan):
        scan.photons = 1e8
    elif isinstance(scan, PETScan):
        scan.counts = 1e5
    return scan


@pytest.mark.parametrize("name", tasks.names())
def test_truth_explains_data_of_the_model_and_not_those_of_the_object(name, small):
    """Data drawn from the model handed over scatter as its likelihood says; the task's own data deviate further."""
    task = small(name)
    acquisition = task.acquisition
    silent = Acquisition(task.space, {n: quiet(s) for n, s in acquisition.scans.items()}, key="quiet", oversample=2)
    asked = sample(task)
    measurement, truth = replace(task, acquisition=silent).measure(asked)
    ideal, _ = replace(task, acquisition=acquisition.with_inverse_crime()).measure(asked)
    for block in measurement.available:
        if measurement.operator.is_clean(block):
            continue
        value, count = pearson(ideal, truth, block)
        # variance of a squared normalised Poisson residual: 2 + 1 / mean, largest where hardly anything is expected
        if isinstance(ideal.likelihood[block], Gaussian):
            spread = 2.0
        else:
            predicted = ideal.likelihood[block].mean(ideal.operator[block](truth[:, task.space.channels(block)]))
            spread = float((2 + 1 / predicted[predicted > 1e-6]).mean())
        assert abs(value - 1) < 6 * (spread / count) ** 0.5
        # the finer grid at least, and what the catalogue states besides
        assert pearson(measurement, truth, block)[0] > 1.1


def test_tasks_of_one_key_share_what_they_measure_in_common(small):
    names = ("flair_x4", "flair_x4_t1", "flair_x4_all", "flair_x4_t1_shift2")
    data = [small(n).measure(sample(small(n)))[0].y["flair"] for n in names]
    assert all(torch.equal(data[0], other) for other in data[1:])
    own = small("flair_x4_t1_scanner_b").measure(sample(small("flair_x4_t1_scanner_b")))[0].y["flair"]
    assert own.shape != data[0].shape


def test_misregistration_grows_with_the_number_in_the_name(small):
    errors = []
    for name in ("flair_x4_t1", "flair_x4_t1_shift1", "flair_x4_t1_shift2", "flair_x4_t1_shift3"):
        measurement, truth = small(name).measure(sample(small(name)))
        errors.append(float((measurement.y["t1"] - truth[:, small(name).space.channels("t1")]).norm()))
    assert errors[0] == 0
    assert errors[1] < errors[2] < errors[3]


def test_samples_come_with_what_the_physics_needs():
    """The packaged slices, at full size: one task of each data set."""
    for name, number in (("petct_lowdose", 3), ("dect_sparse", 3), ("petct3d_lowdose", 0), ("materials_iodine", 3)):
        task = tasks.load(name)
        asked = task.samples("small")[number]
        assert {"fine", "image", "attenuation_fine"} <= set(asked)
        measurement, truth = task.measure(asked)
        for block in measurement.available:
            assert pearson(measurement, truth, block)[0] < 6
        assert str(asked["id"]).startswith(tuple(f"{anatomy}/" for anatomy, _ in task.samples("small").samples))


@pytest.mark.parametrize("name", ["dect_sparse", "spectralct_lowdose", "materials_lowdose"])
def test_scanner_b_asks_for_the_same_images_from_other_data(name, small):
    usual, other = small(name), small(f"{name}_scanner_b")
    assert (other.space.to_dict(), other.targets) == (usual.space.to_dict(), usual.targets)
    (first, truth), (second, same) = usual.measure(sample(usual)), other.measure(sample(other))
    assert torch.equal(truth, same)
    for block in first.available:
        assert first.operator[block].projector.kind != second.operator[block].projector.kind
        assert first.y[block].shape != second.y[block].shape
        kinds = {m.likelihood[block].kind for m in (first, second)}
        assert len(kinds) == 1
        assert usual.acquisition.scans[block].mismatch()
        assert usual.acquisition.scans[block].kvp != other.acquisition.scans[block].kvp


def test_iodine_is_measured_and_asked_for():
    task = tasks.load("materials_iodine")
    asked = task.samples("small")[0]  # the embedded anatomy or a test subject, with its own contrast or none
    assert asked["materials_fine"].shape == (3, 256, 256)
    assert set(asked["contrast"]) == {"vessel", "insert_2", "insert_5", "insert_10"}
    assert task.space["materials"].channels == 3
    none = torch.tensor([1.0, 1.0, 0.0])[:, None, None]
    without = {**asked, **{key: asked[key] * none for key in ("fine", "image", "materials_fine")}}
    (with_iodine, _), (plain, truth) = task.measure(asked), task.measure(without)
    assert float(truth[:, 2].abs().max()) == 0
    changed = not torch.equal(with_iodine.y["materials"], plain.y["materials"])
    assert changed == (float(asked["image"][2].max()) > 0)


def test_other_timings_are_drawn_from_a_wider_range():
    usual, wider = tasks.load("flair_x4_t1"), tasks.load("flair_x4_t1_timings_b")
    for name in ("small", "full"):
        spread = [task.samples(name).config.sequence_jitter for task in (usual, wider)]
        assert spread[1] > 3 * spread[0]
    assert usual.samples("full").config.z_mm == wider.samples("full").config.z_mm
    assert usual.acquisition.scans["flair"].describe() == wider.acquisition.scans["flair"].describe()


def test_unknown_sets_and_targets_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"set of task 'ct_sparse60': expected one of \['full', 'small'\], got 'huge'"):
        tasks.load("ct_sparse60").samples("huge")
    config = config_of("ct_sparse60")
    for change, message in (
        ({"targets": ["pet_fdg"]}, "targets: expected some of"),
        ({"family": "xray"}, "family"),
        ({"metrics": []}, "metrics"),
    ):
        path = tmp_path / "task.json"
        path.write_text(json.dumps({**config, **change}), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            tasks.load(path)


@pytest.mark.parametrize("value", ["$__import__('os').getcwd()", "%other.json::x", "@dataset"])
def test_a_task_is_data_and_not_code(value, tmp_path):
    config = config_of("ct_sparse60")
    config["acquisition"]["scans"]["ct"]["views"] = value
    (tmp_path / "task.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="expected a plain value"):
        tasks.load(tmp_path / "task.json")


def test_a_task_builds_only_what_is_in_the_table(tmp_path):
    config = config_of("flair_x4_t1_shift1")
    config["acquisition"]["scans"]["t1"]["scan"] = {"_target_": "os.system", "command": "true"}
    (tmp_path / "task.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"acquisition.scans.t1.scan._target_: expected one of"):
        tasks.load(tmp_path / "task.json")


def test_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="expected the marks"):
        tasks.replace_table("# Tasks")
