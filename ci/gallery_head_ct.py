"""Sparse-view and low-dose CT from a measured head: DICOM slices, scanned again by simulation.

    python ci/gallery_head_ct.py docs/gallery [--work output/head_ct]

takes every second of 8 slices, prints PSNR, SSIM and errors inside the brain, draws OUT/head_ct.png, and writes one
result as a DICOM series derived from the source. Rays are traced through the slices at 0.98 mm (2 x 2 pixels), images
are made at 1.95 mm, so that data and model differ as in the tasks. The bundles run by MONAI's stock command, which it
prints; what lies in --work already is not made again.

The data: neurolabusc/dcm_qa_ct, In/GE (BSD-2-Clause), 0.49 mm, 120 kVp.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from gallery_parts import Panel, command, draw, read_images, real_data, run_bundle, scores, upright
from torch import Tensor
from torch.nn.functional import avg_pool2d

from multirecon.acquisition import Acquisition, ParallelCT
from multirecon.data.io import scan_dicom
from multirecon.measurement import Measurement
from multirecon.space import ImageSpace, Modality
from multirecon.units import attenuation_to_hu, hu_to_attenuation

FOLDER = "ct_head"
SCANS = {
    "sparse": ("1e5 photons, 60 views", ParallelCT(60, photons=1e5)),
    "lowdose": ("5000 photons, 180 views", ParallelCT(180, photons=5e3, scatter_ratio=0.05, scatter_error=0.1,
                                           detector_fwhm_mm=1.0)),
}  # fmt: skip
METHODS = {"FBP": "fbp_ct", "Tikhonov": "tikhonov_petmrct", "TV": "tv_petmrct"}
TAKEN, SHOWN, WINDOW = (1, 3, 5, 7), 1, (-20.0, 100.0)


def head(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the slices in 1/cm, ``(S, 1, 256, 256)``, and the affines ``(S, 4, 4)`` of a grid half as fine.

    The steps between the slices are uneven: each slice is a sample of its own, at its own place.
    """
    volume = scan_dicom(folder).volume(gaps="keep").reoriented("RAS")
    values = np.maximum(volume.values[..., TAKEN], -1000.0)  # outside the circle of the scanner the file says -1500
    fine = avg_pool2d(hu_to_attenuation(torch.from_numpy(np.moveaxis(values, 2, 0)[:, None].copy())), 2)
    affines = torch.from_numpy(volume.affine).repeat(len(fine), 1, 1)
    affines[:, :3, 3] += 1.5 * affines[:, :3, :2].sum(2) + torch.tensor(TAKEN)[:, None] * affines[:, :3, 2]
    affines[:, :3, :2] *= 4
    return fine, affines


def measure(fine: Tensor, affines: Tensor, scan: ParallelCT, key: str) -> Measurement:
    """Return the simulated scan of all slices on the grid half as fine."""
    size = fine.shape[-1] // 2
    spacing = [float(torch.linalg.vector_norm(affines[0, :3, axis])) for axis in (0, 1)]
    space = ImageSpace([Modality("ct", unit="1/cm", scale=0.2)], (size, size), spacing)
    acquisition = Acquisition(space, {"ct": scan}, key=f"head-{key}", oversample=2)
    return acquisition({"ct": fine}, [f"slice-{k}" for k in range(len(fine))], affine=affines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the picture")
    parser.add_argument("--work", type=Path, default=Path("output/head_ct"), help="folder of data and images")
    arguments = parser.parse_args()
    source, work = real_data(FOLDER) / FOLDER, arguments.work.absolute()
    fine, affines = head(source)
    truth = avg_pool2d(fine, 2)
    hu = attenuation_to_hu(truth)[:, 0]
    brain = (hu > 0) & (hu < 80)
    rows = []
    for part, (what, scan) in SCANS.items():
        file = work / part / "data" / "head.h5"
        if not file.exists():
            measure(fine, affines, scan, part).save(file)
        measurement = Measurement.load(file)
        row = [Panel("the measured slice", upright(hu[SHOWN]), WINDOW)]
        for title, bundle in METHODS.items():
            images = read_images(run_bundle(bundle, work / part / "data", work / part / bundle), "ct")
            found = scores(hu_to_attenuation(images), truth, measurement, "ct", ["psnr", "ssim", "mae"], brain=brain)
            print(f"{what:23s} {title:9s} PSNR {found['psnr']:.2f} dB, SSIM {found['ssim']:.4f}; brain: "
                  f"PSNR {found['psnr@brain']:.2f} dB, mean error {found['mae@brain']:.1f} HU")  # fmt: skip
            row.append(Panel(f"{title}, {what}", upright(images[SHOWN, 0]), WINDOW))
        rows.append(row)
    draw(arguments.out / "head_ct.png", rows)
    shutil.rmtree(work / "dicom", ignore_errors=True)
    command("multirecon", "convert", work / "sparse" / "tv_petmrct" / f"head-{SHOWN:03d}_ct.nii.gz", work / "dicom",
            "--modality", "ct", "--source", source)  # fmt: skip
    command("multirecon", "info", work / "dicom", show=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
