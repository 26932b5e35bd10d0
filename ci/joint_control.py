"""What the second modality is worth to a joint method, and what it must not do: `python ci/joint_control.py BUNDLE`.

* pairs: PET reconstructed beside the data of its own CT or MR, beside those of another subject, and by the control with
  one autoencoder a modality;
* synthesis: each modality from the data of the other alone, against the mean image of the set's other anatomies;
* representation: what comes back of such spots from encoder and decoder alone, without data: the truth, cut into
  the patches of the reconstruction, coded, decoded and put together;
* lesions: a spot that PET alone has and, in another run, one that the other modality alone has. The difference between
  the reconstructions with and without it, relative to the true difference, is what is recovered; in the other modality
  it is what is copied (there in units of its scale, relative to the spot in its own modality's scale). The counts of
  the PET spot are added to those that are there, and beside a spot of the other modality the PET data stay as they are:
  the two reconstructions share their noise. The control and a method of PET alone say what the data allow.

Means over samples spread over the task's set, with 95 % bootstrap intervals over anatomies, and both extremes.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from multirecon import tasks
from multirecon.blocks import Blocks
from multirecon.bundle import load, load_network, read_weights
from multirecon.harness.statistics import anatomy_interval
from multirecon.harness.tuning_data import validation_task
from multirecon.likelihoods import BlockLikelihood
from multirecon.measurement import Measurement
from multirecon.metrics.evaluate import evaluate_image
from multirecon.operators import BlockDiagonal
from multirecon.priors.patches import PatchGrid
from multirecon.space import ImageSpace

RADIUS_MM = 6.0
PET_SPOT = 0.6
"""Rise of the activity in the PET-only spot, relative to grey matter."""
OTHER_SPOT = {"ct": 0.02, "t1": 0.4}
"""Rise of the other modality in its own spot: 1/cm (about 100 HU), or of the bright level of MR."""

Method = Callable[[Measurement], Tensor]


def method(name: str, variant: str = "", *, fusion: str = "", weights: str = "") -> Method:
    """Return the reconstruction of a bundle or variant, or by weights of another fusion; each measurement once."""
    workflow = load(
        name, variant or None, device="$torch.device('cpu')", **({"network_def#fusion": fusion} if fusion else {})
    )
    network = workflow.parser.get_parsed_content("network") if fusion else load_network(workflow)
    if fusion:
        network.load_state_dict(read_weights(weights), strict=True)
        network.eval()
    done: dict[int, tuple[Measurement, Tensor]] = {}  # by identity; the measurement is kept, so that no other takes it

    def run(measurement: Measurement) -> Tensor:
        if id(measurement) not in done:
            done[id(measurement)] = measurement, torch.as_tensor(workflow.inferer(measurement, network)).detach()
        return done[id(measurement)][1]

    return run


def coder(name: str, variant: str = "") -> Callable[[Tensor], Tensor]:
    """Return what a bundle's autoencoder makes of a stack ``(1, C, H, W)``: patches coded, decoded, put together."""
    workflow = load(name, variant or None, device="$torch.device('cpu')")
    network, how = load_network(workflow), workflow.inferer.reconstructor
    grid = PatchGrid(workflow.inferer.space.shape, patch=network.patch, stride=how.stride)

    @torch.no_grad()
    def run(stack: Tensor) -> Tensor:
        patches = grid.extract(how.scaling(stack))
        return how.scaling.inverse(grid.aggregate(network(patches.flatten(0, 1)).unflatten(0, (len(stack), -1))))

    return run


def swapped(one: Measurement, other: Measurement, name: str) -> Measurement:
    """Return the measurement with the block ``name`` of another one."""

    def pick(block: str) -> Measurement:
        return other if block == name else one

    blocks = one.available
    return Measurement(
        Blocks({n: pick(n).y[n] for n in blocks}),
        BlockDiagonal(one.space, {n: pick(n).operator[n] for n in blocks}),
        BlockLikelihood({n: pick(n).likelihood[n] for n in blocks}),
        one.metadata,
    )


def with_spots(item: dict[str, Any], names: Sequence[str], spots: dict[str, tuple[Tensor, float]]) -> dict[str, Any]:
    """Return the item with a spot added to channels of its fine grid; masks ``(2H, 2W)``."""
    changed = dict(item)
    for key in ("fine", "image"):
        stack = item[key].clone()
        for name, (mask, rise) in spots.items():
            plain = mask if key == "fine" else torch.nn.functional.avg_pool2d(mask[None, None], 2)[0, 0]
            stack[list(names).index(name)] += rise * plain
        changed[key] = stack
    return changed


