"""The training configuration of the 3D wavelet bundle: sizes, overlays, and a run of a few steps through MONAI."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from multirecon.bundle import read_weights
from multirecon.data.cached_slabs import build
from multirecon.networks.inflated import InflatedUNet
from multirecon.networks.slices import SliceNetwork
from multirecon.networks.unet import UNet

BUNDLE = Path(__file__).parents[3] / "bundles" / "wavelet_diffusion_petct3d"
METADATA = BUNDLE / "configs" / "metadata.json"
PARAMETERS = {"train": 1_990_216, "train_haar3d": 1_403_872, "train_published": 57_942_480}
NETWORKS = {"multirecon.networks.unet.UNet": UNet, "multirecon.networks.inflated.InflatedUNet": InflatedUNet}
OVERLAYS = [[], ["evaluate"], ["statistics"], ["train_slices"], ["train_haar3d"], ["train_published"]]
SMALL = {"network_def#channels": [8, 16], "network_def#attention_levels": [False, True],
         "network_def#num_head_channels": 8, "network_def#norm_num_groups": 8}  # fmt: skip
TINY = {"depth": 4, "space#shape": [32, 32, 4], "space#spacing_mm": [7.5] * 3}


def config(name):
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


def workflow(*names, **overrides):
    files = [str(BUNDLE / "configs" / f"{name}.json") for name in names]
    return ConfigWorkflow(
        config_file=files, workflow_type="train", meta_file=str(METADATA), logging_file=False, **overrides
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    tiny = {"spacing_mm": (3.75, 3.75, 3.75), "matrix": 64, "z_mm": (-20.0, 20.0)}
    for split in ("train", "validation"):
        build(
            folder / split, split, 1, shape=(32, 32), spacing_mm=7.5, anatomies=["mni152"], config=tiny, progress=False
        )
    return str(folder)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name, count):
    arguments = config(name)["network_def"]
    with torch.device("meta"):
        net = NETWORKS[arguments.pop("_target_")](**arguments)
    assert sum(p.numel() for p in net.parameters()) == count
    kernels = {tuple(p.shape[2:]) for p in net.parameters()}
    assert (3, 3, 3) in kernels or {(3, 3), (3, 1, 1)} <= kernels  # convolutions along three axes, whole or factorised


@pytest.mark.parametrize("overlay", OVERLAYS, ids=str)
def test_every_required_property_is_there(overlay, dataset):
    small = {} if overlay == ["train_slices"] else {"depth": 4}
    made = workflow("train", *overlay, bundle_root=str(BUNDLE), dataset_dir=dataset, **small)
    made.initialize()
    assert made.check_properties() == []


def test_published_overlay_is_the_published_model():
    made = workflow("train", "train_published", bundle_root=str(BUNDLE)).parser
    prior, loss = made.get_parsed_content("prior"), made.get_parsed_content("loss")
    assert prior.parametrisation.kind == "sample"
    assert float(prior.domain.gain(5)[0]) == pytest.approx(1 / 3)
    assert [float(prior.schedule.betas[i]) for i in (0, -1)] == pytest.approx([1e-4, 0.02])
    assert loss.weights.tolist() == [1.0] * 8
    arguments = config("train_published")["network_def"]
    assert arguments["channels"] == [64 * m for m in (1, 2, 2, 4, 4)]
    with torch.device("meta"):
        net = UNet(**{k: v for k, v in arguments.items() if k != "_target_"})
        coefficients = prior.domain.forward(torch.zeros(1, 2, *prior.space.shape, device="meta"))
        assert net(coefficients, torch.zeros(1)).shape == coefficients.shape
    assert not any("attention.qkv" in name for name in net.state_dict())
    assert not net.concatenate


def test_inference_and_training_have_one_prior():
    train, inference = config("train"), config("inference")
    for key in ("space", "prior", "network_def"):
        assert inference[key] == train[key]
    task = json.loads((BUNDLE.parents[1] / "common/multirecon/tasks/petct3d_lowdose.json").read_text())
    assert inference["space"] == task["space"]


def test_a_prior_of_slices_becomes_one_of_volumes(dataset, tmp_path):
    """The way of the shipped weights: trained slice by slice, then with convolutions across slices."""
    common = {"bundle_root": str(tmp_path), "dataset_dir": dataset, "batch_size": 2, "epoch_length": 1, "amp": False,
              "sigmas": [0.3], "device": "$torch.device('cpu')"}  # fmt: skip
    flat = {key.replace("#", "#network#", 1): value for key, value in SMALL.items()}
    shape = {"space#shape": [32, 32, 1], "space#spacing_mm": [7.5] * 3}
    first = workflow("train", "train_slices", **common, **flat, **shape, ckpt_dir=str(tmp_path / "flat"), max_steps=1)
    first.initialize()
    first.run()
    start = tmp_path / "flat" / "model.pt"
    then = workflow("train", **common, **SMALL, **TINY, ckpt_dir=str(tmp_path / "deep"), pretrained=str(start))
    state, network = then.parser.get_parsed_content("state"), then.parser.get_parsed_content("base_network")
    state._start_from(start)
    slices = SliceNetwork(UNet(2, **{k: v for k, v in network_arguments(first).items() if k != "spatial_dims"}))
    slices.load_state_dict(read_weights(start))
    volume = torch.randn(1, 8, 16, 16, 2)
    torch.testing.assert_close(network(volume), slices(volume), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.average.model(volume), slices(volume), rtol=1e-4, atol=1e-5)
    then = workflow("train", **common, **SMALL, **TINY, ckpt_dir=str(tmp_path / "deep"), pretrained=str(start),
                    max_steps=1)  # fmt: skip
    then.initialize()
    then.run()
    trained = read_weights(tmp_path / "deep" / "model.pt")
    moved = [name for name in trained if "_mixing." in name and name.endswith("conv.weight") and trained[name].any()]
    assert moved


def network_arguments(made):
    arguments = made.parser["network_def"]["network"]
    return {key: value for key, value in arguments.items() if key != "_target_"}


def test_training_runs_resumes_and_exports(dataset, tmp_path):
    root = tmp_path / "bundle"
    (root / "models").mkdir(parents=True)
    common = {"bundle_root": str(root), "ckpt_dir": str(tmp_path / "run"), "dataset_dir": dataset, "batch_size": 2,
              "epoch_length": 2, "sigmas": [0.3, 1.0], "device": "$torch.device('cpu')", **SMALL, **TINY}  # fmt: skip
    for steps in (2, 4):
        made = workflow("train", **common, max_steps=steps)
        made.initialize()
        made.run()
    rows = list(csv.DictReader((tmp_path / "run" / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert {"train_loss", "psnr_mean", "psnr_0.3", "psnr_1"} <= set(rows[0])
    seen = (tmp_path / "run" / "train_samples.csv").read_text().splitlines()[1:]
    assert len(seen) == 4
    assert all(name.startswith("mni152/0/") for line in seen for name in line.split(",")[1].split())
    decayed = workflow("train", **common, decay=True, decay_steps=2)
    decayed.initialize()
    decayed.run()
    assert torch.load(tmp_path / "run" / "decay.pt", weights_only=True)["step"] == 6
    (tmp_path / "run" / "model.pt").rename(root / "models" / "model.pt")
    weights = read_weights(root / "models" / "model.pt")
    assert all(v.dtype == torch.float16 for v in weights.values())
    decayed.parser.get_parsed_content("network_def").load_state_dict(weights, strict=True)
    evaluated = workflow("train", "evaluate", **common, output_dir=str(tmp_path / "out"))
    evaluated.initialize()
    evaluated.run()
    assert (tmp_path / "out" / "metrics.csv").exists()


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(dataset, tmp_path):
    common = {"bundle_root": str(tmp_path), "dataset_dir": dataset, "batch_size": 2, "epoch_length": 1, "amp": False,
              "validate#evaluator": None, "train#handlers#6#evaluator": None, "device": "$torch.device('cpu')",
              **SMALL, **TINY}  # fmt: skip
    for folder, lengths in (("whole", [3]), ("pieces", [1, 3])):
        for steps in lengths:
            made = workflow("train", **common, ckpt_dir=str(tmp_path / folder), max_steps=steps)
            made.initialize()
            made.run()
    whole, pieces = (torch.load(tmp_path / f / "last.pt", weights_only=True) for f in ("whole", "pieces"))
    assert whole["step"] == pieces["step"] == 3
    for key in ("network", "average"):
        assert all(torch.equal(whole[key][k], pieces[key][k]) for k in whole[key])


@pytest.mark.slow
def test_two_processes_train_together(dataset, tmp_path):
    """The overlay for several GPUs, here two CPU processes with gloo."""
    configs = [str(BUNDLE / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
    small = [part for key, value in {**SMALL, **TINY}.items() for part in (f"--{key}", str(value))]
    command = [
        *[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
        *["-m", "monai.bundle", "run", "--config_file", str(configs), "--bundle_root", str(BUNDLE)],
        *["--dataset_dir", dataset, "--ckpt_dir", str(tmp_path), "--batch_size", "2", "--epoch_length", "2"],
        *["--max_steps", "4", *small],
    ]
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE.parents[1] / "common"), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, check=True, env=environment, timeout=250, capture_output=True)
    assert [row["step"] for row in csv.DictReader((tmp_path / "curve.csv").open())] == ["2", "4"]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 4


def test_the_control_is_reconstructed_with_as_it_was_trained():
    trained, used = config("train_slices"), config("inference_slices")
    assert used["network_def"] == trained["network_def"]
    assert not any(key.startswith(("prior", "error#prior")) for key in (*trained, *used))  # the prior of the volumes
    volumes = {k: v for k, v in config("train")["network_def"].items() if k != "_target_"}
    assert {**volumes, "spatial_dims": 2} == network_arguments(workflow("train", "train_slices"))
    assert config("inference")["prior"] == config("train")["prior"]
    assert config("inference")["network_def"] == config("train")["network_def"]
