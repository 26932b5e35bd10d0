"""Leaderboards and records as text: Markdown and CSV."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..metrics import HIGHER_IS_BETTER, IDEAL, UNDIRECTED, metric_score, metric_unit
from .claims import Finding
from .ensembles import EnsembleRow
from .leaderboard import Board, Column, Row
from .populations import PopulationRow
from .records import Record
from .statistics import Interval
from .sweeps import Sweep

__all__ = [
    "DECIMALS",
    "LABELS",
    "best",
    "cell",
    "claims_csv",
    "column_head",
    "column_label",
    "costs",
    "decimals",
    "difference",
    "direction",
    "ensembles_csv",
    "escape_markdown",
    "leaderboard_csv",
    "markdown_rows",
    "markdown_table",
    "populations_csv",
    "records_csv",
    "sweeps_csv",
    "verdict",
    "visible",
]

DECIMALS = {
    "psnr": 2, "ssim": 4, "nrmse": 4, "mae": 2, "bias": 2, "hfer": 3, "tvz": 3, "psnr_axial": 2, "psnr_sagittal": 2,
    "rmse": 2, "crosstalk": 2, "crc": 3, "cnr": 2, "residual": 4, "crps": 3,
    "coverage50": 3, "coverage80": 3, "coverage95": 3, "kid": 3, "fd": 2, "nbias": 4, "nstd": 4, "ratio": 2,
}  # fmt: skip
LABELS = {
    "psnr": "PSNR", "ssim": "SSIM", "nrmse": "NRMSE", "mae": "MAE", "bias": "bias", "hfer": "HF energy ratio",
    "tvz": "variation across slices", "psnr_axial": "PSNR of axial slices", "psnr_sagittal": "PSNR of sagittal slices",
    "rmse": "RMSE", "crosstalk": "crosstalk of bone",
    "crc": "contrast recovery", "cnr": "contrast to noise", "residual": "data residual", "crps": "CRPS",
    "coverage50": "50 % coverage", "coverage80": "80 % coverage", "coverage95": "95 % coverage",
}  # fmt: skip


def markdown_table(
    board: Board, *, columns: Sequence[Column] | None = None, units: Mapping[str, str] | None = None
) -> str:
    """Return the leaderboard of a task as a Markdown table; names are escaped.

    Args:
        board: the board.
        columns: columns to show; the default is all of them.
        units: modality -> unit in which it is stated.
    """
    chosen = list(columns or board.columns)
    head = ["method", *(column_head(c, units) for c in chosen)]
    if chosen:
        head.append(f"difference in {' '.join(chosen[0])} to {board.baseline}")
    rows = [[escape_markdown(h) for h in head] + ["seconds", "peak MiB", "results"]]
    for row in board.rows:
        cells = [escape_markdown(row.method), *(cell(row, c) for c in chosen)]
        cells += [difference(row, chosen[0])] if chosen else []
        rows.append([*cells, *costs(row)])
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    note = f"n = {board.anatomies} anatomies, {board.samples} samples; 95 % bootstrap intervals over anatomies."
    return "\n".join([*lines, "", note])


def leaderboard_csv(tables: Iterable[Board]) -> str:
    """Return every number of every board as CSV, one line a value."""
    head = ["task", "method", "modality", "metric", "mean", "low", "high", "difference", "difference_low",
            "difference_high", "baseline", "anatomies", "samples", "failed", "median_seconds", "peak_mb"]  # fmt: skip
    lines: list[list[Any]] = []
    for board in tables:
        for row in board.rows:
            for column, value in row.values.items():
                d = row.differences.get(column)
                paired = [d.mean, d.low, d.high] if d else [None] * 3
                lines.append([board.task, row.method, *column, value.mean, value.low, value.high, *paired,
                              board.baseline, value.anatomies, value.samples, row.failed, row.seconds,
                              row.peak_mb])  # fmt: skip
    return _csv([head, *lines])


def records_csv(records: Iterable[Record]) -> str:
    """Return every record as CSV, one line a record and metric."""
    head = ["task", "method", "sample", "anatomy", "repeat", "seed", "status", "reason", "seconds", "peak_mb", "device",
            "fingerprint", "weights", "modality", "metric", "value"]  # fmt: skip
    lines = []
    for r in records:
        facts = [r.task, r.method, r.sample, r.anatomy, r.repeat, r.seed, r.status, r.reason, r.seconds, r.peak_mb,
                 r.device, r.fingerprint, r.weights]  # fmt: skip
        values: list[tuple[Any, ...]] = [(m, n, v) for m, row in r.metrics.items() for n, v in row.items()]
        lines += [[*facts, *value] for value in values or [("", "", "")]]
    return _csv([head, *lines])


def column_head(column: Column, units: Mapping[str, str] | None = None) -> str:
    """Return the head of a column, such as ``ct psnr dB``; ``units`` names the unit of each modality."""
    modality, metric = column
    unit = metric_unit(metric, (units or {}).get(modality, ""))
    return f"{modality} {metric} {unit}".strip()


def column_label(column: Column, units: Mapping[str, str] | None = None, *, modality_too: bool = True) -> str:
    """Return a column for readers, such as ``CT PSNR (dB)`` or ``FLAIR SSIM in brain``."""
    modality, (metric, _, region) = column[0], column[1].partition("@")
    unit = metric_unit(metric, (units or {}).get(modality, ""))
    where = f" in {region.replace('_', ' ')}" if region else ""
    name = f"{LABELS.get(metric, metric)}{f' ({unit})' if unit else ''}{where}"
    return f"{modality.replace('_', ' ').upper()} {name}" if modality_too else name


def direction(metric: str) -> str:
    """Return an arrow that says which values are better: up, down, or the best value."""
    name = metric.partition("@")[0]
    if name == "residual":
        return ""
    return f"→ {IDEAL[name]:g}" if name in IDEAL else "↑" if name in HIGHER_IS_BETTER else "↓"


def best(board: Board, column: Column) -> frozenset[str]:
    """Return the methods whose mean is the best of a column, where there is more than one method to compare."""
    scores = {r.method: metric_score(column[1], r.values[column].mean) for r in board.rows if column in r.values}
    if len(scores) < 2 or column[1].partition("@")[0] == "residual":
        return frozenset()
    return frozenset(m for m, s in scores.items() if s == max(scores.values()))


def decimals(metric: str) -> int:
    """Return the number of decimals of a metric, with or without ``@region``."""
    return DECIMALS.get(metric.partition("@")[0], 4)


def cell(row: Row, column: Column) -> str:
    """Return a value with its interval."""
    value = row.values.get(column)
    return value.text(decimals(column[1])) if value else "–"


def difference(row: Row, column: Column) -> str:
    """Return a paired difference with its interval."""
    value = row.differences.get(column)
    return value.text(decimals(column[1]), sign=True) if value else "–"


def verdict(row: Row, column: Column) -> str:
    """Return ``better`` or ``worse`` where the paired interval excludes zero, else nothing.

    Nothing either for a metric that is best at a value of its own, such as the bias.
    """
    value, metric = row.differences.get(column), column[1].partition("@")[0]
    if value is None or value.low is None or value.high is None or value.low <= 0 <= value.high or metric in UNDIRECTED:
        return ""
    return "better" if (value.low > 0) == (metric in HIGHER_IS_BETTER) else "worse"


def costs(row: Row) -> list[str]:
    """Return seconds, peak memory and the number of results."""
    seconds = "–" if row.seconds is None else f"{row.seconds:.3g}"
    peak = "–" if row.peak_mb is None else f"{row.peak_mb:.0f}"
    return [seconds, peak, f"{row.ok}, {row.failed} failed" if row.failed else str(row.ok)]


def markdown_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; everything is escaped."""
    lines = ["| " + " | ".join(map(escape_markdown, cells)) + " |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


def sweeps_csv(sweeps: Iterable[Sweep]) -> str:
    """Return every point of every sweep as CSV."""
    head = ["sweep", "value", "task", "method", "modality", "metric", "mean", "low", "high", "anatomies", "samples"]
    lines: list[list[Any]] = []
    for sweep in sweeps:
        tasks = dict(sweep.tasks)
        for (method, column), points in sweep.values.items():
            lines += [[sweep.name, v, tasks[v], method, *column, *_interval(i)] for v, i in points]
    return _csv([head, *lines])


def populations_csv(rows: Iterable[tuple[str, PopulationRow]]) -> str:
    """Return the distances of sets of images as CSV, one line a task, method and distance."""
    head = ["task", "method", "modality", "distance", "value", "low", "high", "images", "anatomies"]
    lines = []
    for task, row in rows:
        for d in (row.kernel, row.frechet):
            if d is not None:
                lines.append([task, row.method, row.target, d.name, d.value, d.low, d.high, d.counts[0], row.anatomies])
    return _csv([head, *lines])


def ensembles_csv(rows: Iterable[tuple[str, EnsembleRow]]) -> str:
    """Return bias and spread over noise realisations as CSV, one line a task, method, region and number."""
    head = ["task", "method", "modality", "region", "number", "mean", "low", "high", "anatomies", "samples", "repeats"]
    lines = []
    for task, row in rows:
        for name, value in (("nbias", row.bias), ("nstd", row.std)):
            if value is not None:
                lines.append([task, row.method, row.target, row.region, name, *_interval(value), row.repeats])
    return _csv([head, *lines])


def claims_csv(findings: Iterable[Finding]) -> str:
    """Return every part of every claim as CSV."""
    head = ["claim", "verdict", "part", "part_verdict", "metric", "threshold", "mean", "low", "high", "anatomies",
            "samples", "note"]  # fmt: skip
    lines: list[list[Any]] = []
    for finding in findings:
        for o in finding.outcomes:
            measured = _interval(o.measured) if o.measured else [None] * 5
            lines.append([finding.claim.name, finding.verdict, o.text, o.verdict, o.metric, o.threshold, *measured,
                          o.note])  # fmt: skip
    return _csv([head, *lines])


def _interval(value: Interval) -> list[Any]:
    return [value.mean, value.low, value.high, value.anatomies, value.samples]


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(["" if c is None else c for c in row] for row in rows)
    return stream.getvalue()


def visible(text: str) -> str:
    r"""Return the text with U+FFFD for what steers the layout (right-to-left marks, say) or has no place in XML.

    Example:
        >>> visible("a\x00b\u202ec")
        'a�b�c'
    """
    hidden = ("Cc", "Cf", "Cs", "Cn", "Co")
    return "".join("\ufffd" if c not in "\n\t" and unicodedata.category(c) in hidden else c for c in text)


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, and that opens no HTML."""
    plain = " ".join(visible(str(text)).split())
    for character in "\\`*_[]|":
        plain = plain.replace(character, "\\" + character)
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
