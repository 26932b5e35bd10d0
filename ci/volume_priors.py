"""Volumes by a 3D prior, by a 2D prior slice by slice in the same sampler, and by methods without a learned prior.

    python ci/volume_priors.py --slices RUN/model.pt

RUN is the folder of a training with ``configs/train_slices.json`` of wavelet_diffusion_petct3d. Both priors run in the
same decomposed sampling, which corrects whole volumes by all the data; what differs is what the prior sees. Settings
are chosen with ``--split validation``. Metrics are those of ``multirecon.metrics``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from multirecon import tasks
from multirecon.bundle import load, load_network, read_weights
from multirecon.data.slabs import PhantomSlabs
from multirecon.measurement import Measurement
from multirecon.metrics import evaluate_image
from multirecon.reconstruction import DecomposedSampling

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "wavelet_diffusion_petct3d"
METRICS = ("psnr", "ssim", "psnr_axial", "psnr_sagittal", "tvz")
Method = Callable[[Measurement], Tensor]


def sampler(overlays: list[str], weights: Path, options: argparse.Namespace, strength: float) -> Method:
    """Return decomposed sampling with the prior of a training configuration and its weights."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in ("train", *overlays)])
    shape = ConfigParser.load_config_file(str(BUNDLE / "configs" / "train.json"))["space"]["shape"]
    parser["space"]["shape"] = shape  # slices are trained as volumes of one slice
    prior, network = parser.get_parsed_content("prior"), parser.get_parsed_content("network_def").eval()
    network.load_state_dict(read_weights(weights), strict=True)
    reconstructor = DecomposedSampling(
        prior,
        steps=options.steps,
        strength=strength,
        num_samples=options.samples,
        autocast="bfloat16",
    )
    return lambda measurement: reconstructor(measurement, network).as_tensor()


def bundle(name: str) -> Method:
    """Return a bundle's own inference."""
    workflow = load(name, device="$torch.device('cpu')")
    network = load_network(workflow).eval()
    return lambda measurement: workflow.inferer(measurement, network).as_tensor()


def main() -> None:
    """Print a table, one row a method: means over the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="petct3d_lowdose")
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--seeds", type=int, default=1, help="subjects an anatomy")
    parser.add_argument("--weights", type=Path, default=BUNDLE / "models" / "model.pt", help="of the 3D prior")
    parser.add_argument("--slices", type=Path, help="weights of the 2D prior; without them it is left out")
    parser.add_argument("--bundles", nargs="*", default=["osem_pet", "map_pet"])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--samples", type=int, default=4, help="posterior samples whose mean is taken")
    parser.add_argument("--strength", type=float, nargs="+", default=[0.1], help="weights of the prior to compare")
    parser.add_argument("--target", default="pet_fdg")
    options = parser.parse_args()
    task = tasks.load(options.task)
    arguments = {k: v for k, v in task.config["dataset"].items() if k != "_target_"}
    data = PhantomSlabs(**{**arguments, "split": options.split, "seeds": options.seeds})
    methods: dict[str, Method] = {name: bundle(name) for name in options.bundles}
    for strength in options.strength:
        mark = f", strength {strength:g}" if len(options.strength) > 1 else ""
        methods[f"3D prior{mark}"] = sampler([], options.weights, options, strength)
        if options.slices:
            methods[f"2D prior, slice by slice{mark}"] = sampler(["train_slices"], options.slices, options, strength)
    values: dict[str, list[list[float]]] = {name: [] for name in methods}
    for index in range(len(data)):
        measurement, truth = task.measure(data[index])
        for name, method in methods.items():
            start = time.process_time()
            result = method(measurement)
            seconds = time.process_time() - start
            found = evaluate_image(result, truth, task.space, targets=[options.target], metrics=METRICS)
            values[name].append([*(found[options.target][m] for m in METRICS), seconds])
            print(f"{index} {name}: {[round(v, 4) for v in values[name][-1]]}", flush=True)
    print(f"\n{options.target} of {options.task}, {len(data)} volumes of the {options.split} split, "
          f"{options.steps} steps, mean of {options.samples}\n")  # fmt: skip
    print("| method | PSNR | SSIM | PSNR axial | PSNR sagittal | variation across slices | processor s |")
    print("|---|---|---|---|---|---|---|")
    for name, rows in values.items():
        mean = torch.tensor(rows).mean(0).tolist()
        cells = [
            f"{mean[0]:.2f}",
            f"{mean[1]:.4f}",
            f"{mean[2]:.2f}",
            f"{mean[3]:.2f}",
            f"{mean[4]:.3f}",
            f"{mean[5]:.0f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
