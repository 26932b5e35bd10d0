"""A run that is killed at any moment loses nothing, doubles nothing, and leaves no process behind."""

import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
from harness.fake_task import FakeTask
from harness.test_runner import InThisProcess

from multirecon.harness.methods import find_methods
from multirecon.harness.records import OK, read_records
from multirecon.harness.runner import evaluate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FORK = multiprocessing.get_context("fork")


def _run(task, folder, output):
    evaluate([task], find_methods(folder), output, progress=False)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_fifty_kills_at_random_moments(tmp_path, make_bundle, monkeypatch):
    make_bundle("honest")
    task, output, random_number = FakeTask(count=60, repeats=20), tmp_path / "out", random.Random(0)
    with monkeypatch.context() as patch:
        patch.setattr("multirecon.harness.runner.Worker", InThisProcess)
        begin = time.perf_counter()
        process = FORK.Process(target=_run, args=(FakeTask(count=1), tmp_path / "bundles", tmp_path / "first"))
        process.start()
        process.join()
        first = time.perf_counter() - begin  # from the start to a record, on this machine at this moment
        kills, seen = 0, 0
        while kills < 50:
            process = FORK.Process(target=_run, args=(task, tmp_path / "bundles", output))
            process.start()
            time.sleep(first * random_number.uniform(0.1, 2.5))
            if process.exitcode is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            path = output / "records.jsonl"
            count = len(read_records(path)[0]) if path.exists() else 0
            assert count >= seen
            seen = count
        assert kills == 50, f"the plan was finished after {kills} kills: make it longer"
        assert 0 < seen < 1200
        evaluate([task], find_methods(tmp_path / "bundles"), output, progress=False)
    records, problems = read_records(output / "records.jsonl")
    assert problems == []
    assert len(records) == len({r.key for r in records}) == 1200
    assert {r.status for r in records} == {OK}
    assert not list((output / ".work").glob("run-*"))
    fresh = tmp_path / "fresh"
    with monkeypatch.context() as patch:
        patch.setattr("multirecon.harness.runner.Worker", InThisProcess)
        evaluate([task], find_methods(tmp_path / "bundles"), fresh, progress=False)
    expected = {r.question: (r.fingerprint, r.metrics) for r in read_records(fresh / "records.jsonl")[0]}
    assert {r.question: (r.fingerprint, r.metrics) for r in records} == expected
    assert list((output / "images").rglob("*.npy"))
    assert not list((output / "images").rglob(".part-*"))
    for image in (output / "images").rglob("*.npy"):
        assert np.isfinite(np.load(image)).all()


def test_the_worker_ends_with_its_parent(tmp_path, make_bundle):
    note = tmp_path / "pid"
    code = f"""
def reconstruct(m):
    import os, pathlib, time
    pathlib.Path({str(note)!r}).write_text(str(os.getpid()))
    time.sleep(600)
"""
    make_bundle("sleeps", code)
    process = FORK.Process(target=_run, args=(FakeTask(count=2), tmp_path / "bundles", tmp_path / "out"))
    process.start()
    for _ in range(1200):
        if note.exists() and note.read_text():
            break
        time.sleep(0.1)
    worker = int(note.read_text())
    assert _alive(worker)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    for _ in range(100):
        if not _alive(worker):
            break
        time.sleep(0.1)
    assert not _alive(worker)
