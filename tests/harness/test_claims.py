"""Claims hold, fail, stay open or untested as their paired intervals say."""

import json

import pytest
from harness.test_leaderboard import record
from harness.test_report import EVIL, Page, fill

from multirecon.harness.claims import Claim, Comparison, check_claim, read_claims
from multirecon.harness.leaderboard import select
from multirecon.harness.report import write_report


def verdict(*comparisons, records):
    return check_claim(Claim("A1", "x is better", "S0:1", comparisons), select(records)).verdict


def compare(better="x", worse="y", margin=0.0, metric="psnr"):
    return Comparison("t", better, worse, "ct", metric, margin)


def test_verdicts():
    records = [record("x", a, 25.0 + i) for i, a in enumerate("abc")]
    records += [record("y", a, 22.0 + i * 1.5) for i, a in enumerate("abc")]
    records += [record("z", a, 25.0 + i + (-1) ** i) for i, a in enumerate("abc")]
    assert verdict(compare(), records=records) == "holds"
    assert verdict(compare("y", "x"), records=records) == "fails"
    assert verdict(compare(margin=1.5), records=records) == "holds"
    assert verdict(compare(margin=2.5), records=records) == "not decided"
    assert verdict(compare(margin=4.0), records=records) == "fails"
    assert verdict(compare("x", "z"), records=records) == "not decided"
    assert verdict(compare("x", "nobody"), records=records) == "not tested"
    assert verdict(compare(), compare("y", "x"), records=records) == "fails"
    assert verdict(compare(), compare("x", "nobody"), records=records) == "not tested"
    one = [r for r in records if r.anatomy == "a"]
    assert verdict(compare(), records=one) == "not tested"


def test_a_smaller_error_is_better():
    records = [record(b, a, 1.0) for b in "xy" for a in "abc"]
    for r in records:
        r.metrics["ct"]["mae"] = 10.0 if r.bundle == "x" else 20.0
    assert verdict(compare(metric="mae", margin=5.0), records=records) == "holds"
    assert verdict(compare("y", "x", metric="mae"), records=records) == "fails"


def test_files(tmp_path):
    good = {"name": "B", "sentence": "s", "source": "S", "comparisons": [
        {"task": "t", "better": "x", "worse": "y", "modality": "ct", "margin": 0.3}]}  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps(good))
    (tmp_path / "a.json").write_text(json.dumps({**good, "name": "A"}))
    assert [c.name for c in read_claims(tmp_path)] == ["A", "B"]
    for change, message in (
        ({"comparisons": []}, "at least one"),
        ({"comparisons": [{"tsak": "t"}]}, "tsak"),
        ({"sentence": 3}, "texts"),
        ({"comparisons": [{**good["comparisons"][0], "margin": "1"}]}, "margin"),
        ({"name": "A"}, "different names"),
    ):
        (tmp_path / "b.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=message):
            read_claims(tmp_path)
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json"):
        read_claims(tmp_path)
    with pytest.raises(ValueError, match="folder"):
        read_claims(tmp_path / "none")


def test_the_report_prints_them(tmp_path):
    fill(tmp_path)
    claims = [Claim(EVIL, "Unrolled beats SENSE", EVIL, (Comparison("noise16", "unrolled", "sense", "t1"),))]
    files = write_report([tmp_path], tmp_path / "report", claims=claims)
    page = Page(files["html"].read_text())
    text = " ".join(" ".join(page.text).split())
    assert "script" not in page.tags
    assert "holds noise16: unrolled better than sense in t1 psnr dB: +1.00 [+1.00, +1.00], n = 3" in text
    assert "holds.** Unrolled beats SENSE" in files["markdown"].read_text()
    assert "<script" not in files["markdown"].read_text()
