"""Reconstruct the measured PET transmission scan: attenuation by filtered back-projection and by total variation.

    python ci/gallery_transmission.py docs/gallery [--work output/transmission]

prints the deviance of the counts, that of counts which a reconstruction did not see, and draws OUT/transmission.png.
For the second, every count is split at random into two halves (of independent Poisson counts), and each image is made
again from the first half. The conversion and the reconstructions are commands of a user, which it prints; what lies in
--work already is not made again.

The data: phan_trans.mat and phan_blank.mat of MIRTdata (JeffFessler/MIRTdata, pet_trans_2d_sino), 160 bins, 192 views.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from gallery_parts import Panel, command, deviance, draw, read_images, real_data, run_bundle

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, TransmissionPoisson
from multirecon.measurement import Measurement
from multirecon.units import hu_to_attenuation

SCAN, BLANK = "pet_transmission/phan_trans.mat", "pet_transmission/phan_blank.mat"
PITCH_MM = 3.375  # nominal: the files state no bin width
METHODS = {"FBP": "fbp_ct", "Tikhonov": "tikhonov_petmrct", "TV": "tv_petmrct"}


def halves(whole: Measurement, seed: int = 0) -> tuple[Measurement, Measurement]:
    """Split every count at random into two; each half has half the blank scan."""
    y, likelihood = whole.y["ct"], whole.likelihood["ct"]
    first = torch.binomial(y, torch.full_like(y, 0.5), generator=torch.Generator().manual_seed(seed))
    half = BlockLikelihood({"ct": TransmissionPoisson(0.5 * likelihood.I0, 0.5 * likelihood.scatter)})
    parts = [Measurement(Blocks({"ct": part}), whole.operator, half, whole.metadata) for part in (first, y - first)]
    return parts[0], parts[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the picture")
    parser.add_argument("--work", type=Path, default=Path("output/transmission"), help="folder of data and images")
    arguments = parser.parse_args()
    folder, work = real_data(SCAN, BLANK), arguments.work.absolute()
    if not (work / "data" / "phantom.h5").exists():
        command("multirecon", "convert", folder / SCAN, work / "data" / "phantom.h5", "--blank", folder / BLANK,
                "--bin-spacing-mm", PITCH_MM)  # fmt: skip
    whole = Measurement.load(work / "data" / "phantom.h5")
    seen, unseen = halves(whole)
    seen.save(work / "half" / "phantom.h5")
    print(f"counts: {float(whole.y['ct'].sum()):.4g}, {float(whole.y['ct'].mean()):.1f} a bin; "
          f"blank {float(whole.likelihood['ct'].I0.sum()):.4g}")  # fmt: skip
    panels = []
    for title, bundle in METHODS.items():
        image, other = (
            hu_to_attenuation(read_images(run_bundle(bundle, work / part, work / f"{bundle}_{part}"), "ct"))
            for part in ("data", "half")
        )
        inside = whole.operator["ct"].adjoint(torch.ones_like(whole.y["ct"]))
        body = (image > 0.5 * float(image.quantile(0.98))) & (inside > 0)
        print(f"{title:10s} deviance a count {float(deviance(whole, 'ct', image).mean()):.3f}; "
              f"from half of the counts: seen {float(deviance(seen, 'ct', other).mean()):.3f}, "
              f"unseen {float(deviance(unseen, 'ct', other).mean()):.3f}; "
              f"median in the body {float(image[body].median()):.4f} 1/cm")  # fmt: skip
        panels.append([(title, image), (f"{title}, half of the counts", other)])
    top = float(image.quantile(0.995)) * 1.1
    draw(arguments.out / "transmission.png",
         [[Panel(row[k][0], row[k][1][0, 0].T, (0.0, top)) for row in panels] for k in (0, 1)])  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
