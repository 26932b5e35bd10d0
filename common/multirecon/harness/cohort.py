"""``multirecon reconstruct FOLDER``: every measurement file of a folder, in several processes, resumable."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..inputs import MEASUREMENT_SUFFIXES
from ..measurement import Measurement
from ..transfer import file_sha256
from .process import Workers
from .reconstruct import reconstruct_file
from .shares import Share, share_of_this_process

__all__ = ["measurement_files", "reconstruct_folder"]


def measurement_files(folder: Path) -> list[Path]:
    """Return the measurement files of a folder, sorted by name.

    Raises:
        ValueError: if there is none, or two would write the same results.
    """
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in MEASUREMENT_SUFFIXES and p.name[0] != ".")
    if not files:
        raise ValueError(f"file: expected measurement files {list(MEASUREMENT_SUFFIXES)} in {str(folder)!r}, got none")
    stems = [p.stem for p in files]
    double = sorted({s for s in stems if stems.count(s) > 1})
    if double:
        raise ValueError(f"file: expected names that differ before their suffix, got {double} twice")
    return files


def reconstruct_folder(
    source: Path, output: Path, *, shard: tuple[int, int] = (1, 1), progress: bool = True, **options: Any
) -> None:
    """Reconstruct every measurement file of a folder that has no result yet.

    Run it again to go on where it was ended. Under torchrun its processes divide the files, each file to one of them;
    ``shard`` divides them among machines before. A file that fails is named, and does not keep the others waiting.

    Args:
        source: folder of the measurement files.
        output: folder of the results, the same for all processes that share it.
        shard: ``(i, n)``: only every n-th file, beginning with the i-th.
        progress: show a progress bar.
        **options: see :func:`multirecon.harness.reconstruct.reconstruct_file`.

    Raises:
        ValueError: at the end, if files failed, in this process or in another.
    """
    files = measurement_files(source)
    with share_of_this_process(shard) as share, Workers() as workers:
        mine = share.of(files)
        done, failed, kept = 0, 0, 0
        for file in tqdm(mine, desc=source.name, unit="file", disable=not progress or share.rank > 0 or None):
            try:
                if is_done(file, output, **options):
                    kept += 1
                    continue
                reconstruct_file(file, output, workers=workers, quiet=True, **options)
                done += 1
            except (ValueError, OSError) as error:
                failed += 1
                print(f"multirecon: {file.name}: {' '.join(str(error).split())}", file=sys.stderr)
        total = share.total(done, kept, failed)
    _report(total, share, len(files), output)


def _report(total: Sequence[int], share: Share, count: int, output: Path) -> None:
    done, kept, failed = total
    text = f"{done} reconstructed, {kept} already there, {failed} failed, of {count} files; {output}"
    if failed:
        raise ValueError(f"file: expected every file to be reconstructed, got {text}")
    if share.rank == 0:
        print(text)


def is_done(
    file: Path, output: Path, *, method: str = "auto", seed: int = 0, targets: Sequence[str] = (), **_others: Any
) -> bool:
    """Whether the output holds the result of this very measurement, asked for in the same way, with all its images."""
    try:
        note = json.loads((output / f"{file.stem}.json").read_text(encoding="utf-8"))
        asked = {"method": method, "targets": [*targets], "seed": seed}
        if note["asked"] != asked or note["measurement"]["sha256"] != Measurement.load(file).fingerprint():
            return False
        return all(file_sha256(output / name) == digest for name, digest in note["images"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False
