"""Reconstruct the measured X-ray projections of a tooth, from all views and from a quarter of them.

    python ci/gallery_tooth.py docs/gallery [--work output/tooth]

prints the rotation axis, the deviance of the counts of views that a reconstruction saw and of those it did not, and the
difference between images, and draws OUT/tooth.png. The conversions and the reconstructions are commands of a user,
which it prints; what lies in --work already is not made again.

The data: tooth.h5 of TomoPy (tomopy/tomopy, source/tomopy/data), 181 views, 2 rows, 640 bins, synchrotron.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from gallery_parts import Panel, bounds, command, deviance, draw, read_images, real_data, run_bundle
from torch.nn.functional import avg_pool2d

from multirecon.measurement import Measurement
from multirecon.units import hu_to_attenuation

FILE = "ct_raw/tooth.h5"
EVERY = 4
KNOWN_AXIS = 296.0
RUNS = (
    ("FBP, all views", "fbp_ct", "all"),
    ("TV, all views", "tv_petmrct", "all"),
    ("Tikhonov, 1/4 of the views", "tikhonov_petmrct", "quarter"),
    ("TV, 1/4 of the views", "tv_petmrct", "quarter"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the picture")
    parser.add_argument("--work", type=Path, default=Path("output/tooth"), help="folder of measurements and images")
    arguments = parser.parse_args()
    file, work = real_data(FILE) / FILE, arguments.work.absolute()
    for name, options in (("all", ()), ("quarter", ("--every", EVERY))):
        if not (work / name / "tooth.h5").exists():
            command("multirecon", "convert", file, work / name / "tooth.h5", *options)
    images = {
        title: hu_to_attenuation(read_images(run_bundle(method, work / part, work / f"{method}_{part}"), "ct"))
        for title, method, part in RUNS
    }
    measured = Measurement.load(work / "all" / "tooth.h5")
    axis = measured.metadata["axis"]
    print(f"rotation axis: column {axis:.2f}, {abs(axis - KNOWN_AXIS):.2f} from {KNOWN_AXIS:.0f}")
    used = torch.zeros(measured.y["ct"].shape[2], dtype=torch.bool)
    used[::EVERY] = True
    reference = images["TV, all views"]
    for title, image in images.items():
        terms = deviance(measured, "ct", image)
        difference = torch.linalg.vector_norm(image - reference) / torch.linalg.vector_norm(reference)
        print(f"{title:28s} deviance a bin: quarter of the views {float(terms[:, :, used].mean()):.3f}, "
              f"the others {float(terms[:, :, ~used].mean()):.3f}; "
              f"difference to TV of all views {float(difference):.3f}")  # fmt: skip
    top = float(reference[0, 0].quantile(0.999))
    box = bounds(avg_pool2d(reference[:1], 5, stride=1, padding=2)[0, 0] > 0.3 * top)
    draw(arguments.out / "tooth.png", [[Panel(t, i[0, 0][box], (0.0, top)) for t, i in images.items()]])
    return 0


if __name__ == "__main__":
    sys.exit(main())
