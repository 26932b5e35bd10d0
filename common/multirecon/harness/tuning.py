"""Settings of the methods, tuned on validation anatomies with the same number of trials for every bundle and kind."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import multirecon

from ..bundle.folder import Bundle
from ..bundle.guard import root_cause
from ..bundle.loader import load, load_network
from ..bundle.package import package_hash
from ..data.splits import EMBEDDED, split_of
from ..measurement import Measurement
from ..metrics.evaluate import HIGHER_IS_BETTER, METRICS, evaluate_image
from ..reconstruction.tuning import FORMAT, Tuning, block_kind
from ..tasks import Task
from .tuning_log import LoggedTrial, TrialLog
from .tuning_search import Range, Search, Trial
from .workspace import write_json

__all__ = ["LOG", "REPRESENTATIVE", "SCORES", "TUNED", "Case", "TunedKind", "ValidationData", "tune", "validation_task"]

TUNED, LOG = Path("configs") / "tuning.json", Path("docs") / "tuning.csv"
SPLIT = "validation"
SCORES = tuple(sorted((HIGHER_IS_BETTER & set(METRICS)) - {"cnr"}))
REPRESENTATIVE = (
    "flair_x4",
    "flair_x4c",
    "flair_x4_t1",
    "flair_x4c_t1",
    "ct_sparse60",
    "ct_lowdose",
    "ct_sparse60_scanner_b",
    "pet_counts_5",
    "pet_counts_50",
    "petct_lowdose",
    "pet_mr_lowdose",
    "dect_sparse",
    "spectralct_lowdose",
    "materials_lowdose",
    "petct3d_lowdose",
)
"""Tasks that together have every kind of block; those about robustness are left out where a kind has another task."""


@dataclass(frozen=True, eq=False)
class Case:
    """One measurement of a validation sample.

    Args:
        task: name of the task.
        sample: id of the sample, ``anatomy/seed/slice``.
        measurement: the data.
        truth: the true stack ``(1, C, *shape)``.
    """

    task: str
    sample: str
    measurement: Measurement
    truth: Tensor

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the data."""
        return self.measurement.fingerprint()

    @cached_property
    def kinds(self) -> dict[str, list[str]]:
        """Kind of block -> its modalities, clean ones left out."""
        kinds: dict[str, list[str]] = {}
        for name in self.measurement.available:
            if name not in self.measurement.clean:
                kinds.setdefault(block_kind(self.measurement, name), []).append(name)
        return kinds


def validation_task(task: Task, *, slices: int = 2) -> Task:
    """Return the task with a few slices of the validation anatomies in the place of its evaluation sets.

    On the embedded anatomy, which has validation seeds and no validation anatomy, two seeds are taken.

    Args:
        task: the task.
        slices: slices a subject, where the data are slices.

    Raises:
        ValueError: if a sample would belong to another split.
    """
    dataset = {**task.config["dataset"], "split": SPLIT, "seeds": 1}
    if "depth" not in dataset:
        dataset["slices"] = slices
    changed = replace(task, config={**task.config, "dataset": dataset, "sets": {SPLIT: {}}})
    subjects = _subjects(changed)
    if subjects == [EMBEDDED]:
        dataset["seeds"] = 2
        subjects = _subjects(changed)
    return changed


def _subjects(task: Task) -> list[str]:
    """Return the anatomies of a validation task.

    Raises:
        ValueError: if a sample belongs to another split, or to none that is known.
    """
    samples: Iterable[tuple[str, int]] = task.samples(SPLIT).samples  # type: ignore[attr-defined]
    wrong = sorted({f"{a} seed {s}" for a, s in samples if split_of(a, s) != SPLIT})
    if wrong:
        raise ValueError(f"task {task.name!r}: expected samples of the split {SPLIT!r} only, got {', '.join(wrong)}")
    return list(dict.fromkeys(anatomy for anatomy, _ in samples))


class ValidationData:
    """Measurements of validation samples, simulated once and used in every trial of every bundle.

    Args:
        tasks: the tasks; only their validation samples are ever made, see :func:`validation_task`.
        slices: slices a subject.

    Raises:
        ValueError: if there is no task, or a task has samples of another split.
    """

    def __init__(self, tasks: Sequence[Task], *, slices: int = 2) -> None:
        if not tasks or slices < 1:
            raise ValueError(f"tasks, slices: expected at least one of each, got {len(tasks)} and {slices}")
        self.tasks = {task.name: validation_task(task, slices=slices) for task in tasks}
        self._cases: dict[str, list[Case]] = {}

    def cases(self, name: str) -> list[Case]:
        """Return the measurements of a task."""
        if name not in self._cases:
            task = self.tasks[name]
            samples = task.samples(SPLIT)
            items = [samples[index] for index in range(len(samples))]
            self._cases[name] = [Case(name, str(item["id"]), *task.measure(item)) for item in items]
        return self._cases[name]


