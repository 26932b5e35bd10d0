"""The report: complete, self-contained, and safe from what it shows."""

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from harness.fake_task import FakeTask

from multirecon.harness.merging import merge_folders
from multirecon.harness.records import FAILED, NOT_APPLICABLE, OK, Record, RecordFile
from multirecon.harness.report import write_report
from multirecon.harness.runner import describe_task
from multirecon.harness.workspace import image_file, save_image, save_zoom, write_json

EVIL = "<script>alert(1)</script>\"'$x_{$|`*[a](javascript:b)\u202e&"


def fill(folder, *, names=("sense", "unrolled"), sample="s00"):
    file = RecordFile(folder / "records.jsonl")
    task = FakeTask(name="noise16")
    write_json(folder / "tasks" / "noise16.json", describe_task(task))
    for number, name in enumerate(names):
        for anatomy in ("a", "b", "c"):
            record = Record(
                task="noise16", bundle=name, sample=f"{sample}{anatomy}", anatomy=anatomy, fingerprint=anatomy,
                status=OK, seconds=0.1 * 10**number, peak_mb=300.0, device="cpu", versions={"torch": "2.14"},
                metrics={"t1": {"psnr": 25.0 + number + ord(anatomy) % 3, "ssim": 0.9}},
            )  # fmt: skip
            file.append(record)
            image = np.random.default_rng(number).random((1, 16, 16))
            save_image(image_file(folder, record), image)
            save_image(image_file(folder, record, truth=True), image * 0.9)
            mask = torch.zeros(16, 16, dtype=torch.bool)
            mask[2:5, 6:9] = True
            save_zoom(folder, record, {"lesion": mask})
    return file


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "style", "onload", "onerror")]

    def handle_data(self, data):
        self.text.append(data)


def test_one_file_says_it_all(tmp_path):
    file = fill(tmp_path)
    file.append(replace(file.records()[0], bundle="broken", status=FAILED, reason="timeout: 5 s", metrics={}))
    file.append(replace(file.records()[0], bundle="ct_only", status=NOT_APPLICABLE, reason="block 't1'", metrics={}))
    file.append(replace(file.records()[0], bundle="cheat", fingerprint="zzz"))
    with file.path.open("a") as stream:
        stream.write("{broken\n")
    files = write_report([tmp_path], tmp_path / "report", baseline="sense")
    page = Page(files["html"].read_text())
    text = " ".join(" ".join(page.text).split())
    assert all(s.startswith(("data:", "#")) for s in page.sources)
    assert "script" not in page.tags
    assert page.tags.count("img") == 1 + 3  # quality against time, one panel a sample
    for expected in ("n = 3 anatomies, 3 samples", "+1.00 [+1.00, +1.00]", "timeout: 5 s", "block 't1'", "torch 2.14",
                     "cheat: task noise16", "records.jsonl:10", "images from 0 to 1", "data range 1"):  # fmt: skip
        assert expected in text, expected
    markdown = files["markdown"].read_text()
    assert re.search(r"\| unrolled \| 27\.00 \[26\.00, 28\.00\] \|", markdown)
    rows = list(csv.DictReader(io.StringIO(files["leaderboard"].read_text())))
    assert {r["method"] for r in rows} == {"sense", "unrolled"}
    assert float(next(r for r in rows if r["method"] == "unrolled")["difference"]) == 1.0
    assert sum(r["status"] == FAILED for r in csv.DictReader(io.StringIO(files["records"].read_text()))) == 1


def test_the_same_records_give_the_same_report(tmp_path):
    fill(tmp_path / "run")
    first = write_report([tmp_path / "run"], tmp_path / "one")
    second = write_report([tmp_path / "run"], tmp_path / "two")
    for kind, path in first.items():
        assert path.read_bytes() == second[kind].read_bytes(), kind


def test_names_cannot_inject(tmp_path):
    file = fill(tmp_path, names=(EVIL, "sense"), sample=EVIL)
    file.append(replace(file.records()[0], bundle="x", status=FAILED, reason=EVIL, metrics={}))
    file.append(replace(file.records()[0], task=EVIL, bundle=EVIL))
    task = json.loads((tmp_path / "tasks" / "noise16.json").read_text())
    write_json(tmp_path / "tasks" / "evil.json", {**task, "name": EVIL, "description": EVIL})
    files = write_report([tmp_path], tmp_path / "report")
    html = files["html"].read_text()
    page = Page(html)
    assert "script" not in page.tags
    assert "<script" not in html.lower()
    assert "\u202e" not in html  # it would turn what follows a name around
    assert all(s.startswith(("data:", "#")) for s in page.sources)
    assert page.tags.count("img") > 3
    markdown = files["markdown"].read_text()
    assert "<script" not in markdown
    assert "\u202e" not in markdown
    assert "[a](" not in markdown.replace("\\[a\\](", "")
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.M)
    assert len(tables) > 1
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_shards_are_joined_and_nothing_is_refused_with_a_line(tmp_path):
    fill(tmp_path / "one", names=("sense",))
    fill(tmp_path / "two", names=("unrolled",))
    for order in (("one", "two"), ("two", "one")):
        files = write_report([tmp_path / n for n in order], tmp_path / "report", baseline="sense")
        text = files["leaderboard"].read_text()
        assert text.count("unrolled") == 2
        if order[0] == "one":
            before = text
    assert sorted(text.splitlines()) == sorted(before.splitlines())
    with pytest.raises(ValueError, match=r"\['sense', 'unrolled'\], got 'nothing'"):
        write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "report", baseline="nothing")
    with pytest.raises(ValueError, match="existing file"):
        write_report([tmp_path / "none"], tmp_path / "report")


def test_only_failures_still_make_a_report(tmp_path):
    file = RecordFile(tmp_path / "records.jsonl")
    file.append(Record(task="t", bundle="b", sample="s", fingerprint="f", status=FAILED, reason="crash"))
    file.append(Record(task="u", bundle="b", sample="s", fingerprint="f", status=NOT_APPLICABLE, reason="grid"))
    files = write_report([tmp_path], tmp_path / "report")
    text = files["html"].read_text()
    assert "crash" in text
    assert "No method applies" in text


def test_merged_folders_hold_the_same_set_in_any_order(tmp_path):
    fill(tmp_path / "one", names=("sense", "tv"))
    other = fill(tmp_path / "two", names=("sense", "unrolled"))
    other.append(replace(other.records()[0], bundle="cheat", fingerprint="other"))
    with (tmp_path / "two" / "records.jsonl").open("a") as stream:
        stream.write("{torn")
    merged = []
    for number, order in enumerate((("one", "two"), ("two", "one"))):
        output = tmp_path / f"all{number}"
        for _ in range(2):  # merging again adds nothing
            count, refused = merge_folders([tmp_path / n for n in order], output)
            assert (count, [r.bundle for r in refused]) == (9, ["cheat"])
        merged.append((output / "records.jsonl").read_text())
        assert len(list((output / "images").rglob("*.npy"))) == 9 + 3
    assert merged[0] == merged[1]
    with pytest.raises(ValueError, match="existing file"):
        merge_folders([tmp_path / "none"], tmp_path / "all")
