"""Claims hold, fail, stay open or untested as their paired intervals say."""

import csv
import io
import json
from dataclasses import replace

import pytest
from harness.test_leaderboard import record
from harness.test_report import EVIL, Page, fill

from multirecon.harness.claims import Claim, check_claim, parse_claim, read_claims
from multirecon.harness.hypotheses import Better, Evidence, Quantity, Run
from multirecon.harness.leaderboard import select
from multirecon.harness.report import write_report
from multirecon.harness.statistics import Interval

BASE = {"name": "A1", "sentence": "x is better", "source": "S0:1"}


def finding(*tests, records, population=None):
    claim = parse_claim({**BASE, "tests": list(tests)})
    return check_claim(claim, Evidence(select(records), *([population] if population else [])))


def verdict(*tests, records, **options):
    return finding(*tests, records=records, **options).verdict


def compare(*methods, **options):
    runs = list(methods or ("x", "y"))
    return {"kind": "better", "task": "t", "runs": runs, "modality": "ct", "metric": "psnr", **options}


def rows(task, method, values, metric="psnr", **options):
    """Two samples an anatomy with the same value, for every anatomy of ``values``."""
    return [
        replace(record(method, f"{anatomy}{i}", value, **options), task=task, metrics={"ct": {metric: value}})
        for anatomy, value in values.items()
        for i in range(2)
    ]


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
    (outcome,) = finding(compare(), records=one).outcomes
    assert (outcome.verdict, outcome.note) == ("not tested", "one anatomy allows no interval")


def test_a_chain_is_checked_link_by_link():
    records = [r for n, v in (("x", 3.0), ("y", 2.0), ("z", 2.5)) for r in rows("t", n, dict.fromkeys("abc", v))]
    found = finding(compare("x", "y", "z"), records=records)
    assert [o.verdict for o in found.outcomes] == ["holds", "fails"]
    assert [o.measured.mean for o in found.outcomes] == [1.0, -0.5]
    assert verdict(compare("x", "z", "y"), records=records) == "holds"


def test_a_smaller_error_is_better():
    records = [r for n, v in (("x", 10.0), ("y", 20.0)) for r in rows("t", n, dict.fromkeys("abc", v), "mae")]
    assert verdict(compare(metric="mae", margin=5.0), records=records) == "holds"
    assert verdict(compare("y", "x", metric="mae"), records=records) == "fails"


@pytest.mark.parametrize(
    ("metric", "close", "far"),
    [("crc@lesion", 1.1, 0.5), ("crc@lesion", 0.9, 1.6), ("hfer", 1.05, 0.2), ("bias", -0.1, 3.0), ("bias", 0.1, -3.0),
     ("coverage80", 0.75, 0.99)],
)  # fmt: skip
def test_a_metric_with_a_best_value_counts_by_the_distance_to_it(metric, close, far):
    records = [r for n, v in (("x", close), ("y", far)) for r in rows("t", n, dict.fromkeys("abc", v), metric)]
    assert verdict(compare(metric=metric), records=records) == "holds"
    assert verdict(compare("y", "x", metric=metric), records=records) == "fails"


def test_one_method_on_several_tasks_is_paired_by_sample():
    spread = {"a": 0.0, "b": 10.0, "c": 20.0}  # between anatomies: unpaired, nothing could be told
    records = rows("u", "x", {a: v + 1.0 for a, v in spread.items()}) + rows("t", "x", spread)
    test = {"kind": "better", "method": "x", "runs": ["u", "t"], "modality": "ct", "metric": "psnr"}
    found = finding(test, records=records)
    assert found.verdict == "holds"
    assert found.outcomes[0].measured == Interval(1.0, 1.0, 1.0, 3, 6)
    assert "x: u better than t in ct psnr" in found.outcomes[0].text
    mixed = {**test, "runs": [{"task": "u", "method": "x"}, {"task": "t", "method": "x"}]}
    assert finding({k: v for k, v in mixed.items() if k != "method"}, records=records).verdict == "holds"


