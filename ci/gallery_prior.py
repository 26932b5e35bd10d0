"""Unconditional samples of a diffusion prior: a picture, and whether they copy training slices.

    python ci/gallery_prior.py BUNDLE OUT --dataset_dir DATA [--count 64] [--steps 100] [--eta 1] [--seed 0]

writes OUT/BUNDLE_samples.png and prints the distance of every sample to its nearest training slice beside that of
slices of the test anatomies. DATA is the cached set of the training (DATA/train); test slices are simulated, which
needs the label maps (MULTIRECON_ANATOMIES). A prior that copies has samples nearer to the training set than unseen
heads are. Distance: root mean square over all modalities in the network's range, pixels averaged two by two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d

from multirecon.bundle import load, load_network
from multirecon.data.cached_slices import CachedSlices
from multirecon.data.datasets import PhantomSlices
from multirecon.files import atomic_path
from multirecon.metrics import reporting_range
from multirecon.priors import generate
from multirecon.space import ImageSpace
from multirecon.units import attenuation_to_hu

SHOWN = 6


def draw(samples: Tensor, space: ImageSpace) -> Figure:
    """Return a row of all modalities for each of the first samples, in the windows of the project."""
    figure = Figure(figsize=(1.5 * space.num_channels, 1.55 * SHOWN), layout="constrained")
    axes = figure.subplots(SHOWN, space.num_channels, squeeze=False)
    for row, sample in zip(axes, samples, strict=False):
        for panel, modality in zip(row, space.modalities, strict=True):
            image = sample[space.channels(modality.name)][0]
            low, high = reporting_range(modality).window
            if modality.name == "ct":
                image = attenuation_to_hu(image)
            elif modality.name.startswith("pet"):
                image = image / modality.scale if modality.scale else image
            panel.imshow(image.T.flip(0), cmap="gray", vmin=low, vmax=high)
            panel.set_axis_off()
    for panel, modality in zip(axes[0], space.modalities, strict=True):
        panel.set_title(modality.name, fontsize=8)
    return figure


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """Return the root-mean-square distance of images ``(N, C, H, W)`` to the nearest of others ``(M, ...)``."""
    a, b = (avg_pool2d(v, 2).flatten(1) for v in (images, others))
    return torch.cat([torch.cdist(part, b).amin(1) for part in a.split(16)]) / a.shape[1] ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("output", type=Path)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--eta", type=float, default=1.0, help="share of fresh noise; 0 is better with few steps")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    workflow = load(given.bundle, device="$torch.device('cpu')")
    network = load_network(workflow).eval()
    prior = workflow.parser.get_parsed_content("prior")
    samples = generate(
        prior, network, given.count, steps=given.steps, eta=given.eta, seed=given.seed, autocast="bfloat16"
    )
    given.output.mkdir(parents=True, exist_ok=True)
    with atomic_path(given.output / f"{given.bundle}_samples.png") as draft:
        draw(samples, prior.space).savefig(draft, dpi=90, format="png")

    names = list(prior.space.names)
    train = CachedSlices(given.dataset_dir / "train", modalities=names, split="train")
    known = torch.stack([2 * train[i]["image"] - 1 for i in range(len(train))])
    test = PhantomSlices("test", modalities=names, slices=24, ct_unit="unit", cache=1)
    unseen = torch.stack([2 * test[i]["image"] - 1 for i in range(len(test))])
    print(f"{given.count} samples of {given.steps} steps, {len(known)} training slices, {len(unseen)} test slices")
    distances = {"samples": nearest(prior.scaling(samples), known), "test slices": nearest(unseen, known)}
    for name, distance in distances.items():
        low, middle = distance.min(), distance.median()
        print(f"nearest training slice of {name:12s}: smallest {low:.4f}, median {middle:.4f}")
    closer = int((distances["samples"] < distances["test slices"].min()).sum())
    print(f"samples nearer to a training slice than any test slice is: {closer} of {given.count}")


if __name__ == "__main__":
    main()
