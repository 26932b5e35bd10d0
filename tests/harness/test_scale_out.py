"""Several processes on one cohort, one evaluation, one training: each sample once, the numbers of one process."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import nibabel as nib
import numpy as np
import pytest
from contract.promises import BUNDLES
from torch.utils.data import DataLoader

import multirecon
from multirecon.engines import ProcessShare

COMMON = Path(multirecon.__file__).parents[1]
OVERLAYS = COMMON / "multirecon" / "bundle" / "overlays"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
BUNDLE = BUNDLES / "fbp_ct"


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(COMMON), **more}


def run(*words, cwd, timeout=800, check=True):
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def stock(*configs, **options):
    words = ["-m", "monai.bundle", "run", "--config_file", str([str(c) for c in configs])]
    options = {"bundle_root": BUNDLE, "device": "$torch.device('cpu')", **options}
    return [*words, *(str(w) for key, value in options.items() for w in (f"--{key}", value))]


@pytest.mark.parametrize(("count", "batch", "world"), [(7, 2, 2), (8, 2, 3), (3, 1, 2), (5, 4, 2), (4, 1, 4)])
def test_every_sample_is_seen_once_in_the_batch_of_one_process(count, batch, world):
    data = list(range(count))
    single = [b.tolist() for b in DataLoader(data, batch_size=batch)]
    shares = [
        [b.tolist() for b in DataLoader(data, batch, sampler=ProcessShare(data, batch, rank=r, world_size=world))]
        for r in range(world)
    ]
    assert sorted(b for share in shares for b in share) == sorted(single)
    assert all(shares)


def test_a_process_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="a batch for each of 3 processes, got 2"):
        ProcessShare(range(4), 2, rank=0, world_size=3)


def metrics(folder):
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return {name: float(value) for name, value in rows}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_evaluation_in_two_processes(tmp_path):
    """Three batches on two processes: `evaluate.json` gives the metrics of one process."""
    configs = [BUNDLE / "configs" / name for name in ("train.json", "evaluate.json")]
    short = {"slices": 3, "validate#dataloader#batch_size": 1, "output_dir": tmp_path / "one"}
    run(*stock(*configs, **short), cwd=tmp_path)
    short["output_dir"] = tmp_path / "two"
    run(*TORCHRUN, *stock(*configs, OVERLAYS / "distributed_evaluate.json", **short), cwd=tmp_path)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert one == pytest.approx(two, rel=1e-6)
    assert one
    short |= {"slices": 2, "output_dir": tmp_path / "other"}  # the numbers do depend on the samples
    run(*stock(*configs, **short), cwd=tmp_path)
    assert metrics(tmp_path / "other") != pytest.approx(one, rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_inference_in_two_processes(tmp_path):
    run("-m", "multirecon", "simulate", "ct_sparse60", tmp_path / "data", "--limit", "3", "--noprogress", cwd=tmp_path)
    config, overlay = BUNDLE / "configs" / "inference.json", OVERLAYS / "distributed_inference.json"
    run(*stock(config, dataset_dir=tmp_path / "data", output_dir=tmp_path / "one"), cwd=tmp_path)
    run(*TORCHRUN, *stock(config, overlay, dataset_dir=tmp_path / "data", output_dir=tmp_path / "two"), cwd=tmp_path)
    names = sorted(p.name for p in (tmp_path / "one").glob("*.nii.gz"))
    assert names == sorted(p.name for p in (tmp_path / "two").glob("*.nii.gz"))
    assert len([n for n in names if "_ct" in n]) == 3
    for name in names:
        one, two = (nib.load(tmp_path / f / name).get_fdata() for f in ("one", "two"))
        np.testing.assert_array_equal(one, two)


def rows(folder):
    return [{k: v for k, v in r.items() if "seconds" not in k} for r in csv.DictReader((folder / "curve.csv").open())]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_whose_worker_is_killed_resumes(tmp_path):
    """Two gloo processes train, one is killed with -9: the same command goes on, to the end of an undisturbed run."""
    import torch
    from bundles_of_mr import common, tiny_set

    (tmp_path / "set").mkdir()
    settings = {**common("mcvarnet_mr", tiny_set(tmp_path / "set")), "max_steps": 12, "checkpoint_seconds": 0}
    root = BUNDLES / "mcvarnet_mr"
    files = [str(root / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
    settings.pop("device")

    def command(folder):
        options = {**settings, "bundle_root": root, "output_dir": folder, "ckpt_dir": folder}
        words = ["-m", "monai.bundle", "run", "--config_file", str(files)]
        return [sys.executable, *TORCHRUN, *words, *(str(w) for k, v in options.items() for w in (f"--{k}", v))]

    def go(folder, **options):
        return subprocess.Popen(command(folder), env=environment(), cwd=tmp_path, text=True, **options)

    assert go(tmp_path / "whole", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(400) == 0
    process = go(tmp_path / "killed", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    curve = tmp_path / "killed" / "curve.csv"
    for _ in range(4000):
        if curve.exists() and curve.read_text().count("\n") > 3:
            break
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert process.wait(120) != 0
    assert torch.load(tmp_path / "killed" / "last.pt", weights_only=True)["step"] < 12
    assert go(tmp_path / "killed", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(400) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    states = [torch.load(tmp_path / f / "last.pt", weights_only=True) for f in ("killed", "whole")]
    assert all(torch.equal(states[0]["network"][k], states[1]["network"][k]) for k in states[0]["network"])


class Fast:
    """Stands in for the worker of a method: writes what it is asked for, at once, and counts."""

    asked: ClassVar[list[str]] = []
    failing: ClassVar[set[str]] = set()

    def __init__(self, *_arguments, **_options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def run(self, job, *, timeout):
        name = Path(job["measurement"]).stem
        if job.get("only_refusals"):
            return {"status": "applicable", "reason": ""}
        Fast.asked.append(name)
        if name in Fast.failing:
            return {"status": "failed", "reason": "planted"}
        folder = Path(job["output_dir"])
        folder.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.full((2, 2, 1), len(name), np.float32), np.eye(4)), folder / f"{name}_flair.nii.gz")
        return {"status": "ok", "seconds": 1.0, "peak_mb": 1.0, "device": "cpu"}


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """Five measurement files, and a method that costs nothing."""
    from harness.fake_task import FakeTask

    monkeypatch.setattr("multirecon.harness.process.Worker", Fast)
    monkeypatch.setattr("multirecon.harness.reconstruct.Worker", Fast)
    Fast.asked, Fast.failing = [], set()
    task = FakeTask(count=5)
    for index, sample in enumerate(task.samples("small")):
        measurement, _ = task.measure(sample, 0)
        measurement.save(tmp_path / "data" / f"scan{index}.h5")
    return tmp_path


def reconstruct(cohort, *words):
    from multirecon.__main__ import main

    common = ["--method", "fbp_ct", "--folder", str(BUNDLES), "--targets", "t1", "--noprogress"]
    return main(["reconstruct", str(cohort / "data"), str(cohort / "out"), *common, *words])


def test_cohort_resumes_and_repeats_nothing(cohort, capsys):
    Fast.failing = {"scan1", "scan3"}
    assert reconstruct(cohort) == 1
    error = capsys.readouterr().err
    assert "scan1.h5" in error
    assert "planted" in error
    assert "3 reconstructed, 0 already there, 2 failed, of 5 files" in error
    assert Fast.asked == [f"scan{i}" for i in range(5)], "a file that fails does not keep the others waiting"
    Fast.asked, Fast.failing = [], set()
    assert reconstruct(cohort) == 0
    assert Fast.asked == ["scan1", "scan3"]
    assert "2 reconstructed, 3 already there, 0 failed, of 5 files" in capsys.readouterr().out
    (cohort / "out" / "scan0_flair.nii.gz").write_bytes(b"damaged")
    (cohort / "out" / "scan2.json").write_text("{")
    (cohort / "data" / "scan4.h5").write_bytes((cohort / "data" / "scan3.h5").read_bytes())  # another measurement
    Fast.asked = []
    assert reconstruct(cohort) == 0
    assert Fast.asked == ["scan0", "scan2", "scan4"]
    Fast.asked = []
    assert reconstruct(cohort, "--seed", "1") == 0
    assert len(Fast.asked) == 5


def test_shards_of_a_cohort_are_its_parts(cohort):
    for index in (1, 2, 3):
        assert reconstruct(cohort, "--shard", f"{index}/3") == 0
    assert sorted(Fast.asked) == [f"scan{i}" for i in range(5)]
    assert len(list((cohort / "out").glob("*.nii.gz"))) == 5


def test_cohort_needs_names_that_differ(cohort, capsys):
    (cohort / "data" / "scan0.hdf5").write_bytes(b"")
    assert reconstruct(cohort) == 1
    assert "['scan0'] twice" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cohort_in_two_processes_and_a_kill(tmp_path):
    """torchrun divides the files; killed with -9 and started again, every file is there once, as from one process."""
    run("-m", "multirecon", "simulate", "ct_sparse60", tmp_path / "data", "--limit", "5", "--noprogress", cwd=tmp_path)
    words = ["--method", "fbp_ct", "--folder", BUNDLES, "--noprogress"]
    run("-m", "multirecon", "reconstruct", tmp_path / "data", tmp_path / "one", *words, cwd=tmp_path)
    command = [*TORCHRUN, "-m", "multirecon", "reconstruct", tmp_path / "data", tmp_path / "two", *words]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(8000):
        if list((tmp_path / "two").glob("*.json")):
            break
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert process.wait(120) != 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "two").glob("*.json")}
    done = run(*command, cwd=tmp_path)
    assert f"{5 - len(before)} reconstructed, {len(before)} already there, 0 failed, of 5 files" in done.stdout
    assert all(p.stat().st_mtime_ns == time_ns for p, time_ns in before.items()), "what is there is not done again"
    names = sorted(p.name for p in (tmp_path / "one").glob("*.nii.gz"))
    assert names == sorted(p.name for p in (tmp_path / "two").glob("*.nii.gz"))
    for name in names:
        one, two = (nib.load(tmp_path / f / name).get_fdata() for f in ("one", "two"))
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_harness_in_two_processes(tmp_path):
    """`multirecon evaluate` under torchrun: the records of one process, each once."""
    from multirecon.harness.records import read_records

    words = ["--tasks", "ct_sparse60", "--bundles", "fbp_ct", "--folder", BUNDLES, "--limit", "3", "--noprogress"]
    run("-m", "multirecon", "evaluate", tmp_path / "one", *words, cwd=tmp_path)
    run(*TORCHRUN, "-m", "multirecon", "evaluate", tmp_path / "two", *words, cwd=tmp_path)
    one, two = (read_records(tmp_path / f / "records.jsonl")[0] for f in ("one", "two"))
    assert len(two) == len({r.key for r in two}) == 3
    assert {r.key: (r.fingerprint, r.metrics) for r in one} == {r.key: (r.fingerprint, r.metrics) for r in two}
