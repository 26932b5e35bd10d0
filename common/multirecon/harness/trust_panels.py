"""Pictures of trust maps for the report: which part of every method's image the data determine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..space import ImageSpace
from .figures import COLUMNS, _png
from .records import Record
from .workspace import load_image, trust_file

__all__ = ["TRUST_CAPTION", "trust_figure", "trust_slices"]

TRUST_CAPTION = (
    "share of the image that the data determine, from 0 (black: filled in by the method) to 1 (yellow: measured)"
)


def trust_slices(
    sources: Sequence[Path], records: Sequence[Record], space: ImageSpace, target: str
) -> dict[str, np.ndarray]:
    """Return method -> trust map ``(H, W)`` of a target (the middle slice of a volume), where one was kept.

    Args:
        sources: output folders of the runs.
        records: one record a method, of the same question.
        space: image space of the stacks.
        target: modality.
    """
    found = {}
    for record in records:
        maps = next((m for s in sources if (m := load_image(trust_file(s, record))) is not None), None)
        if maps is None or maps.shape != (len(space.names), *space.shape):
            continue
        image = maps[space.names.index(target)]
        found[record.method] = image if image.ndim == 2 else image[..., image.shape[-1] // 2]
    return found


def trust_figure(maps: Mapping[str, np.ndarray]) -> bytes | None:
    """Return the maps side by side (first axis to the right, second upwards) as PNG, or ``None`` without any."""
    if not maps:
        return None
    width = min(COLUMNS, len(maps))
    rows = -(-len(maps) // width)
    figure = Figure(figsize=(1.9 * width + 0.5, 2.05 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, width, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, image) in zip(axes.flat, maps.items(), strict=False):
        shown = axis.imshow(image.T, origin="lower", cmap="inferno", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"{name}\nmean {image.mean():.2f}", fontsize=7, parse_math=False)
    bar = figure.colorbar(shown, ax=axes, fraction=0.03)
    bar.ax.tick_params(labelsize=6)
    return _png(figure)
