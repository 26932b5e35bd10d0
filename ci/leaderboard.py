#!/usr/bin/env python
"""Fill the tables of README, documentation and model cards from bundles and recorded results; no number is typed.

    python ci/leaderboard.py            rewrite what stands between the marks below
    python ci/leaderboard.py --check    change nothing; exit code 1 and the names of the files that are stale

Marks, each on a line of its own, in README.md, docs/**/*.md and bundles/*/docs/README.md:

    <!-- leaderboard task=flair_x4 metrics=psnr,ssim -->    all methods on one task
    <!-- leaderboard method=sense_mr -->                    one bundle, with its variants, on all tasks
    <!-- end leaderboard -->
    <!-- bundles -->                                        the bundles themselves, from their metadata
    <!-- end bundles -->

The results are those of `multirecon evaluate` (joined by `multirecon merge`) kept in docs/leaderboard/,
compressed (`gzip -n9 records.jsonl`).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from multirecon.bundle.folder import Bundle, discover
from multirecon.files import atomic_path
from multirecon.harness.leaderboard import Board, Column, Row, boards, select
from multirecon.harness.records import read_records
from multirecon.harness.report import read_tasks
from multirecon.harness.tables import cell, column_head, costs, difference, escape_markdown, markdown_table

FILES = ("README.md", "docs/**/*.md", "bundles/*/docs/README.md")
RESULTS = "docs/leaderboard"
BASELINE = "tikhonov_petmrct"  # the bar: paired differences refer to it where it took the task
BLOCK = re.compile(r"^(<!-- leaderboard (?P<what>[^>]*?) *-->)\n.*?^(<!-- end leaderboard -->)$", re.M | re.S)
SHELF = re.compile(r"^(<!-- bundles -->)\n.*?^(<!-- end bundles -->)$", re.M | re.S)
OPENING = re.compile(r"^<!-- leaderboard ", re.M)
SHELF_OPENING = re.compile(r"^<!-- bundles -->$", re.M)
METRICS = ("psnr", "ssim")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fill the tables of the documentation from recorded results.")
    parser.add_argument("--check", action="store_true", help="change nothing, fail where a file is stale")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the checkout")
    options = parser.parse_args(arguments)
    try:
        tables, shelf = read_boards(options.root / RESULTS), read_bundles(options.root / "bundles")
        stale = []
        for path in sorted({p for pattern in FILES for p in options.root.glob(pattern)}):
            old = path.read_text(encoding="utf-8")
            new = fill(old, tables, str(path.relative_to(options.root)), shelf)
            if new != old:
                stale.append(str(path.relative_to(options.root)))
                if not options.check:
                    with atomic_path(path) as draft:
                        draft.write_text(new, encoding="utf-8")
    except ValueError as error:
        print(f"leaderboard: {error}", file=sys.stderr)
        return 1
    if stale:
        print(
            f"leaderboard: {'stale (run: python ci/leaderboard.py)' if options.check else 'filled'}: {', '.join(stale)}"
        )
    return 1 if stale and options.check else 0


def read_boards(folder: Path) -> list[Board]:
    """Return the boards of the kept results; none where nothing is kept yet."""
    if not any((folder / name).is_file() for name in ("records.jsonl", "records.jsonl.gz")):
        return []
    records, problems = read_records(folder / "records.jsonl")
    selection = select(records)
    if problems or selection.refused:
        refused = [f"other data under the same name: {r.method} {r.question}" for r in selection.refused]
        raise ValueError(f"{folder}: expected consistent records, got {'; '.join([*problems, *refused])}")
    return boards(
        selection, baseline=BASELINE, targets={name: info.targets for name, info in read_tasks(folder).items()}
    )


def read_bundles(folder: Path) -> list[Bundle]:
    """Return the bundles of the checkout, sorted by name; none where there are none."""
    return discover(folder) if any(folder.glob("*/configs/metadata.json")) else []


def fill(text: str, tables: Sequence[Board], name: str, shelf: Sequence[Bundle] = ()) -> str:
    """Return the text with every block filled.

    Raises:
        ValueError: naming the file, on a mark that is not closed or does not say `task=` or `method=`.
    """
    if len(SHELF_OPENING.findall(text)) != len(SHELF.findall(text)):
        raise ValueError(f"{name}: expected every '<!-- bundles -->' to be closed by '<!-- end bundles -->'")
    text = SHELF.sub(lambda match: f"{match[1]}\n{bundle_table(shelf)}\n{match[2]}", text)
    if len(OPENING.findall(text)) != len(BLOCK.findall(text)):
        raise ValueError(
            f"{name}: expected every '<!-- leaderboard ... -->' to be closed by '<!-- end leaderboard -->'"
        )

    def block(match: re.Match[str]) -> str:
        words = dict(word.partition("=")[::2] for word in match["what"].split())
        unknown = sorted(set(words) - {"task", "method", "metrics"})
        if unknown or ("task" in words) == ("method" in words):
            raise ValueError(f"{name}: expected task=NAME or method=NAME (and metrics=A,B), got {match['what']!r}")
        metrics = words.get("metrics", ",".join(METRICS)).split(",")
        if "task" in words:
            content = task_table(tables, words["task"], metrics)
        else:
            content = method_table(tables, words["method"], metrics)
        return f"{match[1]}\n{content}\n{match[3]}"

    return BLOCK.sub(block, text)


def bundle_table(shelf: Sequence[Bundle]) -> str:
    """Return one line a bundle: what it is, for which families of tasks, and whether it was trained."""
    if not shelf:
        return "No bundles yet."
    lines = ["| bundle | method | families | learned | variants |", "|---|---|---|---|---|"]
    for bundle in shelf:
        words = [str(bundle.metadata.get("description", "")), ", ".join(bundle.families) or "–"]
        cells = [f"[`{bundle.name}`](bundles/{bundle.root.name}/docs/README.md)", *map(escape_markdown, words)]
        cells += ["yes" if bundle.learned else "no", ", ".join(f"`{v}`" for v in bundle.variants) or "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def task_table(tables: Sequence[Board], task: str, metrics: Sequence[str]) -> str:
    board = next((b for b in tables if b.task == task and b.columns), None)
    if board is None:
        return "No results recorded yet."
    return markdown_table(board, columns=[c for c in board.columns if c[1] in metrics])


def method_table(tables: Sequence[Board], method: str, metrics: Sequence[str]) -> str:
    lines = []
    for board in tables:
        columns = [c for c in board.columns if c[1] in metrics]
        for row in board.rows:
            if row.method.partition(":")[0] != method or not row.values:
                continue
            names = [escape_markdown(board.task), escape_markdown(row.method)]
            values = "<br>".join(f"{column_head(c)} {cell(row, c)}" for c in columns)
            paired = against(row, [c for c in board.columns if c[1] == metrics[0]], board.baseline)
            count = f"{board.anatomies} anatomies, {board.samples} samples"
            lines.append("| " + " | ".join([*names, values, paired, *costs(row)[:2], count]) + " |")
    if not lines:
        return "No results recorded yet."
    head = "| task | method | mean and 95 % interval | paired difference | seconds | peak MiB | n |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *lines])


def against(row: Row, columns: Sequence[Column], baseline: str) -> str:
    """Return the paired difference of every target, named where there are several."""
    if not row.differences:
        return "–"
    parts = [f"{c[0]} {difference(row, c)}" if len(columns) > 1 else difference(row, c) for c in columns]
    return f"{'<br>'.join(parts)} to {escape_markdown(baseline)}"


if __name__ == "__main__":
    sys.exit(main())
