"""Bias against spread over noise realisations, from the images that a run with several repeats kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..metrics import normalised_bias, normalised_std
from ..space import ImageSpace
from .leaderboard import Board
from .records import OK, Record
from .side_files import load_regions
from .statistics import Interval, anatomy_interval
from .workspace import image_file, load_image

__all__ = ["EnsembleRow", "ensemble_rows"]


@dataclass(frozen=True)
class EnsembleRow:
    """Bias and spread of one method inside one region.

    Args:
        method: ``bundle`` or ``bundle:variant``.
        target: modality.
        region: name of the region.
        bias: NBias over anatomies.
        std: NStd over anatomies; ``None`` where a mean over realisations is not positive (HU, for example, may be).
        repeats: noise realisations of a sample, the fewest.
    """

    method: str
    target: str
    region: str
    bias: Interval
    std: Interval | None
    repeats: int


def ensemble_rows(
    board: Board, records: Sequence[Record], sources: Sequence[Path], space: ImageSpace, targets: Sequence[str]
) -> list[EnsembleRow]:
    """Return bias and spread of every method of a task, in every region, for samples with two realisations or more.

    Args:
        board: the task's board.
        records: records that count.
        sources: output folders of the runs.
        space: image space of the stacks.
        targets: modalities.
    """
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for r in records:
        if r.task == board.task and r.status == OK:
            groups.setdefault((r.method, r.sample, r.seed), []).append(r)
    found: dict[tuple[str, str, str], list[tuple[str, float, float | None, int]]] = {}
    for (method, _, _), rows in groups.items():
        rows = sorted(rows, key=lambda r: r.repeat)
        if len(rows) < 2 or rows[0].repeat != 0:
            continue
        truth = _find(sources, rows[0], truth=True)
        stacks = [s for r in rows if (s := _find(sources, r)) is not None and truth is not None]
        if truth is None or len(stacks) < 2:
            continue
        regions = load_regions(sources, rows[0])
        for target in targets:
            channels = space.channels(target)
            x = torch.from_numpy(np.stack([s[channels] for s in stacks]))[:, None]
            t = torch.from_numpy(truth[channels])[None]
            for region, mask in regions.items():
                if bool(mask.any()) and bool((t[0, :, mask] != 0).any()):
                    values = float(normalised_bias(x, t, mask=mask)), _spread(x, mask)
                    found.setdefault((target, region, method), []).append((rows[0].anatomy, *values, len(stacks)))
    order = [row.method for row in board.rows]
    keys = sorted(found, key=lambda k: (targets.index(k[0]), k[1], order.index(k[2])))
    return [_row(*key, found[key]) for key in keys]


def _row(target: str, region: str, method: str, values: Sequence[tuple[str, float, float | None, int]]) -> EnsembleRow:
    spreads = [(anatomy, std) for anatomy, _, std, _ in values if std is not None]
    return EnsembleRow(
        method,
        target,
        region,
        anatomy_interval([(anatomy, bias) for anatomy, bias, _, _ in values]),
        anatomy_interval(spreads) if len(spreads) == len(values) else None,
        min(count for *_, count in values),
    )


def _spread(x: torch.Tensor, mask: torch.Tensor) -> float | None:
    try:
        return float(normalised_std(x, mask=mask))
    except ValueError:
        return None


def _find(sources: Sequence[Path], record: Record, *, truth: bool = False) -> np.ndarray | None:
    found = (load_image(image_file(source, record, truth=truth)) for source in sources)
    return next((image for image in found if image is not None), None)
