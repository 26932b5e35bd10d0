"""Resuming, shards, and measurements that changed."""

import json
import multiprocessing

import numpy as np
import pytest
from harness.fake_task import FakeTask
from harness.inline import InlineWorker

from multirecon.bundle.folder import Bundle
from multirecon.harness.methods import Method, find_methods, select_methods
from multirecon.harness.records import OK, RecordFile, read_records
from multirecon.harness.runner import evaluate, parse_shard
from multirecon.measurement import Measurement


def test_a_run_goes_on_where_it_stopped(tmp_path, make_bundle):
    make_bundle("honest")
    output, bundles, task = tmp_path / "out", find_methods(tmp_path / "bundles"), FakeTask(count=3, repeats=2)
    first = evaluate([task], bundles, output, progress=False)
    assert (first.counts, first.skipped) == ({OK: 6}, 0)
    path = output / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert not {json.loads(line)["fingerprint"] for line in lines[:3]} & {json.loads(lines[3])["fingerprint"]}
    path.write_text("".join(lines[:4]) + lines[4][:50])  # killed in the middle of the fifth
    (output / ".work" / "run-left").mkdir()
    (output / ".work" / "run-left" / "lock").touch()
    draft = output / "images" / "noise16" / ".part-left.npy"
    draft.touch()
    second = evaluate([task], bundles, output, progress=False)
    assert (second.counts, second.skipped) == ({OK: 2}, 4)
    assert not list((output / ".work").glob("run-*"))
    assert not draft.exists()
    records = RecordFile(path).records()
    assert len(records) == len({r.key for r in records}) == 6
    again = {(r.sample, r.repeat): r.metrics for r in records}
    before = {(r["sample"], r["repeat"]): r["metrics"] for r in map(json.loads, lines)}
    assert again == before
    # nothing to do: no worker is even started
    third = evaluate([task], bundles, output, progress=False, timeout=1e-3)
    assert (third.counts, third.skipped) == ({}, 6)
    # the same names with other data are refused before a method sees them
    with pytest.raises(ValueError, match="differ from those recorded"):
        evaluate([FakeTask(count=3, repeats=2, salt="other")], bundles, output, seed=1, progress=False)


def test_another_content_of_a_bundle_is_another_result(make_bundle):
    root = make_bundle("honest")
    before = Method(Bundle(root))
    kept = before.content, before.weights
    (root / "honest.py").write_text((root / "honest.py").read_text() + "\n# changed\n")
    assert Method(Bundle(root)).content != kept[0]
    assert Method(Bundle(root)).weights == kept[1]
    (root / "models" / "model.pt").write_bytes(b"other")
    assert Method(Bundle(root)).weights != kept[1]


def test_bundles_and_variants_are_found_by_name(tmp_path, make_bundle):
    root = make_bundle("one")
    make_bundle("two")
    (root / "configs" / "inference_fast.json").write_text("{}")
    folder = tmp_path / "bundles"
    assert [m.name for m in find_methods(folder)] == ["one", "one:fast", "two"]
    (fast,) = select_methods(["one:fast"], folder)
    assert [p.name for p in fast.config_files] == ["inference.json", "inference_fast.json"]
    assert select_methods([str(root)], tmp_path / "nowhere") == [Method(Bundle(root))]
    with pytest.raises(ValueError, match=r"\['one', 'two'\] or a folder, got 'three'"):
        select_methods(["three"], folder)
    with pytest.raises(ValueError, match=r"variant of 'one': expected one of \['fast'\], got 'slow'"):
        select_methods(["one:slow"], folder)
    with pytest.raises(ValueError, match="expected a folder"):
        find_methods(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got none"):
        find_methods(root)


class InThisProcess(InlineWorker):
    """Answers every job with the back-projection."""

    def run(self, job, *, timeout):
        np.save(job["result"], Measurement.load(job["measurement"]).back_projection().numpy())
        return {"status": OK, "seconds": 0.1, "peak_mb": 1.0, "device": "cpu"}


def test_shards_cover_everything_once(tmp_path, make_bundle, monkeypatch):
    monkeypatch.setattr("multirecon.harness.runner.Worker", InThisProcess)
    make_bundle("honest")
    bundles, task = find_methods(tmp_path / "bundles"), FakeTask(count=3)
    for i in (2, 1):
        evaluate([task], bundles, tmp_path / f"out{i}", shard=(i, 2), progress=False)
    samples = [[r.sample for r in RecordFile(tmp_path / f"out{i}" / "records.jsonl").records()] for i in (1, 2)]
    assert samples == [["s00", "s02"], ["s01"]]


def test_two_runs_share_a_folder(tmp_path, make_bundle, monkeypatch):
    monkeypatch.setattr("multirecon.harness.runner.Worker", InThisProcess)
    make_bundle("one")
    make_bundle("two")
    methods, task, output = find_methods(tmp_path / "bundles"), FakeTask(count=10, repeats=3), tmp_path / "out"
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=evaluate, args=([task], methods, output), kwargs={"progress": False})
            for _ in range(2)]  # fmt: skip
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    records, problems = read_records(output / "records.jsonl")
    assert problems == []
    assert len(records) == len({r.key for r in records}) == 60
    assert not list((output / ".work").glob("run-*"))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", ""])
def test_bad_shards_are_refused(text):
    with pytest.raises(ValueError, match="shard"):
        parse_shard(text)


def test_empty_plans_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one task"):
        evaluate([], [], tmp_path)
