"""The table of data ranges in docs/notation.md is that of the code."""

from pathlib import Path

import pytest

from multirecon.metrics import reporting_range
from multirecon.space import Modality

TEXT = (Path(__file__).parents[3] / "docs/notation.md").read_text(encoding="utf-8")
UNITS = {"ct": "1/cm"}


def rows() -> list[list[str]]:
    table = TEXT.split("| modality | stated in |")[1].split("\n\n")[0]
    lines = [line for line in table.splitlines()[2:] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_documented_range_is_the_range_of_the_code(row):
    names, unit, data_range, window = row
    for name in names.replace("`", "").split(", "):
        found = reporting_range(Modality(name, unit=UNITS.get(name, "1"), scale=0.5))
        assert found.unit == unit
        assert found.data_range == float(data_range)
        assert found.window == tuple(float(v) for v in window.split(" to "))


def test_every_row_was_read():
    assert len(rows()) == 3
