"""Pictures of the report, as PNG bytes: images above their errors, and what is left of a lesion."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from ..metrics import ReportingRange
from .charts import plain_text

__all__ = ["Panel", "panel_figure"]

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
    """Return images (first axis to the right, second upwards) above their error maps, a few methods a strip.

    Where there is a lesion, its box is marked in the truth, and a third and fourth row show image and error inside it.
    """
    names = list(panel.results)
    width = min(COLUMNS, len(names) + 1)
    strips = [names[i : i + width - 1] for i in range(0, len(names), width - 1)]
    rows = ["image", "error"] + (["lesion", "error"] if panel.zoom else [])
    count = len(rows)
    layout = ConstrainedLayoutEngine(w_pad=0.015, h_pad=0.015, hspace=0, wspace=0)
    size = (1.75 * width + 0.8, (1.72 * count + 0.35) * len(strips))
    figure = Figure(figsize=size, dpi=100, layout=layout)
    axes = figure.subplots(count * len(strips), width, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    unit = "" if panel.reporting.unit == "1" else f" ({panel.reporting.unit})"
    for number, strip in enumerate(strips):
        block = axes[number * count : (number + 1) * count]
        shown = {"image": _show(block[0, 0], panel.truth, panel, title="truth")}
        if panel.zoom:
            low, high, left, right = panel.zoom
            box = Rectangle((low - 0.5, left - 0.5), high - low, right - left, fill=False, ec="#ffb000", lw=1.2)
            block[0, 0].add_patch(box)
            _show(block[2, 0], _cut(panel.truth, panel.zoom), panel)
        for row, word in enumerate(rows):
            block[row, 0].text(-0.06, 0.5, word, rotation=90, va="center", ha="right", fontsize=7,
                               transform=block[row, 0].transAxes)  # fmt: skip
        for column, name in enumerate(strip, start=1):
            image = panel.results[name]
            title = f"{plain_text(name)}\n{panel.captions.get(name, '')}"
            _show(block[0, column], image, panel, title=title)
            shown["error"] = _show_error(block[1, column], image - panel.truth, panel)
            if panel.zoom:
                _show(block[2, column], _cut(image, panel.zoom), panel)
                _show_error(block[3, column], _cut(image - panel.truth, panel.zoom), panel)
        for row, word in enumerate(rows):
            kind = "error" if word == "error" else "image"
            bar = figure.colorbar(shown[kind], ax=block[row, :].tolist(), fraction=0.02, pad=0.01, aspect=25)
            bar.set_label(f"{kind}{unit}", fontsize=7)
            bar.ax.tick_params(labelsize=6)
    return _png(figure)


def _show(axis: Any, image: np.ndarray, panel: Panel, *, title: str = "") -> Any:
    low, high = panel.reporting.window
    axis.set_title(title, fontsize=7, parse_math=False)
    return axis.imshow(image.T, origin="lower", cmap="gray", vmin=low, vmax=high, interpolation="nearest")


def _show_error(axis: Any, error: np.ndarray, panel: Panel) -> Any:
    limit = panel.reporting.error
    return axis.imshow(error.T, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")


def _cut(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    return image[box[0] : box[1], box[2] : box[3]]


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
