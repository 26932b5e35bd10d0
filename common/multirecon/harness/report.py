"""The report: one HTML file that needs nothing else, Markdown, and CSV."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2

from .claims import Claim, check_claim
from .ensembles import EnsembleRow, ensemble_rows
from .hypotheses import FAILS, HOLDS, OPEN, UNTESTED, Evidence
from .leaderboard import boards, select
from .panels import pictures, unit_of
from .populations import PopulationRow, Populations
from .records import NOT_APPLICABLE, OK, Record, read_records
from .sections import Table, board_section, claim_section, overview, reasons, sweep_section
from .sweeps import find_sweeps
from .tables import (
    claims_csv,
    ensembles_csv,
    escape_markdown,
    leaderboard_csv,
    markdown_rows,
    populations_csv,
    records_csv,
    sweeps_csv,
    visible,
)
from .task_notes import TaskInfo, read_tasks
from .workspace import RECORDS, write_text

__all__ = ["TaskInfo", "read_tasks", "write_report"]


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    baseline: str = "",
    claims: Sequence[Claim] = (),
) -> dict[str, Path]:
    """Write the report as HTML and Markdown, and its numbers as CSV.

    Args:
        folders: output folders of :func:`multirecon.harness.runner.evaluate`; several are joined (shards).
        output: folder of the report.
        baseline: method that paired differences refer to; by default the first one recorded.
        claims: sentences to test against the records.

    Returns:
        The files by their kind: ``html``, ``markdown`` (``report.*``), ``leaderboard``, ``records``, ``sweeps``,
        ``populations``, ``ensembles`` and ``claims`` (``*.csv``).

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
    order = selection.order
    if baseline and baseline not in order:
        raise ValueError(f"baseline: expected one of {list(order)}, got {baseline!r}")
    tables = boards(selection, baseline=baseline, targets={name: info.targets for name, info in tasks.items()})
    populations = Populations(sources, selection)
    likeness: dict[str, list[PopulationRow]] = {b.task: populations.rows(b) for b in tables}
    spreads: dict[str, list[EnsembleRow]] = {}
    for board in tables:
        if info := tasks.get(board.task):
            spreads[board.task] = ensemble_rows(board, selection.records, sources, info.space, info.targets)
    sweeps = find_sweeps(tables, {name: info.sweeps for name, info in tasks.items()}, order)
    units = {n: unit_of(r).strip() for info in tasks.values() for n, r in info.ranges.items()}
    evidence = Evidence(selection, populations.difference)
    findings = [check_claim(claim, evidence) for claim in claims]
    good = [r for r in selection.records if r.status == OK]
    sections = []
    for board in tables:
        info = tasks.get(board.task)
        shown = pictures(board, selection.records, info, sources) if info else []
        section = board_section(board, info, likeness[board.task], spreads.get(board.task, []), order)
        sections.append({**section, "panels": shown})
    context = {
        "boards": sections,
        "overview": overview(tables, order),
        "sweeps": [sweep_section(s, units, order) for s in sweeps],
        "claims": [claim_section(f) for f in findings],
        "tally": [(v, n) for v in (HOLDS, FAILS, OPEN, UNTESTED) if (n := sum(f.verdict == v for f in findings))],
        "failures": reasons(r for r in selection.records if r.status not in (OK, NOT_APPLICABLE)),
        "inapplicable": reasons(r for r in selection.records if r.status == NOT_APPLICABLE),
        "refused": [f"{r.method}: task {r.task}, sample {r.sample}, repeat {r.repeat}" for r in selection.refused],
        "superseded": selection.superseded,
        "problems": problems,
        "versions": _versions(selection.records),
        "count": len(selection.records),
        "methods": len({r.method for r in good}),
        "anatomies": len({r.anatomy for r in good}),
    }
    contents = {
        "html": ("report.html", _template("report.html.j2").render(context)),
        "markdown": ("report.md", _template("report.md.j2").render(context)),
        "leaderboard": ("leaderboard.csv", leaderboard_csv(tables)),
        "records": ("records.csv", records_csv(selection.records)),
        "sweeps": ("sweeps.csv", sweeps_csv(sweeps)),
        "populations": ("populations.csv", populations_csv((t, r) for t, rows in likeness.items() for r in rows)),
        "ensembles": ("ensembles.csv", ensembles_csv((t, r) for t, rows in spreads.items() for r in rows)),
        "claims": ("claims.csv", claims_csv(findings)),
    }
    target = Path(output)
    target.mkdir(parents=True, exist_ok=True)
    files = {}
    for kind, (name, text) in contents.items():
        files[kind] = target / name
        write_text(files[kind], text)
    return files


def _versions(records: Iterable[Record]) -> list[str]:
    found = {f"{n} {v}" for r in records for n, v in r.versions.items() if n != "bundle" and v}
    return sorted(found)


def _data_uri(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _markdown(table: Table) -> str:
    return markdown_rows(table.head, table.rows)


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {
        "md": escape_markdown,
        "md_table": _markdown,
        "svg": lambda image: _data_uri(image, "svg+xml"),
        "png": lambda image: _data_uri(image, "png"),
    }
    return environment.get_template(name)
