"""Quality of a diffusion sampler against its network evaluations, and whether its posterior is honest.

    python ci/diffusion_study.py OUT --curve flair_x4_t1,petct_lowdose [--slices 4] [--draws 4] [--split validation]
    python ci/diffusion_study.py OUT --calibrate flair_x4_t1 [--truths 24] [--draws 9]
    python ci/diffusion_study.py OUT [--page docs/benchmarks/diffusion_samplers.md] [--picture PNG]

With the prior of --bundle (wavelet_diffusion_petmrct). SOLVERS below is what is compared.

    curve      PSNR, energy of fine detail (HFER), kernel distance (KID) and coverage of the 50 % interval over the
               samples' number of network evaluations. Several samples a slice where evaluations are few (up to 20), one
               above. KID of so few slices has no meaning by itself: compare it down a column.
    calibrate  simulation-based calibration: truths from the prior itself (50 DDIM steps), data from the truth by
               the operator of the task, samples of the posterior; ranks of the truth among them. Each truth gives one
               rank in each of a few scalars (means over the head and over squares, single pixels) of every modality
               that is reconstructed.

Whatever was computed is kept in OUT and computed once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_diffusion_samplers import Counted
from matplotlib.figure import Figure
from PIL import Image
from study_pages import publish, table
from torch import Tensor
from torch.nn.functional import avg_pool2d

from multirecon import tasks
from multirecon.blocks import Blocks
from multirecon.bundle import load, load_network
from multirecon.files import atomic_path
from multirecon.harness.tuning_data import SPLIT, validation_task
from multirecon.measurement import Measurement
from multirecon.metrics import (
    evaluate_image,
    evaluate_samples,
    kid,
    load_encoder,
    network_scale,
    posterior_ranks,
    rank_deviation,
)
from multirecon.priors import generate
from multirecon.reconstruction import DecomposedSampling

FEW = 20  # evaluations up to which several samples are drawn
EVALUATIONS = (4, 8, 12, 20, 50, 150)
METRICS = ("psnr", "ssim", "hfer")
COLUMNS = {
    "PSNR (dB)": ("psnr", 2),
    "SSIM": ("ssim", 3),
    "of the mean (dB)": ("psnr of the mean", 2),
    "HFER": ("hfer", 2),
    "KID": ("kid", 3),
    "50 % coverage": ("coverage50", 2),
}
LEAST = 8  # slices under which a kernel distance is not computed
SQUARE = 16  # pixels, of the means that calibration looks at
Case = tuple[Measurement, Tensor]


class Study:
    """A prior with the settings of its bundle, and the solvers over it.

    Args:
        bundle: the bundle.
    """

    def __init__(self, bundle: str) -> None:
        workflow = load(bundle, "fast", device="$torch.device('cpu')")
        self.network = Counted(load_network(workflow))
        self.network.requires_grad_(False)
        parsed = workflow.parser.get_parsed_content
        self.prior = parsed("prior")
        mds = workflow.parser.get("samplers")["mds"]
        self.eta = float(mds["eta"])
        self.shared = {"error": parsed("error"), "tuning": parsed("tuning"), "autocast": "bfloat16"}
        self.shared |= {key: mds[key] for key in ("iterations", "precondition", "exact_air") if key in mds}

    def solver(self, name: str, evaluations: int) -> DecomposedSampling:
        """Return a solver that takes a number of network evaluations."""
        return SOLVERS[name](self, evaluations)

    def first_order(self, evaluations: int) -> DecomposedSampling:
        """DDIM steps with fresh noise, as published."""
        return DecomposedSampling(self.prior, steps=evaluations, **self.shared)

    def second_order(self, evaluations: int) -> DecomposedSampling:
        """Multistep solver without fresh noise."""
        return DecomposedSampling(self.prior, steps=evaluations, eta=0.0, order=2, **self.shared)

    def warm(self, evaluations: int) -> DecomposedSampling:
        """A quarter of the evaluations from noise; its result, noised again to half the schedule, starts the rest."""
        coarse = DecomposedSampling(self.prior, steps=evaluations // 4, eta=0.0, **self.shared)

        def initial(measurement: Measurement, network: torch.nn.Module) -> Tensor:
            generator = torch.Generator().manual_seed(0)
            return coarse.reconstruct(measurement, network, generator=generator, callback=None)

        return DecomposedSampling(self.prior, steps=evaluations - evaluations // 4, eta=0.0, order=2, start=0.5,
                                  initial=initial, **self.shared)  # fmt: skip

    def perturbed(self, evaluations: int) -> DecomposedSampling:
        """Corrections that are samples, all noise of a step fresh: the form whose spread is the posterior's."""
        return DecomposedSampling(self.prior, steps=evaluations, eta=1.0, noise_split="dds", perturb=True,
                                  **self.shared)  # fmt: skip

    def draw(self, name: str, evaluations: int, measurement: Measurement, draws: int) -> Tensor:
        """Return samples ``(S, B, C, *shape)`` on the space of the measurement."""
        generator = torch.Generator().manual_seed(1)
        return self.solver(name, evaluations).draw(measurement, self.network, draws, generator=generator)


