"""Every bundle on every task, each in a process of its own; results are records, and so are failures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import multirecon

from ..bundle.package import package_hash
from ..files import cache_folder
from ..measurement import Measurement
from ..metrics import (
    METRICS,
    channel_ranges,
    data_residual,
    evaluate_channels,
    evaluate_image,
    evaluate_samples,
    reporting_range,
)
from ..reconstruction.trust import trust_map
from .acquisitions import describe_acquisition
from .methods import Method
from .process import Worker
from .questions import Answerable, Question, Questions, TaskLike
from .records import FAILED, OK, Record, RecordFile
from .side_files import FEATURES, keep
from .workspace import (
    IMAGES,
    RECORDS,
    SAMPLES,
    TASKS,
    image_file,
    save_image,
    save_zoom,
    trust_file,
    work_folder,
    write_json,
)

__all__ = ["Summary", "evaluate", "parse_shard"]

DATA_SETTINGS = ("MULTIRECON_ANATOMIES", "MULTIRECON_REAL_DATA")


@dataclass
class Summary:
    """What a run did.

    Args:
        counts: status -> number of new records.
        skipped: results that were there already.
        records: the records file.
    """

    records: Path
    counts: dict[str, int] = field(default_factory=dict)
    skipped: int = 0

    def __str__(self) -> str:
        parts = [f"{count} {status}" for status, count in sorted(self.counts.items())]
        return f"{', '.join(parts) or 'nothing new'}; {self.skipped} already there; {self.records}"


def parse_shard(text: str) -> tuple[int, int]:
    """Return ``(i, n)`` of ``"i/n"`` with ``1 <= i <= n``.

    Raises:
        ValueError: on anything else.
    """
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise ValueError(f"shard: expected i/n with 1 <= i <= n, such as 2/4, got {text!r}")
    return int(first), int(second)


def evaluate(
    tasks: Sequence[TaskLike],
    methods: Sequence[Method],
    output: str | os.PathLike[str],
    *,
    set_name: str = "small",
    seed: int = 0,
    device: str | None = None,
    timeout: float = 600.0,
    shard: tuple[int, int] = (1, 1),
    repeats: int | None = None,
    limit: int | None = None,
    samples: int = 0,
    settling: bool = False,
    progress: bool = True,
) -> Summary:
    """Ask every method every question that has no answer yet, and append the answers to ``output/records.jsonl``.

    Args:
        tasks: the tasks.
        methods: the bundles and variants.
        output: folder of the results; a run that was ended at any moment goes on where it stopped.
        set_name: evaluation set of the tasks.
        seed: seed of the methods' random numbers.
        device: device of the bundles; by default their own choice.
        timeout: seconds one measurement may take.
        shard: ``(i, n)``: take every n-th pair of method and question, beginning with the i-th.
        repeats: noise realisations a sample; by default the task's.
        limit: first samples of every set only.
        samples: posterior samples that methods which can draw them are asked for beside their result.
        settling: ask iterative methods, in a run off the clock, how soon they are done.
        progress: show a progress bar with the estimated time.

    Returns:
        What was done.

    Raises:
        ValueError: on an empty set, or if a measurement differs from the one already recorded under its name.
    """
    folder = Path(output).absolute()
    if not tasks or not methods:
        raise ValueError(f"evaluate: expected at least one task and one method, got {len(tasks)} and {len(methods)}")
    for task in tasks:
        unknown = sorted(set(task.metrics) - set(METRICS))
        if unknown:
            raise ValueError(f"metrics of task {task.name!r}: expected some of {list(METRICS)}, got {unknown}")
    names = [m.name for m in methods]
    if len(set(names)) < len(names):
        raise ValueError(
            f"methods: expected different names, got {sorted(n for n in set(names) if names.count(n) > 1)}"
        )
    file = RecordFile(folder / RECORDS)
    summary = Summary(file.path)
    with work_folder(folder) as work:
        asked = []
        for number, task in enumerate(tasks):
            questions = Questions(
                task,
                set_name=set_name,
                folder=work / f"data-{number}",
                catalogue=folder / SAMPLES / f"{_safe(task.name)}-{_safe(set_name)}.json",
                repeats=repeats,
                limit=limit,
            )
            asked.append(questions)
            note_task(folder, task)
        plan = [(m, qs, q) for m in methods for qs in asked for q in qs.all][shard[0] - 1 :: shard[1]]
        seen = file.records()
        settled = {r.key for r in seen if r.status != FAILED}
        recorded = {r.question: r.fingerprint for r in reversed(seen)}
        todo = [job for job in plan if _key(job[0], job[2], seed) not in settled]
        summary.skipped = len(plan) - len(todo)
        run = _Run(folder, work, file, summary, recorded, seed=seed, device=device, timeout=timeout,
                   samples=samples, settling=settling)  # fmt: skip
        with tqdm(total=len(plan), initial=summary.skipped, unit="result", disable=not progress or None) as bar:
            for method in methods:
                jobs = [(qs, q) for m, qs, q in todo if m is method]
                if jobs:
                    bar.set_description(method.name)
                    run.method(method, jobs, bar)
    return summary


class _Run:
    """One call of :func:`evaluate`."""

    def __init__(
        self,
        output: Path,
        work: Path,
        file: RecordFile,
        summary: Summary,
        recorded: dict[tuple[str, str, int], str],
        *,
        seed: int,
        device: str | None,
        timeout: float,
        samples: int,
        settling: bool,
    ) -> None:
        self.output, self.work, self.file, self.summary, self.recorded = output, work, file, summary, recorded
        self.seed, self.device, self.timeout, self.samples = seed, device, timeout, samples
        self.settling = settling
        self.versions = package_versions()

    def method(self, method: Method, jobs: Sequence[tuple[Questions, Question]], bar: Any) -> None:
        """Put one method's jobs to one worker."""
        place = self.work / f"worker-{_safe(method.name)}"
        with Worker(place, forbidden=self._forbidden(), allowed=[str(method.root)]) as worker:
            for questions, question in jobs:
                ready = questions.prepare(question)
                note_task(self.output, questions.task, ready.measurement)
                self._same_data(question, ready)
                record, stack = self._ask(worker, method, questions.task, question, ready)
                if question.index in questions.shown and question.repeat == 0 and stack is not None:
                    save_image(image_file(self.output, record), stack)
                    save_image(image_file(self.output, record, truth=True), ready.truth[0].numpy())
                    save_zoom(self.output, record, ready.regions)
                    if stack.ndim == 3:  # a 3D operator is too slow for a picture
                        maps = trust_map(ready.measurement, torch.from_numpy(stack)[None])
                        save_image(trust_file(self.output, record), maps[0].numpy())
                if stack is not None:
                    shown = question.index in questions.shown
                    keep(self.output, record, stack, questions.task, ready, shown=shown, repeats=questions.repeats)
                if self.file.append(record):
                    self.summary.counts[record.status] = self.summary.counts.get(record.status, 0) + 1
                bar.update()

    def _same_data(self, question: Question, ready: Answerable) -> None:
        """Refuse to go on where the records hold results of other data under the same name."""
        key = (question.task, question.sample, question.repeat)
        if self.recorded.setdefault(key, ready.fingerprint) != ready.fingerprint:
            raise ValueError(
                f"measurement of task {question.task!r}, sample {question.sample!r}, repeat {question.repeat}: the "
                "data differ from those recorded before, results would not be comparable (use another output folder)"
            )

    def _forbidden(self) -> list[str]:
        """Return where truths, or what they are made from, lie: package, settings, cache, panels, this process."""
        cache = cache_folder()
        places = [
            Path(multirecon.__file__).parent / "data",
            self.output / IMAGES,
            self.output / FEATURES,
            f"/proc/{os.getpid()}",
        ]
        places += [cache / "subjects"] if cache else []
        return [*map(str, places), *(folder for name in DATA_SETTINGS if (folder := os.environ.get(name)))]

    def _ask(
        self, worker: Worker, method: Method, task: TaskLike, question: Question, ready: Answerable
    ) -> tuple[Record, np.ndarray | None]:
        """Run one question; return its record, and the stack where there is a good one."""
        result = worker.folder / "result.npy"
        drawn = worker.folder / "drawn.npy"
        for file in (result, drawn):
            file.unlink(missing_ok=True)
        job = {
            "config_files": [str(p) for p in method.config_files],
            "bundle_root": str(method.root),
            "measurement": str(ready.file),
            "output_dir": str(worker.folder / "output"),
            "result": str(result),
            "targets": list(task.targets),
            "seed": self.seed,
            "device": self.device,
            "samples": self.samples,
            "settling": self.settling,
            "drawn": str(drawn),
        }
        answer = worker.run(job, timeout=self.timeout)
        stack, metrics = None, {}
        if answer["status"] == OK:
            try:
                stack = read_result(result, ready.truth)
                metrics = measure_result(stack, task, ready)
                if drawn.exists():
                    for target, values in measure_samples(drawn, self.samples, task, ready).items():
                        metrics[target] |= values
            except ValueError as error:
                answer, stack = {"status": FAILED, "reason": str(error)}, None
        record = Record(
            task=question.task,
            bundle=method.bundle.name,
            variant=method.variant,
            sample=question.sample,
            anatomy=question.anatomy,
            repeat=question.repeat,
            seed=self.seed,
            fingerprint=ready.fingerprint,
            weights=method.weights,
            content=method.content,
            status=answer["status"],
            reason=answer.get("reason", ""),
            seconds=answer.get("seconds"),
            peak_mb=answer.get("peak_mb"),
            device=answer.get("device", ""),
            versions={"bundle": method.bundle.version, **self.versions},
            metrics=metrics,
            settling=answer.get("settling", {}) if stack is not None else {},
        )
        return record, stack


