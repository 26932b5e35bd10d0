"""FLAIR of real MS patients from k-space simulated on their images, beside simulated heads treated alike.

    python ci/real_patients.py OUT --subject simulated    # test anatomies, the brain cut out as in patients' images
    python ci/real_patients.py OUT --subject 07           # the patient that everything was tried on
    python ci/real_patients.py OUT --subject 19           # the patient that was kept back
    python ci/real_patients.py OUT --table [--page docs/benchmarks/supervised_mr.md] [--picture docs/gallery/NAME.png]

Of a patient every 8th mm is taken wherever the brain is at least a fifth of its largest section; of the simulated heads
every second slice of the small test sets. k-space follows the tasks flair_x4_t1 and flair_x4c_t1, noise included; T1 is
clean. Every bundle is loaded as it is shipped. The scores are means over slices (heads first for the simulated
ones): over the brain, and inside the lesion mask in slices that show at least three pixels of it. Results of bundles
that changed since are made again; the table shows those of the bundles as they are.

**These numbers flatter every method**: the images are magnitudes, registered, interpolated and brain-extracted; the
k-space of a patient was not measured, it is computed from them.

The data: patients 07 and 19 of open_ms_data (muschellij2/open_ms_data, cross_sectional/MNI, CC BY; Lesjak et al.
2017), 1 mm, with the setting MULTIRECON_REAL_DATA.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from gallery_ms import brain_of, coarse, files, on_grid, volumes
from gallery_parts import Panel, bounds, draw, real_data, slice_scores, upright
from study_pages import fill, table
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from multirecon import tasks
from multirecon.bundle import load, load_network
from multirecon.files import atomic_path
from multirecon.harness.methods import select_methods
from multirecon.harness.statistics import anatomy_interval
from multirecon.measurement import Measurement

METHODS = ("sense_mr", "cs_mr", "tv_petmrct:directional", "mcvarnet_mr", "minet_mr", "discdiff_mr:fast")
TASKS = ("flair_x4_t1", "flair_x4c_t1")
SUBJECTS = ("simulated", "07", "19")
EVERY_MM, LEAST_SHARE, LESION_PIXELS = 8, 0.2, 3
METRICS = ("psnr", "ssim", "nrmse", "bias", "crc")
COLUMNS = {"psnr@brain": ("brain PSNR (dB)", 2), "ssim@brain": ("brain SSIM", 3), "nrmse@lesion": ("lesion NRMSE", 3),
           "bias@lesion": ("lesion bias", 3), "crc@lesion": ("lesion contrast", 2)}  # fmt: skip
OPPONENT = "tv_petmrct:directional"

Maps = dict[str, Tensor]
"""``flair``, ``t1`` on the fine grid ``(S, 1, 2H, 2W)``; ``lesion``, ``brain`` masks ``(S, H, W)``."""


def simulated(task: tasks.Task) -> tuple[Maps, Tensor, list[str]]:
    """Return every second slice of the small test set, all but the brain set to zero; affines; the head of each."""
    samples = task.samples("small")
    items = [samples[k] for k in range(0, len(samples), 2)]
    names = list(task.config["dataset"]["modalities"])
    brain = torch.stack([item["brain"] for item in items]) > 0.5
    inside = interpolate(brain.float(), scale_factor=2.0, mode="nearest")
    fine = torch.stack([item["fine"] for item in items]) * inside
    maps = {n: fine[:, names.index(n)][:, None] for n in ("flair", "t1")}
    maps |= {"brain": brain[:, 0], "lesion": torch.stack([item["lesion"] for item in items])[:, 0] > 0.5}
    affines = torch.stack([torch.as_tensor(item["affine"]) for item in items]).double()
    return maps, affines, [str(item["id"]).partition("/")[0] for item in items]


def patient(name: str, task: tasks.Task) -> tuple[Maps, Tensor, list[str]]:
    """Return slices of a patient on the task's grid, their affines, and the patient's name for every slice."""
    found = volumes(real_data(*files(name).values()), name)
    area = brain_of(found).sum((0, 1))
    useful = np.nonzero(area >= LEAST_SHARE * area.max())[0]
    chosen = [int(z) for z in useful if z % EVERY_MM == 0]
    fine, affines = on_grid(found, chosen, 2 * task.space.shape[0], task.space.spacing_mm[0] / 2)
    masks = {"lesion": avg_pool2d(fine["lesion"], 2)[:, 0] > 0.5, "brain": avg_pool2d(fine["t1"], 2)[:, 0] > 0.02}
    return {"flair": fine["flair"], "t1": fine["t1"], **masks}, coarse(affines), [f"patient{name}"] * len(chosen)


def place(out: Path, subject: str, task: str, method: str) -> Path:
    """Return the file of a method's images; it tells versions of the bundle apart. Scores lie beside it as JSON."""
    return out / subject / task / f"{method.replace(':', '_')}-{select_methods([method])[0].content[:12]}.npy"


