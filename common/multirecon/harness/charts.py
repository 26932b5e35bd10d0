"""Charts of the report as SVG: quality against cost, sweeps, bias against spread."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from .ensembles import EnsembleRow
from .leaderboard import Board, Column
from .statistics import Interval
from .sweeps import Sweep
from .tables import visible

__all__ = ["cost_chart", "ensemble_chart", "plain_text", "sweep_chart"]

# Okabe and Ito's colours, which people with any colour vision can tell apart, on a white page; markers go with them
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", "#444444", "#7F3C8D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "path",
    "svg.hashsalt": "multirecon",
    "text.parse_math": False,
}
SIZE = (4.6, 3.1)


def cost_chart(board: Board, column: Column, label: str, order: Sequence[str]) -> bytes | None:
    """Return a metric against median seconds and against peak memory; ``None`` with fewer than two points.

    Args:
        board: the task.
        column: modality and metric.
        label: label of the metric's axis.
        order: methods in the order that fixes their colours.
    """
    rows = [r for r in board.rows if column in r.values and math.isfinite(r.values[column].mean)]
    kinds = [
        ("median seconds a measurement", {r.method: r.seconds for r in rows if r.seconds}),
        ("peak memory of the process (MiB)", {r.method: r.peak_mb for r in rows if r.peak_mb}),
    ]
    kinds = [(name, costs) for name, costs in kinds if len(costs) > 1]  # one point compares nothing
    if not kinds:
        return None
    with mpl.rc_context(STYLE):
        figure = _figure(len(kinds))
        axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
        for axis, (name, costs) in zip(axes, kinds, strict=True):
            for row in rows:
                if row.method in costs:
                    _point(axis, costs[row.method], None, row.values[column], row.method, order)
            axis.set_xscale("log")
            _few_ticks(axis, [c for c in costs.values() if c])
            axis.set_xlabel(name)
            axis.margins(y=0.12)
        axes[0].set_ylabel(plain_text(label))
        _legend(figure, [r.method for r in rows], axes)
        return _svg(figure)


def sweep_chart(sweep: Sweep, columns: Sequence[Column], labels: Sequence[str], order: Sequence[str]) -> bytes:
    """Return metrics against the family's number, one panel a metric, with intervals over anatomies.

    Args:
        sweep: the family.
        columns: modality and metric of every panel.
        labels: label of every panel's axis.
        order: methods in the order that fixes their colours.
    """
    ticks = [value for value, _ in sweep.tasks]
    with mpl.rc_context(STYLE):
        figure = _figure(len(columns))
        axes = figure.subplots(1, len(columns), squeeze=False)[0]
        for axis, column, label in zip(axes, columns, labels, strict=True):
            for number, method in enumerate(sweep.methods):
                line = [(v, i) for v, i in sweep.values.get((method, column), ()) if math.isfinite(i.mean)]
                if not line:
                    continue
                colour, marker = _look(method, order)
                x = _beside([v for v, _ in line], number, len(sweep.methods), ticks, sweep.scale)
                bars = np.array([_bars(i) or (0.0, 0.0) for _, i in line]).T
                axis.errorbar(
                    x, [i.mean for _, i in line], yerr=bars, color=colour, marker=marker, ms=5, lw=1.5, capsize=2.5,
                    elinewidth=1, label=plain_text(method),
                )  # fmt: skip
            axis.set_xscale(sweep.scale)
            axis.xaxis.set_major_locator(FixedLocator(ticks))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xlabel(plain_text(sweep.label))
            axis.set_ylabel(plain_text(label))
            axis.margins(x=0.08, y=0.1)
        _legend(figure, sweep.methods, axes)
        return _svg(figure)


def ensemble_chart(rows: Sequence[EnsembleRow], order: Sequence[str]) -> bytes | None:
    """Return bias against standard deviation of one modality, one panel a region; ``None`` without both.

    Args:
        rows: methods and regions of one modality.
        order: methods in the order that fixes their colours.
    """
    usable = [r for r in rows if r.std is not None and math.isfinite(r.bias.mean) and math.isfinite(r.std.mean)]
    regions = list(dict.fromkeys(r.region for r in usable))
    if not regions:
        return None
    width = 2 if len(regions) in (2, 4) else min(3, len(regions))
    height = -(-len(regions) // width)
    with mpl.rc_context(STYLE):
        figure = _figure(width, height)
        axes = figure.subplots(height, width, squeeze=False).ravel()
        for axis in axes[len(regions) :]:
            axis.axis("off")
        for axis, region in zip(axes, regions, strict=False):
            for row in usable:
                if row.region == region and row.std is not None:
                    _point(axis, row.std.mean, row.std, row.bias, row.method, order)
            axis.set_xlim(left=0)
            axis.set_ylim(bottom=0)
            axis.margins(0.15)
            axis.set_title(plain_text(region.replace("_", " ")), fontsize=9)
            axis.set_xlabel("NStd over noise realisations")
            axis.set_ylabel("NBias")
        _legend(figure, [r.method for r in usable], axes)
        return _svg(figure)


def plain_text(text: str) -> str:
    """Return text that a drawing can show: visible, and not longer than 80 characters."""
    return visible(text)[:80]


def _look(method: str, order: Sequence[str]) -> tuple[str, str]:
    number = list(order).index(method) if method in order else len(order)
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def _point(
    axis: Any, x: float | None, across: Interval | None, up: Interval, method: str, order: Sequence[str]
) -> None:
    colour, marker = _look(method, order)
    bars = [_bars(i) if i else None for i in (across, up)]
    errors = [None if b is None else [[b[0]], [b[1]]] for b in bars]
    axis.errorbar(
        [x], [up.mean], xerr=errors[0], yerr=errors[1], color=colour, marker=marker, ms=7, lw=0, elinewidth=1,
        capsize=2.5, label=plain_text(method),
    )  # fmt: skip


def _bars(value: Interval) -> tuple[float, float] | None:
    if value.low is None or value.high is None:
        return None
    return max(value.mean - value.low, 0.0), max(value.high - value.mean, 0.0)


def _beside(values: Sequence[float], number: int, count: int, ticks: Sequence[float], scale: str) -> list[float]:
    """Return the values moved a little, so that the bars of several methods do not hide each other."""
    if len(ticks) < 2:
        return list(values)
    place = np.log(ticks) if scale == "log" else np.asarray(ticks, float)
    shift = 0.03 * float(np.diff(place).min()) * (number - (count - 1) / 2)
    return [float(v * np.exp(shift)) if scale == "log" else v + shift for v in values]


def _few_ticks(axis: Any, values: Sequence[float]) -> None:
    """Label a logarithmic axis by plain numbers: 1, 2, 5 of every decade, or powers of ten where there are many."""
    low, high = min(values) / 1.6, max(values) * 1.6
    axis.set_xlim(low, high)
    steps = (1, 2, 5) if high / low < 200 else (1,)
    ticks = [t * 10.0**k for k in range(-9, 12) for t in steps if low <= t * 10.0**k <= high]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")


def _figure(width: int, height: int = 1) -> Figure:
    return Figure(figsize=(SIZE[0] * width * (0.85 if width > 2 else 1), SIZE[1] * height + 0.35), layout="constrained")


def _legend(figure: Figure, methods: Sequence[str], axes: Any) -> None:
    """Name every method once, above the panels."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    names = [n for n in dict.fromkeys(map(plain_text, methods)) if n in handles]
    figure.legend([handles[n] for n in names], names, loc="outside upper left", ncols=4, frameon=False, fontsize=8)


def _svg(figure: Figure) -> bytes:
    FigureCanvasSVG(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
