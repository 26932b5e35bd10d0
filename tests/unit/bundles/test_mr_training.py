"""The training configurations of the supervised MR bundles: overlays, and runs of a few steps through MONAI."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bundles_of_mr import BUNDLES, SMALL, TRAINED, common, count, tiny_set, workflow

PUBLISHED = {"mcvarnet_mr": 1_340_979, "minet_mr": 6_563_549}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(params=TRAINED)
def name(request):
    return request.param


@pytest.mark.parametrize("overlay", [[], ["evaluate"], ["train_published"]], ids=str)
def test_every_required_property_is_there(name, overlay, dataset):
    made = workflow(name, "train", *overlay, bundle_root=str(BUNDLES / name), dataset_dir=dataset)
    made.initialize()
    assert made.check_properties() == []


def test_published_overlay(name, dataset):
    made = workflow(name, "train", "train_published", bundle_root=str(BUNDLES / name), dataset_dir=dataset).parser
    assert count(made.get_parsed_content("network_def")) == PUBLISHED[name]
    optimizer = made.get_parsed_content("optimizer")
    rate = made.get_parsed_content("train#handlers")[3]
    assert made["rows"] == 128  # whole slices
    if name == "mcvarnet_mr":
        assert (type(optimizer).__name__, optimizer.defaults["betas"], made["batch_size"]) == ("Adam", (0.9, 0.99), 6)
        assert rate.at(1) == pytest.approx(1e-4)
        assert rate.at(200_001) == pytest.approx(1e-5)
        # every scalar is given to the optimiser
        given = {id(p) for group in optimizer.param_groups for p in group["params"]}
        network = made.get_parsed_content("base_network")
        assert all(id(p) in given for p in network.parameters())
        assert made.get_parsed_content("loss").weights.tolist() == [1.0, 0.0]
    else:
        assert (type(optimizer).__name__, made["batch_size"]) == ("RMSprop", 4)
        assert optimizer.defaults["weight_decay"] == 0
        assert rate.at(1) == rate.at(10_000) == pytest.approx(1e-5)
        assert made.get_parsed_content("loss").weights.tolist() == pytest.approx([0.3, 0.7])


def test_shipped_network_fits_the_budget_in_float16(name):
    made = workflow(name, "train", bundle_root=str(BUNDLES / name))
    assert 2 * count(made.parser.get_parsed_content("network_def")) < 3e6


def losses(folder):
    return [float(row["train_loss"]) for row in csv.DictReader((folder / "curve.csv").open())]


def test_training_runs_resumes_and_exports(name, dataset, tmp_path):
    """Two runs of two steps are one of four: data, augmentation, scans and noise are functions of the step."""

    def run(folder, *overlay, **overrides):
        settings = {**common(name, dataset), "output_dir": str(folder), "ckpt_dir": str(folder), **overrides}
        made = workflow(name, "train", *overlay, **settings)
        made.initialize()
        made.run()
        return made

    for steps in (2, 4):
        run(tmp_path / "parts", max_steps=steps)
    run(tmp_path / "whole", max_steps=4)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    rows = list(csv.DictReader((tmp_path / "whole" / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert {"train_loss", "psnr", "ssim"} <= set(rows[0])
    states = [torch.load(tmp_path / f / "last.pt", weights_only=True)["network"] for f in ("parts", "whole")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    decayed = run(tmp_path / "whole", decay=True, decay_steps=2)
    assert torch.load(tmp_path / "whole" / "decay.pt", weights_only=True)["step"] == 6
    weights = torch.load(tmp_path / "whole" / "model.pt", weights_only=True)
    assert all(v.dtype == torch.float16 for v in weights.values())
    decayed.parser.get_parsed_content("network_def").load_state_dict(weights, strict=True)
    run(tmp_path / "whole", "evaluate", output_dir=str(tmp_path / "out"))
    assert (tmp_path / "out" / "metrics.csv").exists()
    logged = list(csv.DictReader((tmp_path / "whole" / "train_samples.csv").open()))
    assert [row["iteration"] for row in logged] == ["1", "2", "3", "4", "5", "6"]
    assert all(sample.startswith("mni152/") for row in logged for sample in row["samples"].split())


def test_fine_tuning_starts_from_given_weights(dataset, tmp_path):
    """One command: the falling rate alone, from a checkpoint as the bundle ships it, here at one noise level."""
    name = "mcvarnet_mr"
    settings = {**common(name, dataset), "decay": True, "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    start = workflow(name, "train", **settings).parser.get_parsed_content("network_def").state_dict()
    torch.save({key: value.half() for key, value in start.items()}, tmp_path / "start.pt")
    settings |= {"pretrained": str(tmp_path / "start.pt"), "acquisition#scans#flair#sigma": 0.01}
    made = workflow(name, "train", **settings, decay_steps=1, learning_rate=1e-12)
    assert made.parser.get_parsed_content("acquisition").scans["flair"].sigma == (0.01,)
    made.initialize()
    made.run()
    tuned = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.allclose(tuned[key].float(), value, atol=1e-3) for key, value in start.items())


@pytest.mark.slow
def test_two_processes_train_together(name, dataset, tmp_path):
    """The overlay for several GPUs, here two CPU processes with gloo: both end with the same weights."""
    configs = [str(BUNDLES / name / "configs" / file) for file in ("train.json", "multi_gpu_train.json")]
    settings = {**common(name, dataset), "max_steps": 4}
    settings.pop("bundle_root")
    words = [part for key, value in settings.items() for part in (f"--{key}", json.dumps(value))]
    command = [
        *[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
        *["-m", "monai.bundle", "run", "--config_file", str(configs), "--bundle_root", str(BUNDLES / name)],
        *["--output_dir", str(tmp_path), "--ckpt_dir", str(tmp_path), *[w.strip('"') for w in words]],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(BUNDLES.parent / "common")
    done = subprocess.run(command, check=False, env=environment, timeout=250, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 4
    assert Path(tmp_path / "model.pt").exists()


def test_small_overrides_are_small(name):
    made = workflow(name, "train", **{f"network_def#{k}": v for k, v in SMALL[name].items()})
    assert count(made.parser.get_parsed_content("network_def")) < 100_000
