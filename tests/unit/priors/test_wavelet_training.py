"""The training configuration of the wavelet bundle: sizes, overlays, and a run of a few steps through MONAI."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from multirecon.data.cached_slices import build
from multirecon.networks.unet import UNet

BUNDLE = Path(__file__).parents[3] / "bundles" / "wavelet_diffusion_petmrct"
# becomes configs/metadata.json when the bundle is complete
METADATA = next(
    p for p in (BUNDLE / "configs" / "metadata.json", BUNDLE / "docs" / "metadata_draft.json") if p.exists()
)
PARAMETERS = {"train": 4_179_268, "train_gpu": 15_002_452, "train_published": 20_382_676}
SMALL = {"channels": [8, 16], "attention_levels": [False, True], "num_head_channels": 8, "norm_num_groups": 8}


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
    tiny = {"spacing_mm": (7.5, 7.5, 7.5), "matrix": 32}
    for split in ("train", "validation"):
        build(
            folder / split, split, 1, shape=(32, 32), spacing_mm=7.5, anatomies=["mni152"], config=tiny, progress=False
        )
    return str(folder)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name, count):
    arguments = config(name)["network_def"]
    assert arguments.pop("_target_") == "multirecon.networks.unet.UNet"
    with torch.device("meta"):
        net = UNet(**arguments)
    assert sum(p.numel() for p in net.parameters()) == count


def test_shipped_network_fits_the_budget_in_float16():
    assert 2 * PARAMETERS["train"] < 9e6


@pytest.mark.parametrize("overlay", [[], ["evaluate"], ["train_gpu"], ["train_published"], ["train_student"]], ids=str)
def test_every_required_property_is_there(overlay, dataset):
    made = workflow("train", *overlay, bundle_root=str(BUNDLE), dataset_dir=dataset)
    made.initialize()
    assert made.check_properties() == []


def test_published_overlay_is_the_published_model(dataset):
    made = workflow("train", "train_published", bundle_root=str(BUNDLE), dataset_dir=dataset).parser
    prior, net = made.get_parsed_content("prior"), made.get_parsed_content("network_def")
    assert prior.parametrisation.kind == "sample"
    assert float(prior.schedule.betas[0]) == pytest.approx(1e-4)
    assert float(prior.schedule.betas[-1]) == pytest.approx(0.02)
    assert not any("attention.qkv" in name for name in net.state_dict())
    assert not net.concatenate
    assert made.get_parsed_content("loss").weights.tolist() == [1.0] * 4


def test_training_runs_resumes_and_exports(dataset, tmp_path):
    root = tmp_path / "bundle"
    (root / "models").mkdir(parents=True)
    small = {f"network_def#{key}": value for key, value in SMALL.items()}
    common = {"bundle_root": str(root), "ckpt_dir": str(tmp_path / "run"), "dataset_dir": dataset, "batch_size": 2,
              "epoch_length": 2, "sigmas": [0.3, 1.0], "device": "$torch.device('cpu')", **small}  # fmt: skip
    for steps in (2, 4):
        made = workflow("train", **common, max_steps=steps)
        made.initialize()
        made.run()
    rows = list(csv.DictReader((tmp_path / "run" / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert {"train_loss", "psnr_mean", "psnr_0.3", "psnr_1"} <= set(rows[0])
    decayed = workflow("train", **common, decay=True, decay_steps=2)
    decayed.initialize()
    decayed.run()
    assert torch.load(tmp_path / "run" / "decay.pt", weights_only=True)["step"] == 6
    (tmp_path / "run" / "model.pt").rename(root / "models" / "model.pt")
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    assert all(v.dtype == torch.float16 for v in weights.values())
    decayed.parser.get_parsed_content("network_def").load_state_dict(weights, strict=True)
    evaluated = workflow("train", "evaluate", **common, output_dir=str(tmp_path / "out"))
    evaluated.initialize()
    evaluated.run()
    assert (tmp_path / "out" / "metrics.csv").exists()


def test_a_student_starts_from_its_teacher_and_moves(dataset, tmp_path):
    small = {f"network_def#{key}": value for key, value in SMALL.items()}
    common = {"bundle_root": str(tmp_path), "dataset_dir": dataset, "batch_size": 2, "epoch_length": 2,
              "sigmas": [0.3, 1.0], "device": "$torch.device('cpu')", **small}  # fmt: skip
    teacher = workflow("train", **common, ckpt_dir=str(tmp_path / "teacher"), max_steps=2)
    teacher.initialize()
    teacher.run()
    path = tmp_path / "teacher" / "model.pt"
    made = workflow(
        "train", "train_student", **common, ckpt_dir=str(tmp_path / "run"), teacher_path=str(path), decay_steps=2
    )
    made.initialize()
    made.run()
    before, after = (torch.load(p, weights_only=True) for p in (path, tmp_path / "run" / "model.pt"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    kept = made.parser.get_parsed_content("teacher").state_dict()
    assert all(torch.equal(kept[name].half(), before[name]) for name in before)
    assert list(csv.DictReader((tmp_path / "run" / "curve.csv").open()))[-1]["step"] == "2"


def test_unconditional_samples_by_the_stock_command(tmp_path):
    files = [str(BUNDLE / "configs" / f"{name}.json") for name in ("inference", "generate")]
    made = ConfigWorkflow(
        config_file=files, workflow_type="inference", meta_file=str(METADATA), logging_file=False,
        bundle_root=str(BUNDLE), output_dir=str(tmp_path), count=2, steps=2, device="$torch.device('cpu')",
    )  # fmt: skip
    made.initialize()
    made.run()
    names = {path.name for path in tmp_path.glob("*.nii.gz")}
    assert names == {f"sample-{i}_{m}.nii.gz" for i in range(2) for m in ("t1", "flair", "t2star", "ct", "pet_fdg")}


@pytest.mark.slow
def test_two_processes_train_together(dataset, tmp_path):
    """The overlay for several GPUs, here two CPU processes with gloo."""
    configs = [str(BUNDLE / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
    small = [part for key, value in SMALL.items() for part in (f"--network_def#{key}", str(value))]
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
