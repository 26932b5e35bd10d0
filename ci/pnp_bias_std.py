"""Bias against spread of PET methods over noise realisations, with a lesion that no training image has.

`python ci/pnp_bias_std.py pet_counts_5 --realisations 5` simulates scans of test slices into which a hot ring was put,
reconstructs them with every method at several strengths, and prints bias and spread in percent by region; then, paired
by slice and with 95 % intervals over heads, the bias where each method has the spread of another one at its
tuned strength, and the spread where it has the other's bias, both along straight lines between the strengths.
`--postprocess FILE` adds OSEM followed by a network of the training overlay `train_postprocess.json`.
"""

import argparse
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from multirecon.acquisition import fine_maps
from multirecon.bundle import find, load, load_network, read_weights
from multirecon.data.tissues import REGIONS
from multirecon.harness.statistics import anatomy_interval
from multirecon.measurement import Measurement
from multirecon.metrics.ensembles import normalised_bias, normalised_std
from multirecon.networks.dncnn import DnCNN
from multirecon.reconstruction.plug_and_play import mean_activity
from multirecon.solvers import osem
from multirecon.tasks import Task
from multirecon.tasks import load as load_task

SWEEPS = {
    "pnp_admm_pet": ("level", (0.3, 0.55, 1.0, 1.8)),
    "pnp_admm_pet:gaussian": ("level", (0.3, 0.55, 1.0, 1.8)),
    "map_pet": ("weight", (0.3, 0.6, 1.0, 2.0)),
    "osem_pet": ("fwhm_mm", (0.6, 0.8, 1.0, 1.4)),
}
"""Setting of every method that moves along its curve, as factors of the tuned value."""
KIND = "pet/poisson"
TISSUES = ("cortical_gm", "white_matter", "deep_gm")


@dataclass(frozen=True)
class Scans:
    """Scans of one slice.

    Args:
        measurement: realisations, a batch.
        truth: ``(1, 1, H, W)``.
        regions: name -> mask ``(H, W)``.
    """

    measurement: Measurement
    truth: Tensor
    regions: dict[str, Tensor]


def ring(shape: tuple[int, int], centre: Tensor, pixel: float) -> Tensor:
    """Return a ring of 7 mm radius and 4 mm width, ``(1, H, W)``."""
    rows, columns = (torch.arange(n) for n in shape)
    distance = ((rows[:, None] - centre[0]) ** 2 + (columns - centre[1]) ** 2).sqrt() * pixel
    return ((distance - 7).abs() < 2).float()[None]


def scans(task: Task, index: int, realisations: int) -> Scans:
    """Return realisations of a scan of a test slice with a ring 2.5 times as hot as grey matter."""
    item = dict(task.samples()[index])
    labels = item["regions"][0].long()
    masks = {n: labels == REGIONS.index(n) for n in TISSUES}
    centre = torch.nonzero(masks["white_matter"]).double().mean(0) + torch.tensor([0.0, 14.0])
    grey = float(item["image"][0][masks["cortical_gm"]].mean())
    fine = ring(tuple(item["fine"].shape[1:]), 2 * centre + 0.5, task.space.spacing_mm[0] / 2)
    share = torch.nn.functional.avg_pool2d(fine, 2)
    item["fine"] = item["fine"] * (1 - fine) + 2.5 * grey * fine
    item["image"] = item["image"] * (1 - share) + 2.5 * grey * share
    inside = share[0] > 0.5
    regions = {**{n: m & ~inside for n, m in masks.items() if bool((m & ~inside).any())}, "ring": inside}
    batch = {k: v[None].expand(realisations, *v.shape) for k, v in item.items() if isinstance(v, Tensor)}
    maps = {**fine_maps(batch), "pet_fdg": batch["fine"]}
    names = [f"{item['id']}/ring/{r}" for r in range(realisations)]
    return Scans(task.acquisition(maps, names, affine=item.get("affine")), item["image"][None], regions)


def curve(name: str, cases: list[Scans]) -> dict[str, list[Tensor]]:
    """Return setting -> images ``(R, 1, H, W)`` of every slice, for one method."""
    bundle, _, variant = name.partition(":")
    workflow = load(find(bundle), variant or None)
    network, tuning = load_network(workflow, bundle=find(bundle)), workflow.parser.get_parsed_content("tuning")
    setting, factors = SWEEPS[name]
    tuned = {n: tuning(n, KIND) for n in tuning.parameters}
    found = {}
    for factor in factors:
        with tuning.override({KIND: {**tuned, setting: factor * tuned[setting]}}):
            found[f"{setting} {factor * tuned[setting]:.3g}"] = [
                torch.as_tensor(workflow.inferer(c.measurement, network, generator=torch.Generator().manual_seed(0)))
                for c in cases
            ]
    return found


