"""FLAIR of a real MS patient from 4x undersampled k-space that is simulated on the real image, with the patient's T1.

    python ci/gallery_ms.py docs/gallery [--work output/ms]

prints PSNR and SSIM and, inside the lesion mask, error and contrast recovery, for the bundles that take this; draws
OUT/ms_patient07.png. The scans are those of the tasks flair_x4_t1 and flair_x4c_t1, with real slices in the place of
phantoms, so that trained bundles see their own kind of data. The bundles run by MONAI's stock command, which it prints;
what lies in --work already is not made again.

**These numbers flatter every method.** The image that k-space is computed from is a magnitude image, registered,
interpolated and brain-extracted: smooth, real, without the noise, phase and motion of measured k-space.

The data: patient 07 of open_ms_data (muschellij2/open_ms_data, cross_sectional/MNI, CC BY), 1 mm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from gallery_parts import Panel, bounds, draw, read_images, real_data, run_bundle, scores, upright
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d

from multirecon import tasks
from multirecon.data.io import Volume, read_nifti
from multirecon.measurement import Measurement

PATIENT = "07"
FILES = {n: f"ms_mni/patient{{}}_{f}.nii.gz" for n, f in (("flair", "FLAIR"), ("t1", "T1"), ("lesion", "lesions"))}
UNIT = {"flair": 1.8, "t1": 2.0}  # 1 is so many times the 90th percentile over the brain, see docs/data.md
TASKS = {"flair_x4_t1": "true maps", "flair_x4c_t1": "24 centre lines"}
METHODS = {
    "SENSE": "sense_mr",
    "L1-wavelet": "cs_mr",
    "TV": "tv_petmrct",
    "TV, edges of T1": "tv_petmrct:directional",
    "MC-VarNet": "mcvarnet_mr",
    "MINet": "minet_mr",
    "DisC-Diff": "discdiff_mr",
}
SLICES, APART, SHOWN = 4, 6, 3


def files(patient: str) -> dict[str, str]:
    """Return the files of a patient by name, below the folder of the measured data."""
    return {name: place.format(patient) for name, place in FILES.items()}


def volumes(folder: Path, patient: str) -> dict[str, Volume]:
    """Return FLAIR, T1 and lesion mask of a patient, on one grid."""
    return {name: read_nifti(folder / place) for name, place in files(patient).items()}


def brain_of(found: Mapping[str, Volume]) -> np.ndarray:
    """Return where the brain-extracted T1 shows something, ``(X, Y, Z)``."""
    t1 = found["t1"].values
    return t1 > 0.02 * np.percentile(t1, 99)


def largest_lesions(found: Mapping[str, Volume]) -> list[int]:
    """Return the slices with the largest lesions, at least ``APART`` mm from each other."""
    area = found["lesion"].values.sum((0, 1))
    chosen: list[int] = []
    for z in np.argsort(-area):
        if len(chosen) < SLICES and all(abs(z - other) >= APART for other in chosen):
            chosen.append(int(z))
    chosen.sort()
    print(f"slices {chosen}, lesion area {[int(area[z]) for z in chosen]} mm^2")
    return chosen


def on_grid(
    found: Mapping[str, Volume], chosen: Sequence[int], size: int, spacing_mm: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Return slices ``(S, 1, size, size)`` by name on a grid of the given spacing, and their affines ``(S, 4, 4)``.

    Linear interpolation within the slice; images on the scale of networks.
    """
    affine, brain = found["flair"].affine, brain_of(found)
    extent = [np.nonzero(brain.any(tuple(b for b in range(3) if b != a)))[0] for a in (0, 1)]
    middle = [(e[0] + e[-1]) / 2 for e in extent]
    offsets = (np.arange(size) - (size - 1) / 2) * spacing_mm
    places = np.stack(np.meshgrid(*(m + offsets / affine[a, a] for a, m in enumerate(middle)), indexing="ij"))
    maps = {}
    for name, volume in found.items():
        values = np.stack([ndimage.map_coordinates(volume.values[:, :, z], places, order=1) for z in chosen])
        if name in UNIT:
            values = np.maximum(values, 0) / (UNIT[name] * np.percentile(volume.values[brain], 90))
        maps[name] = torch.from_numpy(values.astype(np.float32))[:, None]
    affines = torch.from_numpy(affine).repeat(len(chosen), 1, 1)
    for k, z in enumerate(chosen):
        corner = affine @ (middle[0] + offsets[0] / affine[0, 0], middle[1] + offsets[0] / affine[1, 1], z, 1)
        affines[k] = torch.from_numpy(np.array([[spacing_mm, 0, 0, corner[0]], [0, spacing_mm, 0, corner[1]],
                                                [0, 0, 1, corner[2]], [0, 0, 0, 1]]))  # fmt: skip
    return maps, affines


def coarse(affines: Tensor) -> Tensor:
    """Return the affines of the grid whose pixels are means of 2 x 2."""
    result = affines.clone()
    result[:, :3, :2] *= 2
    result[:, :3, 3] += affines[:, :3, :2].sum(2) / 2
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the picture")
    parser.add_argument("--work", type=Path, default=Path("output/ms"), help="folder of data and images")
    arguments = parser.parse_args()
    folder, work = real_data(*files(PATIENT).values()), arguments.work.absolute()
    found = volumes(folder, PATIENT)
    chosen = largest_lesions(found)
    rows = []
    for name, what in TASKS.items():
        task = tasks.load(name)
        fine, affines = on_grid(found, chosen, 2 * task.space.shape[0], task.space.spacing_mm[0] / 2)
        truth, lesion = avg_pool2d(fine["flair"], 2), avg_pool2d(fine["lesion"], 2)[:, 0] > 0.5
        brain = avg_pool2d(fine["t1"], 2)[:, 0] > 0.02
        file = work / name / "data" / "patient07.h5"
        if not file.exists():
            ids = [f"patient07-{k}" for k in range(SLICES)]
            facts = {"source": "open_ms_data, patient07; k-space simulated on interpolated magnitude images"}
            task.acquisition(fine, ids, affine=coarse(affines), metadata=facts).save(file)
        measurement = Measurement.load(file)
        box = bounds(brain.any(0))
        row = [Panel("FLAIR", upright(truth[SHOWN, 0][box]), (0.0, 0.8)),
               Panel("lesion mask", upright(lesion[SHOWN].float()[box]), (0.0, 1.0))]  # fmt: skip
        for title, method in METHODS.items():
            output = work / name / method.replace(":", "_")
            images = read_images(run_bundle(method, work / name / "data", output), "flair")
            score = scores(images, truth, measurement, "flair", ["psnr", "ssim", "nrmse", "bias", "crc"],
                           brain=brain, lesion=lesion)  # fmt: skip
            print(f"{name:13s} {title:21s} PSNR {score['psnr']:.2f} dB, SSIM {score['ssim']:.4f}, "
                  f"brain PSNR {score['psnr@brain']:.2f} dB; lesions: NRMSE {score['nrmse@lesion']:.3f}, "
                  f"bias {score['bias@lesion']:+.4f}, contrast recovery {score['crc@lesion']:.2f}")  # fmt: skip
            row.append(Panel(f"{title}; {what}", upright(images[SHOWN, 0][box]), (0.0, 0.8)))
        rows.append(row)
    draw(arguments.out / "ms_patient07.png", [part for row in rows for part in (row[:5], row[5:])], width=1.9)
    return 0


if __name__ == "__main__":
    sys.exit(main())
