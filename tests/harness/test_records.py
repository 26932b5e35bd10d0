"""Records on the disk: nothing lost, nothing doubled, nothing believed that is broken."""

import errno
import gzip
import math
import multiprocessing
import os
from dataclasses import replace

import pytest

from multirecon.harness.records import FAILED, OK, Record, RecordFile, consistent, latest, read_records

RECORD = Record(
    task="t", bundle="b", variant="v", sample="s", anatomy="a", fingerprint="f" * 64, status=OK, seconds=0.5,
    versions={"torch": "2"}, metrics={"ct": {"psnr": math.inf, "ssim": 1.0}},
)  # fmt: skip


def test_a_record_survives_its_line():
    line = RECORD.to_line()
    assert "\n" not in line
    assert '"inf"' in line
    assert Record.from_line(line) == RECORD
    assert RECORD.method == "b:v"
    odd = replace(RECORD, sample='\n"</script>\u2028', reason="ä")
    assert "\n" not in odd.to_line()
    assert Record.from_line(odd.to_line()) == odd


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "JSON"),
        ("[1]", "object"),
        ('{"task": "t"}', "keys"),
        (RECORD.to_line().replace('"ok"', '"great"'), "status"),
        (RECORD.to_line().replace('"repeat": 0', '"repeat": "0"'), "repeat"),
        (RECORD.to_line().replace('"sample": "s"', '"sample": 3'), "sample"),
        (RECORD.to_line().replace('"seconds": 0.5', '"seconds": "0.5"'), "seconds"),
        (RECORD.to_line().replace('{"psnr": "inf", "ssim": 1.0}', "[]"), "record"),
    ],
)
def test_what_is_no_record_is_named(line, message):
    with pytest.raises(ValueError, match=message):
        Record.from_line(line)


def test_a_settled_record_is_written_once_and_a_failure_may_be_settled_later(tmp_path):
    file = RecordFile(tmp_path / "new" / "records.jsonl")
    failed = replace(RECORD, status=FAILED, metrics={}, reason="timeout")
    assert file.append(failed)
    assert RecordFile(file.path).append(RECORD)
    assert not file.append(RECORD)
    assert not file.append(failed)
    assert latest(file.records()) == [RECORD]
    assert latest(reversed(file.records())) == [RECORD]


def test_a_broken_tail_is_closed_off_and_reported(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(RECORD.to_line().encode() + b"\n" + b'{"task": "t", "bund\xff')
    other = replace(RECORD, sample="s2")
    file = RecordFile(path)
    assert file.append(other)
    assert not file.append(RECORD)
    records, problems = read_records(path)
    assert records == [RECORD, other]
    assert len(problems) == 1
    assert "records.jsonl:2" in problems[0]
    with pytest.raises(ValueError, match="existing file"):
        read_records(tmp_path / "none.jsonl")


def test_compressed_results_are_read_and_not_added_to(tmp_path):
    path, packed = tmp_path / "records.jsonl", tmp_path / "records.jsonl.gz"
    line = RECORD.to_line().encode() + b"\n"
    packed.write_bytes(gzip.compress(line))
    assert read_records(path) == ([RECORD], [])
    with pytest.raises(ValueError, match=r"expected a file to add to, got .*gunzip"):
        RecordFile(path)
    packed.write_bytes(gzip.compress(line)[:-9])
    with pytest.raises(ValueError, match="expected a whole gzip file, got"):
        read_records(path)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = RecordFile(tmp_path / "records.jsonl")
    file.append(RECORD)
    before, write = file.path.read_bytes(), os.write

    def half(descriptor, data):
        return write(descriptor, data[: len(data) // 2])

    def none(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    for broken in (half, none):
        monkeypatch.setattr(os, "write", broken)
        with pytest.raises(OSError, match=r"disk full|No space"):
            file.append(replace(RECORD, sample="s2"))
        assert file.path.read_bytes() == before
    monkeypatch.setattr(os, "write", write)
    assert file.append(replace(RECORD, sample="s2"))


def _append_all(path):
    file = RecordFile(path)
    for number in range(40):
        file.append(replace(RECORD, sample=f"s{number}", reason="x" * 5000))


def test_two_processes_neither_mix_nor_double_lines(tmp_path):
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_all, args=(path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    records, problems = read_records(path)
    assert problems == []
    assert sorted(r.sample for r in records) == sorted(f"s{n}" for n in range(40))


def test_other_data_under_the_same_name_are_refused():
    rows = [replace(RECORD, bundle=b, fingerprint=f) for b, f in (("x", "1"), ("y", "2"), ("z", "2"))]
    kept, refused = consistent(rows)
    assert [r.bundle for r in kept] == ["y", "z"]
    assert [r.bundle for r in refused] == ["x"]
