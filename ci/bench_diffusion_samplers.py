"""Our diffusion samplers against deepinv's, with one network, one operator and one number of network evaluations.

    python ci/bench_diffusion_samplers.py OUT [--part speed,tune,curve] [--page docs/benchmarks/diffusion_samplers.md]

FLAIR from 4x k-space alone (task flair_x4), prior `wavelet_diffusion_petmrct`. MDS and DPS are ours
(`DecomposedSampling`, `PosteriorSampling`), DPS and DiffPIR are deepinv's, which see the same network through
`multirecon.interop.deepinv_prior.PriorDenoiser` and the same k-space operator through `as_physics`.

    speed   one process, one thread, processor seconds of one slice: every candidate runs a few and a few more steps in
            turn, the best of all rounds counts; a step is the difference over the number of steps between, the rest is
            what a run costs once. Network evaluations are counted.
    tune    the free numbers of every candidate, by trials on two validation slices (one each of two heads)
    curve   PSNR and seconds for 10 to 50 steps with these numbers on three test slices (one each of three heads)

Each part is kept in OUT; the page is filled with what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepinv
import torch
from bench_timing import Settings, race
from deepinv.optim.data_fidelity import L2
from deepinv.sampling import DPS, DiffPIR
from study_pages import publish, table
from torch import Tensor, nn

from multirecon import tasks
from multirecon.bundle import load, load_network
from multirecon.files import atomic_path
from multirecon.harness.tuning_data import SPLIT, validation_task
from multirecon.interop.deepinv import as_physics
from multirecon.interop.deepinv_prior import PriorDenoiser
from multirecon.measurement import Measurement
from multirecon.metrics import evaluate_image
from multirecon.reconstruction import DecomposedSampling, PosteriorSampling

BUNDLE, TASK = "wavelet_diffusion_petmrct", "flair_x4"
SIGMA = 0.01  # of the k-space of the task
SHORT, LONG, ROUNDS = 3, 9, 4
STEPS = (10, 20, 50)
INNER = 5  # CG iterations of our MDS
Case = tuple[Measurement, Tensor]


@dataclass(frozen=True)
class Candidate:
    """A sampler with free numbers.

    Args:
        title: as it stands in the tables.
        grid: name -> values to try.
        steps: steps of a trial.
        run: ``(measurement, steps, numbers) -> FLAIR (B, 1, H, W)``.
    """

    title: str
    grid: Mapping[str, tuple[float, ...]]
    steps: int
    run: Callable[[Measurement, int, Mapping[str, float]], Tensor]


class Counted(nn.Module):
    """A network that counts its evaluations."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return what the network returns."""
        self.calls += 1
        return self.network(image, timestep)


