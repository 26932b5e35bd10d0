"""What tables say about a difference."""

import pytest

from multirecon.harness.leaderboard import boards, select
from multirecon.harness.records import OK, Record
from multirecon.harness.tables import verdict


def rows(metric, base, other):
    records = [
        Record(
            task="t", bundle=bundle, sample=f"{anatomy}0", anatomy=anatomy, fingerprint=f"{anatomy}0",
            status=OK, content="1", metrics={"ct": {metric: value + i}},
        )
        for bundle, value in (("base", base), ("other", other))
        for i, anatomy in enumerate("ab")
    ]  # fmt: skip
    (board,) = boards(select(records), targets={"t": ["ct"]}, baseline="base")
    return {row.method: row for row in board.rows}


@pytest.mark.parametrize(
    ("metric", "word"),
    [("psnr", "better"), ("psnr@brain", "better"), ("nrmse", "worse"), ("bias", ""), ("crc@lesion", ""), ("hfer", "")],
)
def test_a_higher_value_is_better_worse_or_neither(metric, word):
    assert verdict(rows(metric, 1.0, 2.0)["other"], ("ct", metric)) == word


def test_nothing_is_said_where_the_interval_holds_zero():
    assert verdict(rows("psnr", 1.0, 1.0)["other"], ("ct", "psnr")) == ""
