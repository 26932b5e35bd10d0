"""Every source that a docstring names is in the bibliography."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"References:\n((?:[ \t]+[^\n]+\n)+)")
KEY = re.compile(r"\b([A-Za-z]+\d{4}[a-z]*|any2all)\b")


def cited() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in [*ROOT.glob("common/**/*.py"), *ROOT.glob("bundles/*/*.py")]:
        for section in SECTION.findall(path.read_text(encoding="utf-8")):
            for key in KEY.findall(section):
                found.setdefault(key, []).append(path.name)
    return found


def entries() -> list[str]:
    return re.findall(r"^@\w+\{([^,]+),", (ROOT / "docs/references.bib").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_scan_finds_citations():
    assert "joseph1982" in cited()


@pytest.mark.parametrize("key", sorted(cited()))
def test_cited_work_is_in_the_bibliography(key):
    assert key in entries(), f"{key} is cited in {cited()[key]}"


def test_entries_are_unique():
    assert len(entries()) == len(set(entries()))