SOLVERS: dict[str, Callable[[Study, int], DecomposedSampling]] = {
    "first order, eta 0.85": Study.first_order,
    "second order, eta 0": Study.second_order,
    "warm start, second order": Study.warm,
    "perturbed corrections": Study.perturbed,
}


def cases_of(task: tasks.Task, split: str, slices: int) -> list[Case]:
    """Return slices of the validation anatomies, or of the small test set, evenly spread over every head."""
    if split == SPLIT:
        task = validation_task(task, slices=slices)
        samples = task.samples(SPLIT)
        return [task.measure(samples[k]) for k in range(len(samples))]
    samples = task.samples("small")
    every = max(1, 8 // slices)
    return [task.measure(samples[k]) for k in range(every // 2, len(samples), every)]


def curve(study: Study, task: tasks.Task, cases: Sequence[Case], solvers: Sequence[str], evaluations: Sequence[int],
          draws: int, folder: Path) -> None:  # fmt: skip
    """Measure every solver at every number of evaluations; one file each in the folder."""
    encoder = load_encoder()

    def features(images: Sequence[Tensor], target: str) -> Tensor:
        modality = task.space[target]
        stack = torch.cat([image[:, task.space.channels(target)] for image in images])
        return encoder.encode(network_scale(stack, modality))

    truths = {t: features([truth for _, truth in cases], t) for t in task.targets}
    for name in solvers:
        for count in evaluations:
            path = folder / f"{name.replace(' ', '_').replace(',', '')}-{count}.json"
            if path.exists():
                continue
            rows, firsts, begin = [], [], time.process_time()
            study.network.calls = 0
            number = draws if count <= FEW else 1
            for measurement, truth in cases:
                samples = study.draw(name, count, measurement, number)
                firsts.append(samples[0])
                each = [evaluate_image(x, truth, task.space, targets=task.targets, metrics=METRICS) for x in samples]
                row = {t: average([scores[t] for scores in each]) for t in task.targets}
                if number > 1:
                    mean = evaluate_image(samples.mean(0), truth, task.space, targets=task.targets, metrics=["psnr"])
                    honest = evaluate_samples(samples, truth, task.space, targets=task.targets)
                    for t in task.targets:
                        row[t] |= {**honest[t], "psnr of the mean": mean[t]["psnr"]}
                rows.append(row)
            seconds = (time.process_time() - begin) / len(cases) / number
            result = {"solver": name, "evaluations": study.network.calls / len(cases) / number, "slices": len(cases),
                      "draws": number, "seconds": seconds}  # fmt: skip
            for t in task.targets:
                result[t] = average([row[t] for row in rows])
                if len(cases) >= LEAST:
                    result[t]["kid"] = kid(features(firsts, t), truths[t], bootstrap=0).value
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as draft:
                draft.write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps(result), flush=True)


def average(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every number."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def calibrate(study: Study, task: tasks.Task, solver: str, evaluations: int, truths: int, draws: int,
              out: Path) -> None:  # fmt: skip
    """Draw truths from the prior, measure them, draw from their posteriors; keep the ranks by kind of scalar."""
    path = out / task.name / f"ranks-{solver.replace(' ', '_').replace(',', '')}.json"
    if path.exists():
        return
    stacks = generate(study.prior, study.network, truths, steps=50, eta=0.0, seed=7, autocast="bfloat16")
    pattern, _ = cases_of(task, SPLIT, 1)[0]
    embedded = pattern.embed(study.prior.space)
    generator = torch.Generator().manual_seed(11)
    found: dict[str, list[list[int]]] = {}
    place = torch.randint(32, 96, (20, 2), generator=torch.Generator().manual_seed(5))
    for number in range(truths):
        truth = stacks[number : number + 1].clamp_min(0)
        data = {}
        for block in embedded.available:
            clean = embedded.operator[block](truth[:, study.prior.space.channels(block)])
            likelihood = embedded.likelihood[block]
            data[block] = clean if block in embedded.clean else likelihood.sample(clean, generator)
        measurement = Measurement(Blocks(data), pattern.operator, pattern.likelihood, pattern.metadata)
        samples = study.draw(solver, evaluations, measurement, draws)
        for target in task.targets:
            own, here = study.prior.space.channels(target), task.space.channels(target)
            true, drawn = truth[0, own], samples[:, 0, here]
            inside = true.amax(0) > 0.1 * true.max()
            scalars = {
                "mean of the head": lambda x, m=inside: x[..., m].mean(-1),
                "means of squares": lambda x: avg_pool2d(x, SQUARE)[..., 2:6, 2:6].flatten(-3),
                "pixels": lambda x: x[..., place[:, 0], place[:, 1]].flatten(-2),
            }
            for kind, function in scalars.items():
                ranks = posterior_ranks(function(drawn), function(true)).flatten().tolist()
                found.setdefault(f"{target}, {kind}", []).append(ranks)
        print(f"{task.name}: truth {number + 1} of {truths}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        draft.write_text(json.dumps({"solver": solver, "evaluations": evaluations, "truths": truths, "draws": draws,
                                     "ranks": found}) + "\n")  # fmt: skip


