"""Plug-and-play beside conventional reconstruction: a simulated PET scan, and the measured PET transmission scan.

    python ci/gallery_pnp.py docs/gallery [--work output/transmission] [--level 0.3 --scale 0.08]

prints PSNR on a slice of the embedded head, and for the transmission scan the deviance of counts that no method saw
(every count split at random into two halves, as in gallery_transmission.py), and draws OUT/plug_and_play.png. The
denoiser has learned FDG images and sees attenuation here, over `--scale` 1/cm: convergence does not depend on what it
was trained for, image quality does. The likelihood is that of transmission counts (projected quasi-Newton data steps).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from gallery_parts import Panel, command, deviance, draw, real_data
from gallery_transmission import BLANK, PITCH_MM, SCAN, halves
from PIL import Image

from multirecon.bundle import find, load, load_network
from multirecon.measurement import Measurement
from multirecon.metrics import evaluate_image
from multirecon.reconstruction import Tuning
from multirecon.reconstruction.plug_and_play_stack import StackPlugAndPlayADMM
from multirecon.tasks import load as load_task

METHODS = ("osem_pet", "map_pet", "pnp_admm_pet")


def reconstruct(method: str, measurement: Measurement) -> torch.Tensor:
    """Return the image stack of a bundle."""
    name, _, variant = method.partition(":")
    workflow = load(find(name), variant or None)
    network = load_network(workflow, bundle=find(name))
    return torch.as_tensor(workflow.inferer(measurement, network, generator=torch.Generator().manual_seed(0)))


def emission() -> list[Panel]:
    """Return truth and images of a slice at 5 trues a pixel."""
    task = load_task("pet_counts_5")
    samples = task.samples()
    measurement, truth = task.measure(samples[len(samples) // 2])
    top = float(truth.quantile(0.998))
    row = [Panel("truth", truth[0, 0].T.flip(0), (0.0, top))]
    for method in METHODS:
        image = reconstruct(method, measurement)
        values = evaluate_image(image, truth, measurement.space, targets=["pet_fdg"], metrics=["psnr", "ssim"])
        values = values["pet_fdg"]
        print(f"{method:14s} PSNR {values['psnr']:.2f} dB, SSIM {values['ssim']:.3f}")
        row.append(Panel(f"{method} {values['psnr']:.2f} dB", image[0, 0].detach().T.flip(0), (0.0, top)))
    return row


def transmission(work: Path, level: float, scale: float) -> list[Panel]:
    """Return images of the transmission scan from half of its counts."""
    folder = real_data(SCAN, BLANK)
    if not (work / "data" / "phantom.h5").exists():
        command("multirecon", "convert", folder / SCAN, work / "data" / "phantom.h5", "--blank", folder / BLANK,
                "--bin-spacing-mm", PITCH_MM)  # fmt: skip
    seen, unseen = halves(Measurement.load(work / "data" / "phantom.h5"))
    bundle = find("pnp_admm_pet")
    network = load_network(load(bundle), bundle=bundle)
    method = StackPlugAndPlayADMM(space=seen.space, scales=[scale], tuning=Tuning({"level": level}), iterations=60)
    images = {name: reconstruct(name, seen) for name in ("fbp_ct", "tv_petmrct")}
    images["plug-and-play"] = torch.as_tensor(method(seen, network, generator=torch.Generator().manual_seed(0)))
    (run,) = method.runs
    print(f"transmission: residual {float(run.residuals[-1]):.1e}, fixed-point error {float(run.error):.1e}")
    row = []
    for title, image in images.items():
        value = float(deviance(unseen, "ct", image).mean())
        print(f"transmission {title:14s} deviance of unseen counts {value:.3f}")
        row.append(Panel(f"{title}, deviance {value:.3f}", image[0, 0].detach().T, (0.0, 0.13)))
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the picture")
    parser.add_argument("--work", type=Path, default=Path("output/transmission"), help="folder of the converted scan")
    parser.add_argument("--level", type=float, default=0.3, help="of the transmission scan")
    parser.add_argument("--scale", type=float, default=0.08, help="attenuation that the denoiser sees as 1, in 1/cm")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = [emission(), transmission(arguments.work.absolute(), arguments.level, arguments.scale)]
    path = arguments.out / "plug_and_play.png"
    draw(path, rows, width=1.7, dpi=100)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
