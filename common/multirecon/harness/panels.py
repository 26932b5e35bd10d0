"""The image panels of a task's section, from the images that the runs kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..metrics import ReportingRange
from ..space import ImageSpace
from .charts import plain_text
from .figures import Panel, panel_figure
from .leaderboard import Board
from .records import OK, Record
from .tables import DECIMALS
from .task_notes import TaskInfo
from .trust_panels import TRUST_CAPTION, trust_figure, trust_slices
from .workspace import image_file, load_image, zoom_of

__all__ = ["Picture", "pictures", "unit_of"]

SAMPLES = 3


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows.

    Args:
        image: PNG bytes.
        caption: one sentence, with windows and units.
    """

    image: bytes
    caption: str


def pictures(board: Board, records: Sequence[Record], info: TaskInfo, sources: Sequence[Path]) -> list[Picture]:
    """Return the panels of the first samples whose images were kept, and their trust maps, target by target.

    Args:
        board: the task, whose order of methods the panels follow.
        records: the records that count.
        info: what the run noted about the task.
        sources: output folders of the runs.
    """
    mine = [r for r in records if r.task == board.task and r.status == OK and r.repeat == 0]
    found: list[Picture] = []
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
            captions = {r.method: _quality(r, target) for r in rows}
            images = {m: _slice(stacks[m], info.space, target, reporting) for m in order}
            zoom = zoom_of(sources, rows[0])
            panel = Panel(_slice(truth, info.space, target, reporting), images, captions, reporting, zoom)
            low, high = reporting.window
            unit = unit_of(reporting)
            text = (
                f"Sample {plain_text(sample)}, {target.upper()}: images from {low:g} to {high:g}{unit}, errors from "
                f"{-reporting.error:g} (blue) to {reporting.error:g}{unit} (red)"
            )
            if zoom:
                text += "; below, the largest lesion, boxed in the truth"
            found.append(Picture(panel_figure(panel), text))
            trust = trust_figure(trust_slices(sources, rows, info.space, target))
            if trust:
                found.append(Picture(trust, f"Sample {plain_text(sample)}, {target.upper()}: {TRUST_CAPTION}"))
        shown += 1
        if shown >= SAMPLES:
            break
    return found


def unit_of(reporting: ReportingRange) -> str:
    """Return the unit with a space before it, or nothing where there is none."""
    return "" if reporting.unit == "1" else f" {reporting.unit}"


def _find(sources: Sequence[Path], record: Record, *, truth: bool = False) -> np.ndarray | None:
    found = (load_image(image_file(source, record, truth=truth)) for source in sources)
    return next((image for image in found if image is not None), None)


def _slice(stack: np.ndarray, space: ImageSpace, target: str, reporting: ReportingRange) -> np.ndarray:
    """Return the first channel of a modality, its middle slice where it is a volume, in the reporting unit."""
    image = stack[space.channels(target).start]
    image = image if image.ndim == 2 else image[..., image.shape[-1] // 2]
    return np.asarray(reporting.gain * image + reporting.offset)


def _quality(record: Record, target: str) -> str:
    values = record.metrics.get(target, {})
    return ", ".join(
        f"{values[n]:.{DECIMALS[n]}f}{' dB' if n == 'psnr' else ''}" for n in ("psnr", "ssim") if n in values
    )
