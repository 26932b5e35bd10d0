"""What the scripts of the gallery share: the folder of measured files, stock runs of bundles, images, pictures."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multirecon.files import atomic_path
from multirecon.measurement import Measurement
from multirecon.metrics import evaluate_image

ROOT = Path(__file__).resolve().parents[1]
SETTING = "MULTIRECON_REAL_DATA"


class Panel(NamedTuple):
    """One picture: what it is, values as they stand on the screen ``(H, W)``, its window and colours (grey)."""

    title: str
    image: Tensor
    window: tuple[float, float]
    colours: str = "gray"


def real_data(*needed: str) -> Path:
    """Return the folder of the measured files, or end with one line where a file is missing."""
    folder = os.environ.get(SETTING, "")
    for name in needed:
        if not folder or not (Path(folder) / name).exists():
            print(f"{SETTING}: expected a folder with {name}, got {folder!r}", file=sys.stderr)
            raise SystemExit(2)
    return Path(folder)


def command(*words: object, show: bool = False) -> None:
    """Print a command as a user would type it in the repository, and run it there; its failure is ours.

    Args:
        words: the command.
        show: also print what it prints.
    """
    texts = [str(w) for w in words]
    print(f"$ {shlex.join(texts)}".replace(f"{ROOT}{os.sep}", ""), flush=True)
    shown = {"python": [sys.executable], "multirecon": [sys.executable, "-m", "multirecon"]}
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*shown[texts[0]], *texts[1:]], cwd=ROOT, env=quiet, check=False, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message", file=sys.stderr)
        raise SystemExit(done.returncode)
    if show:
        print(done.stdout, end="")


def run_bundle(method: str, data: Path, output: Path, **options: object) -> Path:
    """Run a bundle (``NAME`` or ``NAME:VARIANT``) by MONAI's stock command on a folder; return the folder of images.

    A folder that holds images already is left alone: delete it to run again.

    Args:
        method: the bundle, and its inference variant.
        data: folder of measurement files.
        output: folder of the results.
        options: overrides of the configuration, by key.
    """
    name, _, variant = method.partition(":")
    root = Path("bundles") / name
    files = [str(root / "configs" / "inference.json")]
    if variant:
        files.append(str(root / "configs" / f"inference_{variant}.json"))
    if not any(output.glob("*.nii.gz")):
        overrides = [word for key, value in options.items() for word in (f"--{key}", value)]
        command("python", "-m", "monai.bundle", "run", "--config_file", files[0] if not variant else repr(files),
                "--bundle_root", root, "--dataset_dir", data, "--output_dir", output, *overrides)  # fmt: skip
    return output


def read_images(folder: Path, modality: str) -> Tensor:
    """Return the images of a modality that a bundle wrote, in the order of their names, ``(B, 1, *shape)``."""
    files = sorted(folder.glob(f"*_{modality}.nii.gz"))
    if not files:
        raise ValueError(f"folder: expected images *_{modality}.nii.gz, got none in {str(folder)!r}")
    return torch.stack([torch.from_numpy(nib.load(f).get_fdata(dtype="float32")).squeeze()[None] for f in files])


def deviance(measurement: Measurement, name: str, image: Tensor) -> Tensor:
    """Return the Poisson deviance of every count, shaped like the data; noise alone gives about 1 on the mean.

    Args:
        measurement: transmission counts.
        name: the block.
        image: ``(B, 1, H, W)`` in 1/cm.
    """
    y = measurement.y[name]
    mean = measurement.likelihood[name].mean(measurement.operator[name](image)).clamp_min(1e-6)
    return 2 * (mean - y + torch.xlogy(y, y / mean))


def scores(
    image: Tensor, truth: Tensor, measurement: Measurement, name: str, metrics: Sequence[str], **regions: Tensor
) -> dict[str, float]:
    """Return metrics of one modality as means over the samples (of those that have a value).

    Args:
        image: ``(B, 1, *shape)`` in the unit of the stack.
        truth: the same.
        measurement: whose space the images are of.
        name: the modality.
        metrics: names of :data:`multirecon.metrics.METRICS`.
        regions: masks ``(B, *shape)`` by name.
    """
    rows = slice_scores(image, truth, measurement, name, metrics, **regions)
    return {
        key: float(np.mean([row[key] for row in rows if key in row]))
        for key in dict.fromkeys(k for r in rows for k in r)
    }


def slice_scores(
    image: Tensor, truth: Tensor, measurement: Measurement, name: str, metrics: Sequence[str], **regions: Tensor
) -> list[dict[str, float]]:
    """Return the metrics of :func:`scores` sample by sample; those of an empty region are left out."""
    space = measurement.space.select([name])
    return [
        evaluate_image(image[k : k + 1], truth[k : k + 1], space, targets=[name], metrics=metrics,
                       regions={n: mask[k] for n, mask in regions.items()})[name]
        for k in range(len(image))
    ]  # fmt: skip


def bounds(mask: Tensor, *, margin: int = 6) -> tuple[slice, slice]:
    """Return the box around what is true in a plane, with a margin in pixels."""
    found = [mask.any(axis).nonzero().flatten() for axis in (1, 0)]
    return slice(max(0, int(found[0][0]) - margin), int(found[0][-1]) + margin + 1), slice(
        max(0, int(found[1][0]) - margin), int(found[1][-1]) + margin + 1
    )


def upright(image: Tensor) -> Tensor:
    """Return an axial slice ``(R, A)`` as it is shown: anterior up, the patient's right on the left."""
    return image.T.flip(0, 1)


def draw(
    path: Path, rows: Sequence[Sequence[Panel]], *, width: float = 2.4, dpi: int = 130, palette: int | None = None
) -> None:
    """Write rows of pictures, whole or not at all.

    Args:
        path: the PNG file.
        rows: the pictures, row by row.
        width: of one picture in inches.
        dpi: dots an inch.
        palette: number of colours of the file; None for all (three times the size).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = max(len(row) for row in rows)
    tallest = [max(p.image.shape[0] / p.image.shape[1] for p in row) for row in rows]
    figure, axes = plt.subplots(
        len(rows), columns, squeeze=False, layout="constrained",
        figsize=(width * columns, sum(width * t + 0.35 for t in tallest)), height_ratios=tallest,
    )  # fmt: skip
    for row, line in zip(rows, axes, strict=True):
        for axis in line:
            axis.axis("off")
        for panel, axis in zip(row, line, strict=False):
            axis.imshow(panel.image.numpy(), cmap=panel.colours, vmin=panel.window[0], vmax=panel.window[1],
                        interpolation="nearest")  # fmt: skip
            axis.set_title(panel.title, fontsize=8)
    with atomic_path(path) as draft:
        figure.savefig(draft, dpi=dpi)
        if palette is not None:
            with Image.open(draft) as picture:
                small = picture.convert("RGB").quantize(palette, dither=Image.Dither.NONE)
            small.save(draft, optimize=True)
    plt.close(figure)
    print(f"written {path}")