def test_the_first_step_gains_most():
    level = {"t0": 20.0, "t1": 23.0, "t2": 24.0, "t3": 24.5}
    records = [r for t, v in level.items() for r in rows(t, "x", {a: v + i for i, a in enumerate("abc")})]
    test = {"kind": "larger_gain", "method": "x", "gain": ["t0", "t1"], "than": [["t1", "t2"], ["t2", "t3"]],
            "modality": "ct", "metric": "psnr"}  # fmt: skip
    found = finding(test, records=records)
    assert found.verdict == "holds"
    assert [o.measured.mean for o in found.outcomes] == [2.0, 2.5]
    assert verdict({**test, "margin": 2.2}, records=records) == "fails"
    assert verdict({**test, "gain": ["t2", "t3"], "than": [["t0", "t1"]]}, records=records) == "fails"
    assert verdict({**test, "than": [["t1", "t9"]]}, records=records) == "not tested"
    # of an error, a gain is a fall
    errors = [replace(r, metrics={"ct": {"mae": 50 - r.metrics["ct"]["psnr"]}}) for r in records]
    assert verdict({**test, "metric": "mae"}, records=errors) == "holds"


def test_a_ratio_of_costs():
    records = [replace(r, seconds=s, peak_mb=100 * s, device="cpu") for n, s in (("x", 8.0), ("y", 2.0))
               for r in rows("t", n, dict.fromkeys("abc", 1.0))]  # fmt: skip
    test = {"kind": "ratio", "task": "t", "of": "x", "to": "y", "cost": "seconds"}
    found = finding({**test, "at_least": 3}, records=records)
    assert found.verdict == "holds"
    assert found.outcomes[0].measured.mean == pytest.approx(4.0)
    assert verdict({**test, "at_least": 5}, records=records) == "fails"
    assert verdict({**test, "at_most": 5}, records=records) == "holds"
    assert verdict({**test, "at_most": 3}, records=records) == "fails"
    assert verdict({**test, "cost": "peak_mb", "at_least": 3.9}, records=records) == "holds"
    other = [replace(r, device="gpu") if r.bundle == "x" else r for r in records]
    (outcome,) = finding({**test, "at_least": 3}, records=other).outcomes
    assert (outcome.verdict, outcome.note) == ("not tested", "devices differ: cpu, gpu")


def test_a_cost_by_itself_and_the_iterations_until_settled():
    records = [
        replace(r, seconds=s, device=n, settling={"settling_iterations": 10 * s})
        for n, s in (("x", 8.0), ("y", 2.0))
        for r in rows("t", n, dict.fromkeys("abc", 1.0))
    ]
    test = {"kind": "ratio", "task": "t", "of": "x", "cost": "settling_iterations"}
    found = finding({**test, "at_most": 100}, records=records)
    assert found.verdict == "holds"
    assert found.outcomes[0].measured.mean == pytest.approx(80.0)
    assert "t: iterations until settled of x at most 100" in found.outcomes[0].text
    assert verdict({**test, "at_least": 100}, records=records) == "fails"
    assert verdict({**test, "cost": "seconds", "at_most": 9}, records=records) == "holds"
    # iterations, unlike seconds, do not depend on the device
    assert verdict({**test, "to": "y", "at_least": 3}, records=records) == "holds"
    assert verdict({**test, "to": "y", "cost": "seconds", "at_least": 3}, records=records) == "not tested"
    assert verdict({**test, "cost": "settling_seconds", "at_most": 9}, records=records) == "not tested"


def test_a_trend_along_a_family_of_tasks():
    family = {"t2": 2, "t4": 4, "t8": 8}
    records = [r for t, n in family.items() for r in rows(t, "x", {a: 30 - n + i for i, a in enumerate("abc")})]
    records += [r for t, n in family.items() for r in rows(t, "y", {a: 30 - 3 * n + i for i, a in enumerate("abc")})]
    test = {"kind": "trend", "method": "x", "runs": list(family), "values": [2, 4, 8], "direction": "falls",
            "modality": "ct", "metric": "psnr"}  # fmt: skip
    found = finding(test, records=records)
    assert found.verdict == "holds"
    assert found.outcomes[0].measured.mean == pytest.approx(1.0)
    assert verdict({**test, "direction": "rises"}, records=records) == "fails"
    assert verdict({**test, "margin": 1.5}, records=records) == "fails"
    growing = finding({**test, "direction": "rises", "against": "y"}, records=records)
    assert growing.outcomes[0].measured.mean == pytest.approx(2.0)
    assert growing.verdict == "holds"
    log = finding({**test, "scale": "log"}, records=records)
    assert log.outcomes[0].measured.mean == pytest.approx(3.0)
    assert verdict({**test, "runs": ["t2", "t4", "t9"]}, records=records) == "not tested"


