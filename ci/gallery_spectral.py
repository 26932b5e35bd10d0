"""Spectral CT: energies of a low-dose scan and densities of a head with iodine, with maps of the errors.

    python ci/gallery_spectral.py docs/gallery [--work output/spectral] [--subject 13]

draws OUT/spectral_energies.png (task spectralct_lowdose) and OUT/spectral_materials.png (materials_iodine) of one slice
of a validation subject, which needs the label maps (MULTIRECON_ANATOMIES), and prints PSNR by channel. The bundles run
by MONAI's stock command, which it prints; what lies in --work already is not made again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from gallery_parts import Panel, bounds, draw, read_images, run_bundle, upright
from torch import Tensor

from multirecon import tasks
from multirecon.harness.questions import places
from multirecon.harness.tuning_data import SPLIT, validation_task
from multirecon.measurement import Measurement
from multirecon.metrics.channels import channel_range
from multirecon.metrics.image import psnr

ENERGIES = {
    "joint TV": "tv_petmrct:joint",
    "MCAOL": "mcaol_spectralct",
    "PnP-ADMM": "pnp_admm_spectralct",
    "Uconnect": "uconnect_spectralct",
    "DPS, mean": "dps_spectralct:mds_mean",
}
MATERIALS = {"Tikhonov": "tikhonov_petmrct", "hybrid DPS": "dps_spectralct:hybrid"}
MU_WINDOW, MU_ERROR = (0.12, 0.40), 0.05  # 1/cm
DENSITY_WINDOWS = {"water": (800.0, 1100.0), "bone": (0.0, 1400.0), "iodine": (0.0, 10.0)}  # mg/mL
DENSITY_ERRORS = {"water": 200.0, "bone": 200.0, "iodine": 5.0}


def scan(name: str, subject: str, work: Path) -> tuple[Measurement, Tensor, dict[str, Tensor], Path]:
    """Return measurement, truth, places of contrast, and the folder of the file, of one slice of a subject."""
    task = validation_task(tasks.load(name))
    found = task.samples(SPLIT)
    sample = next((s for s in (found[k] for k in range(len(found))) if str(s["id"]).startswith(f"{subject}/")), None)
    if sample is None:
        raise ValueError(f"subject: expected one of validation, got {subject!r}")
    measurement, truth = task.measure(sample)
    folder = work / name / "data"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("*.h5")):
        measurement.save(folder / f"{name}.h5")
    return measurement, truth, places(sample), folder


def row_of(
    title: str,
    images: Tensor,
    truth: Tensor,
    labels: Sequence[str],
    windows: Sequence[tuple[float, float]],
    errors: Sequence[float],
) -> list[Panel]:
    """Return the pictures of all channels ``(C, H, W)``, then their errors."""
    shown = [
        Panel(f"{title}, {label}", upright(image), window)
        for label, image, window in zip(labels, images, windows, strict=True)
    ]
    wrong = [
        Panel(f"error, {label}", upright(image - true), (-limit, limit), "RdBu_r")
        for label, image, true, limit in zip(labels, images, truth, errors, strict=True)
    ]
    return shown + wrong


def picture(name: str, methods: dict[str, str], options: argparse.Namespace, path: Path) -> None:
    """Reconstruct one slice by some methods, print PSNR by channel, and draw it."""
    measurement, truth, where, data = scan(name, options.subject, options.work.absolute())
    (modality,) = measurement.space.modalities
    labels = tasks.load(name).channels[modality.name]
    ranges = [channel_range(modality, label) for label in labels]
    dense = modality.unit == "g/cm^3"
    windows = [DENSITY_WINDOWS[label] if dense else MU_WINDOW for label in labels]
    errors = [DENSITY_ERRORS[label] if dense else MU_ERROR for label in labels]
    rows_of_head, columns_of_head = bounds(truth[0].sum(0) > 0.1)
    gains = torch.tensor([r.gain for r in ranges]).reshape(-1, 1, 1)
    true = gains * truth[0]
    rows = [row_of("truth", *[true[:, rows_of_head, columns_of_head]] * 2, labels, windows, errors)[: len(labels)]]
    for title, bundle in methods.items():
        folder = run_bundle(bundle, data, data.parent / bundle.replace(":", "-"))
        images = gains * read_images(folder, modality.name)[0, 0].movedim(-1, 0)
        values = [float(psnr(i[None, None], t[None, None], data_range=r.data_range)) for i, t, r in
                  zip(images, true, ranges, strict=True)]  # fmt: skip
        print(f"{name} {title:22s} PSNR " + ", ".join(f"{n} {v:.2f} dB" for n, v in zip(labels, values, strict=True)))
        for place, mask in where.items() if dense else ():
            if bool(mask.any()):
                off = images[-1][mask] - true[-1][mask]
                print(f"    {labels[-1]} in {place}: bias {float(off.mean()):+.2f} mg/mL")
        cut = images[:, rows_of_head, columns_of_head], true[:, rows_of_head, columns_of_head]
        rows.append(row_of(title, *cut, labels, windows, errors))
    draw(path, rows, width=1.25, dpi=72, palette=32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--work", type=Path, default=Path("output/spectral"), help="folder of data and images")
    parser.add_argument("--subject", default="13", help="a subject of validation")
    options = parser.parse_args()
    try:
        picture("spectralct_lowdose", ENERGIES, options, options.out / "spectral_energies.png")
        picture("materials_iodine", MATERIALS, options, options.out / "spectral_materials.png")
    except ValueError as error:
        print(f"gallery_spectral: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