def with_activity(measurement: Measurement, rise: Tensor, generator: torch.Generator) -> Measurement:
    """Return the measurement with the Poisson counts of more activity ``(1, 1, H, W)`` added to its own."""
    name = "pet_fdg"
    counts = torch.poisson(measurement.operator[name](rise).clamp_min(0), generator=generator)
    data = {n: measurement.y[n] + counts if n == name else measurement.y[n] for n in measurement.available}
    return Measurement(Blocks(data), measurement.operator, measurement.likelihood, measurement.metadata)


def places(item: dict[str, Any], spacing_mm: float) -> tuple[Tensor, Tensor]:
    """Return masks on the fine grid of two spots inside the brain, on either side of its centre."""
    brain = item["brain"][0] > 0.5
    rows, columns = torch.nonzero(brain, as_tuple=True)
    centre = rows.float().mean(), columns.float().mean()
    side = 0.45 * (rows.float() - centre[0]).abs().max()
    size = torch.arange(2 * brain.shape[0]) / 2
    return tuple(  # type: ignore[return-value]
        (
            (((size[:, None] - centre[0] - sign * side) ** 2 + (size - centre[1]) ** 2).sqrt() * spacing_mm) < RADIUS_MM
        ).float()
        for sign in (-1, 1)
    )


def other_means(task: Any, data: Any, anatomies: set[str]) -> dict[str, Tensor]:
    """Return the mean true stack ``(1, C, H, W)`` of a set's samples of all other anatomies, by anatomy."""
    truths = [
        (str(item["id"]).partition("/")[0], task.measure(item)[1]) for item in (data[i] for i in range(len(data)))
    ]
    return {a: torch.cat([x for name, x in truths if name != a]).mean(0, keepdim=True) for a in anatomies}


