"""``multirecon reconstruct`` from end to end: explained, run, and written with its provenance."""

import hashlib
import json
import os

import nibabel as nib
import pytest
from harness.fake_task import FakeTask
from harness.inline import InlineWorker

from multirecon.__main__ import main
from multirecon.harness.methods import find_methods
from multirecon.harness.runner import evaluate

SHRINK = """
def reconstruct(measurement):
    return 0.5 * measurement.back_projection()
"""
BREAKS = """
def reconstruct(measurement):
    raise ValueError("step: expected > 0, got -1")
"""


@pytest.fixture
def place(tmp_path, make_bundle, monkeypatch):
    """Three bundles that save what they make, their records, and a measurement file."""
    for module in ("runner", "reconstruct"):
        monkeypatch.setattr(f"multirecon.harness.{module}.Worker", InlineWorker)
    bundles = {"honest": {}, "shrink": {"code": SHRINK},
               "mr_only": {"capability": "Capability(operators=frozenset({'masked_fourier'}))"}}  # fmt: skip
    for name, options in bundles.items():
        path = make_bundle(name, **options) / "configs" / "inference.json"
        config = json.loads(path.read_text())
        config["handlers"] = [{"_target_": "multirecon.engines.SaveReconstructions", "output_dir": "@output_dir"}]
        config["evaluator"]["val_handlers"] = "@handlers"
        path.write_text(json.dumps(config))
    task = FakeTask(count=2)
    evaluate([task], find_methods(tmp_path / "bundles"), tmp_path / "records", progress=False)
    task.measure(task.samples()[0])[0].save(tmp_path / "scan 1.h5")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WORDS = ["reconstruct", "scan 1.h5", "out", "--folder", "bundles", "--records", "records"]


def test_the_best_method_is_explained_and_run(place, capsys):
    assert main(WORDS) == 0
    text = capsys.readouterr().out
    for words in ("similar     noise16 (0.00)", "refused     mr_only: block 't1'", "1           honest: psnr",
                  "2           shrink: psnr", "written     scan 1_t1"[:12]):  # fmt: skip
        assert words in text, text
    names = sorted(p.name for p in (place / "out").iterdir() if p.name != ".work")
    assert names == ["scan 1.json", "scan-1.h5_t1.nii.gz", "scan-1.h5_t1.png", "scan-1.h5_trust.nii.gz"]
    assert nib.load(place / "out" / "scan-1.h5_t1.nii.gz").shape[:2] == (16, 16)
    origin = json.loads((place / "out" / "scan 1.json").read_text())
    assert origin["method"]["name"] == "honest"
    assert origin["measurement"]["file"] == "scan 1.h5"
    assert any("honest: psnr" in line for line in origin["why"])
    for name, digest in origin["images"].items():
        assert hashlib.sha256((place / "out" / name).read_bytes()).hexdigest() == digest
    assert not list((place / "out" / ".work").glob("run-*"))


def test_a_subject_makes_a_bids_derivative_with_provenance(place, capsys):
    assert main([*WORDS, "--subject", "07"]) == 0
    assert "bids/sub-07/anat/sub-07_rec-honest_desc-recon_T1w.nii.gz" in capsys.readouterr().out
    image = place / "out" / "bids" / "sub-07" / "anat" / "sub-07_rec-honest_desc-recon_T1w.nii.gz"
    assert (nib.load(image).get_fdata() == nib.load(place / "out" / "scan-1.h5_t1.nii.gz").get_fdata()).all()
    sidecar = json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())
    origin = json.loads((place / "out" / "scan 1.json").read_text())
    assert origin["measurement"]["sha256"] in sidecar["Sources"][0]
    assert sidecar["GeneratedBy"][0]["Parameters"]["method"] == origin["method"]
    assert (place / "out" / "bids" / "dataset_description.json").exists()


def test_a_named_method_needs_no_records(place, capsys):
    assert main([*WORDS[:5], "--method", "shrink"]) == 0
    assert "method      shrink, as asked" in capsys.readouterr().out
    assert json.loads((place / "out" / "scan 1.json").read_text())["method"]["name"] == "shrink"


def test_list_runs_nothing(place, capsys, monkeypatch):
    monkeypatch.setattr("multirecon.harness.reconstruct.run_method", None)
    assert main([*WORDS, "--list"]) == 0
    assert "1           honest" in capsys.readouterr().out
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "no_such"], "bundle: expected one of"),
        (["--method", "honest:slow"], "variant of 'honest'"),
        (["--method", "mr_only"], "method 'mr_only': block 't1'"),
        (["--targets", "ct"], "targets: expected"),
        (["--metric", "beauty"], "metric: expected one of"),
        (["--budget", "1e-9"], "budget: expected"),
        (["--timeout", "0"], "timeout: expected > 0"),
        (["--device", "gpu"], "device: expected"),
        (["--subject", "0/7"], "subject: expected letters and digits"),
    ],
)
def test_mistakes_are_one_line(place, capsys, more, message):
    assert main([*WORDS, *more]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not [p for p in (place / "out").glob("*") if p.name != ".work"]


def test_missing_files_are_one_line(place, capsys):
    (place / "empty").mkdir()
    (place / "empty" / "records.jsonl").touch()
    (place / "broken.h5").write_bytes(b"\x89HDF nonsense")
    for words, message in (
        (["reconstruct", "none.h5", *WORDS[2:]], "expected an existing file"),
        (["reconstruct", "broken.h5", *WORDS[2:]], "expected a readable measurement file"),
        ([*WORDS[:-1], "empty"], "expected at least one result"),
        ([*WORDS[:-1], "nowhere"], "expected an existing file"),
    ):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_failing_method_writes_nothing(place, make_bundle, capsys):
    make_bundle("breaks", BREAKS)
    assert main([*WORDS, "--method", "breaks"]) == 1
    assert "method 'breaks': ValueError: step: expected > 0, got -1" in capsys.readouterr().err
    make_bundle("silent")  # saves no image
    assert main([*WORDS, "--method", "silent"]) == 1
    assert "expected images, it wrote none" in capsys.readouterr().err
    assert [p.name for p in (place / "out").iterdir()] == [".work"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_processes_of_their_own(place, monkeypatch, capsys):
    from multirecon.harness.process import Worker

    monkeypatch.setattr("multirecon.harness.reconstruct.Worker", Worker)
    assert main([*WORDS, "--device", "cpu"]) == 0
    origin = json.loads((place / "out" / "scan 1.json").read_text())
    assert origin["method"]["name"] == "honest"
    assert origin["seconds"] > 0
    assert origin["peak_mb"] > 50
    assert str(os.getpid()) not in capsys.readouterr().out