class Samplers:
    """The candidates over one prior.

    Args:
        bundle: name of the bundle of the prior.
    """

    def __init__(self, bundle: str) -> None:
        workflow = load(bundle, "fast", device="$torch.device('cpu')")
        self.prior = workflow.parser.get_parsed_content("prior")
        self.error = workflow.parser.get_parsed_content("error")
        self.network = Counted(load_network(workflow))
        self.network.requires_grad_(False)
        self.denoiser = PriorDenoiser(self.prior, self.network, autocast=torch.bfloat16).eval()
        self.channel = self.prior.space.channels("flair")

    def candidates(self) -> dict[str, Candidate]:
        """Return the candidates by a short name."""
        powers = tuple(0.1 * 10 ** (k / 2) for k in range(6))
        return {
            "mds": Candidate("MDS, ours", {"strength": (0.1, 0.3, 1.0), "calibration": (0.0, 0.5, 1.0)}, 20,
                             self.mds),
            "diffpir5": Candidate(f"DiffPIR, deepinv, {INNER} CG iterations",
                                  {"lambda_": (0.1, 1.0, 7.0), "zeta": (0.1, 0.3, 1.0)}, 20,
                                  lambda m, n, v: self.diffpir(m, n, v, INNER)),
            "diffpir": Candidate("DiffPIR, deepinv, its own CG (up to 50 iterations)", {}, 20,
                                 lambda m, n, v: self.diffpir(m, n, v, 50)),
            "dps": Candidate("DPS, ours", {"zeta": powers}, 30, self.dps),
            "dps_deepinv": Candidate("DPS, deepinv", {"weight": tuple(10 * p for p in powers)}, 30, self.dps_deepinv),
        }  # fmt: skip

    def mds(self, measurement: Measurement, steps: int, numbers: Mapping[str, float]) -> Tensor:
        """Decomposed sampling as in the bundle's variant ``fast``."""
        sampler = DecomposedSampling(self.prior, steps=steps, iterations=INNER, autocast="bfloat16", error=self.error,
                                     **numbers)  # fmt: skip
        return sampler(measurement, self.network)[:, measurement.space.channels("flair")].as_tensor()

    def dps(self, measurement: Measurement, steps: int, numbers: Mapping[str, float]) -> Tensor:
        """Gradient-guided sampling."""
        sampler = PosteriorSampling(self.prior, steps=steps, autocast="bfloat16", **numbers)
        return sampler(measurement, self.network)[:, measurement.space.channels("flair")].as_tensor()

    def dps_deepinv(self, measurement: Measurement, steps: int, numbers: Mapping[str, float]) -> Tensor:
        """Gradient-guided sampling of deepinv, its defaults but for steps and weight."""
        physics, y = self.physics(measurement, INNER)
        sampler = DPS(self.denoiser, num_steps=steps, rng=torch.Generator().manual_seed(0), **numbers)
        start = (len(y), self.prior.space.num_channels, *self.prior.space.shape)
        return sampler(y, physics, x_init=start, seed=0)[:, self.channel].float()

    def diffpir(self, measurement: Measurement, steps: int, numbers: Mapping[str, float], iterations: int) -> Tensor:
        """DiffPIR of deepinv; the start is the adjoint, as it is by default."""
        physics, y = self.physics(measurement, iterations)
        torch.manual_seed(0)
        sampler = DiffPIR(self.denoiser, L2(), sigma=SIGMA, max_iter=steps, **numbers)
        return sampler(y, physics)[:, self.channel]

    def physics(self, measurement: Measurement, iterations: int) -> tuple[deepinv.physics.LinearPhysics, Tensor]:
        """Return the operator in the prior's stack as deepinv physics, and its data. MR is in [0, 1] as deepinv's."""
        embedded = measurement.embed(self.prior.space)
        physics = as_physics(embedded.operator, solver="CG", max_iter=iterations)
        physics.noise_model = deepinv.physics.GaussianNoise(SIGMA)
        return physics, physics.operator.flatten(embedded.y)


def speed(samplers: Samplers, case: Case) -> list[dict[str, Any]]:
    """Return seconds a step, once and an evaluation of every candidate, and of the bare network."""
    measurement, _ = case
    found, counts = samplers.candidates(), {}
    runs: dict[str, Callable[[], object]] = {}
    for name, candidate in found.items():
        for steps in (SHORT, LONG):
            runs[f"{name} {steps}"] = lambda c=candidate, n=steps: c.run(measurement, n, {})
            samplers.network.calls = 0
            runs[f"{name} {steps}"]()
            counts[name, steps] = samplers.network.calls
    x = torch.randn(1, samplers.prior.space.num_channels, *samplers.prior.space.shape)

    def bare() -> None:
        with torch.no_grad():
            samplers.denoiser(x, 0.5)

    times = race({**runs, "network": bare}, Settings(ROUNDS, float("inf"), None))
    rows = [{"name": "network", "title": "one evaluation of the network", "step": times["network"]}]
    for name, candidate in found.items():
        step = (times[f"{name} {LONG}"] - times[f"{name} {SHORT}"]) / (LONG - SHORT)
        rows.append({"name": name, "title": candidate.title, "step": step,
                     "once": times[f"{name} {SHORT}"] - SHORT * step,
                     "evaluations": (counts[name, LONG] - counts[name, SHORT]) / (LONG - SHORT)})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def psnr(result: Tensor, case: Case) -> list[float]:
    """Return the PSNR of every sample."""
    measurement, truth = case
    space = measurement.space.select(["flair"])
    truth = truth[:, measurement.space.channels("flair")]
    return [
        evaluate_image(result[k : k + 1], truth[k : k + 1], space, targets=["flair"], metrics=["psnr"])["flair"]["psnr"]
        for k in range(len(truth))
    ]


def tune(samplers: Samplers, cases: list[Case], names: Sequence[str]) -> dict[str, Any]:
    """Return every trial of every candidate and the numbers with the best mean PSNR."""
    answer = {}
    for name, candidate in samplers.candidates().items():
        if not candidate.grid or name not in names:
            continue
        trials = []
        for values in itertools.product(*candidate.grid.values()):
            numbers = dict(zip(candidate.grid, values, strict=True))
            scores = [s for case in cases for s in psnr(candidate.run(case[0], candidate.steps, numbers), case)]
            trials.append({"numbers": numbers, "psnr": sum(scores) / len(scores)})
        best = max(trials, key=lambda t: t["psnr"])
        answer[name] = {"trials": trials, "steps": candidate.steps, **best}
        print(name, best, flush=True)
    return answer


