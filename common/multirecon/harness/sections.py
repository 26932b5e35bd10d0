"""The parts of a report as plain values for its templates: tables of texts, charts, verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .charts import cost_chart, ensemble_chart, sweep_chart
from .claims import Finding
from .ensembles import EnsembleRow
from .hypotheses import Outcome
from .leaderboard import Board, Column, Row
from .panels import unit_of
from .populations import PopulationRow
from .records import Record
from .sweeps import Sweep
from .tables import (
    best,
    cell,
    column_label,
    costs,
    decimals,
    difference,
    direction,
    markdown_table,
    verdict,
)
from .task_notes import TaskInfo

__all__ = ["Table", "board_section", "claim_section", "columns_of", "overview", "reasons", "sweep_section"]

POSTERIOR = ("crps", "coverage50", "coverage80", "coverage95")
CHARTED = ("psnr", "ssim")
HONESTY = (
    "CRPS (smaller is better) and the share of voxels whose truth lies in the central interval of the samples: an "
    "honest posterior covers what the interval says, less is over-confident."
)
RESIDUAL = (
    "Relative residual of the measured data: about their ratio of noise to signal is right, far below it fits noise, "
    "far above it contradicts the data."
)
DETAILS = {
    "posterior": ("Posterior samples", HONESTY),
    "regions": ("Inside regions", "The same metrics inside masks of the phantom."),
    "residual": ("Agreement with the data", RESIDUAL),
}
CHANNELS = "This energy or material by itself; densities in mg/mL, crosstalk in mg of it for every g of true bone."
LIKENESS = (
    "Distance of the set of images to the set of true ones, in the features of an encoder trained on phantoms; it "
    "compares with nothing published. KID is unbiased and may be a little below zero; FD grows as images get fewer."
)
SPREAD = (
    "Of the mean over noise realisations: relative error (NBias, which keeps about NStd over the root of the number of "
    "realisations), and the relative spread around it (NStd)."
)


@dataclass(frozen=True)
class Table:
    """A table of texts below a title; the first column names the row.

    Args:
        title: what it holds.
        note: one or two sentences on how to read it.
        head: heads of the columns.
        rows: the cells.
        opened: whether the page shows it at once.
    """

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    opened: bool = True


def columns_of(board: Board, kind: str) -> tuple[Column, ...]:
    """Return the columns of a kind: ``"quality"``, ``"channels"``, ``"regions"``, ``"posterior"``, ``"residual"``."""

    def place(modality: str, metric: str) -> str:
        name, _, region = metric.partition("@")
        if ":" in modality:
            return "channels"
        if name in POSTERIOR:
            return "posterior"
        return "residual" if name == "residual" else "regions" if region else "quality"

    return tuple(c for c in board.columns if place(*c) == kind)


def board_section(
    board: Board,
    info: TaskInfo | None,
    populations: Sequence[PopulationRow],
    ensembles: Sequence[EnsembleRow],
    order: Sequence[str],
) -> dict[str, Any]:
    """Return the section of one task, its pictures aside.

    Args:
        board: the task's board.
        info: what the run noted about the task.
        populations: distances of its sets of images.
        ensembles: bias and spread over its noise realisations.
        order: methods in the order that fixes their colours.
    """
    units = {name: unit_of(r).strip() for name, r in info.ranges.items()} if info else {}
    quality = columns_of(board, "quality")
    bests = {c: best(board, c) for c in quality}
    first = quality[0] if quality else None
    several = len({c[0] for c in quality})
    rows = [
        {
            "method": row.method,
            "values": [(*_split(cell(row, c)), row.method in bests[c]) for c in quality],
            "difference": _split(difference(row, first)) if first else ("", ""),
            "verdict": verdict(row, first) if first else "",
            "costs": costs(row),
        }
        for row in board.rows
    ]
    cost = cost_chart(board, first, column_label(first, units), order) if first else None
    spread = {t: ensemble_chart([r for r in ensembles if r.target == t], order) for t in _targets(ensembles)}
    return {
        "board": board,
        "info": info,
        "modality": quality[0][0] if several == 1 else "",
        "heads": [(column_label(c, units, modality_too=several > 1), direction(c[1])) for c in quality],
        "rows": rows,
        "markdown": markdown_table(board, columns=quality, units=units),
        "details": [
            *_population_tables(populations),
            *_ensemble_tables(ensembles),
            *_channel_tables(board, units),
            *(t for kind in DETAILS if (t := _column_table(board, units, kind)) is not None),
        ],
        "cost": cost,
        "spread": {t: chart for t, chart in spread.items() if chart},
        "ranges": [f"{n}: data range {r.data_range:g}{unit_of(r)}" for n, r in info.ranges.items()] if info else [],
        "devices": sorted({row.device for row in board.rows if row.device}),
    }


def overview(tables: Sequence[Board], order: Sequence[str]) -> Table | None:
    """Return the first metric of every task for every method; ``None`` where there is one task or none."""
    shown = [(b, c) for b in tables if (c := next(iter(columns_of(b, "quality")), None))]
    if len(shown) < 2:
        return None
    methods = [m for m in order if any(r.method == m and r.values for b, _ in shown for r in b.rows)]
    rows = []
    for board, column in shown:
        found: dict[str, Row] = {r.method: r for r in board.rows}
        leaders = best(board, column)
        cells = []
        for method in methods:
            value = found[method].values.get(column) if method in found else None
            text = f"{value.mean:.{decimals(column[1])}f}" if value else "–"
            cells.append(f"{text} *" if method in leaders else text)
        rows.append([board.task, f"{column_label(column)} {direction(column[1])}", *cells])
    return Table("Overview", "Mean over anatomies of the first metric of every task; * is the best of its row.",
                 ["task", "metric", *methods], rows)  # fmt: skip


def sweep_section(sweep: Sweep, units: Mapping[str, str], order: Sequence[str]) -> dict[str, Any]:
    """Return the chart and the tables of a family of tasks."""
    charts = []
    for modality in dict.fromkeys(c[0] for c in sweep.columns):
        mine = [c for c in sweep.columns if c[0] == modality]
        mine = [c for c in mine if c[1] in CHARTED] or mine[:1]
        charts.append(sweep_chart(sweep, mine, [column_label(c, units) for c in mine], order))
    tables = []
    for column in sweep.columns:
        rows = []
        for method in sweep.methods:
            found = dict(sweep.values.get((method, column), ()))
            cells = [found[v].text(decimals(column[1])) if v in found else "–" for v, _ in sweep.tasks]
            rows.append([method, *cells])
        head = ["method", *(f"{value:g}" for value, _ in sweep.tasks)]
        tables.append(Table(f"{column_label(column, units)} {direction(column[1])}".strip(), "", head, rows))
    anatomies = sorted({i.anatomies for points in sweep.values.values() for _, i in points})
    return {
        "sweep": sweep,
        "tasks": ", ".join(f"{task} ({value:g})" for value, task in sweep.tasks),
        "anatomies": " to ".join(map(str, dict.fromkeys((anatomies[0], anatomies[-1])))),
        "charts": charts,
        "tables": tables,
    }


def claim_section(finding: Finding) -> dict[str, Any]:
    """Return a claim with its verdict and one line a part."""
    claim = finding.claim
    return {
        "name": claim.name,
        "sentence": claim.sentence,
        "source": claim.source,
        "note": claim.note,
        "verdict": finding.verdict,
        "lines": [(_measured(o), o.verdict) for o in finding.outcomes],
    }


def reasons(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return one entry a task, method and reason, with the number of records."""
    counts: dict[tuple[str, str, str], int] = {}
    for r in records:
        counts[r.task, r.method, r.reason] = counts.get((r.task, r.method, r.reason), 0) + 1
    return [{"task": t, "method": m, "reason": why, "count": n} for (t, m, why), n in sorted(counts.items())]


