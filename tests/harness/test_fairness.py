"""What every record promises: the clock and the memory are the method's, versions and weights are named."""

import functools
import io
import itertools
import json
import re
import time

import pytest
from harness.fake_task import FakeTask
from harness.inline import InlineWorker
from harness.test_runner import InThisProcess
from tqdm import tqdm

from multirecon.harness.merging import merge_folders
from multirecon.harness.methods import find_methods
from multirecon.harness.process import Worker
from multirecon.harness.records import RecordFile
from multirecon.harness.runner import evaluate
from multirecon.harness.worker import run_job

SLOW_AROUND = """
import time
time.sleep(0.5)

class After:
    def attach(self, engine):
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: time.sleep(0.5))

def reconstruct(measurement):
    time.sleep(0.1)
    return measurement.back_projection()
"""
GREEDY = """
def reconstruct(measurement):
    hoard = torch.ones(100_000_000)
    return measurement.back_projection() + 0 * hoard[0]
"""


def job(root, tmp_path):
    task = FakeTask()
    file = task.measure(task.samples()[0])[0].save(tmp_path / "data" / "one.h5")
    return {
        "config_files": [str(root / "configs" / "inference.json")], "bundle_root": str(root), "measurement": str(file),
        "output_dir": str(tmp_path / "o"), "result": str(tmp_path / "r.npy"), "targets": ["t1"], "seed": 0,
        "device": None,
    }  # fmt: skip


def test_the_clock_runs_inside_the_inferer_only(tmp_path, make_bundle):
    root = make_bundle("slow_around", SLOW_AROUND)
    path = root / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["evaluator"]["val_handlers"] = [{"_target_": "slow_around.After"}]
    path.write_text(json.dumps(config))
    begin = time.perf_counter()
    answer = run_job(job(root, tmp_path))
    assert time.perf_counter() - begin > 1.0
    assert answer["status"] == "ok"
    assert 0.1 <= answer["seconds"] < 0.5


def test_metrics_are_off_the_clock(tmp_path, make_bundle, monkeypatch):
    monkeypatch.setattr("multirecon.harness.runner.Worker", InlineWorker)
    from multirecon.harness import runner

    measure = runner.measure_result

    def slowly(*arguments):
        time.sleep(0.6)
        return measure(*arguments)

    monkeypatch.setattr(runner, "measure_result", slowly)
    make_bundle("honest")
    evaluate([FakeTask(count=1)], find_methods(tmp_path / "bundles"), tmp_path / "out", progress=False)
    (record,) = RecordFile(tmp_path / "out" / "records.jsonl").records()
    assert record.metrics["t1"]["psnr"] > 0
    assert record.seconds < 0.5


def test_the_peak_of_memory_is_the_methods(tmp_path, make_bundle):
    """In a process of its own, as in a run: here the memory that earlier tests gave back could be used again."""
    before, after = (make_bundle(name) for name in ("before", "after"))
    with Worker(tmp_path / "worker") as worker:
        peaks = [
            worker.run(job(root, tmp_path), timeout=120)["peak_mb"]
            for root in (before, make_bundle("greedy", GREEDY), after)
        ]
    assert peaks[1] > peaks[0] + 300
    assert peaks[2] < peaks[1] - 300, "the peak of one job was still there in the next"


def test_records_name_versions_weights_and_content(tmp_path, make_bundle, monkeypatch):
    monkeypatch.setattr("multirecon.harness.runner.Worker", InThisProcess)
    make_bundle("honest")
    (method,) = find_methods(tmp_path / "bundles")
    evaluate([FakeTask(count=1)], [method], tmp_path / "out", progress=False)
    (record,) = RecordFile(tmp_path / "out" / "records.jsonl").records()
    assert (record.weights, record.content) == (method.weights, method.content)
    assert re.fullmatch("[0-9a-f]{64}", record.weights)
    assert record.versions["bundle"] == "0.1.0"
    assert {"multirecon", "package", "python", "torch", "monai", "deepinv"} <= {
        n for n, v in record.versions.items() if v
    }


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("count", [4])
def test_progress_says_what_is_left(tmp_path, make_bundle, monkeypatch, count):
    monkeypatch.setattr("multirecon.harness.runner.Worker", InThisProcess)
    terminal = Terminal()
    monkeypatch.setattr("multirecon.harness.runner.tqdm", functools.partial(tqdm, file=terminal, mininterval=0))
    make_bundle("honest")
    methods, task = find_methods(tmp_path / "bundles"), FakeTask(count=count)
    evaluate([task], methods, tmp_path / "out", limit=1)
    evaluate([task], methods, tmp_path / "out")
    text = terminal.getvalue()
    assert "honest" in text
    assert "1/4" in text  # the second run begins where the first ended
    assert re.search(r"3/4 \[\d\d:\d\d<\d\d:\d\d, .*result", text), text  # elapsed < estimated, and the rate
    assert "4/4" in text


def test_shards_merged_in_any_order_are_the_whole_run(tmp_path, make_bundle, monkeypatch):
    monkeypatch.setattr("multirecon.harness.runner.Worker", InThisProcess)
    make_bundle("one")
    make_bundle("two")
    methods, task = find_methods(tmp_path / "bundles"), FakeTask(count=3, repeats=2)
    evaluate([task], methods, tmp_path / "whole", progress=False)
    shards = [tmp_path / f"shard{i}" for i in (1, 2, 3)]
    for i, folder in enumerate(shards, start=1):
        evaluate([task], methods, folder, shard=(i, 3), progress=False)

    def rows(folder):
        records = RecordFile(folder / "records.jsonl").records()
        return sorted((r.key, r.fingerprint, sorted(r.metrics["t1"].items())) for r in records)

    texts = set()
    for number, order in enumerate(itertools.permutations(shards)):
        output = tmp_path / f"all{number}"
        assert merge_folders(list(order), output) == (12, [])
        assert rows(output) == rows(tmp_path / "whole")
        texts.add((output / "records.jsonl").read_text())
    assert len(texts) == 1
