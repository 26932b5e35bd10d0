"""The report: one HTML file that needs nothing else, Markdown, and CSV."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ..metrics import ReportingRange
from ..space import ImageSpace
from .claims import Claim, Finding, check_claim
from .figures import Panel, panel_figure, time_figure
from .leaderboard import Board, boards, select
from .records import NOT_APPLICABLE, OK, Record, read_records
from .tables import (
    DECIMALS,
    cell,
    column_head,
    costs,
    difference,
    escape_markdown,
    leaderboard_csv,
    markdown_table,
    records_csv,
    verdict,
)
from .trust_panels import TRUST_CAPTION, trust_figure, trust_slices
from .workspace import RECORDS, TASKS, image_file, load_image, write_text, zoom_of

__all__ = ["TaskInfo", "read_tasks", "write_report"]

PANELS = 3


@dataclass(frozen=True)
class TaskInfo:
    """What the report knows of a task.

    Args:
        description: one sentence.
        targets: modalities that are evaluated.
        space: image space of the stacks.
        ranges: modality -> how it is stated.
    """

    description: str
    targets: tuple[str, ...]
    space: ImageSpace
    ranges: Mapping[str, ReportingRange] = field(default_factory=dict)


def read_tasks(folder: Path) -> dict[str, TaskInfo]:
    """Return the tasks that a run described in ``folder/tasks``; a file that cannot be read is left out."""
    found = {}
    for path in sorted((folder / TASKS).glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            ranges = {n: ReportingRange(**{**r, "window": tuple(r["window"])}) for n, r in values["ranges"].items()}
            space = ImageSpace(**values["space"])
            found[str(values["name"])] = TaskInfo(str(values["description"]), tuple(values["targets"]), space, ranges)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    baseline: str = "",
    claims: Sequence[Claim] = (),
) -> dict[str, Path]:
    """Write ``report.html``, ``report.md``, ``leaderboard.csv`` and ``records.csv``.

    Args:
        folders: output folders of :func:`multirecon.harness.runner.evaluate`; several are joined (shards).
        output: folder of the report.
        baseline: method that paired differences refer to; by default the first one recorded.
        claims: sentences to test against the records.

    Returns:
        The files by their kind: ``html``, ``markdown``, ``leaderboard``, ``records``.

    Raises:
        ValueError: if a folder holds no records, or the baseline is no method of them.
    """
    sources = [Path(folder) for folder in folders]
    records: list[Record] = []
    problems: list[str] = []
    tasks: dict[str, TaskInfo] = {}
    for source in sources:
        found, broken = read_records(source / RECORDS)
        records, problems = records + found, problems + broken
        tasks = {**read_tasks(source), **tasks}
    if not records:
        raise ValueError(f"records: expected at least one in {[str(s) for s in sources]}, got none")
    selection = select(records)
    if baseline and baseline not in selection.order:
        raise ValueError(f"baseline: expected one of {list(selection.order)}, got {baseline!r}")
    tables = boards(selection, baseline=baseline, targets={name: info.targets for name, info in tasks.items()})
    context = {
        "boards": [_board_context(b, selection.records, tasks.get(b.task), sources) for b in tables],
        "claims": [_claim_context(check_claim(claim, selection)) for claim in claims],
        "failures": _reasons(r for r in selection.records if r.status not in (OK, NOT_APPLICABLE)),
        "inapplicable": _reasons(r for r in selection.records if r.status == NOT_APPLICABLE),
        "refused": [f"{r.method}: task {r.task}, sample {r.sample}, repeat {r.repeat}" for r in selection.refused],
        "superseded": selection.superseded,
        "problems": problems,
        "versions": _versions(selection.records),
        "count": len(selection.records),
    }
    target = Path(output)
    target.mkdir(parents=True, exist_ok=True)
    contents = {
        "html": ("report.html", _template("report.html.j2").render(context)),
        "markdown": ("report.md", _template("report.md.j2").render(context)),
        "leaderboard": ("leaderboard.csv", leaderboard_csv(tables)),
        "records": ("records.csv", records_csv(selection.records)),
    }
    files = {}
    for kind, (name, text) in contents.items():
        files[kind] = target / name
        write_text(files[kind], text)
    return files


def _board_context(
    board: Board, records: Sequence[Record], info: TaskInfo | None, sources: Sequence[Path]
) -> dict[str, Any]:
    whole = [c for c in board.columns if "@" not in c[1]]
    inside = [c for c in board.columns if "@" in c[1]]
    rows = [
        {
            "method": row.method,
            "values": [cell(row, c) for c in whole],
            "inside": [cell(row, c) for c in inside],
            "difference": difference(row, board.columns[0]) if board.columns else "",
            "verdict": verdict(row, board.columns[0]) if board.columns else "",
            "costs": costs(row),
        }
        for row in board.rows
    ]
    time = time_figure(board)
    units = {name: _unit(r).strip() for name, r in info.ranges.items()} if info else {}
    return {
        "board": board,
        "info": info,
        "heads": [column_head(c, units) for c in whole],
        "inside": [column_head(c, units) for c in inside],
        "rows": rows,
        "markdown": markdown_table(board, columns=whole, units=units),
        "panels": _panels(board, records, info, sources) if info else [],
        "time": _data_uri(time) if time else "",
        "ranges": [f"{name}: data range {r.data_range:g}{_unit(r)}" for name, r in info.ranges.items()] if info else [],
        "devices": sorted({row.device for row in board.rows if row.device}),
    }


def _panels(board: Board, records: Sequence[Record], info: TaskInfo, sources: Sequence[Path]) -> list[dict[str, str]]:
    """Return figure and caption of the first samples whose images were kept, one a target."""
    mine = [r for r in records if r.task == board.task and r.status == OK and r.repeat == 0]
    panels: list[dict[str, str]] = []
    shown = 0
    for sample in sorted({r.sample for r in mine}):
        rows = [r for r in mine if r.sample == sample]
        truth = _find(sources, rows[0], truth=True)
        stacks = {r.method: s for r in rows if (s := _find(sources, r)) is not None}
        if truth is None or not stacks:
            continue
        order = [row.method for row in board.rows if row.method in stacks]
        for target in info.targets:
            reporting = info.ranges[target]
            captions = {r.method: _caption(r, target) for r in rows}
            images = {m: _slice(stacks[m], info.space, target, reporting) for m in order}
            panel = Panel(_slice(truth, info.space, target, reporting), images, captions, reporting,
                          zoom_of(sources, rows[0]))  # fmt: skip
            low, high = reporting.window
            text = (
                f"{sample}, {target}: images from {low:g} to {high:g}{_unit(reporting)}, errors from "
                f"{-reporting.error:g} (blue) to {reporting.error:g}{_unit(reporting)} (red)"
            )
            panels.append({"image": _data_uri(panel_figure(panel)), "caption": text})
            trust = trust_figure(trust_slices(sources, rows, info.space, target))
            if trust:
                panels.append({"image": _data_uri(trust), "caption": f"{sample}, {target}: {TRUST_CAPTION}"})
        shown += 1
        if shown >= PANELS:
            break
    return panels


def _find(sources: Sequence[Path], record: Record, *, truth: bool = False) -> np.ndarray | None:
    found = (load_image(image_file(source, record, truth=truth)) for source in sources)
    return next((image for image in found if image is not None), None)


def _slice(stack: np.ndarray, space: ImageSpace, target: str, reporting: ReportingRange) -> np.ndarray:
    """Return the first channel of a modality, its middle slice where it is a volume, in the reporting unit."""
    image = stack[space.channels(target).start]
    image = image if image.ndim == 2 else image[..., image.shape[-1] // 2]
    return np.asarray(reporting.gain * image + reporting.offset)


def _unit(reporting: ReportingRange) -> str:
    return "" if reporting.unit == "1" else f" {reporting.unit}"


def _caption(record: Record, target: str) -> str:
    values = record.metrics.get(target, {})
    return ", ".join(
        f"{values[n]:.{DECIMALS[n]}f}{' dB' if n == 'psnr' else ''}" for n in ("psnr", "ssim") if n in values
    )


def _claim_context(finding: Finding) -> dict[str, Any]:
    lines = []
    for comparison, advantage in zip(finding.claim.comparisons, finding.advantages, strict=True):
        decimals = DECIMALS.get(comparison.metric.partition("@")[0], 4)
        measured = f"{advantage.text(decimals, sign=True)}, n = {advantage.anatomies}" if advantage else "no results"
        asked = f" by more than {comparison.margin:g}" if comparison.margin else ""
        head = column_head((comparison.modality, comparison.metric))
        lines.append(
            f"{comparison.task}: {comparison.better} better than {comparison.worse}{asked} in {head}: {measured}"
        )
    claim = finding.claim
    return {"name": claim.name, "sentence": claim.sentence, "source": claim.source, "verdict": finding.verdict,
            "lines": lines}  # fmt: skip


def _reasons(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return one entry a task, method and reason, with the number of records."""
    counts: dict[tuple[str, str, str], int] = {}
    for r in records:
        counts[r.task, r.method, r.reason] = counts.get((r.task, r.method, r.reason), 0) + 1
    return [{"task": t, "method": m, "reason": why, "count": n} for (t, m, why), n in sorted(counts.items())]


def _versions(records: Iterable[Record]) -> list[str]:
    found = {f"{n} {v}" for r in records for n, v in r.versions.items() if n != "bundle"}
    return sorted(found)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["md"] = escape_markdown
    return environment.get_template(name)
