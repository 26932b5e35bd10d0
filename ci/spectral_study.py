"""Tables of spectral CT from records: every energy and every material by itself, materials by place in mg/mL.

    multirecon evaluate OUT --tasks materials_iodine,spectralct_iodine --bundles tikhonov_petmrct,mcaol_spectralct
    python ci/spectral_study.py OUT [OUT2 ...] [--tasks NAME,...] [--page PAGE]

prints one table a task, or fills the blocks ``<!-- study TASK -->`` of a page. Means are over anatomies, intervals
those of docs/evaluation.md (95 %, bootstrap over anatomies). Of materials, places hold bias and root mean square error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from study_pages import fill, table

from multirecon import tasks
from multirecon.harness.leaderboard import Board, Row, boards, select
from multirecon.harness.records import read_records
from multirecon.metrics.channels import channel_key

FAMILY = "spectral_ct"
PLACES = ("head", "bone", "soft")


def channels_of(task: str) -> tuple[list[str], bool]:
    """Return the names under which records keep the channels of a task, and whether they are materials."""
    known = tasks.load(task)
    named = [channel_key(m, label) for m, labels in known.channels.items() for label in labels]
    return named or list(known.targets), any(m.unit == "g/cm^3" for m in known.space.modalities)


def costs(row: Row) -> list[str]:
    """Return the median seconds a slice, the peak memory in MiB and the number of slices."""
    return ["" if row.seconds is None else f"{row.seconds:.1f}", "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
            str(row.ok)]  # fmt: skip


def energies(board: Board, names: Sequence[str]) -> str:
    """Return the table of a task of attenuation images: one row a method."""
    head = ["method", *(f"{n.partition(':')[2] or n}: PSNR dB, SSIM" for n in names), "s", "MiB", "n"]
    rows = []
    for row in board.rows:
        if row.ok:
            cells = [f"{row.values[n, 'psnr'].text(2)}, {row.values[n, 'ssim'].mean:.3f}" for n in names]
            rows.append([f"`{row.method}`", *cells, *costs(row)])
    return table(head, rows)


def materials(board: Board, names: Sequence[str]) -> str:
    """Return the table of a task of densities: one row a method and material, in mg/mL."""
    regions = {m.partition("@")[2] for _, m in board.columns if m.startswith("bias@")}
    others = sorted(regions - set(PLACES), key=lambda place: (len(place), place))  # inserts by their number
    places = [*(p for p in PLACES if p in regions), *others]
    head = ["method", "material", "PSNR dB, SSIM", *places, "crosstalk", "s", "MiB", "n"]
    rows = []
    for row in (r for r in board.rows if r.ok):
        for k, name in enumerate(names):
            digits = 1 if name.endswith("iodine") else 0
            cells = [f"{row.values[name, 'psnr'].text(2)}, {row.values[name, 'ssim'].mean:.3f}"]
            for place in places:
                found = [row.values.get((name, f"{m}@{place}")) for m in ("bias", "rmse")]
                cells.append("" if None in found else f"{found[0].mean:+.{digits}f}, {found[1].mean:.{digits}f}")
            leak = row.values.get((name, "crosstalk"))
            cells.append("" if leak is None else f"{leak.mean:+.{digits}f}")
            first = [f"`{row.method}`"] if not k else [""]
            rows.append([*first, name.partition(":")[2], *cells, *(["", "", ""] if k else costs(row))])
    return table(head, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of `multirecon evaluate`, or of merged records")
    parser.add_argument("--tasks", default="", help="names, separated by commas; by default all of spectral CT")
    parser.add_argument("--page", type=Path, help="page whose blocks are filled")
    options = parser.parse_args(arguments)
    try:
        records = [r for folder in options.folders for r in read_records(folder / "records.jsonl")[0]]
        found = dict.fromkeys(r.task for r in records if r.task in tasks.names())
        wanted = (
            options.tasks.split(",")
            if options.tasks
            else [n for n in found if tasks.load(n).config.get("family") == FAMILY]
        )
        selection = select(r for r in records if r.task in wanted)
        for board in boards(selection, targets={n: channels_of(n)[0] for n in wanted}):
            names, dense = channels_of(board.task)
            text = (materials if dense else energies)(board, names)
            if options.page:
                fill(options.page, board.task, text)
            else:
                print(f"{board.task}: {board.anatomies} heads, {board.samples} slices\n\n{text}\n")
    except (OSError, ValueError) as error:
        print(f"spectral_study: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