def reconstruct(method: str, measurement: Measurement, path: Path) -> Tensor:
    """Return FLAIR images ``(S, 1, H, W)`` of a bundle as it is shipped, from the file where they were made before."""
    if not path.exists():
        name, _, variant = method.partition(":")
        workflow = load(name, variant or None, device="$torch.device('cpu')")
        network = load_network(workflow)
        with torch.no_grad():
            result = torch.as_tensor(workflow.inferer(measurement, network))
        with atomic_path(path) as draft:
            np.save(draft, result[:, measurement.space.channels("flair")].numpy())
    return torch.from_numpy(np.load(path))


def run(subject: str, methods: Sequence[str], out: Path) -> None:
    """Measure, reconstruct and score a subject; scores go to ``out/<subject>/<task>/<method>-<content>.json``."""
    for task in map(tasks.load, TASKS):
        maps, affines, heads = simulated(task) if subject == "simulated" else patient(subject, task)
        ids = [f"{subject}-{k:03d}" for k in range(len(heads))]
        measurement = task.acquisition({n: maps[n] for n in ("flair", "t1")}, ids, affine=affines)
        truth = avg_pool2d(maps["flair"], 2)
        seen = maps["lesion"].sum((1, 2)) >= LESION_PIXELS
        lesion = maps["lesion"] & seen[:, None, None]
        print(f"{subject} {task.name}: {len(heads)} slices, {int(seen.sum())} with lesions", flush=True)
        for method in methods:
            path = place(out, subject, task.name, method)
            images = reconstruct(method, measurement, path)
            rows = slice_scores(images, truth, measurement, "flair", METRICS, brain=maps["brain"], lesion=lesion)
            with atomic_path(path.with_suffix(".json")) as draft:
                text = json.dumps([{"head": h, **row} for h, row in zip(heads, rows, strict=True)])
                draft.write_text(text, encoding="utf-8")
            print(f"  {method}: {', '.join(f'{t} {mean(rows, k):.{d}f}' for k, (t, d) in COLUMNS.items())}", flush=True)


def mean(rows: Sequence[Mapping[str, object]], key: str) -> float:
    """Return the mean over heads of the means over their slices that have a value."""
    found = [(str(row.get("head", "")), float(str(row[key]))) for row in rows if key in row]
    return anatomy_interval(found).mean if found else float("nan")


def kept_scores(out: Path, methods: Sequence[str]) -> dict[tuple[str, str, str], list[dict[str, object]]]:
    """Return ``(task, subject, method) -> rows`` of the bundles as they are now, where they were computed."""
    found = {}
    for subject in SUBJECTS:
        for task in TASKS:
            for method in methods:
                path = place(out, subject, task, method).with_suffix(".json")
                if path.exists():
                    found[task, subject, method] = json.loads(path.read_text(encoding="utf-8"))
    return found


