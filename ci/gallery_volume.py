"""A volume by the 3D diffusion prior, by its control that goes slice by slice, and by methods without a learned prior.

    python ci/gallery_volume.py docs/gallery [--volumes 3]

draws OUT/volume.png: an axial, a coronal and a sagittal section of FDG of the first test volume of `petct3d_lowdose`
(direct and oblique PET planes, CT slice by slice), which needs the label maps (MULTIRECON_ANATOMIES). Prints, as means
over the first --volumes, how far differences of neighbouring slices are from the true ones: root of the mean square
over that of the true differences, along each axis. Stripes from slice to slice are an error there, and nothing else is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from gallery_parts import Panel, draw
from torch import Tensor

from multirecon import tasks
from multirecon.bundle import load, load_network
from multirecon.metrics import evaluate_image

METHODS = ("osem_pet", "map_pet", "wavelet_diffusion_petct3d:slices", "wavelet_diffusion_petct3d")
TARGET = "pet_fdg"


def sections(volume: Tensor) -> list[Tensor]:
    """Return an axial, a coronal and a sagittal section through the middle of a volume ``(X, Y, Z)``, upright."""
    x, y, z = (n // 2 for n in volume.shape)
    return [s.T.flip(0) for s in (volume[:, :, z], volume[:, y], volume[x])]


def differences(image: Tensor, truth: Tensor) -> list[float]:
    """Return the relative error of the differences of neighbours along each axis."""
    return [
        float((image.diff(dim=d) - truth.diff(dim=d)).square().mean().sqrt() / truth.diff(dim=d).square().mean().sqrt())
        for d in (-3, -2, -1)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--volumes", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = tasks.load("petct3d_lowdose")
    samples, methods = task.samples("small"), {}
    for method in METHODS:
        name, _, variant = method.partition(":")
        workflow = load(name, variant or None, device="$torch.device('cpu')")
        methods[method] = (workflow, load_network(workflow).eval())
    channels, scale = task.space.channels(TARGET), task.space[TARGET].scale
    columns, errors = [], {method: [] for method in METHODS}
    for index in range(given.volumes):
        measurement, truth = task.measure(samples[index])
        images = {"truth": truth}
        for method, (workflow, network) in methods.items():
            with torch.no_grad():
                images[method] = workflow.inferer(measurement, network).as_tensor()
            errors[method].append(differences(images[method][:, channels], truth[:, channels]))
        for name, image in images.items() if index == 0 else ():
            title = name
            if name != "truth":
                psnr = evaluate_image(image, truth, task.space, targets=[TARGET], metrics=["psnr"])[TARGET]["psnr"]
                title = f"{name.replace('wavelet_diffusion_', '')}\n{psnr:.2f} dB"
            shown = sections(image[0, channels][0] / scale)
            columns.append([Panel(title if k == 0 else "", part, (0.0, 2.5)) for k, part in enumerate(shown)])
    for method, rows in errors.items():
        across, down, along = torch.tensor(rows).mean(0).tolist()
        print(f"{method:34s} error of differences: {across:.3f} and {down:.3f} in the plane, {along:.3f} across slices")
    draw(given.out / "volume.png", [list(row) for row in zip(*columns, strict=True)], width=1.7, dpi=90, palette=64)
    return 0


if __name__ == "__main__":
    sys.exit(main())