def tables(out: Path) -> dict[str, str]:
    """Return the tables of what is there, by the name of their block in the page."""
    found: dict[str, str] = {}
    rows, ranks = [], []
    for folder in sorted(p for p in out.iterdir() if p.is_dir()):
        results = [json.loads(p.read_text()) for p in folder.glob("*.json") if not p.name.startswith("ranks")]
        order = list(SOLVERS)
        for r in sorted(results, key=lambda r: (order.index(r["solver"]), r["evaluations"])):
            for target, v in ((k, v) for k, v in r.items() if isinstance(v, dict)):
                texts = [f"{v[k]:.{d}f}" if k in v else "" for k, d in COLUMNS.values()]
                rows.append([folder.name, r["solver"], f"{r['evaluations']:.0f}", target, *texts, f"{r['seconds']:.2f}",
                             f"{r['slices']} x {r['draws']}"])  # fmt: skip
        for p in sorted(folder.glob("ranks-*.json")):
            r = json.loads(p.read_text())
            for kind, lists in r["ranks"].items():
                flat = torch.tensor(lists).flatten()
                spread, shift, distance = rank_deviation(flat, r["draws"])
                ranks.append([folder.name, r["solver"], kind, f"{len(flat)}", f"{spread:.2f}", f"{shift:+.2f}",
                              f"{distance:.2f}"])  # fmt: skip
    if rows:
        head = ["task", "solver", "evaluations", "target", *COLUMNS, "s a sample", "slices x samples"]
        found["sampler evaluations"] = table(head, rows)
    if ranks:
        head = ["task", "solver", "scalar", "ranks", "spread (1)", "shift (0)", "distance (0)"]
        found["sampler ranks"] = table(head, ranks)
    return found


def picture(path: Path, out: Path) -> None:
    """Draw PSNR, fine detail and coverage of every task and target over evaluations."""
    panels: dict[tuple[str, str], list[Any]] = {}
    for file in sorted(out.glob("*/*.json")):
        r = json.loads(file.read_text())
        for target, v in ((k, v) for k, v in r.items() if isinstance(v, dict) and "psnr" in v):
            panels.setdefault((file.parent.name, target), []).append((r["solver"], r["evaluations"], v))
    shown = (("psnr", "PSNR (dB)"), ("hfer", "HFER"), ("coverage50", "50 % coverage"))
    figure = Figure(figsize=(2.9 * len(shown), 2.3 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(shown), squeeze=False)
    for line, ((task, target), points) in zip(axes, panels.items(), strict=True):
        for axis, (key, title) in zip(line, shown, strict=True):
            for name in SOLVERS:
                values = sorted((n, v[key]) for s, n, v in points if s == name and key in v)
                if values:
                    axis.semilogx(*zip(*values, strict=True), "o-", markersize=3, label=name)
            axis.set_title(f"{task}: {target}, {title}", fontsize=7)
            axis.set_xlabel("network evaluations", fontsize=7)
            axis.tick_params(labelsize=6)
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=6)
    with atomic_path(path) as draft:
        figure.savefig(draft, dpi=80, format="png")
        with Image.open(draft) as full:  # a palette: a third of the size in the repository
            small = full.convert("RGB").quantize(32, dither=Image.Dither.NONE)
        small.save(draft, format="PNG", optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bundle", default="wavelet_diffusion_petmrct")
    parser.add_argument("--curve", default="", help="tasks, separated by commas")
    parser.add_argument("--calibrate", default="", help="tasks, separated by commas")
    parser.add_argument(
        "--solvers", default="", help="of SOLVERS by number from 1, separated by commas; all by default"
    )
    parser.add_argument("--evaluations", default=",".join(map(str, EVALUATIONS)))
    parser.add_argument("--split", default=SPLIT, choices=(SPLIT, "test"))
    parser.add_argument("--slices", type=int, default=4, help="of every head")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--truths", type=int, default=24)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    names = list(SOLVERS)
    try:
        solvers = [names[int(k) - 1] for k in given.solvers.split(",") if k] or names
        evaluations = [int(n) for n in given.evaluations.split(",")]
        study = Study(given.bundle) if given.curve or given.calibrate else None
        for name in filter(None, given.curve.split(",")):
            task = tasks.load(name)
            folder = out / (task.name if given.split == SPLIT else f"{task.name} (test)")
            cases = cases_of(task, given.split, given.slices)
            curve(study, task, cases, solvers, evaluations, given.draws, folder)
        for name in filter(None, given.calibrate.split(",")):
            for solver in solvers:
                calibrate(study, tasks.load(name), solver, evaluations[0], given.truths, given.draws, out)
        publish(tables(out), given.page)
        if given.picture:
            picture(given.picture, out)
    except (ValueError, OSError) as error:
        print(f"diffusion_study: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    sys.exit(main())
