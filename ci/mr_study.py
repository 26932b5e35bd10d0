"""How the supervised MR bundles and their opponents bear other scans than those they were trained on.

    python ci/mr_study.py OUT [--part acceleration,noise] [--methods sense_mr,mcvarnet_mr] [--page PAGE]

Parts:
    acceleration     2, 4, 6 and 8
    noise            the shipped weights at sigma 0.005 to 0.1
    noise_matrix     mcvarnet_mr fine-tuned at one noise level, tested at all (needs --dataset_dir, see its card)
    misregistration  the T1 0 to 3 mm (and 0 to 1.5 degrees) off, and 3 mm and 3 degrees
    scanner          another pattern, more coils, estimated maps; other sequence timings
    reinitialised    weights drawn anew
    reference        T1 replaced by zeros, by another subject's, or shifted by 5 mm

Everything runs through `multirecon evaluate` on the small sets of the test anatomies (the last part through
reference_control.py) and is kept in OUT: run again, it goes on where it stopped. --tables computes nothing and prints
what is there. Intervals are those of docs/evaluation.md: 95 %, bootstrap over anatomies, differences paired by sample.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import reference_control
from study_pages import fill, table

from multirecon import tasks
from multirecon.bundle import find, fresh_network, read_weights, weights_hash, write_weights
from multirecon.bundle.loader import on_path
from multirecon.files import atomic_path
from multirecon.harness.hypotheses import Evidence, Key, Quantity, Run
from multirecon.harness.leaderboard import select
from multirecon.harness.methods import Method, select_methods
from multirecon.harness.records import read_records
from multirecon.harness.runner import evaluate, parse_shard
from multirecon.harness.statistics import anatomy_interval

METHODS = ("sense_mr", "cs_mr", "tv_petmrct:directional", "mcvarnet_mr", "minet_mr", "discdiff_mr:fast")
LEARNED = ("mcvarnet_mr", "minet_mr", "discdiff_mr:fast")
GUIDED = ("tv_petmrct:directional", *LEARNED)
OPPONENT = "tv_petmrct:directional"
PSNR, SSIM = Quantity("flair", "psnr"), Quantity("flair", "ssim")
DECIMALS = {"psnr": 2, "ssim": 4}
TUNED = "mcvarnet_mr"
SIGMAS = (0.005, 0.01, 0.03)
FINE_TUNING = {
    "decay": "True",
    "decay_steps": 160,
    "learning_rate": 0.0003,
    "train#handlers#3#warmup": 20,
    "epoch_length": 160,
}


@dataclass(frozen=True)
class Sweep:
    """Tasks that differ in one thing.

    Args:
        tasks: head of the column -> name of the task.
        methods: what is asked; of the command line's choice by default.
        opponent: also show paired differences to this method, where there is one.
        start: also show paired differences to the result of the same method in this column, where there is one.
    """

    tasks: Mapping[str, str]
    methods: Sequence[str] = field(default=METHODS)
    opponent: str = OPPONENT
    start: str = ""


NOISE = {
    "0.005": "flair_x4_t1_noise05",
    "0.01": "flair_x4_t1",
    "0.03": "flair_x4_t1_noise3",
    "0.1": "flair_x4_t1_noise10",
}
SHIFTS = {f"{mm} mm, {mm / 2:g}°": f"flair_x4_t1_shift{mm}" for mm in (1, 2, 3)}
SWEEPS = {
    "acceleration": Sweep({"2": "flair_x2_t1", "4": "flair_x4_t1", "6": "flair_x6_t1", "8": "flair_x8_t1",
                           "4, 24 centre lines": "flair_x4c_t1"}),
    "noise": Sweep(NOISE),
    "noise_matrix": Sweep(NOISE, (TUNED, *(f"{TUNED}_sigma{s:g}" for s in SIGMAS)), opponent=TUNED),
    "misregistration": Sweep({"in register": "flair_x4_t1", **SHIFTS, "3 mm, 3°": "flair_x4_t1_shift3_turn3"},
                             GUIDED, start="in register"),
    "scanner": Sweep({"as trained": "flair_x4_t1", "scanner b": "flair_x4_t1_scanner_b",
                      "timings b": "flair_x4_t1_timings_b"}, start="as trained"),
    "reinitialised": Sweep({"flair_x4_t1": "flair_x4_t1", "flair_x4c_t1": "flair_x4c_t1"}, LEARNED, opponent=""),
}  # fmt: skip
REFERENCE = ("flair_x4_t1", "flair_x4c_t1")


def further_task(name: str, folder: Path) -> Path | None:
    """Return the file of a task that the package lacks, made from one that it has; None for a task of the package."""
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "flair_x4_t1_noise05": lambda scans: scans["flair"].update(sigma=0.005),
        "flair_x4_t1_shift3_turn3": lambda scans: scans["t1"].update(rotation_deg=3.0),
    }
    base = {"flair_x4_t1_noise05": "flair_x4_t1", "flair_x4_t1_shift3_turn3": "flair_x4_t1_shift3"}
    if name not in changes:
        return None
    config = copy.deepcopy(dict(tasks.load(base[name]).config))
    config.pop("sweeps", None)
    changes[name](config["acquisition"]["scans"])
    config |= {"name": name, "description": f"as {base[name]}, see ci/mr_study.py"}
    path = folder / f"{name}.json"
    with atomic_path(path) as draft:
        draft.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return path


def with_weights(bundle: str, suffix: str, state: Mapping[str, Any], folder: Path) -> Path:
    """Return a copy of a bundle with other weights, as a method of its own: ``folder/<bundle>_<suffix>``."""
    source = find(bundle)
    target = folder / f"{source.name}_{suffix}"
    shutil.copytree(
        source.root, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("docs", "eval", "models", "__pycache__")
    )
    path = target / "models" / "model.pt"
    stored = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    if not path.exists() or weights_hash(read_weights(path)) != weights_hash(stored):
        write_weights(stored, path)
    return target


def fine_tuned(sigma: float, out: Path, dataset: str) -> Path:
    """Return the shipped network fine-tuned at one noise level, as a method; trained where it is not there yet."""
    root = find(TUNED).root
    start = weights_hash(read_weights(root / "models" / "model.pt"))  # other weights are tuned anew
    run = out / "finetuned" / f"sigma{sigma:g}-{start[:12]}"
    if not (run / "model.pt").exists():
        if not dataset:
            raise ValueError("dataset_dir: expected the training set of mcvarnet_mr for noise_matrix, got none")
        settings = {
            "dataset_dir": dataset,
            "output_dir": run,
            "ckpt_dir": run,
            "pretrained": root / "models" / "model.pt",
            "acquisition#scans#flair#sigma": sigma,
            **FINE_TUNING,
        }
        words = [str(part) for key, value in settings.items() for part in (f"--{key}", value)]
        config = ["--config_file", str(root / "configs" / "train.json"), "--bundle_root", str(root)]
        subprocess.run([sys.executable, "-m", "monai.bundle", "run", *config, *words], check=True)
    return with_weights(TUNED, f"sigma{sigma:g}", read_weights(run / "model.pt"), out / "weights")


def reinitialised(method: str, out: Path) -> str:
    """Return the method with weights drawn anew, as a method of its own."""
    name, _, variant = method.partition(":")
    on_path(find(name))
    config = json.loads((find(name).configs / "inference.json").read_text(encoding="utf-8"))
    folder = with_weights(name, "reinitialised", fresh_network(config).state_dict(), out / "weights")
    return f"{folder}:{variant}" if variant else str(folder)


def chosen_methods(part: str, wanted: Sequence[str], out: Path, dataset: str) -> list[Method]:
    """Return the methods of a part, with those that have to be made."""
    if part == "noise_matrix":
        return select_methods([TUNED, *(str(fine_tuned(s, out, dataset)) for s in SIGMAS)])
    names = [m for m in SWEEPS[part].methods if m in wanted]
    if part == "reinitialised":
        names += [reinitialised(m, out) for m in names]
    return select_methods(names)


def run_reference(wanted: Sequence[str], out: Path, every: int) -> None:
    """Compute the scores with other references that are not there for the bundle as it is now."""
    for method in (m for m in GUIDED if m in wanted):
        content = f"{select_methods([method])[0].content}, every {every}"
        for task in REFERENCE:
            path = out / "reference" / f"{method.replace(':', '_')}-{task}.json"
            if path.exists() and json.loads(path.read_text(encoding="utf-8"))["content"] == content:
                continue
            print(f"{method} on {task}", flush=True)
            scores = reference_control.control(method, task, every=every, show=True)
            with atomic_path(path) as draft:
                draft.write_text(json.dumps({"content": content, "scores": scores}), encoding="utf-8")


def text_of(values: Mapping[Key, tuple[str, float]], metric: str, *, sign: bool = False) -> str:
    """Return a mean with its interval, a dash where there are no values."""
    return anatomy_interval(values.values()).text(DECIMALS[metric], sign=sign) if values else "–"


def on_common_slices(evidence: Evidence, names: Sequence[str], methods: Sequence[str]) -> Evidence:
    """Return the evidence of some tasks with the slices alone that at least half of the methods answered.

    A method that lacks an anatomy which another one has on a task (its run has not come that far) is left out there.
    """
    kept = []
    for task in names:
        runs = [found for m in methods if (found := evidence.records(Run(task, m)))]
        anatomies = {r.anatomy for found in runs for r in found}
        runs = [found for found in runs if {r.anatomy for r in found} == anatomies]
        answers = Counter(sample for found in runs for sample in {r.sample for r in found})
        shared = {sample for sample, count in answers.items() if 2 * count >= max(2, len(runs))}
        kept += [r for found in runs for r in found if r.sample in shared]
    return Evidence(replace(evidence.selection, records=tuple(kept)))


def sweep_tables(part: str, evidence: Evidence) -> str:
    """Return the tables of a sweep from the records."""
    sweep = SWEEPS[part]
    if part == "reinitialised":
        return reinitialised_table(sweep, evidence)
    methods = [m for m in sweep.methods if any(evidence.records(Run(t, m)) for t in sweep.tasks.values())]
    evidence = on_common_slices(evidence, list(sweep.tasks.values()), methods)

    def block(title: str, names: Sequence[str], heads: Sequence[str], cell: Callable[[str, str], str]) -> str:
        rows = [[f"`{m}`", *(cell(m, sweep.tasks[h]) for h in heads)] for m in names]
        return table([title, *heads], rows)

    def own(quantity: Quantity) -> Callable[[str, str], str]:
        return lambda m, t: text_of(evidence.values(Run(t, m), quantity), quantity.metric)

    def against(base: Callable[[str, str], Run]) -> Callable[[str, str], str]:
        return lambda m, t: text_of(evidence.gain(base(m, t), Run(t, m), PSNR), "psnr", sign=True)

    parts = [block("PSNR (dB)", methods, list(sweep.tasks), own(PSNR)),
             block("SSIM", methods, list(sweep.tasks), own(SSIM))]  # fmt: skip
    if sweep.opponent in methods:
        others = [m for m in methods if m != sweep.opponent]
        title = f"PSNR (dB), paired difference to `{sweep.opponent}`"
        parts.append(block(title, others, list(sweep.tasks), against(lambda m, t: Run(t, sweep.opponent))))
    if sweep.start:
        first, further = sweep.tasks[sweep.start], [h for h in sweep.tasks if h != sweep.start]
        title = f"PSNR (dB), paired difference to its own result {sweep.start}"
        parts.append(block(title, methods, further, against(lambda m, t: Run(first, m))))
    runs = [evidence.records(Run(t, m)) for t in sweep.tasks.values() for m in methods]
    counts = sorted({len(r) for r in runs if r})
    slices = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    parts.append(f"n = {len({r.anatomy for rows in runs for r in rows})} anatomies, {slices} slices a cell.")
    return "\n\n".join(parts)


def reinitialised_table(sweep: Sweep, evidence: Evidence) -> str:
    """Return what is lost by weights drawn anew."""
    rows = []
    for method in sweep.methods:
        name, _, variant = method.partition(":")
        anew = f"{name}_reinitialised" + (f":{variant}" if variant else "")
        cells = [
            text_of(evidence.gain(Run(t, method), Run(t, anew), PSNR), "psnr", sign=True) for t in sweep.tasks.values()
        ]
        if set(cells) != {"–"}:
            rows.append([f"`{method}`", *cells])
    runs = [evidence.records(Run(t, m)) for t in sweep.tasks.values() for m in sweep.methods]
    note = f"n = {len({r.anatomy for found in runs for r in found})} anatomies."
    return f"{table(['PSNR (dB), weights drawn anew minus trained', *sweep.tasks], rows)}\n\n{note}"


def reference_table(out: Path) -> str:
    """Return what another T1 changes, from the files of :func:`run_reference`."""
    rows = []
    for method in GUIDED:
        for task in REFERENCE:
            path = out / "reference" / f"{method.replace(':', '_')}-{task}.json"
            if not path.exists():
                continue
            scores = {
                k: [(a, p, s) for a, p, s in v]
                for k, v in json.loads(path.read_text(encoding="utf-8"))["scores"].items()
            }
            for label in scores:
                cells = reference_control.row(label, scores).strip("| ").split(" | ")
                rows.append([f"`{method}`", task, *cells, str(len(scores[label]))])
    return table(["method", "task", "T1", "PSNR (dB)", "SSIM", "PSNR, paired difference", "slices"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--part", default=",".join([*SWEEPS, "reference"]), help="parts, separated by commas")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, separated by commas")
    parser.add_argument("--dataset_dir", default="", help="training set of mcvarnet_mr, for noise_matrix")
    parser.add_argument("--shard", default="1/1", help="I/N: every N-th result only; 1/2 is every second slice")
    parser.add_argument("--page", type=Path, help="page whose blocks are filled with the tables")
    parser.add_argument("--tables", action="store_true", help="compute nothing, only print (and fill) the tables")
    arguments = parser.parse_args()
    parts, wanted, out = arguments.part.split(","), arguments.methods.split(","), arguments.out.absolute()
    unknown = sorted(set(parts) - {*SWEEPS, "reference"})
    if unknown:
        parser.error(f"--part: expected some of {[*SWEEPS, 'reference']}, got {unknown}")
    try:
        for part in parts:
            if not arguments.tables and part == "reference":
                run_reference(wanted, out, parse_shard(arguments.shard)[1])
            elif not arguments.tables:
                names = SWEEPS[part].tasks.values()
                asked = [tasks.load(further_task(name, out / "further") or name) for name in names]
                methods = chosen_methods(part, wanted, out, arguments.dataset_dir)
                print(f"{part}: {evaluate(asked, methods, out, shard=parse_shard(arguments.shard))}", flush=True)
            evidence = Evidence(select(read_records(out / "records.jsonl")[0]))
            text = reference_table(out) if part == "reference" else sweep_tables(part, evidence)
            print(f"\n{part}\n\n{text}\n", flush=True)
            if arguments.page:
                fill(arguments.page, part, text)
    except ValueError as error:
        print(f"mr_study: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
