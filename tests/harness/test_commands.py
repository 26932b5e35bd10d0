"""The harness's commands from end to end, on a task that takes seconds."""

import json

import pytest
from harness.test_runner import InThisProcess

from multirecon import tasks
from multirecon.__main__ import main
from multirecon.harness.records import read_records


@pytest.fixture
def task_file(tmp_path):
    """The shipped CT task on a coarse phantom."""
    config = json.loads((tasks.resources.files(tasks) / "ct_sparse60.json").read_text(encoding="utf-8"))
    config["name"] = "ct_tiny"
    config["space"] |= {"shape": [32, 32], "spacing_mm": [7.5, 7.5]}
    coarse = {"spacing_mm": [3.75, 3.75, 3.75], "matrix": 64}
    config["dataset"] |= {"shape": [32, 32], "spacing_mm": 7.5, "slices": 2, "anatomies": ["mni152"], "config": coarse}
    path = tmp_path / "ct tiny.json"
    path.write_text(json.dumps(config))
    return path


def test_simulate_evaluate_report_merge(tmp_path, task_file, make_bundle, monkeypatch, capsys):
    monkeypatch.setenv("MULTIRECON_CACHE", str(tmp_path / "cache"))
    assert main(["simulate", str(task_file), str(tmp_path / "files"), "--limit", "1", "--noprogress"]) == 0
    (file,) = (tmp_path / "files").glob("*.h5")
    assert main(["info", str(file.parent)]) == 0
    assert str(file) in capsys.readouterr().out
    assert main(["info", str(file)]) == 0
    text = capsys.readouterr().out
    assert "ct: parallel_beam, transmission_poisson, (1, 1, 60," in text
    assert "32 x 32" in text

    make_bundle("honest")
    make_bundle("other")
    monkeypatch.setattr("multirecon.harness.runner.Worker", InThisProcess)
    out = tmp_path / "out"
    words = ["evaluate", str(out), "--tasks", str(task_file), "--folder", str(tmp_path / "bundles"), "--noprogress"]
    assert main(words) == 0
    assert "4 ok; 0 already there" in capsys.readouterr().out
    records, problems = read_records(out / "records.jsonl")
    assert problems == []
    assert {r.anatomy for r in records} == {"mni152"}
    assert {"psnr", "mae", "residual", "mae@brain"} <= set(records[0].metrics["ct"])
    assert records[0].fingerprint == records[2].fingerprint
    # the names come from the catalogue the second time: nothing is simulated for a run with nothing to do
    monkeypatch.setattr("multirecon.data.datasets.PhantomSlices.__getitem__", None)
    assert main([*words, "--bundles", "honest"]) == 0
    assert "nothing new; 2 already there" in capsys.readouterr().out

    assert main(["report", str(out), "--baseline", "other"]) == 0
    assert (out / "report" / "report.html").is_file()
    assert "data range 1000 HU" in (out / "report" / "report.html").read_text()
    assert main(["merge", str(tmp_path / "all"), str(out)]) == 0
    assert f"4 records in {tmp_path / 'all'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "{out}", "--tasks", "no_such_task"], "no_such_task"),
        (["evaluate", "{out}", "--shard", "3/2"], "shard: expected i/n"),
        (["evaluate", "{out}", "--limit", "0"], "limit: expected > 0"),
        (["evaluate", "{out}", "--device", "gpu"], "device: expected"),
        (["evaluate", "{out}", "--bundles", "none"], "bundle"),
        (["report", "{out}"], "existing file"),
        (["report"], "at least one"),
        (["merge", "{out}"], "at least one"),
        (["info", "{out}/none.h5"], "existing file"),
        (["info", "."], "folder with measurement files"),
        (["simulate", "flair_x5", "{out}"], "flair_x5"),
        (["bundles", "--folder", "{out}"], "expected a folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([w.format(out=tmp_path / "out") for w in words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
