"""A student of one to four steps beside its teacher: images from nothing, and reconstruction.

    python ci/student_study.py OUT --student RUN/model.pt --dataset_dir DATA [--page PAGE]

RUN is the folder of a training with ``configs/train_student.json`` of --bundle, DATA the cached set of its training.

    generation      kernel distance (KID) of --count unconditional images to the slices of the validation anatomies, by
                    modality and number of network evaluations. The student draws fresh noise between its estimates
                    (consistency sampling), the teacher takes the deterministic DDIM steps that the student was
                    taught to leave out; both at the same times.
    reconstruction  PSNR, SSIM, energy of fine detail (HFER) and kernel distance of decomposed sampling on --slices of
                    every validation anatomy, one sample, settings of the bundle's variant ``fast`` for both.

Whatever was computed is kept in OUT and computed once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusion_study import LEAST, METRICS, Study, average, cases_of
from study_pages import publish, table
from torch import Tensor, nn

from multirecon import tasks
from multirecon.bundle import read_weights
from multirecon.data.cached_slices import CachedSlices
from multirecon.files import atomic_path
from multirecon.harness.tuning_data import SPLIT
from multirecon.metrics import evaluate_image, kid, load_encoder, network_scale
from multirecon.priors import DiffusionPrior, SampleNoise, reverse_diffusion
from multirecon.priors.distillation import frozen_copy
from multirecon.reconstruction import DecomposedSampling
from multirecon.space import ImageSpace

EVALUATIONS = (1, 2, 4, 8)
TEACHER, STUDENT = "teacher", "student"
BATCH = 8


class Pair:
    """Teacher and student of one prior.

    Args:
        bundle: the bundle of the teacher.
        student: checkpoint of the student.
    """

    def __init__(self, bundle: str, student: Path) -> None:
        self.study = Study(bundle)
        self.prior = self.study.prior
        teacher = self.study.network.network
        self.networks: dict[str, nn.Module] = {TEACHER: teacher, STUDENT: frozen_copy(teacher, read_weights(student))}

    def generate(self, who: str, evaluations: int, count: int) -> Tensor:
        """Return unconditional images ``(count, C, *shape)`` in physical units; the same noise for both."""
        options: dict[str, Any] = {"eta": 0.0} if who == TEACHER else {"eta": 1.0, "noise_split": "dds"}
        return generated(self.prior, self.networks[who], evaluations, count, **options)

    def sampler(self, who: str, evaluations: int) -> DecomposedSampling:
        """Return decomposed sampling at the same times for both; the student's noise is fresh."""
        options: dict[str, Any] = {} if who == TEACHER else {"eta": 1.0, "noise_split": "dds"}
        return DecomposedSampling(self.prior, steps=evaluations, spacing="trailing", **self.study.shared, **options)


def generated(prior: DiffusionPrior, network: nn.Module, evaluations: int, count: int, **options: Any) -> Tensor:
    """Return unconditional images of a prior ``(count, C, *shape)`` in physical units, at trailing times."""
    denoiser = prior.denoiser(network, autocast=torch.bfloat16)
    times = prior.schedule.kept_steps(evaluations, "trailing")
    generator, found = torch.Generator().manual_seed(3), []
    for start in range(0, count, BATCH):
        shape = (min(BATCH, count - start), prior.space.num_channels, *prior.space.shape)
        noise = SampleNoise(shape, generator, like=torch.zeros(()))
        x = reverse_diffusion(denoiser, prior.schedule, noise, steps=times, **options)
        found.append(prior.scaling.inverse(x))
    return torch.cat(found)


def validation_images(prior: DiffusionPrior, dataset_dir: Path) -> Tensor:
    """Return the slices of the validation anatomies in a cached set, in physical units."""
    data = CachedSlices(dataset_dir / SPLIT, modalities=list(prior.space.names), split=SPLIT)
    unit = torch.stack([data[i]["image"] for i in range(len(data))])
    return prior.scaling.inverse(2 * unit - 1)


def distance(images: Tensor, truths: Tensor, space: ImageSpace, name: str) -> float:
    """Return the kernel distance of the images of one modality in two sets of stacks."""
    own, encoder = space.channels(name), load_encoder()
    codes = [encoder.encode(network_scale(x[:, own], space[name])) for x in (images, truths)]
    return kid(codes[0], codes[1], bootstrap=0).value


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write and print a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        draft.write_text(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)