@dataclass(frozen=True)
class TunedKind:
    """The outcome for one kind of block.

    Args:
        kind: the kind.
        tasks: the tasks whose mean score counted.
        subjects: ids of their samples.
        trials: the trials, the default first.
        best: the best of them.
        edges: settings whose best value lies at an end of its range.
    """

    kind: str
    tasks: list[str]
    subjects: list[str]
    trials: list[Trial]
    best: Trial
    edges: list[str]

    def record(self) -> dict[str, Any]:
        """Return what ``tuning.json`` says about the kind."""
        default = self.trials[0].score
        return {
            "tasks": self.tasks,
            "subjects": self.subjects,
            "trials": len(self.trials),
            "failed": sum(not math.isfinite(t.score) for t in self.trials),
            "default": default if math.isfinite(default) else None,
            "best": self.best.score,
            "at_the_edge": self.edges,
        }

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {value:g}" for name, value in self.best.settings.items())
        edge = f"  (at the edge: {', '.join(self.edges)})" if self.edges else ""
        return f"{self.kind:44} {self.trials[0].score:8.3f} -> {self.best.score:8.3f}  {settings}{edge}"


class TunableBundle:
    """A bundle in this process, with its tuning at hand.

    Args:
        bundle: the bundle; its metadata state the ranges in ``multirecon.tuning``.
        device: device of the network; by default the bundle's own choice.

    Raises:
        ValueError: if it states no ranges, or they are not those of the ``tuning`` in its ``inference.json``.
    """

    def __init__(self, bundle: Bundle, *, device: str | None = None) -> None:
        self.bundle = bundle
        entries = bundle.metadata.get("multirecon", {}).get("tuning", {})
        if not entries:
            raise ValueError(f"bundle {bundle.name!r}: expected ranges in multirecon.tuning of metadata.json, got none")
        try:
            self.ranges = {name: Range.of(entry) for name, entry in entries.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"bundle {bundle.name!r}: multirecon.tuning: {error}") from None
        override: dict[str, Any] = {"device": f"$torch.device({device!r})"} if device else {}
        try:
            workflow = load(bundle, **override)
            tuning = workflow.parser.get_parsed_content("tuning") if "tuning" in workflow.parser else None
        except RuntimeError as error:  # MONAI wraps what a constructor raised
            raise ValueError(f"bundle {bundle.name!r}: {root_cause(error)}") from error
        if not isinstance(tuning, Tuning):
            raise ValueError(f"bundle {bundle.name!r}: expected a Tuning under 'tuning' in inference.json, got "
                             f"{type(tuning).__name__}")  # fmt: skip
        unknown = sorted(set(self.ranges) - set(tuning.parameters))
        if unknown:
            raise ValueError(f"bundle {bundle.name!r}: multirecon.tuning: expected some of {sorted(tuning.parameters)},"
                             f" got {unknown}")  # fmt: skip
        self.tuning = tuning
        self.default = {name: tuning.parameters[name] for name in self.ranges}
        self.inferer = workflow.inferer
        self.network = load_network(workflow, bundle=bundle)

    @cached_property
    def content(self) -> str:
        """SHA-256 of configs (tuned settings apart), code and weights."""
        root, digest = self.bundle.root, hashlib.sha256()
        files = [*root.glob("configs/*"), *root.rglob("*.py"), *root.glob("models/*.pt")]
        for path in sorted(p for p in files if p.is_file() and p != root / TUNED):
            digest.update(f"{path.relative_to(root).as_posix()}|{path.stat().st_size}|".encode() + path.read_bytes())
        return digest.hexdigest()

    def takes(self, case: Case) -> bool:
        """Whether the method can reconstruct the measured modalities of a case."""
        capability = getattr(self.inferer, "capability", None)
        return capability is None or not capability.refusals(case.measurement)

    def score(self, cases: Iterable[Case], kind: str, metric: str) -> float:
        """Return the mean over tasks of the mean score of the modalities of a kind; ``-inf`` where the method fails."""
        scores: dict[str, list[float]] = {}
        for case in cases:
            try:
                result = self.inferer(case.measurement, self.network, generator=torch.Generator().manual_seed(0))
            except (ValueError, RuntimeError, ArithmeticError):
                return -math.inf
            names, space = case.kinds[kind], case.measurement.space
            stack = torch.as_tensor(result).detach().cpu()
            values = evaluate_image(stack, case.truth, space, targets=names, metrics=[metric])
            scores.setdefault(case.task, []).extend(values[name][metric] for name in names)
        mean = sum(sum(v) / len(v) for v in scores.values()) / len(scores)
        return round(mean, 6) if math.isfinite(mean) else -math.inf