def read_result(path: Path, truth: torch.Tensor) -> np.ndarray:
    """Return the stack ``(C, *shape)`` that a worker wrote.

    Raises:
        ValueError: if there is none, it lies on another grid than the truth ``(1, C, *shape)``, or is not finite.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"no result: {error}") from None
    if array.shape != tuple(truth.shape):
        raise ValueError(f"result: expected shape {tuple(truth.shape)}, got {array.shape}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(f"result: expected finite values, got NaN or Inf in {bad} of {array.size}")
    return array[0]


def measure_samples(path: Path, count: int, task: TaskLike, ready: Answerable) -> dict[str, dict[str, float]]:
    """Return how honest the posterior samples are that a worker wrote.

    Raises:
        ValueError: on another number or grid than asked for, or values that are not finite.
    """
    drawn = torch.from_numpy(np.load(path, allow_pickle=False))
    shape = (count, *ready.truth.shape)
    if tuple(drawn.shape) != shape or not bool(torch.isfinite(drawn).all()):
        raise ValueError(f"posterior samples: expected finite values of shape {shape}, got {tuple(drawn.shape)}")
    return evaluate_samples(drawn, ready.truth, task.space, targets=task.targets, regions=ready.regions)


def measure_result(stack: np.ndarray, task: TaskLike, ready: Answerable) -> dict[str, dict[str, float]]:
    """Return the metrics of a stack ``(C, *shape)``: distances to the truth, and the residual of every block's data.

    Modalities whose channels have names (energies, materials) are measured channel by channel besides.
    """
    pred = torch.from_numpy(stack)[None]
    metrics = evaluate_image(
        pred, ready.truth, task.space, targets=task.targets, metrics=task.metrics, regions=ready.regions
    )
    named = getattr(task, "channels", {})
    metrics |= evaluate_channels(pred, ready.truth, task.space, channels=named, places=ready.places)
    for name, residual in data_residual(ready.measurement, pred).items():
        if name not in ready.measurement.clean:
            metrics.setdefault(name, {})["residual"] = float(residual)
    return metrics


def note_task(output: Path, task: TaskLike, measurement: Measurement | None = None) -> None:
    """Keep what a report and a choice of methods need to know of a task: once, with the first of its measurements."""
    path = output / TASKS / f"{_safe(task.name)}.json"
    values = describe_task(task)
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        held = {}
    if isinstance(held, dict) and "acquisition" in held:
        values["acquisition"] = held["acquisition"]
    elif measurement is not None:
        values["acquisition"] = describe_acquisition(measurement)
    if values != held:
        write_json(path, values)


def describe_task(task: TaskLike) -> dict[str, Any]:
    """Return what a report says about a task: plain values."""
    acquisition, config = getattr(task, "acquisition", None), getattr(task, "config", {})
    return {
        "name": task.name,
        "description": task.description,
        "targets": list(task.targets),
        "metrics": list(task.metrics),
        "space": task.space.to_dict(),
        "ranges": {
            **{name: asdict(reporting_range(task.space[name])) for name in task.space.names},
            **{n: asdict(r) for n, r in channel_ranges(task.space, getattr(task, "channels", {})).items()},
        },
        "measured": {name: scan.describe() for name, scan in acquisition.scans.items()} if acquisition else {},
        "sweeps": list(config.get("sweeps", ())),
    }


def package_versions() -> dict[str, str]:
    """Return the versions that a record keeps."""
    versions = {
        "multirecon": multirecon.__version__,
        "package": package_hash()[:12],
        "python": platform.python_version(),
    }
    for name in ("torch", "monai", "deepinv"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    return versions


def _key(method: Method, question: Question, seed: int) -> tuple[Any, ...]:
    names = question.task, question.sample, question.repeat
    return *names, method.bundle.name, method.variant, method.content, seed


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
