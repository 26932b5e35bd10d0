"""Plug-and-play beside conventional reconstruction: a simulated PET scan, and the measured PET transmission scan.

    python ci/gallery_pnp.py docs/gallery [--work output/transmission] [--level 0.3 --scale 0.08]

prints PSNR on a slice of the embedded head, and for the transmission scan the deviance of counts that no method saw
(every count split at random into two halves, as in gallery_transmission.py), and draws OUT/plug_and_play.png. The
denoiser has learned FDG images and sees attenuation here, over `--scale` 1/cm: convergence does not depend on what it
was trained for, image quality does. The likelihood is that of transmission counts (projected quasi-Newton data steps).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import torch
from gallery_head_ct import FOLDER as HEAD
from gallery_head_ct import SCANS, SHOWN, WINDOW, head, measure
from gallery_parts import Panel, command, deviance, draw, real_data, scores, upright
from gallery_transmission import BLANK, PITCH_MM, SCAN, halves
from PIL import Image
from torch.nn.functional import avg_pool2d

from multirecon.bundle import find, load, load_network
from multirecon.measurement import Measurement
from multirecon.metrics import evaluate_image
from multirecon.priors.nonexpansive_checks import rising_steps
from multirecon.reconstruction import Tuning
from multirecon.reconstruction.plug_and_play_stack import StackPlugAndPlayADMM
from multirecon.tasks import load as load_task
from multirecon.units import attenuation_to_hu

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


def head_ct(level: float, scale: float) -> list[Panel]:
    """Return images of slices of the measured head CT, seen again from 60 views."""
    what, scan = SCANS["sparse"]
    fine, affines = head(real_data(HEAD) / HEAD)
    measurement, truth = measure(fine, affines, scan, "sparse"), avg_pool2d(fine, 2)
    hu = attenuation_to_hu(truth)[:, 0]
    bundle = find("pnp_admm_pet")
    network = load_network(load(bundle), bundle=bundle)
    method = StackPlugAndPlayADMM(space=measurement.space, scales=[scale], tuning=Tuning({"level": level}),
                                  iterations=60)  # fmt: skip
    images = {name: reconstruct(name, measurement) for name in ("fbp_ct", "tv_petmrct")}
    images["plug-and-play"] = torch.as_tensor(method(measurement, network, generator=torch.Generator().manual_seed(0)))
    residual, error = (max(float(v) for v in found) for found in ([r.residuals[-1] for r in method.runs],
                                                                 [r.error for r in method.runs]))  # fmt: skip
    print(f"head CT: largest residual {residual:.1e}, fixed-point error {error:.1e} of {len(method.runs)} slices")
    row = [Panel("head CT", upright(hu[SHOWN]), WINDOW)]
    for title, image in images.items():
        found = scores(image, truth, measurement, "ct", ["psnr", "ssim", "mae"], brain=(hu > 0) & (hu < 80))
        print(f"head CT, {what} {title:14s} PSNR {found['psnr']:.2f} dB, SSIM {found['ssim']:.4f}; brain: mean error "
              f"{found['mae@brain']:.1f} HU")  # fmt: skip
        row.append(Panel(f"{title} {found['psnr']:.2f} dB", upright(attenuation_to_hu(image)[SHOWN, 0]), WINDOW))
    return row


def slab() -> list[Panel]:
    """Return a slice of a slab seen in direct and oblique planes: one ADMM in 3D, its denoiser slice by slice."""
    task = load_task("petct3d_lowdose")
    measurement, truth = task.measure(task.samples()[0])
    pet, space = measurement.space.channels("pet_fdg"), measurement.space
    middle = truth.shape[-1] // 2
    top = float(truth[:, pet].quantile(0.998))
    row = [Panel("3D slab", truth[:, pet][0, 0, ..., middle].T.flip(0), (0.0, top))]
    for method in METHODS:
        workflow = load(find(method))
        network = load_network(workflow, bundle=find(method))
        begin = time.process_time()
        image = torch.as_tensor(workflow.inferer(measurement, network, generator=torch.Generator().manual_seed(0)))
        seconds = time.process_time() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        values = evaluate_image(image, truth, space, targets=["pet_fdg"], metrics=["psnr", "ssim"])["pet_fdg"]
        print(f"3D slab {method:14s} PSNR {values['psnr']:.2f} dB, SSIM {values['ssim']:.3f}; {seconds:.1f} processor "
              f"s, peak of the process so far {peak:.0f} MiB")  # fmt: skip
        row.append(Panel(f"{method} {values['psnr']:.2f} dB", image[:, pet][0, 0, ..., middle].detach().T.flip(0),
                         (0.0, top)))  # fmt: skip
    # the last of the methods
    run = workflow.inferer.reconstructor.runs["pet_fdg"]
    print(f"3D slab: {len(run.inner)} iterations, {sum(run.inner)} projections forth and back, residual "
          f"{float(run.residuals[-1]):.1e}, steps that grew by over 0.1 % "
          f"{rising_steps(run.residuals[:, 0].tolist(), floor=1e-6)}, fixed-point error {float(run.error):.1e}, KKT "
          f"{run.worst_kkt:.1e}")  # fmt: skip
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the picture")
    parser.add_argument("--work", type=Path, default=Path("output/transmission"), help="folder of the converted scan")
    parser.add_argument("--level", type=float, default=0.3, help="of the transmission scan")
    parser.add_argument("--scale", type=float, default=0.08, help="attenuation that the denoiser sees as 1, in 1/cm")
    parser.add_argument("--head_level", type=float, default=0.1, help="of the head CT")
    parser.add_argument("--head_scale", type=float, default=0.2, help="the same for the head CT")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = [emission(), slab(), transmission(arguments.work.absolute(), arguments.level, arguments.scale),
                head_ct(arguments.head_level, arguments.head_scale)]  # fmt: skip
    path = arguments.out / "plug_and_play.png"
    draw(path, rows, width=1.7, dpi=100)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
