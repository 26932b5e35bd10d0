"""Full disks, read-only places and broken records: one clear line, and nothing that was there is lost."""

import multiprocessing
import os
import resource
import sys
from pathlib import Path

import pytest
from harness.conftest import write_bundle
from harness.fake_task import FakeTask
from harness.test_runner import InThisProcess

from multirecon.__main__ import main
from multirecon.harness.methods import find_methods
from multirecon.harness.records import OK, RecordFile, latest, read_records
from multirecon.harness.runner import evaluate

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def words(tmp_path, make_bundle, monkeypatch):
    """The command ``evaluate`` on a task of 16 x 16 voxels with a bundle of this test, without processes."""
    monkeypatch.setattr("multirecon.harness.runner.Worker", InThisProcess)
    monkeypatch.setattr("multirecon.tasks.load", lambda name: FakeTask(count=4))
    make_bundle("honest")
    return ["evaluate", str(tmp_path / "out"), "--tasks", "noise16", "--folder", str(tmp_path / "bundles"),
            "--noprogress"]  # fmt: skip


def run_apart(words, errors, *, file_limit=None, user=None):
    """Run the command in a child, with a limit on the size of files or as another user; return its exit code."""

    def child():
        with Path(errors).open("w") as stream:
            os.dup2(stream.fileno(), 2)
            sys.stderr = stream
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
            if user is not None:
                os.setgid(user)
                os.setuid(user)
            code = main(words)
            stream.flush()
            os._exit(code)

    process = FORK.Process(target=child)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("limit", [100, 1500, 4000])
def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(tmp_path, words, limit):
    """No file may grow beyond the limit: the catalogue, the records or the measurements meet it first."""
    assert main([*words, "--limit", "2"]) == 0
    records = tmp_path / "out" / "records.jsonl"
    before = records.read_bytes()
    assert run_apart(words, tmp_path / "errors", file_limit=limit) == 1
    errors = (tmp_path / "errors").read_text().strip().splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("multirecon: ")
    assert "File too large" in errors[0] or "bytes could be written" in errors[0], errors
    assert records.read_bytes().startswith(before)
    assert read_records(records)[1] == []
    assert not [p for p in (tmp_path / "out").rglob(".part-*") if ".work" not in p.parts]
    assert main(words) == 0  # space again: the rest is done
    assert len(RecordFile(records).records()) == 4


def test_a_read_only_output_is_one_line(tmp_path, words, capsys):
    (tmp_path / "file").touch()
    words[1] = str(tmp_path / "file" / "out")
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "Not a directory" in error
    assert error.count("\n") == 1


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="another user can only be asked for by root")
def test_a_folder_of_another_user_is_one_line_and_stays_as_it_was(tmp_path, words):
    assert main([*words, "--limit", "2"]) == 0
    records = tmp_path / "out" / "records.jsonl"
    before = records.read_bytes()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)
    assert run_apart(words, tmp_path / "errors", user=65534) == 1
    errors = (tmp_path / "errors").read_text().strip().splitlines()
    assert len(errors) == 1, errors
    assert "Permission denied" in errors[0]
    assert records.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--bundles", "none"], "bundle: expected one of ['honest']"),
        (["--bundles", "honest:fast"], "variant of 'honest': expected one of []"),
        (["--set_name", "huge"], "set: expected 'small'"),
        (["--guests", "none.json"], "guest: expected an existing JSON file"),
    ],
)
def test_unknown_names_are_one_line(words, more, message, capsys):
    assert main([*words, *more]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_unknown_metrics_of_a_task_are_refused_before_anything_runs(tmp_path, capsys):
    from multirecon import tasks

    text = (tasks.resources.files(tasks) / "ct_sparse60.json").read_text(encoding="utf-8")
    (tmp_path / "task.json").write_text(text.replace('"psnr"', '"beauty"'))
    assert main(["evaluate", str(tmp_path / "out"), "--tasks", str(tmp_path / "task.json")]) == 1
    error = capsys.readouterr().err
    assert "metrics" in error
    assert "beauty" in error
    assert error.count("\n") == 1


def test_broken_records_are_reported_and_the_others_stand(tmp_path, words, capsys):
    assert main([*words, "--limit", "3"]) == 0
    capsys.readouterr()
    records = tmp_path / "out" / "records.jsonl"
    first, second, third = records.read_bytes().splitlines(keepends=True)
    broken = [
        os.urandom(40).replace(b"\n", b"") + b"\xff\x00\n",
        b'{"some": "other", "JSON": 1}\n',
        b"[" * 50_000 + b"\n",
        first.replace(b'"versions": {', b'"versions": [], "other": {'),
        third[: len(third) // 2],
    ]
    records.write_bytes(first + first + broken[0] + second + b"".join(broken[1:]))
    held = records.read_bytes()
    assert main(words) == 0
    output = capsys.readouterr()
    assert "2 ok; 2 already there" in output.out  # the third was torn, the fourth is new
    assert records.read_bytes().startswith(held)
    problems = output.err.strip().splitlines()
    assert len(problems) == 5, problems
    assert all(line.startswith("multirecon: no record: records.jsonl:") for line in problems)
    found = latest(RecordFile(records).records())
    assert [r.sample for r in found] == ["s00", "s01", "s02", "s03"]
    assert {r.status for r in found} == {OK}
    assert main(["report", str(tmp_path / "out")]) == 0
    assert main(["merge", str(tmp_path / "all"), str(tmp_path / "out")]) == 0
    assert read_records(tmp_path / "all" / "records.jsonl")[1] == []


def test_a_catalogue_of_other_samples_or_garbage_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr("multirecon.harness.runner.Worker", InThisProcess)
    write_bundle(tmp_path / "bundles", "honest")
    task = FakeTask(count=2)
    task.config = {"a": 1}
    output = tmp_path / "out"
    evaluate([task], find_methods(tmp_path / "bundles"), output, progress=False, limit=1)
    (catalogue,) = (output / "samples").glob("*.json")
    for text in ("\x00garbage", "[]", '{"origin": 3}'):
        catalogue.write_text(text)
        evaluate([task], find_methods(tmp_path / "bundles"), output, progress=False)
        assert '"s01"' in catalogue.read_text()
    assert len(RecordFile(output / "records.jsonl").records()) == 2