def generation(pair: Pair, out: Path, dataset_dir: Path, count: int) -> None:
    """Kernel distances of unconditional images to validation slices; one file each."""
    space, real = pair.prior.space, validation_images(pair.prior, dataset_dir)
    for who in (TEACHER, STUDENT):
        for evaluations in EVALUATIONS:
            path = out / "generation" / f"{who}-{evaluations}.json"
            if not path.exists():
                begin = time.process_time()
                images = pair.generate(who, evaluations, count)
                row: dict[str, Any] = {"who": who, "evaluations": evaluations, "count": count, "real": len(real),
                                       "seconds": (time.process_time() - begin) / count}  # fmt: skip
                row |= {name: distance(images, real, space, name) for name in space.names}
                keep(path, row)


def reconstruction(pair: Pair, out: Path, names: list[str], slices: int) -> None:
    """Quality of decomposed sampling with both; one file each."""
    for task in map(tasks.load, names):
        cases = cases_of(task, SPLIT, slices)
        for who in (TEACHER, STUDENT):
            for evaluations in EVALUATIONS:
                path = out / task.name / f"{who}-{evaluations}.json"
                if path.exists():
                    continue
                rows, images, begin = [], [], time.process_time()
                for measurement, truth in cases:
                    generator = torch.Generator().manual_seed(1)
                    sampler = pair.sampler(who, evaluations)
                    x = sampler(measurement, pair.networks[who], generator=generator).as_tensor()
                    images.append(x)
                    rows.append(evaluate_image(x, truth, task.space, targets=task.targets, metrics=METRICS))
                result: dict[str, Any] = {"who": who, "evaluations": evaluations, "slices": len(cases),
                                          "seconds": (time.process_time() - begin) / len(cases)}  # fmt: skip
                for target in task.targets:
                    result[target] = average([row[target] for row in rows])
                    if len(cases) >= LEAST:
                        truths = torch.cat([truth for _, truth in cases])
                        result[target]["kid"] = distance(torch.cat(images), truths, task.space, target)
                keep(path, result)


def tables(out: Path) -> dict[str, str]:
    """Return the tables of what is there, by the name of their block in the page."""
    found: dict[str, str] = {}
    rows, made = [], []
    for folder in sorted(p for p in out.iterdir() if p.is_dir()):
        results = [json.loads(p.read_text()) for p in folder.glob("*.json")]
        for r in sorted(results, key=lambda r: (r["evaluations"], r["who"] == STUDENT)):
            if folder.name == "generation":
                names = [k for k in r if k not in ("who", "evaluations", "count", "real", "seconds")]
                made.append([r["who"], f"{r['evaluations']}", *(f"{r[n]:.3f}" for n in names), f"{r['seconds']:.2f}",
                             f"{r['count']}, {r['real']}"])  # fmt: skip
                continue
            for target, v in ((k, v) for k, v in r.items() if isinstance(v, dict)):
                rows.append([folder.name, target, r["who"], f"{r['evaluations']}", f"{v['psnr']:.2f}",
                             f"{v['ssim']:.3f}", f"{v['hfer']:.2f}", f"{v['kid']:.3f}" if "kid" in v else "",
                             f"{r['seconds']:.2f}", f"{r['slices']}"])  # fmt: skip
    if made:
        found["student generation"] = table(["", "evaluations", *names, "s an image", "images, real"], made)
    if rows:
        head = ["task", "target", "", "evaluations", "PSNR (dB)", "SSIM", "HFER", "KID", "s a slice", "slices"]
        found["student reconstruction"] = table(head, rows)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bundle", default="wavelet_diffusion_petmrct")
    parser.add_argument("--student", type=Path)
    parser.add_argument("--dataset_dir", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--tasks", default="flair_x4_t1,flair_x4,petct_lowdose")
    parser.add_argument("--slices", type=int, default=4, help="of every head")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    try:
        if given.student:
            pair = Pair(given.bundle, given.student)
            with torch.no_grad():
                if given.dataset_dir:
                    generation(pair, out, given.dataset_dir, given.count)
                reconstruction(pair, out, [name for name in given.tasks.split(",") if name], given.slices)
        publish(tables(out), given.page)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"student_study: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    sys.exit(main())
