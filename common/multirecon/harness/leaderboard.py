"""Tables from records: one board a task, one row a method, paired differences against a baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..metrics import METRICS, metric_score
from .records import FAILED, NOT_APPLICABLE, OK, Record, consistent, latest
from .statistics import Interval, anatomy_interval

__all__ = ["Board", "Column", "Row", "Selection", "boards", "paired_differences", "select"]

Column = tuple[str, str]  # modality, metric


@dataclass(frozen=True)
class Row:
    """One method on one task.

    Args:
        method: ``bundle`` or ``bundle:variant``.
        values: column -> mean over anatomies with interval.
        differences: column -> mean of the paired differences (method minus baseline) with interval.
        ok: number of results.
        failed: number of failures; means are over the results only, so a row with failures is no fair row.
        seconds: median seconds a measurement.
        peak_mb: largest peak memory in MiB.
        device: devices of the results.
    """

    method: str
    values: Mapping[Column, Interval] = field(default_factory=dict)
    differences: Mapping[Column, Interval] = field(default_factory=dict)
    ok: int = 0
    failed: int = 0
    seconds: float | None = None
    peak_mb: float | None = None
    device: str = ""


@dataclass(frozen=True)
class Board:
    """The results of one task.

    Args:
        task: name of the task.
        baseline: method that differences refer to.
        columns: what the rows hold.
        rows: best first, by the first column; methods without a result last.
        anatomies: number of anatomies with results.
        samples: number of samples with results.
    """

    task: str
    baseline: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    anatomies: int
    samples: int


@dataclass(frozen=True)
class Selection:
    """Records sorted into those that count and those that do not.

    Args:
        records: the records that count, one a key, of the last content of every bundle.
        order: methods in the order in which they were first recorded.
        refused: records whose data differ from those of the others under the same name.
        superseded: number of records of earlier contents of a bundle.
    """

    records: tuple[Record, ...]
    order: tuple[str, ...]
    refused: tuple[Record, ...]
    superseded: int


def select(records: Iterable[Record]) -> Selection:
    """Return what may be compared: consistent data, the last content of every bundle, one record a key."""
    items = list(records)
    kept, refused = consistent(items)
    last = {(r.task, r.method): r.content for r in kept}
    current = [r for r in kept if last[r.task, r.method] == r.content]
    order = tuple(dict.fromkeys(r.method for r in items))
    return Selection(tuple(latest(current)), order, tuple(refused), len(kept) - len(current))


def boards(
    selection: Selection, *, baseline: str = "", targets: Mapping[str, Sequence[str]] | None = None
) -> list[Board]:
    """Return one board a task, sorted by name.

    Args:
        selection: the records.
        baseline: method that differences refer to; where it has no result for a task, and by default, the method of
            the task that was recorded first.
        targets: task -> its targets, which are listed first.
    """
    tasks = sorted({r.task for r in selection.records})
    return [
        _board(
            task,
            [r for r in selection.records if r.task == task and r.status != NOT_APPLICABLE],
            baseline,
            selection.order,
            list((targets or {}).get(task, ())),
        )
        for task in tasks
    ]


def _board(task: str, records: Sequence[Record], baseline: str, order: Sequence[str], targets: Sequence[str]) -> Board:
    good = [r for r in records if r.status == OK]
    methods = [m for m in order if any(r.method == m for r in records)]
    answered = [m for m in methods if any(r.method == m for r in good)]
    reference = baseline if baseline in answered else next(iter(answered), "")
    columns = _columns(good, targets)
    rows = [_row(m, records, [r for r in good if r.method == reference], columns, m == reference) for m in methods]
    return Board(
        task,
        reference,
        columns,
        tuple(sorted(rows, key=lambda row: _rank(row, columns))),
        len({r.anatomy for r in good}),
        len({r.sample for r in good}),
    )


def _columns(records: Sequence[Record], targets: Sequence[str]) -> tuple[Column, ...]:
    """Return modality by modality (targets first) the whole-image metrics, then the regional ones."""
    found = {(m, n) for r in records for m, row in r.metrics.items() for n in row}
    modalities = [*targets, *sorted({m for m, _ in found} - set(targets))]
    order = [*METRICS, "residual"]

    def place(column: Column) -> tuple[int, str, int, str]:
        metric, _, region = column[1].partition("@")
        return modalities.index(column[0]), region, order.index(metric) if metric in order else len(order), metric

    return tuple(sorted(found, key=place))


def _rank(row: Row, columns: Sequence[Column]) -> tuple[bool, float, str]:
    if not columns or columns[0] not in row.values:
        return True, 0.0, row.method
    return False, -metric_score(columns[0][1], row.values[columns[0]].mean), row.method


def _row(
    method: str, records: Sequence[Record], baseline: Sequence[Record], columns: Sequence[Column], is_baseline: bool
) -> Row:
    mine = [r for r in records if r.method == method]
    good = [r for r in mine if r.status == OK]
    values = {c: anatomy_interval(found) for c in columns if (found := _values(good, c))}
    differences = (
        {} if is_baseline else {c: anatomy_interval(d) for c in columns if (d := paired_differences(good, baseline, c))}
    )
    seconds = [r.seconds for r in good if r.seconds is not None]
    peaks = [r.peak_mb for r in good if r.peak_mb is not None]
    return Row(
        method,
        values,
        differences,
        len(good),
        sum(r.status == FAILED for r in mine),
        float(np.median(seconds)) if seconds else None,
        max(peaks, default=None),
        "; ".join(sorted({r.device for r in good})),
    )


def _values(records: Sequence[Record], column: Column) -> list[tuple[str, float]]:
    modality, metric = column
    return [(r.anatomy, r.metrics[modality][metric]) for r in records if metric in r.metrics.get(modality, {})]


def paired_differences(mine: Sequence[Record], baseline: Sequence[Record], column: Column) -> list[tuple[str, float]]:
    """Return ``(anatomy, difference)`` on the questions (and seeds) that both methods answered."""
    modality, metric = column
    other = {(r.question, r.seed): r.metrics.get(modality, {}) for r in baseline}
    pairs = []
    for record in mine:
        theirs, ours = other.get((record.question, record.seed), {}), record.metrics.get(modality, {})
        if metric in theirs and metric in ours:
            pairs.append((record.anatomy, ours[metric] - theirs[metric]))
    return pairs
