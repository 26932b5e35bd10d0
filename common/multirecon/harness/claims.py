"""Sentences of sources, and whether the records bear them out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jsonschema

from ..metrics import METRICS, UNDIRECTED
from ..tasks import explain_fault
from .hypotheses import (
    FAILS,
    HOLDS,
    OPEN,
    POPULATION_METRICS,
    UNTESTED,
    Better,
    CostRatio,
    Evidence,
    Hypothesis,
    LargerGain,
    Outcome,
    Quantity,
    Run,
    Trend,
)

__all__ = ["Claim", "Finding", "check_claim", "claim_schema", "parse_claim", "read_claims"]

SCHEMA = "claim.schema.json"


@dataclass(frozen=True)
class Claim:
    """A sentence with its source and its tests.

    Args:
        name: short name, such as ``"C4"``.
        sentence: what is claimed.
        source: where it stands.
        tests: all of them have to hold.
        note: how the tests differ from what the source did (stand-ins, what is left out).
    """

    name: str
    sentence: str
    source: str
    tests: tuple[Hypothesis, ...]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """What the records say about a claim.

    Args:
        claim: the claim.
        verdict: ``"holds"``, ``"fails"``, ``"not decided"`` or ``"not tested"``.
        outcomes: test by test, part by part.
    """

    claim: Claim
    verdict: str
    outcomes: tuple[Outcome, ...]


def claim_schema() -> dict[str, Any]:
    """Return the JSON schema of claim files."""
    return json.loads(resources.files(__package__).joinpath(SCHEMA).read_text(encoding="utf-8"))


def read_claims(folder: Path) -> list[Claim]:
    """Return the claims of ``folder/*.json``, sorted by name (``B2`` before ``B10``).

    Raises:
        ValueError: naming the file, if it is no claim; if there is no folder; or if two claims share a name.
    """
    if not folder.is_dir():
        raise ValueError(f"claims: expected a folder, got {str(folder)!r}")
    claims = []
    for path in sorted(folder.glob("*.json")):
        try:
            claims.append(parse_claim(json.loads(path.read_text(encoding="utf-8"))))
        except ValueError as error:
            raise ValueError(f"{path}: expected a claim, got {error}") from None
    names = [claim.name for claim in claims]
    if len(set(names)) != len(names):
        raise ValueError(f"claims: expected different names, got {names}")
    return sorted(claims, key=lambda claim: _order(claim.name))


def parse_claim(values: Mapping[str, Any]) -> Claim:
    """Return the claim of a JSON object, checked against ``claim.schema.json``.

    Raises:
        ValueError: naming the key, if it is no claim.
    """
    fault = next(iter(jsonschema.Draft202012Validator(claim_schema()).iter_errors(values)), None)
    if fault is not None:
        fault = jsonschema.exceptions.best_match([fault])
        raise ValueError(explain_fault(fault, whole="claim"))
    tests = []
    for number, test in enumerate(values["tests"]):
        try:
            tests.append(_hypothesis(test))
        except ValueError as error:
            raise ValueError(f"tests.{number}: {error}") from None
    return Claim(values["name"], values["sentence"], values["source"], tuple(tests), values.get("note", ""))


def check_claim(claim: Claim, evidence: Evidence) -> Finding:
    """Return whether every part of every test holds: its 95 % interval over anatomies lies above the threshold.

    A claim fails where the interval of one part lies below, is not tested where a run has no results or fewer than two
    anatomies were measured, and is not decided where an interval contains the threshold.
    """
    outcomes = tuple(outcome for test in claim.tests for outcome in test.check(evidence))
    verdicts = {outcome.verdict for outcome in outcomes}
    order: Sequence[str] = (FAILS, UNTESTED, OPEN, HOLDS)
    return Finding(claim, next(v for v in order if v in verdicts), outcomes)


def _hypothesis(test: Mapping[str, Any]) -> Hypothesis:
    kind = test["kind"]
    if kind == "ratio":
        direction: Literal["at_least", "at_most"] = "at_least" if "at_least" in test else "at_most"
        to = _run(test["to"], test) if "to" in test else None
        return CostRatio(test["cost"], _run(test["of"], test), to, test[direction], direction)
    quantity, margin = _quantity(test), float(test.get("margin", 0.0))
    if kind == "better":
        return Better(_runs(test["runs"], test), quantity, margin)
    if quantity.metric in POPULATION_METRICS:
        raise ValueError(f"metric: {quantity.metric!r} belongs to tests of kind 'better' alone, got {kind!r}")
    if kind == "larger_gain":
        first, *rest = (_runs(step, test) for step in (test["gain"], *test["than"]))
        return LargerGain((first[0], first[1]), tuple((a, b) for a, b in rest), quantity, margin)
    if quantity.metric.partition("@")[0] in UNDIRECTED and "against" not in test:
        raise ValueError(f"metric: expected one with a direction for a trend, got {quantity.metric!r}")
    runs, values = _runs(test["runs"], test), tuple(map(float, test["values"]))
    if len(values) != len(runs):
        raise ValueError(f"values: expected {len(runs)}, one a run, got {len(values)}")
    against = tuple(Run(run.task, test["against"]) for run in runs) if "against" in test else ()
    return Trend(runs, values, quantity, test["direction"], test.get("scale", "linear"), against, margin)


def _quantity(test: Mapping[str, Any]) -> Quantity:
    known = [*METRICS, *UNDIRECTED, "crps", "residual", *POPULATION_METRICS]
    if test["metric"].partition("@")[0] not in known:
        raise ValueError(f"metric: expected one of {sorted(set(known))}, got {test['metric']!r}")
    return Quantity(test["modality"], test["metric"])


def _runs(runs: Sequence[str | Mapping[str, str]], test: Mapping[str, Any]) -> tuple[Run, ...]:
    return tuple(_run(run, test) for run in runs)


def _run(run: str | Mapping[str, str], test: Mapping[str, Any]) -> Run:
    """Return a run: a text is the method where the test names the task, and the task where it names the method."""
    if not isinstance(run, str):
        return Run(run["task"], run["method"])
    if ("task" in test) == ("method" in test):
        raise ValueError(f"run {run!r}: expected either 'task' or 'method' beside it, or an object with both")
    return Run(test["task"], run) if "task" in test else Run(run, test["method"])


def _order(name: str) -> tuple[str, int, str]:
    letters = name.rstrip("0123456789")
    digits = name[len(letters) :]
    return letters, int(digits) if digits else -1, name