def postprocessed(path: Path, cases: list[Scans]) -> dict[str, list[Tensor]]:
    """Return the same for OSEM followed by a network."""
    network = DnCNN(8, 48)
    network.load_state_dict(read_weights(path))
    images = []
    with torch.no_grad():
        for c in cases:
            m = c.measurement
            x = osem(m.operator["pet_fdg"], m.likelihood["pet_fdg"], m.y["pet_fdg"], subsets=6, iterations=4)
            scale = mean_activity(x).reshape(-1, 1, 1, 1)
            images.append(scale * network(x / scale))
    return {"as trained": images}


Points = dict[str, dict[str, list[tuple[float, float]]]]
"""Setting -> region -> bias and spread of every slice that has the region, in percent."""


def points_of(settings: dict[str, list[Tensor]], cases: list[Scans], regions: list[str]) -> Points:
    """Return bias and spread by setting, region and slice."""
    return {
        setting: {
            region: [
                (100 * float(normalised_bias(x[:, None], c.truth, mask=c.regions[region])),
                 100 * float(normalised_std(x[:, None], mask=c.regions[region])))
                for x, c in zip(images, cases, strict=True) if region in c.regions
            ]
            for region in regions
        }
        for setting, images in settings.items()
    }  # fmt: skip


def along(line: list[tuple[float, float]], at: float) -> float | None:
    """Return the value of a line of ``(x, y)`` points at ``x``, between the first two of them around it, or None."""
    for (x, y), (u, v) in pairwise(sorted(line)):
        if x <= at <= u:
            return y + (v - y) * ((at - x) / (u - x) if u > x else 0.5)
    return None


def compare(found: dict[str, Points], tuned: dict[str, str], regions: dict[str, list[str]]) -> None:
    """Print every pair of a method with a curve and a method's tuned point."""
    for one, points in found.items():
        for other in found:
            if one == other or len(points) < 2:
                continue
            for region, heads in regions.items():
                differences: tuple[list[tuple[str, float]], ...] = [], []
                for k, head in enumerate(heads):
                    line = [(values[region][k][1], values[region][k][0]) for values in points.values()]
                    bias, spread = found[other][tuned[other]][region][k]
                    for kind, (values, at, against) in enumerate(
                        ((line, spread, bias), ([(b, s) for s, b in line], bias, spread))
                    ):
                        value = along(values, at)
                        if value is not None:
                            differences[kind].append((head, value - against))
                cells = [
                    f"{anatomy_interval(d).text(2, sign=True)} ({len(d)} of {len(heads)})" if d else "no such point"
                    for d in differences
                ]
                print(f"| {one} less {other} | {region} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="pet_counts_5")
    parser.add_argument(
        "--slices", type=int, nargs="+", default=[2, 6, 10, 14, 18, 22], help="numbers in the task's small set"
    )
    parser.add_argument("--realisations", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(SWEEPS))
    parser.add_argument("--postprocess", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task(arguments.task)
    cases = [scans(task, i, arguments.realisations) for i in arguments.slices]
    curves = {name: curve(name, cases) for name in arguments.methods}
    if arguments.postprocess:
        curves["postprocess"] = postprocessed(arguments.postprocess, cases)
    names = list(dict.fromkeys(n for c in cases for n in c.regions))
    found = {name: points_of(settings, cases, names) for name, settings in curves.items()}
    print(f"| method | setting | {' | '.join(f'{n}: bias, spread' for n in names)} |")
    print(f"|---|---|{'---|' * len(names)}")
    for name, points in found.items():
        for setting, by_region in points.items():
            means = [[sum(v) / len(v) for v in zip(*by_region[n], strict=True)] for n in names]
            print(f"| {name} | {setting} | {' | '.join(f'{b:.1f}, {s:.1f}' for b, s in means)} |", flush=True)
    heads = [str(task.samples()[i]["id"]).split("/")[0] for i in arguments.slices]
    regions = {n: [h for h, c in zip(heads, cases, strict=True) if n in c.regions] for n in names}
    tuned = {name: list(points)[SWEEPS[name][1].index(1.0) if name in SWEEPS else 0] for name, points in found.items()}
    print("\n| | region | bias at the spread of the other | spread at the bias of the other |")
    print("|---|---|---|---|")
    compare(found, tuned, regions)


if __name__ == "__main__":
    main()