def _measured(outcome: Outcome) -> str:
    value, ratio = outcome.measured, outcome.metric == "ratio"
    if value is None:
        return f"{outcome.text}: {outcome.note or 'no results'}"
    number = value.text(decimals(outcome.metric), sign=not ratio)
    note = f" ({outcome.note})" if outcome.note else ""
    return f"{outcome.text}: {number}, n = {value.anatomies}{note}"


def _column_table(board: Board, units: Mapping[str, str], kind: str) -> Table | None:
    columns = columns_of(board, kind)
    if not columns:
        return None
    head = ["method", *(f"{column_label(c, units)} {direction(c[1])}".strip() for c in columns)]
    rows = [[r.method, *(cell(r, c) for c in columns)] for r in board.rows if any(c in r.values for c in columns)]
    return Table(*DETAILS[kind], head, rows, kind == "posterior")


def _channel_tables(board: Board, units: Mapping[str, str]) -> list[Table]:
    """Return one table for every energy and material of the modalities that have several."""
    columns, tables = columns_of(board, "channels"), []
    for key in dict.fromkeys(c[0] for c in columns):
        mine = [c for c in columns if c[0] == key]
        modality, _, label = key.partition(":")
        labels = (f"{column_label(c, units, modality_too=False)} {direction(c[1])}".strip() for c in mine)
        rows = [[r.method, *(cell(r, c) for c in mine)] for r in board.rows if any(c in r.values for c in mine)]
        tables.append(Table(f"{modality.replace('_', ' ').upper()}: {label}", CHANNELS, ["method", *labels], rows))
    return tables


def _population_tables(rows: Sequence[PopulationRow]) -> list[Table]:
    tables = []
    for target in _targets(rows):
        mine = [r for r in rows if r.target == target]
        name = mine[0].kernel.name
        cells = []
        for r in mine:
            low, high, places = r.kernel.low, r.kernel.high, decimals("kid")
            interval = f" [{low:.{places}f}, {high:.{places}f}]" if low is not None and high is not None else ""
            frechet = "needs 65 images" if r.frechet is None else f"{r.frechet.value:.{decimals('fd')}f}"
            kernel = f"{r.kernel.value:.{places}f}{interval}"
            cells.append([r.method, kernel, frechet, f"{r.kernel.counts[0]} of {r.anatomies} anatomies"])
        head = ["method", f"{name} ↓", f"{name.replace('KID', 'FD')} ↓", "images"]
        tables.append(
            Table(f"Likeness of the {target.replace('_', ' ').upper()} images as a set", LIKENESS, head, cells)
        )
    return tables


def _ensemble_tables(rows: Sequence[EnsembleRow]) -> list[Table]:
    tables = []
    for target in _targets(rows):
        mine = [r for r in rows if r.target == target]
        cells = []
        for r in mine:
            std = r.std.text(decimals("nstd")) if r.std else "mean not positive"
            n = f"{r.bias.samples} of {r.bias.anatomies} anatomies"
            cells.append([r.method, r.region.replace("_", " "), r.bias.text(decimals("nbias")), std, str(r.repeats), n])
        head = ["method", "region", "NBias ↓", "NStd ↓", "realisations", "samples"]
        title = f"Bias and spread of {target.replace('_', ' ').upper()} over noise"
        tables.append(Table(title, SPREAD, head, cells))
    return tables


def _targets(rows: Sequence[PopulationRow] | Sequence[EnsembleRow]) -> list[str]:
    return list(dict.fromkeys(r.target for r in rows))


def _split(text: str) -> tuple[str, str]:
    """Return the value and its interval, which the page shows smaller."""
    value, space, interval = text.partition(" ")
    return value, space + interval