def score_table(out: Path, methods: Sequence[str]) -> str:
    """Return the scores of all subjects, and how far patients lie from the simulated heads."""
    found = kept_scores(out, methods)
    names = {"simulated": "simulated"} | {s: f"patient {s}" for s in SUBJECTS[1:]}
    there = [s for s in SUBJECTS if any(key[1] == s for key in found)]
    parts = []
    for task in TASKS:
        rows = [
            [f"`{m}`", names[s], *(f"{mean(found[task, s, m], k):.{d}f}" for k, (_, d) in COLUMNS.items())]
            for m in methods
            for s in there
            if (task, s, m) in found
        ]
        parts.append(table([task, "heads", *(title for title, _ in COLUMNS.values())], rows))
    patients = [s for s in there if s != "simulated"]
    rows = []
    for task in TASKS:
        for m in methods:
            cells = []
            for s in there:
                scores, other = found.get((task, s, m)), found.get((task, s, OPPONENT))
                lead = "–"
                if scores and other and m != OPPONENT:
                    lead = f"{mean(scores, 'psnr@brain') - mean(other, 'psnr@brain'):+.2f}"
                cells.append(lead)
            gaps = []
            for s in patients:
                scores, base = found.get((task, s, m)), found.get((task, "simulated", m))
                gaps.append(f"{mean(scores, 'psnr@brain') - mean(base, 'psnr@brain'):+.2f}" if scores and base else "–")
            if set(gaps + cells) != {"–"}:
                rows.append([f"`{m}`", task, *gaps, *cells])
    head = ["brain PSNR (dB)", "task", *(f"{names[s]} minus simulated" for s in patients),
            *(f"lead over `{OPPONENT}`, {names[s]}" for s in there)]  # fmt: skip
    parts.append(table(head, rows))
    counts = []
    for s in there:
        first = next(rows for key, rows in found.items() if key[1] == s)
        lesions = sum("nrmse@lesion" in row for row in first)
        counts.append(
            f"{names[s]} {len(first)} slices of {len({r['head'] for r in first})} head(s), {lesions} with lesions"
        )
    parts.append(f"n: {'; '.join(counts)}.")
    return "\n\n".join(parts)


def picture(path: Path, out: Path, methods: Sequence[str]) -> None:
    """Draw the slice with the largest lesions of every patient: truth, mask and every method on both tasks."""
    rows = []
    for subject in SUBJECTS[1:]:
        for task in map(tasks.load, TASKS):
            if not all(place(out, subject, task.name, m).exists() for m in methods):
                continue
            maps, _, _ = patient(subject, task)
            k = int(maps["lesion"].sum((1, 2)).argmax())
            box = bounds(maps["brain"][k])
            row = [Panel(f"patient {subject}", upright(avg_pool2d(maps["flair"], 2)[k, 0][box]), (0.0, 0.8)),
                   Panel(f"lesions; {task.name}", upright(maps["lesion"][k].float()[box]), (0.0, 1.0))]  # fmt: skip
            for method in methods:
                images = torch.from_numpy(np.load(place(out, subject, task.name, method)))
                row.append(Panel(method, upright(images[k, 0][box]), (0.0, 0.8)))
            rows.append(row)
    draw(path, rows, width=1.5, dpi=100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of data and results")
    parser.add_argument("--subject", choices=SUBJECTS, help="who is reconstructed")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, separated by commas")
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--page", type=Path, help="page whose block 'patients' is filled with the table")
    parser.add_argument("--picture", type=Path, help="PNG of the slices with the largest lesions")
    arguments = parser.parse_args()
    methods, out = arguments.methods.split(","), arguments.out.absolute()
    try:
        if arguments.subject:
            run(arguments.subject, methods, out)
        if arguments.table or arguments.page:
            text = score_table(out, methods)
            print(text)
            if arguments.page:
                fill(arguments.page, "patients", text)
        if arguments.picture:
            picture(arguments.picture, out, methods)
    except ValueError as error:
        print(f"real_patients: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
