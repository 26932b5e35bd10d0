"""Statistics and tables from records."""

import math

import numpy as np
import pytest

from multirecon.harness.leaderboard import boards, select
from multirecon.harness.records import FAILED, NOT_APPLICABLE, OK, Record
from multirecon.harness.statistics import anatomy_interval


def record(bundle, sample, psnr=None, *, status=OK, anatomy=None, fingerprint=None, content="1", **options):
    metrics = {"ct": {"psnr": psnr, "ssim": 0.5}} if psnr is not None else {}
    return Record(
        task="t", bundle=bundle, sample=sample, anatomy=anatomy or sample[0], fingerprint=fingerprint or sample,
        status=status, content=content, metrics=metrics, seconds=0.1 if metrics else None, **options,
    )  # fmt: skip


def test_the_unit_is_the_anatomy():
    interval = anatomy_interval([("a", 0.0)] * 10 + [("b", 1.0)])
    assert interval.mean == 0.5
    assert (interval.anatomies, interval.samples) == (2, 11)
    assert (interval.low, interval.high) == (0.0, 1.0)
    assert interval.text(1) == "0.5 [0.0, 1.0]"
    assert interval.text(1, sign=True) == "+0.5 [+0.0, +1.0]"


def test_one_anatomy_has_no_interval_and_infinity_is_shown():
    assert anatomy_interval([("a", 2.0), ("a", 4.0)]).low is None
    infinite = anatomy_interval([("a", math.inf), ("b", 1.0)])
    assert (infinite.mean, infinite.low, infinite.text(2)) == (math.inf, None, "inf")
    with pytest.raises(ValueError, match="at least one"):
        anatomy_interval([])


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        interval = anatomy_interval([(str(i), v) for i, v in enumerate(rng.normal(size=30))], resamples=500)
        hits += interval.low <= 0.0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.98


def test_rows_are_ranked_and_paired():
    records = [record("base", f"{a}{i}", 20.0 + i) for a in "ab" for i in range(2)]
    records += [record("good", f"{a}{i}", 23.0 + i + (a == "b")) for a in "ab" for i in range(2)]
    records += [record("poor", "a0", 10.0), record("poor", "a1", status=FAILED, reason="no")]
    records += [record("never", "a0", status=FAILED), record("other", "a0", status=NOT_APPLICABLE)]
    (board,) = boards(select(records), targets={"t": ["ct"]})
    assert [r.method for r in board.rows] == ["good", "base", "poor", "never"]
    assert (board.baseline, board.anatomies, board.samples) == ("base", 2, 4)
    assert board.columns == (("ct", "psnr"), ("ct", "ssim"))
    good, base, poor, never = board.rows
    difference = good.differences["ct", "psnr"]
    assert (difference.mean, difference.low, difference.high) == pytest.approx((3.5, 3.0, 4.0))
    assert base.differences == {}
    assert poor.differences["ct", "psnr"].mean == -10.0  # on the one sample that both answered
    assert (poor.ok, poor.failed, never.ok, never.failed) == (1, 1, 0, 1)
    (board,) = boards(select(records), baseline="good")
    assert board.baseline == "good"


def test_earlier_contents_and_other_data_do_not_count():
    records = [record("x", "a0", 1.0, content="old"), record("x", "a0", 2.0, content="new"), record("y", "a0", 3.0)]
    records += [record("z", "a0", 9.0, fingerprint="other")]
    selection = select(records)
    assert [(r.bundle, r.metrics["ct"]["psnr"]) for r in selection.records] == [("x", 2.0), ("y", 3.0)]
    assert ([r.bundle for r in selection.refused], selection.superseded) == (["z"], 1)
    assert boards(select([])) == []
