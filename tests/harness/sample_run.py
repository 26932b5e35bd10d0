"""A run as `multirecon evaluate` leaves it, made in a second: every part of the report has something to show."""

from pathlib import Path

import torch

from multirecon.harness.records import FAILED, NOT_APPLICABLE, OK, Record, RecordFile
from multirecon.harness.runner import describe_task
from multirecon.harness.side_files import save_features, save_regions
from multirecon.harness.workspace import image_file, save_image, save_zoom, write_json
from multirecon.metrics import evaluate_image, evaluate_samples
from multirecon.space import ImageSpace

METHODS = {"sense": 0.10, "tv": 0.06, "unrolled": 0.04, "sampler": 0.05}  # noise of the result
SIZE, SHOWN = 48, 4.0  # images are kept for one task, which is enough to look at


class SampleTask:
    targets = ("t1",)
    metrics = ("psnr", "ssim", "nrmse", "hfer", "crc")
    repeats = 3

    def __init__(self, name: str, value: float, description: str = "Discs in noise"):
        self.name, self.value, self.description = name, value, description
        self.space = ImageSpace(["t1"], (SIZE, SIZE), (1.875, 1.875))
        self.config = {"sweeps": [{"name": "rate", "label": "Acceleration", "value": value, "scale": "linear"}]}


def truth_and_regions(anatomy: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")

    def disc(row: float, column: float, radius: float) -> torch.Tensor:
        return (y - row) ** 2 + (x - column) ** 2 < radius**2

    brain, lesion = disc(24, 24, 18), disc(20 + 2 * anatomy, 28, 3.5)
    core = disc(26, 20, 5)
    image = 0.5 * brain + 0.25 * core + 0.35 * lesion
    regions = {"brain": brain, "lesion": lesion, "white_matter": brain & ~core & ~lesion, "cortical_gm": core}
    return image.clamp(max=1.0)[None].float(), regions


def write_run(folder: Path, *, rates: tuple[float, ...] = (2.0, 4.0, 8.0), anatomies: int = 3) -> RecordFile:
    """Write records, images, features and regions of four methods on a family of tasks."""
    file = RecordFile(folder / "records.jsonl")
    for rate in rates:
        task = SampleTask(f"disc_x{rate:g}", rate)
        write_json(folder / "tasks" / f"{task.name}.json", describe_task(task))
        for number, (method, noise) in enumerate(METHODS.items()):
            for anatomy in range(anatomies):
                for repeat in range(task.repeats):
                    _answer(file, folder, task, method, number, noise * rate**0.5, anatomy, repeat)
    base = {"sample": "0/0", "anatomy": "0", "fingerprint": "0/0/0"}
    file.append(Record(task="disc_x2", bundle="broken", status=FAILED, reason="timeout: no result within 5 s", **base))
    file.append(Record(task="disc_x2", bundle="ct_only", status=NOT_APPLICABLE, reason="block 't1'", **base))
    return file


def _answer(file, folder, task, method, number, noise, anatomy, repeat):
    truth, regions = truth_and_regions(anatomy)
    generator = torch.Generator().manual_seed(sum(map(ord, f"{task.name}{method}{anatomy}{repeat}")))

    def estimate():
        return truth * (1 - 0.3 * noise) + noise * torch.randn(truth.shape, generator=generator) * (truth > 0)

    image = estimate()
    masks = {n: regions[n] for n in ("brain", "lesion")}
    metrics = evaluate_image(image[None], truth[None], task.space, targets=("t1",), metrics=task.metrics, regions=masks)
    metrics["t1"]["residual"] = 0.05 + noise
    if method == "sampler":
        drawn = torch.stack([estimate()[None] for _ in range(9)])
        metrics["t1"] |= evaluate_samples(drawn, truth[None], task.space, targets=("t1",), regions=masks)["t1"]
    record = Record(
        task=task.name, bundle=method, sample=f"{anatomy}/0", anatomy=str(anatomy), repeat=repeat, status=OK,
        fingerprint=f"{anatomy}/0/{repeat}", seconds=0.02 * 6**number, peak_mb=400.0 * 1.3**number,
        device="cpu, 1 thread", versions={"torch": "2.14.1", "bundle": "0.1.0"}, metrics=metrics,
    )  # fmt: skip
    file.append(record)
    if task.value == SHOWN:
        save_image(image_file(folder, record), image.numpy())
    if repeat == 0 and task.value == SHOWN:
        save_image(image_file(folder, record, truth=True), truth.numpy())
        save_zoom(folder, record, masks)
        save_regions(folder, record, regions)
    if repeat == 0:
        save_features(folder, record, image.numpy(), task.space, task.targets)
        save_features(folder, record, truth.numpy(), task.space, task.targets, truth=True)


def claims() -> list[dict]:
    """Claims of every verdict, in the form of their files."""
    base = {"source": "a source", "note": "with stand-ins"}
    better = {"kind": "better", "task": "disc_x4", "modality": "t1"}
    family = {"runs": ["disc_x2", "disc_x4", "disc_x8"], "modality": "t1", "metric": "psnr"}
    return [
        {**base, "name": "T1", "sentence": "Learned beats classical.", "tests": [
            {**better, "runs": ["unrolled", "tv", "sense"], "metric": "psnr"},
            {"kind": "ratio", "task": "disc_x4", "of": "unrolled", "to": "sense", "cost": "seconds", "at_least": 2}]},
        {**base, "name": "T2", "sentence": "SENSE is best.", "tests": [
            {**better, "runs": ["sense", "tv"], "metric": "ssim"}]},
        {**base, "name": "T3", "sentence": "GANs do it.", "tests": [
            {**better, "runs": ["gan", "tv"], "metric": "kid"}]},
        {**base, "name": "T4", "sentence": "Quality falls with the rate.", "tests": [
            {**family, "kind": "trend", "method": "sense", "values": [2, 4, 8], "direction": "falls", "scale": "log"},
            {"kind": "larger_gain", "method": "sense", "gain": ["disc_x8", "disc_x4"], "than": [["disc_x4", "disc_x2"]],
             "modality": "t1", "metric": "psnr", "margin": -10}]},
        {**base, "name": "T5", "sentence": "Its images look truer.", "tests": [
            {**better, "runs": ["unrolled", "sense"], "metric": "kid"}]},
    ]  # fmt: skip
