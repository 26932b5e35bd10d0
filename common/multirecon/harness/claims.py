"""Sentences of sources, and whether the records bear them out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..metrics import HIGHER_IS_BETTER
from .leaderboard import Selection, paired_differences
from .records import OK
from .statistics import Interval, anatomy_interval

__all__ = ["Claim", "Comparison", "Finding", "check_claim", "read_claims"]

HOLDS, FAILS, OPEN, UNTESTED = "holds", "fails", "not decided", "not tested"


@dataclass(frozen=True)
class Comparison:
    """One testable part of a claim: on a task, one method is better than another.

    Args:
        task: name of the task.
        better: method that the claim puts first (``bundle`` or ``bundle:variant``).
        worse: method that it is compared with.
        modality: modality that is compared.
        metric: metric that is compared; which direction is better follows from it.
        margin: how much better it has to be, in the unit of the metric.
    """

    task: str
    better: str
    worse: str
    modality: str
    metric: str = "psnr"
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A sentence with its source and its tests.

    Args:
        name: short name, such as ``"C4"``.
        sentence: what is claimed.
        source: where it stands.
        comparisons: all of them have to hold.
    """

    name: str
    sentence: str
    source: str
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Finding:
    """What the records say about a claim.

    Args:
        claim: the claim.
        verdict: ``"holds"``, ``"fails"``, ``"not decided"`` or ``"not tested"``.
        advantages: comparison by comparison, the paired advantage (positive: as claimed), or ``None`` without results.
    """

    claim: Claim
    verdict: str
    advantages: tuple[Interval | None, ...]


def read_claims(folder: Path) -> list[Claim]:
    """Return the claims of ``folder/*.json``, sorted by name.

    A file holds ``{"name", "sentence", "source", "comparisons": [{"task", "better", "worse", "modality", "metric",
    "margin"}]}``.

    Raises:
        ValueError: naming the file, if it is no claim.
    """
    if not folder.is_dir():
        raise ValueError(f"claims: expected a folder, got {str(folder)!r}")
    claims = [_read(path) for path in sorted(folder.glob("*.json"))]
    names = [claim.name for claim in claims]
    if len(set(names)) != len(names):
        raise ValueError(f"claims: expected different names, got {names}")
    return sorted(claims, key=lambda claim: claim.name)


def _read(path: Path) -> Claim:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        comparisons = tuple(Comparison(**c) for c in values["comparisons"])
        texts = [values["name"], values["sentence"], values["source"]]
        texts += [t for c in comparisons for t in (c.task, c.better, c.worse, c.modality, c.metric)]
        margins = [c.margin for c in comparisons]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a claim, got {type(error).__name__}: {error}") from None
    if not comparisons or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"{path}: expected texts and at least one comparison")
    if not all(isinstance(m, int | float) for m in margins):
        raise ValueError(f"{path}: margin: expected numbers, got {margins}")
    return Claim(texts[0], texts[1], texts[2], comparisons)


def check_claim(claim: Claim, selection: Selection) -> Finding:
    r"""Return whether every comparison holds: the paired 95 % interval over anatomies lies above the margin.

    A claim fails where the interval of one comparison lies below the margin, is not decided where an interval contains
    it, and is not tested where a method has no results or fewer than two anatomies were measured.
    """
    advantages = tuple(_advantage(c, selection) for c in claim.comparisons)
    verdicts = {_verdict(a, c.margin) for a, c in zip(advantages, claim.comparisons, strict=True)}
    order: Sequence[str] = (FAILS, UNTESTED, OPEN, HOLDS)
    return Finding(claim, next(v for v in order if v in verdicts), advantages)


def _advantage(comparison: Comparison, selection: Selection) -> Interval | None:
    mine, other = (
        [r for r in selection.records if r.task == comparison.task and r.method == method and r.status == OK]
        for method in (comparison.better, comparison.worse)
    )
    pairs = paired_differences(mine, other, (comparison.modality, comparison.metric))
    sign = 1.0 if comparison.metric.partition("@")[0] in HIGHER_IS_BETTER else -1.0
    return anatomy_interval([(anatomy, sign * value) for anatomy, value in pairs]) if pairs else None


def _verdict(advantage: Interval | None, margin: float) -> str:
    if advantage is None or advantage.low is None or advantage.high is None:
        return UNTESTED
    return HOLDS if advantage.low > margin else FAILS if advantage.high < margin else OPEN
