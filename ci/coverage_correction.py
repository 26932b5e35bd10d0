"""Correct the intervals of a posterior sampler on validation data: `python ci/coverage_correction.py BUNDLE TASKS`.

Draws posterior samples of the validation slices of each task, finds the factor by which they have to be widened about
their mean to cover the truth inside the head as often as a level says, and keeps it as the setting `spread` of that
kind of data in configs/tuning_NAME.json of the bundle (--variant NAME). Several tasks of one kind share a factor. What
it is worth, the harness says on other anatomies: `multirecon evaluate OUT --tasks TASKS --bundles BUNDLE:NAME --samples
39`.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from torch import Tensor

from multirecon import tasks
from multirecon.bundle import find, load, load_network
from multirecon.files import atomic_path
from multirecon.harness.tuning_data import SPLIT, validation_task
from multirecon.metrics import LEVELS, posterior_coverage, spread_correction, widened
from multirecon.reconstruction.tuning import FORMAT, block_kind

Case = tuple[Tensor, Tensor, Tensor | None]


def draw(bundle: str, variant: str, name: str, slices: int, samples: int) -> dict[str, list[Case]]:
    """Return samples, truths and masks of the validation slices of a task, by kind of the measured targets."""
    workflow = load(bundle, variant, device="$torch.device('cpu')")
    network, sampler = load_network(workflow), workflow.inferer
    sampler = getattr(sampler, "reconstructor", sampler)
    task = validation_task(tasks.load(name), slices=slices)
    subjects = task.samples(SPLIT)
    found: dict[str, list[Case]] = {}
    for k in range(len(subjects)):
        measurement, truth = task.measure(subjects[k])
        generator = torch.Generator().manual_seed(k)
        # not by `draw`, which would apply the factor of before
        drawn = torch.stack([sampler(measurement, network, generator=generator).as_tensor() for _ in range(samples)])
        for target in task.targets:
            channels = task.space.channels(target)
            x, t = drawn[:, :, channels], truth[:, channels]
            inside = t[0].abs().amax(0) > 1e-3 * float(t.abs().max())
            found.setdefault(block_kind(measurement, target), []).append((x, t, inside))
        print(f"{name}: slice {k + 1} of {len(subjects)}", flush=True)
    return found


def coverages(cases: list[Case], factor: float, levels: list[float]) -> dict[float, float]:
    """Return the mean coverage by level of samples widened by a factor."""
    total = dict.fromkeys(levels, 0.0)
    for samples, truth, mask in cases:
        for level, v in posterior_coverage(widened(samples, factor), truth, levels=levels, mask=mask).items():
            total[level] += float(v) / len(cases)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("tasks", help="separated by commas")
    parser.add_argument("--variant", default="posterior")
    parser.add_argument("--slices", type=int, default=1, help="of every validation head")
    parser.add_argument("--samples", type=int, default=19)
    parser.add_argument("--level", type=float, default=0.8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        cases: dict[str, list[Case]] = {}
        for name in given.tasks.split(","):
            for kind, more in draw(given.bundle, given.variant, name, given.slices, given.samples).items():
                cases.setdefault(kind, []).extend(more)
        path = find(given.bundle).root / "configs" / f"tuning_{given.variant}.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"format": FORMAT, "settings": {}}
        levels = [p for p in LEVELS if 1 - p >= 2 / (given.samples + 1)]
        for kind, found in sorted(cases.items()):
            factor = round(spread_correction(found, level=given.level), 3)
            content["settings"].setdefault(kind, {})["spread"] = factor
            before, after = (coverages(found, f, levels) for f in (1.0, factor))
            texts = ", ".join(f"{100 * p:.0f} %: {before[p]:.2f} -> {after[p]:.2f}" for p in levels)
            print(f"{kind}: spread {factor}, {len(found)} slices of {given.samples} samples, coverage of {texts}")
        content |= {"bundle": f"{given.bundle}:{given.variant}", "split": SPLIT, "samples": given.samples}
        with atomic_path(path) as draft:
            draft.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"coverage_correction: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