def test_a_distance_of_populations_comes_from_the_features():
    asked = []

    def population(first, second, modality, metric):
        asked.append((first, second, modality, metric))
        return Interval(0.4, 0.2, 0.6, 3, 24)

    assert verdict(compare(metric="kid"), records=[record("x", "a0", 1.0)], population=population) == "holds"
    assert asked == [(Run("t", "y"), Run("t", "x"), "ct", "kid")]  # positive: y lies further away
    assert verdict(compare(metric="kid"), records=[record("x", "a0", 1.0)]) == "not tested"


def test_files(tmp_path):
    good = {**BASE, "name": "B2", "tests": [compare(margin=0.3)]}
    (tmp_path / "b.json").write_text(json.dumps(good))
    (tmp_path / "a.json").write_text(json.dumps({**good, "name": "B10", "note": "n"}))
    (tmp_path / "c.json").write_text(json.dumps({**good, "name": "A3"}))
    assert [c.name for c in read_claims(tmp_path)] == ["A3", "B2", "B10"]
    trend = {"kind": "trend", "task": "t", "runs": ["a", "b", "c"], "values": [1, 2, 3], "direction": "rises",
             "modality": "ct", "metric": "psnr"}  # fmt: skip
    for change, message in (
        ({"tests": []}, "tests: "),
        ({"tests": [{"tsak": "t"}]}, r"tests\.0: expected the keys .*'kind'"),
        ({"tests": [{**compare(), "tsak": "t"}]}, "tsak"),
        ({"tests": [{**compare(), "kind": "worse"}]}, r"tests\.0\.kind: expected one of .*worse"),
        ({"tests": [compare("x")]}, r"tests\.0\.runs"),
        ({"tests": [compare(metric="pnsr")]}, r"tests\.0: metric: .*'pnsr'"),
        ({"tests": [compare(method="x")]}, "either 'task' or 'method'"),
        ({"tests": [{**trend, "values": [1, 2]}]}, "values: expected 3"),
        ({"tests": [{**trend, "metric": "bias"}]}, "with a direction"),
        ({"tests": [{**trend, "metric": "kid"}]}, "kind 'better' alone"),
        ({"tests": [{"kind": "ratio", "task": "t", "of": "x", "to": "y", "cost": "seconds"}]}, r"tests\.0"),
        ({"sentence": 3}, "sentence"),
        ({"tests": [compare(margin="1")]}, "margin"),
        ({"name": "A3"}, "different names"),
    ):
        (tmp_path / "b.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=message) as caught:
            read_claims(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json"):
        read_claims(tmp_path)
    with pytest.raises(ValueError, match="folder"):
        read_claims(tmp_path / "none")


def test_the_report_prints_them(tmp_path):
    fill(tmp_path)
    test = Better((Run("noise16", "unrolled"), Run("noise16", "sense")), Quantity("t1", "psnr"))
    claims = [Claim(EVIL, "Unrolled beats SENSE", EVIL, (test,), EVIL)]
    files = write_report([tmp_path], tmp_path / "report", claims=claims)
    page = Page(files["html"].read_text())
    text = " ".join(" ".join(page.text).split())
    assert "script" not in page.tags
    assert "holds noise16: unrolled better than sense in t1 psnr: +1.00 [+1.00, +1.00], n = 3" in text
    assert "1 claims: holds" in text
    assert "holds.** Unrolled beats SENSE" in files["markdown"].read_text()
    assert "<script" not in files["markdown"].read_text()
    (row,) = csv.DictReader(io.StringIO(files["claims"].read_text()))
    assert (row["verdict"], float(row["mean"]), row["anatomies"], row["threshold"]) == ("holds", 1.0, "3", "0.0")