def curve(
    samplers: Samplers, cases: list[Case], tuned: Mapping[str, Any], names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return PSNR and processor seconds a slice by number of steps."""
    answer: dict[str, list[dict[str, Any]]] = {}
    for name, candidate in samplers.candidates().items():
        rows = answer.setdefault(name, [])
        for steps in STEPS if name in names and name in tuned else ():
            begin, scores = time.process_time(), []
            samplers.network.calls = 0
            for case in cases:
                scores += psnr(candidate.run(case[0], steps, tuned[name]["numbers"]), case)
            seconds = (time.process_time() - begin) / len(scores)
            rows.append({"name": name, "title": candidate.title, "steps": steps, "seconds": seconds, "psnr": scores,
                         "evaluations": samplers.network.calls / len(cases)})  # fmt: skip
            print({k: v for k, v in rows[-1].items() if k != "title"}, flush=True)
    return {name: rows for name, rows in answer.items() if rows}


def page(out: Path) -> dict[str, str]:
    """Return the tables of what is there."""
    found = {}
    if (out / "speed.json").exists():
        rows = json.loads((out / "speed.json").read_text())
        ours = {r["name"]: r["step"] for r in rows}
        cells = []
        for r in rows:
            ratio = {"diffpir": "mds", "diffpir5": "mds", "dps_deepinv": "dps"}.get(r["name"])
            cells.append([r["title"], f"{r['step']:.0f}", f"{r['evaluations']:.0f}" if "evaluations" in r else "1",
                          f"{r['once']:.0f}" if "once" in r else "",
                          f"{r['step'] / ours[ratio]:.2f} times {ratio.upper()}" if ratio else ""])  # fmt: skip
        head = ["sampler", "ms a step", "evaluations a step", "ms once a run", "against ours"]
        found["sampler speed"] = table(head, cells)
    if (out / "tune.json").exists():
        cells = []
        for name, c in json.loads((out / "tune.json").read_text()).items():
            best = ", ".join(f"{k} {v:.3g}" for k, v in c["numbers"].items())
            cells.append([name, str(len(c["trials"])), str(c["steps"]), best, f"{c['psnr']:.2f}"])
        head = ["sampler", "trials", "steps of a trial", "best numbers", "PSNR there (dB)"]
        found["sampler tuning"] = table(head, cells)
    if (out / "curve.json").exists():
        cells = []
        for r in itertools.chain(*json.loads((out / "curve.json").read_text()).values()):
            mean, each = sum(r["psnr"]) / len(r["psnr"]), ", ".join(f"{p:.2f}" for p in r["psnr"])
            cells.append([r["title"], str(r["steps"]), f"{r['evaluations']:.0f}", f"{r['seconds']:.2f}",
                          f"{mean:.2f}", each])  # fmt: skip
        head = ["sampler", "steps", "evaluations", "s a slice", "PSNR (dB)", "each head"]
        found["sampler curve"] = table(head, cells)
    return found


def cases_of(set_name: str) -> list[Case]:
    """Return one slice of every head of the validation or the test anatomies, the middle one."""
    task = tasks.load(TASK)
    if set_name == SPLIT:
        task = validation_task(task, slices=1)
        samples = task.samples(SPLIT)
        return [task.measure(samples[k]) for k in range(len(samples))]
    samples = task.samples("small")
    return [task.measure(samples[k]) for k in range(4, len(samples), 8)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", default="", help="of speed,tune,curve")
    parser.add_argument("--samplers", default="mds,diffpir5,dps,dps_deepinv", help="of tune and curve; others are kept")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    out, parts = given.out.absolute(), [p for p in given.part.split(",") if p]
    names = given.samplers.split(",")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    try:
        samplers = Samplers(BUNDLE) if parts else None
        for part in parts:
            if part not in ("speed", "tune", "curve"):
                raise ValueError(f"--part: expected of speed, tune and curve, got {part!r}")
            file = out / f"{part}.json"
            found: Any = json.loads(file.read_text()) if file.exists() and part != "speed" else {}
            if part == "speed":
                found = speed(samplers, cases_of(SPLIT)[0])
            elif part == "tune":
                found |= tune(samplers, cases_of(SPLIT), names)
            else:
                found |= curve(samplers, cases_of("test"), json.loads((out / "tune.json").read_text()), names)
            with atomic_path(file) as draft:
                draft.write_text(json.dumps(found, indent=1) + "\n")
        publish(page(out), given.page)
    except (ValueError, OSError) as error:
        print(f"bench_diffusion_samplers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    sys.exit(main())
