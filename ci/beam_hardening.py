"""Beam hardening in a profile through a head: what the effective models and the polyenergetic one leave of it.

    python ci/beam_hardening.py docs/benchmarks

prints the cupping and draws OUT/beam_hardening.png. One validation slice, 120 kV, 360 views of 1e8 photons, filtered
back-projection of line integrals throughout, so that only the model of the beam differs:

* uncorrected: the logarithm of the counts of all energies;
* water: that logarithm, corrected by the curve of water to 70 keV (the effective model of the tasks, one bin);
* polyenergetic: line integrals of water and bone, ray by ray by maximum likelihood from three energy bins, with the
  model of ``materials_lowdose`` (another filter, no energy blur, coarser steps), as the image at 70 keV;
* exact: the same with the spectrum that the data have.

Deviations are relative to the truth at 70 keV (of the uncorrected image: to its own mean over the brain), in brain
4 to 10 mm from its border (rim) and deeper than 25 mm (core); cupping is their difference. The same head with all
bone turned into water tells hardening by water from hardening by bone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from multirecon.acquisition import Acquisition, PolyenergeticCT, SpectralSlices
from multirecon.likelihoods import log_transform
from multirecon.operators import mass_attenuation
from multirecon.reconstruction.analytic import fbp
from multirecon.solvers import decompose_counts
from multirecon.space import ImageSpace, Modality

KEV = 70.0
SHAPE, SPACING = (128, 128), (1.875, 1.875)
BINS = {"kvp": 120.0, "thresholds_kev": [20.0, 50.0, 80.0], "photons": 1e8, "model": "polyenergetic"}
EXACT = {"model_filter_mm": 6.0, "model_resolution_kev": 3.0, "model_step_kev": 2.0}
COLOURS = {"truth": "black", "uncorrected": "tab:red", "water": "tab:orange", "polyenergetic": "tab:blue"}


def scan(materials: Tensor, name: str, settings: dict) -> tuple[Tensor, object, object]:
    """Return counts, operator and likelihood of a scan of the densities ``(2, 2H, 2W)``."""
    channels = 2 if name == "materials" else 1
    space = ImageSpace([Modality(name, channels=channels)], SHAPE, SPACING)
    stack = materials if name == "materials" else materials[:1]  # a scan looks at the densities alone
    acquisition = Acquisition(space, {name: PolyenergeticCT(360, **settings)}, key="hardening", oversample=2)
    measurement = acquisition({"materials": materials[None], name: stack[None]}, ["slice"])
    return measurement.y[name], measurement.operator[name].projector, measurement.likelihood[name]


def images(materials: Tensor) -> dict[str, Tensor]:
    """Return the attenuation at 70 keV ``(H, W)`` in 1/cm by every model."""
    one = {"kvp": 120.0, "photons": 1e8, "energies_kev": [KEV]}
    y, beam, likelihood = scan(materials, "ct", one)
    found = {"uncorrected": fbp(beam, torch.log(1e8 / y))[0, 0]}
    found["water"] = fbp(beam, log_transform(y, likelihood.I0, 0.0)[0])[0, 0]
    kappa = mass_attenuation(("water", "bone"), [KEV])[:, 0]
    for name, settings in (("polyenergetic", BINS), ("exact", {**BINS, **EXACT})):
        y, beam, likelihood = scan(materials, "materials", settings)
        integrals, _ = decompose_counts(likelihood, y)
        found[name] = fbp(beam, torch.einsum("m,bmvk->bvk", kappa, integrals)[:, None])[0, 0]
    return found


def cupping(image: Tensor, truth: Tensor, depth_mm: np.ndarray, *, absolute: bool) -> tuple[float, float, float]:
    """Return the deviation in % of the rim and of the core of the brain, and their difference."""
    rim, core = (torch.from_numpy(m) for m in ((depth_mm > 4) & (depth_mm < 10), depth_mm > 25))
    brain = torch.from_numpy(depth_mm > 4)
    scale = 1.0 if absolute else float(truth[brain].mean() / image[brain].mean())
    places = [100 * (float(scale * image[m].mean() / truth[m].mean()) - 1) for m in (rim, core)]
    return places[0], places[1], places[0] - places[1]


def draw(path: Path, found: dict[str, Tensor], truth: Tensor, row: int) -> None:
    """Draw the profile along one row, smoothed over 3 pixels."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 2.2), layout="constrained")
    axes[0].imshow(found["uncorrected"].T.flip(0), cmap="gray", vmin=0.15, vmax=0.25)
    axes[0].axvline(row, color="tab:red", linewidth=0.8)
    axes[0].set_axis_off()
    axes[0].set_title("uncorrected, 0.15 to 0.25 1/cm", fontsize=9)
    place = (np.arange(SHAPE[1]) - (SHAPE[1] - 1) / 2) * SPACING[1]
    for name, image in {"truth": truth, **found}.items():
        if name in COLOURS:
            line = ndimage.uniform_filter(image.numpy(), 3)[row]
            axes[1].plot(place, line, color=COLOURS[name], linewidth=1.0, label=name)
    axes[1].set(xlabel="mm from back to front", ylabel="1/cm at 70 keV", ylim=(0.16, 0.26), xlim=(-110, 110))
    axes[1].legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the picture")
    out = parser.parse_args().out
    data = SpectralSlices("validation", modalities=["materials"], slices=8)
    item = data[4]
    head = item["materials_fine"]
    kappa = mass_attenuation(("water", "bone"), [KEV])[:, 0]
    depth = ndimage.distance_transform_edt(item["brain"][0].numpy() > 0.5, sampling=SPACING)
    water = torch.stack([(head.sum(0) > 0.3).float(), torch.zeros_like(head[0])])
    print(f"{item['id']}: deviation in % at {KEV:g} keV, in the rim and in the core of the brain; cupping (rim - core)")
    for title, materials in (("head", head), ("head of water", water)):
        truth = torch.einsum("m,mhw->hw", kappa, materials.unflatten(1, (128, 2)).unflatten(3, (128, 2)).mean((2, 4)))
        found = images(materials)
        for name, image in found.items():
            rim, core, cup = cupping(image, truth, depth, absolute=name != "uncorrected")
            print(f"{title:14} {name:14} rim {rim:+6.2f}  core {core:+6.2f}  cupping {cup:+6.2f}")
        if title == "head":
            row = int(np.argmax(depth.max(1)))
            draw(out / "beam_hardening.png", found, truth, row)


if __name__ == "__main__":
    main()
