"""Figures of the report, as PNG bytes: images beside their errors, quality against time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..metrics import ReportingRange
from .leaderboard import Board
from .statistics import Interval

__all__ = ["Panel", "panel_figure", "time_figure"]

COLUMNS = 6


@dataclass(frozen=True)
class Panel:
    """One sample of one modality: the truth and every method's result, in the reporting unit.

    Args:
        truth: true image ``(H, W)``.
        results: method -> image ``(H, W)``.
        captions: method -> text below its name.
        reporting: unit and windows.
        zoom: ``(start, stop, start, stop)`` of a lesion's box, or ``None``.
    """

    truth: np.ndarray
    results: Mapping[str, np.ndarray]
    captions: Mapping[str, str]
    reporting: ReportingRange
    zoom: tuple[int, int, int, int] | None = None


def panel_figure(panel: Panel) -> bytes:
    """Return images (first axis to the right, second upwards) above their error maps, a few methods a strip."""
    names = list(panel.results)
    width = min(COLUMNS, len(names) + 1)
    strips = [names[i : i + width - 1] for i in range(0, len(names), width - 1)]
    rows = 3 if panel.zoom else 2
    figure = Figure(figsize=(1.9 * width, 2.05 * rows * len(strips)), dpi=110, layout="constrained")
    axes = figure.subplots(rows * len(strips), width, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, strip in enumerate(strips):
        block = axes[number * rows : (number + 1) * rows]
        _show(block[0, 0], panel.truth, panel, title="truth")
        if panel.zoom:
            _show(block[2, 0], _cut(panel.truth, panel.zoom), panel)
        for column, name in enumerate(strip, start=1):
            image = panel.results[name]
            _show(block[0, column], image, panel, title=f"{name}\n{panel.captions.get(name, '')}")
            limit = panel.reporting.error
            block[1, column].imshow(
                (image - panel.truth).T, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
            )
            if panel.zoom:
                _show(block[2, column], _cut(image, panel.zoom), panel)
    return _png(figure)


def time_figure(board: Board) -> bytes | None:
    """Return the first column's value against the median seconds of every method, or ``None`` without times."""
    rows = [r for r in board.rows if board.columns and r.seconds and board.columns[0] in r.values]
    rows = [r for r in rows if np.isfinite(r.values[board.columns[0]].mean)]
    if not rows:
        return None
    modality, metric = board.columns[0]
    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    axis = figure.subplots()
    for row in rows:
        value = row.values[modality, metric]
        place = (row.seconds or 0.0, value.mean)
        axis.errorbar(*place, yerr=_bars(value), fmt="o", capsize=3)
        axis.annotate(row.method, place, xytext=(6, 4), textcoords="offset points", fontsize=8, parse_math=False)
    axis.set_xscale("log")
    axis.margins(x=0.25, y=0.15)
    axis.set_xlabel("median seconds a measurement (inside the inferer)")
    axis.set_ylabel(f"{modality} {metric}", parse_math=False)
    axis.grid(alpha=0.3, which="both")
    return _png(figure)


def _bars(value: Interval) -> Sequence[Sequence[float]] | None:
    if value.low is None or value.high is None:
        return None
    return [[max(value.mean - value.low, 0.0)], [max(value.high - value.mean, 0.0)]]


def _show(axis: object, image: np.ndarray, panel: Panel, *, title: str = "") -> None:
    low, high = panel.reporting.window
    axis.imshow(image.T, origin="lower", cmap="gray", vmin=low, vmax=high, interpolation="nearest")  # type: ignore[attr-defined]
    axis.set_title(title, fontsize=7, parse_math=False)  # type: ignore[attr-defined]


def _cut(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    return image[box[0] : box[1], box[2] : box[3]]


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
