"""Draw a training curve: `python ci/training_curve.py curve.csv curve.png` (columns of `TrainingCurve`)."""

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from multirecon.files import atomic_path


def draw(rows: list[dict[str, str]]) -> Figure:
    """Return loss and learning rate on the left, validation metrics on the right, over steps."""
    steps = [int(row["step"]) for row in rows]
    names = [name for name in rows[0] if name not in ("step", "seconds", "cpu_seconds", "lr", "train_loss")]
    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    left, *right = figure.subplots(1, 1 + len(names))
    left.semilogy(steps, [float(row["train_loss"]) for row in rows], "k-", label="training loss")
    left.semilogy(steps, [float(row["lr"]) for row in rows], "k:", label="learning rate")
    left.legend(fontsize=7)
    for axes, name in zip(right, names, strict=True):
        values = [float(row[name]) for row in rows]
        axes.plot(steps, values, "o-", markersize=3)
        axes.set_title(f"validation {name}: {values[-1]:g} at the end", fontsize=8)
    for axes in (left, *right):
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("curve", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    with arguments.curve.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        parser.error(f"curve: expected at least one line in {arguments.curve}, got none")
    with atomic_path(arguments.picture) as draft:
        draw(rows).savefig(draft, dpi=110)
        with Image.open(draft) as picture:  # a palette: a third of the size in the repository
            small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(draft, format="PNG", optimize=True)
    print(f"{arguments.picture}: {len(rows)} lines, the last at step {rows[-1]['step']}")


if __name__ == "__main__":
    main()
