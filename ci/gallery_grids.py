"""FLAIR of thick slices on a grid of 1 mm, guided by a T1 that has another grid: judged by slices left out.

    python ci/gallery_grids.py docs/gallery [--work output/grids]

Every second slice of a 2D FLAIR (0.72 x 0.72 x 3 mm, cropped to the head) is converted together with the T1 of the same
session (0.91 x 0.91 x 3 mm) into one measurement on a grid of 1 mm: the FLAIR through ``Resample`` with its slice
profile, the T1 as a clean image. The slices that were left out are then predicted from each result by the same
operator. Prints the relative error inside the head and draws OUT/grids.png. Conversion and reconstructions are commands
of a user, which it prints; what lies in --work already is not made again.

The data: patient 12, study 1, of open_ms_data (muschellij2/open_ms_data, longitudinal/raw, CC BY), not registered.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from gallery_parts import Panel, command, draw, read_images, real_data, run_bundle
from torch import Tensor

from multirecon.data.io import read_nifti
from multirecon.measurement import Measurement
from multirecon.operators import Resample

FLAIR, T1 = "ms_raw/patient12_study1_FLAIR.nii.gz", "ms_raw/patient12_study1_T1W.nii.gz"
FIRST, LAST = 24, 32  # slices of the FLAIR; every second one is used, those between are left out
METHODS = {"TV": "tv_petmrct", "TV along the edges of the T1": "tv_petmrct:directional"}


def crop(source: Path, target: Path) -> None:
    """Write the image cropped to the head within its slices."""
    image = nib.load(source)
    values = np.asarray(image.dataobj)[..., FIRST : LAST + 1]
    inside = values.mean(2) > 0.1 * np.percentile(values, 99)
    ends = [np.nonzero(inside.mean(axis) > 0.05)[0][[0, -1]] for axis in (1, 0)]
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.slicer[ends[0][0] : ends[0][1] + 1, ends[1][0] : ends[1][1] + 1], target)


def left_out(measurement: Measurement, source: Path) -> tuple[Tensor, Resample, Tensor]:
    """Return the slices left out ``(X, Y, S)`` in the unit of the measurement, how they see the grid, and the head."""
    volume = read_nifti(source)
    chosen = list(range(FIRST + 1, LAST, 2))
    scale = next(float(n.split()[-1]) for n in measurement.metadata["notes"] if n.startswith("flair divided by"))
    affine = volume.affine.copy()
    affine[:3, 3] += chosen[0] * affine[:3, 2]
    affine[:3, 2] *= 2
    values = torch.from_numpy(volume.values[..., chosen] / scale)
    seen = measurement.operator["flair"]
    operator = Resample(seen.domain_shape, tuple(values.shape), source_affine=measurement.space.affine,
                        target_affine=torch.from_numpy(affine), thickness_mm=seen.thickness_mm)  # fmt: skip
    return values, operator, values > 0.1


def between(measurement: Measurement) -> Tensor:
    """Return the slices left out as means of their neighbours: linear interpolation."""
    y = measurement.y["flair"][0, 0]
    return (y[..., 1:] + y[..., :-1]) / 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the picture")
    parser.add_argument("--work", type=Path, default=Path("output/grids"), help="folder of data and images")
    parser.add_argument("--iterations", type=int, default=30, help="bound on the iterations of total variation")
    arguments = parser.parse_args()
    folder, work = real_data(FLAIR, T1), arguments.work.absolute()
    file = work / "data" / "patient12.h5"
    if not file.exists():
        crop(folder / FLAIR, work / "flair.nii.gz")
        command("multirecon", "convert", work / "flair.nii.gz", file, "--modality", "flair", "--reference", folder / T1,
                "--reference-modality", "t1", "--spacing-mm", "1,1,1",
                "--slices", ",".join(map(str, range(FIRST, LAST + 1, 2))))  # fmt: skip
    measurement = Measurement.load(file)
    truth, operator, head = left_out(measurement, work / "flair.nii.gz")
    print(f"grid {measurement.space.shape} of 1 mm; slices {measurement.y['flair'].shape[-1]} used, "
          f"{truth.shape[-1]} left out; noise {measurement.metadata['sigma']:.4f}")  # fmt: skip
    results = {}
    for title, method in METHODS.items():
        output = run_bundle(method, work / "data", work / method.replace(":", "_"),
                            **{"inferer#reconstructor#iterations": arguments.iterations})  # fmt: skip
        results[title] = read_images(output, "flair")
    predicted = {"linear interpolation": between(measurement), **{t: operator(x)[0, 0] for t, x in results.items()}}
    for title, slices in predicted.items():
        error = (slices - truth)[head]
        print(f"{title:30s} error on the slices left out {float(error.norm() / truth[head].norm()):.4f}")
    middle, side = truth.shape[-1] // 2, truth.shape[0] // 2
    window = (0.0, 0.9)
    first = [Panel("slice left out", turned(truth[..., middle]), window)]
    first += [Panel(t, turned(s[..., middle]), window) for t, s in predicted.items()]
    y = measurement.y["flair"][0, 0, side]
    second = [Panel("the slices used, sagittal", turned(stretched(y, 6.0, 0.72)), window)]
    plane = measurement.space.shape[0] // 2
    second += [Panel("T1 on the grid", turned(measurement.y["t1"][0, 0, plane]), window)]
    second += [Panel(t, turned(x[0, 0, plane]), window) for t, x in results.items()]
    draw(arguments.out / "grids.png", [first, second])
    return 0


def turned(image: Tensor) -> Tensor:
    """Return a plane as it is shown: its second axis upwards."""
    return image.T.flip(0)


def stretched(image: Tensor, height: float, width: float) -> Tensor:
    """Return a plane of oblong pixels with each repeated along the second axis so that lengths are true."""
    return torch.from_numpy(np.repeat(image.numpy(), round(height / width), axis=1))


if __name__ == "__main__":
    sys.exit(main())