def tune(
    bundles: Sequence[Bundle],
    data: ValidationData,
    *,
    trials: int = 24,
    metric: str = "psnr",
    seed: int = 0,
    output: Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Iterator[tuple[Bundle, Path, list[TunedKind]]]:
    """Tune bundles one after another; yields each with its new settings file.

    Every kind of block in the tasks that a bundle takes gets ``trials`` trials, see
    :class:`~multirecon.harness.tuning_search.Search`. Trials in the log are not run again, as long as bundle, data and
    design are those of the log.

    Args:
        bundles: the bundles.
        data: the validation measurements.
        trials: trials a kind.
        metric: one of :data:`SCORES`.
        seed: of the design.
        output: folder for ``NAME/tuning.json`` and ``NAME/tuning.csv``; by default they are written into the bundle.
        device: device of the networks; by default the bundles' own choice.
        progress: show a progress bar.

    Raises:
        ValueError: on an unknown metric, a bundle without ranges, one that takes none of the tasks, or one whose every
            trial fails.
    """
    if metric not in SCORES:
        raise ValueError(f"metric: expected one of {SCORES}, got {metric!r}")
    ready = [TunableBundle(bundle, device=device) for bundle in bundles]
    for method in ready:
        Search(method.ranges, method.default, trials=trials, seed=seed)  # bad ranges end the run before it begins
    for method in ready:
        file, log = _places(method.bundle, output)
        plan = _plan(method, data)
        if not plan:
            raise ValueError(
                f"bundle {method.bundle.name!r}: expected a task with data it takes, got {list(data.tasks)}"
            )
        before = _previous(method.tuning, file)
        settings = {k: v for k, v in before.get("settings", {}).items() if k not in plan}
        tuned = []
        with tqdm(total=trials * len(plan), unit="trial", disable=not progress or None) as bar:
            for kind, cases in plan.items():
                bar.set_description(f"{method.bundle.name} {kind}")
                tuned.append(_tune_kind(method, kind, cases, settings, TrialLog(log), bar, trials, metric, seed))
                settings[kind] = dict(tuned[-1].best.settings)
        kinds = {k: v for k, v in before.get("kinds", {}).items() if k in settings}
        content = {
            "format": FORMAT,
            "bundle": method.bundle.name,
            "version": method.bundle.version,
            "multirecon": f"{multirecon.__version__} ({package_hash()[:12]})",
            "split": SPLIT,
            "metric": metric,
            "trials": trials,
            "seed": seed,
            "settings": settings,
            "kinds": {**kinds, **{k.kind: k.record() for k in tuned}},
        }
        write_json(file, content)
        yield method.bundle, file, tuned


def _plan(method: TunableBundle, data: ValidationData) -> dict[str, list[Case]]:
    """Return the cases of every kind of block, in the order of the tasks."""
    plan: dict[str, list[Case]] = {}
    for name in data.tasks:
        cases = data.cases(name)
        if method.takes(cases[0]):
            for kind in cases[0].kinds:
                plan.setdefault(kind, []).extend(cases)
    return plan


def _tune_kind(
    method: TunableBundle,
    kind: str,
    cases: Sequence[Case],
    settings: Mapping[str, Mapping[str, float]],
    log: TrialLog,
    bar: Any,
    trials: int,
    metric: str,
    seed: int,
) -> TunedKind:
    others = {k: dict(v) for case in cases for k in case.kinds if k != kind and (v := settings.get(k))}
    search = Search(method.ranges, method.default, trials=trials, seed=seed)
    design = {
        "kind": kind,
        "metric": metric,
        "trials": trials,
        "seed": seed,
        "bundle": method.content,
        "data": [(case.task, case.sample, case.fingerprint) for case in cases],
        "others": others,
    }
    run = hashlib.sha256(json.dumps(design, sort_keys=True).encode()).hexdigest()[:12]
    history = log.trials(run)[:trials]
    bar.update(len(history))
    while len(history) < trials:
        proposed, begin = search.propose(history), time.perf_counter()
        with method.tuning.override({**others, kind: proposed}):
            trial = Trial(proposed, method.score(cases, kind, metric))
        stage, seconds = search.stage(len(history)), time.perf_counter() - begin
        log.append(LoggedTrial(run, kind, len(history), stage, trial, seconds))
        history.append(trial)
        bar.update()
    best = max(history, key=lambda t: t.score)
    if not math.isfinite(best.score):
        raise ValueError(f"bundle {method.bundle.name!r}: expected a result for {kind}, got none in {trials} trials")
    edges = [n for n, r in method.ranges.items() if best.settings[n] in (r.low, r.high)]
    tasks = list(dict.fromkeys(case.task for case in cases))
    return TunedKind(kind, tasks, sorted({case.sample for case in cases}), history, best, edges)


def _places(bundle: Bundle, output: Path | None) -> tuple[Path, Path]:
    """Return the settings file and the log of a bundle."""
    if output is None:
        return bundle.root / TUNED, bundle.root / LOG
    return output / bundle.name / TUNED.name, output / bundle.name / LOG.name


def _previous(tuning: Tuning, file: Path) -> dict[str, Any]:
    """Return the content of an earlier settings file, checked; kinds that are not tuned again are kept."""
    if not file.exists():
        return {}
    Tuning(tuning.parameters, path=file)
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