def show(label: str, values: list[float], anatomies: Sequence[str]) -> None:
    """Print one line of a table."""
    interval = anatomy_interval(zip(anatomies, values, strict=True)).text(3, sign=True)
    print(f"| {label} | {interval} | {min(values):.3f} | {max(values):.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--task", default="petct_lowdose")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--control", default="separate", help="variant to compare with; '' for none")
    parser.add_argument("--fusion", default="", help="poe or mmjsd: the joint network is of that form ...")
    parser.add_argument("--weights", default="", help="... with the weights of this file")
    parser.add_argument("--reference", default="map_pet", help="method of PET alone for the spots; '' for none")
    parser.add_argument("--parts", default="pairs,synthesis,lesions")
    parser.add_argument("--validation", action="store_true", help="validation anatomies in place of the test set")
    arguments = parser.parse_args()
    task, which = tasks.load(arguments.task), "small"
    if arguments.validation:
        task, which = validation_task(task, slices=2), "validation"
    data, parts = task.samples(which), arguments.parts.split(",")
    step = max(1, len(data) // arguments.samples)
    items = [data[i] for i in range(step // 2, len(data), step)][: arguments.samples]
    measured = [task.measure(item) for item in items]
    anatomies = [str(item["id"]).partition("/")[0] for item in items]
    other = next(n for n in task.space.names if n != "pet_fdg")
    joint = method(arguments.bundle, fusion=arguments.fusion, weights=arguments.weights)
    control = method(arguments.bundle, arguments.control) if arguments.control else None

    def psnr(image: Tensor, truth: Tensor, name: str) -> float:
        return float(evaluate_image(image, truth, task.space, targets=[name], metrics=["psnr"])[name]["psnr"])

    print(
        f"{arguments.bundle} on {task.name} ({which}), {len(items)} samples of {len(set(anatomies))} anatomies\n"
        "| | mean and 95 % interval | min | max |\n|---|---|---|---|"
    )
    plain = [joint(m) for m, _ in measured] if "pairs" in parts else []
    if "pairs" in parts:
        own = [psnr(x, truth, "pet_fdg") for x, (_, truth) in zip(plain, measured, strict=True)]
        show(f"PET beside its own {other}, dB", own, anatomies)
        half = len(items) // 2
        wrong = [
            psnr(joint(swapped(m, measured[(i + half) % len(items)][0], other)), truth, "pet_fdg")
            for i, (m, truth) in enumerate(measured)
        ]
        show(
            f"gain over PET beside another subject's {other}, dB",
            [a - b for a, b in zip(own, wrong, strict=True)],
            anatomies,
        )
        if control is not None:
            apart = [control(m) for m, _ in measured]
            for name in task.space.names:
                gains = [
                    psnr(a, truth, name) - psnr(b, truth, name)
                    for a, b, (_, truth) in zip(plain, apart, measured, strict=True)
                ]
                show(f"gain over the separate control, {name}, dB", gains, anatomies)
    if "synthesis" in parts:
        means = other_means(task, data, set(anatomies))
        for source, target in (("pet_fdg", other), (other, "pet_fdg")):
            made = [joint(m.restrict([source])) for m, _ in measured]
            found = [psnr(x, truth, target) for x, (_, truth) in zip(made, measured, strict=True)]
            show(f"{target} from {source} alone, dB", found, anatomies)
            flat = [psnr(means[a], truth, target) for a, (_, truth) in zip(anatomies, measured, strict=True)]
            show(
                "gain over the mean image of the other anatomies, dB",
                [a - b for a, b in zip(found, flat, strict=True)],
                anatomies,
            )
    if "representation" in parts:
        for label in [""] + [arguments.control] * bool(arguments.control):
            code, kept = coder(arguments.bundle, label), {n: [] for n in task.space.names}
            for item, (_, truth) in zip(items, measured, strict=True):
                two = (pixels(place) for place in places(item, task.space.spacing_mm[0]))
                for place, (name, size) in zip(
                    two, {"pet_fdg": PET_SPOT, other: OTHER_SPOT[other]}.items(), strict=True
                ):
                    changed = truth.clone()
                    changed[:, task.space.channels(name)] += size * place
                    kept[name].append(rises(code(truth), code(changed), place, size, name, task.space)[name])
            for name, values in kept.items():
                show(f"{label or 'joint'}: {name}-only spot, represented in {name}", values, anatomies)
    if "lesions" in parts:
        runs = {"joint": joint, **({arguments.control: control} if control is not None else {})}
        for label, run in runs.items():
            for row, values in spots(run, items, measured, task, other).items():
                show(f"{label}: {row}", values, anatomies)
        if arguments.reference:
            alone = method(arguments.reference)
            values = pet_spots(lambda m: alone(m.restrict(["pet_fdg"])), items, measured, task)
            show(f"{arguments.reference}: PET-only spot, recovered in PET", [v["pet_fdg"] for v in values], anatomies)


Pair = tuple[Measurement, Tensor]


def pet_spots(
    run: Method, items: Sequence[dict[str, Any]], measured: Sequence[Pair], task: Any
) -> list[dict[str, float]]:
    """Return how much every modality rises where a spot is added to PET, relative to the rise of PET in its scale."""
    values = []
    for k, (item, (m, _)) in enumerate(zip(items, measured, strict=True)):
        place = pixels(places(item, task.space.spacing_mm[0])[0])
        changed = with_activity(m, PET_SPOT * place, torch.Generator().manual_seed(k))
        values.append(rises(run(m), run(changed), place, PET_SPOT, "pet_fdg", task.space))
    return values


def guide_spots(
    run: Method, items: Sequence[dict[str, Any]], measured: Sequence[Pair], task: Any, other: str
) -> list[dict[str, float]]:
    """Return the same for a spot that the other modality alone has; the PET data stay as they are."""
    values = []
    for item, (m, _) in zip(items, measured, strict=True):
        fine = places(item, task.space.spacing_mm[0])[1]
        changed, _ = task.measure(
            with_spots(item, task.config["dataset"]["modalities"], {other: (fine, OTHER_SPOT[other])})
        )
        values.append(
            rises(run(m), run(swapped(m, changed, other)), pixels(fine), OTHER_SPOT[other], other, task.space)
        )
    return values


def rises(
    plain: Tensor, changed: Tensor, place: Tensor, size: float, source: str, space: ImageSpace
) -> dict[str, float]:
    """Return the mean rise of every modality in the spot, in its scale, relative to that of ``source`` in its own."""
    inside, scale = place > 0.9, {n: space[n].scale for n in space.names}
    difference = {n: (changed - plain)[:, space.channels(n)] for n in space.names}
    return {n: float(d[inside].mean()) / scale[n] / (size / scale[source]) for n, d in difference.items()}


def pixels(fine: Tensor) -> Tensor:
    """Return a mask of the fine grid on the method's grid, ``(1, 1, H, W)``."""
    return torch.nn.functional.avg_pool2d(fine[None, None], 2)


def spots(
    run: Method, items: Sequence[dict[str, Any]], measured: Sequence[Pair], task: Any, other: str
) -> dict[str, list[float]]:
    """Return what is recovered and copied of spots of one modality, a list over samples each."""
    pet, guide = pet_spots(run, items, measured, task), guide_spots(run, items, measured, task, other)
    return {
        "PET-only spot, recovered in PET": [v["pet_fdg"] for v in pet],
        f"PET-only spot, copied into {other}": [v[other] for v in pet],
        f"{other}-only spot, recovered in {other}": [v[other] for v in guide],
        f"{other}-only spot, copied into PET": [v["pet_fdg"] for v in guide],
    }


if __name__ == "__main__":
    main()
