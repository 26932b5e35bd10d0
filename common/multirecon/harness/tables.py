"""Leaderboards and records as text: Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..metrics import HIGHER_IS_BETTER, UNDIRECTED, metric_unit
from .leaderboard import Board, Column, Row
from .records import Record

__all__ = [
    "DECIMALS",
    "cell",
    "column_head",
    "costs",
    "difference",
    "escape_markdown",
    "leaderboard_csv",
    "markdown_table",
    "records_csv",
    "verdict",
]

DECIMALS = {"psnr": 2, "ssim": 4, "nrmse": 4, "mae": 2, "bias": 2, "residual": 4}


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


def cell(row: Row, column: Column) -> str:
    """Return a value with its interval."""
    value = row.values.get(column)
    return value.text(DECIMALS.get(column[1].partition("@")[0], 4)) if value else "–"


def difference(row: Row, column: Column) -> str:
    """Return a paired difference with its interval."""
    value = row.differences.get(column)
    return value.text(DECIMALS.get(column[1].partition("@")[0], 4), sign=True) if value else "–"


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


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(["" if c is None else c for c in row] for row in rows)
    return stream.getvalue()


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, and that opens no HTML."""
    plain = " ".join(str(text).split())
    for character in "\\`*_[]|":
        plain = plain.replace(character, "\\" + character)
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
