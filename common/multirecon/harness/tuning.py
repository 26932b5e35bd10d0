"""Settings of the methods, tuned on validation anatomies with the same number of trials for every bundle and kind."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import multirecon

from ..bundle.guard import root_cause
from ..bundle.loader import load, load_network
from ..bundle.package import package_hash
from ..measurement import Measurement
from ..metrics.evaluate import evaluate_image
from ..reconstruction.tuning import FORMAT, GUIDE, Tuning
from .methods import Method
from .tuning_data import SPLIT, Case, ValidationData
from .tuning_log import LoggedTrial, TrialLog
from .tuning_search import Range, Search, Trial
from .workspace import write_json

__all__ = ["SCORES", "TunedKind", "tune"]

SCORES = ("psnr", "ssim")
TASKS_A_KIND = 2


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


class TunableMethod:
    """A bundle, or a variant of one, in this process, with its tuning at hand.

    Args:
        method: the method; the metadata of its bundle state the ranges in ``multirecon.tuning``.
        device: device of the network; by default the bundle's own choice.

    Raises:
        ValueError: if it states no range of a setting that the ``tuning`` in its config has, or of one that has none.
    """

    def __init__(self, method: Method, *, device: str | None = None) -> None:
        self.method, self.name = method, method.name
        entries = method.bundle.metadata.get("multirecon", {}).get("tuning", {})
        if not entries:
            raise ValueError(f"bundle {self.name!r}: expected ranges in multirecon.tuning of metadata.json, got none")
        try:
            ranges = {name: Range.of(entry) for name, entry in entries.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"bundle {self.name!r}: multirecon.tuning: {error}") from None
        override: dict[str, Any] = {"device": f"$torch.device({device!r})"} if device else {}
        try:
            workflow = load(method.bundle, method.variant or None, **override)
            tuning = workflow.parser.get_parsed_content("tuning") if "tuning" in workflow.parser else None
        except RuntimeError as error:  # MONAI wraps what a constructor raised
            raise ValueError(f"bundle {self.name!r}: {root_cause(error)}") from error
        if not isinstance(tuning, Tuning) or tuning.path is None:
            raise ValueError(f"bundle {self.name!r}: expected a Tuning with a path under 'tuning' in inference.json, "
                             f"got {type(tuning).__name__}")  # fmt: skip
        self.ranges = {name: r for name, r in ranges.items() if name in tuning.parameters}
        unknown = sorted(set(ranges) - set(tuning.parameters))
        if not self.ranges or (unknown and not method.bundle.variants):  # variants may have settings of their own
            raise ValueError(f"bundle {self.name!r}: multirecon.tuning: expected some of {sorted(tuning.parameters)}, "
                             f"got {unknown}")  # fmt: skip
        self.tuning, self.path = tuning, tuning.path
        self.default = {name: tuning.parameters[name] for name in self.ranges}
        self.inferer = workflow.inferer
        self.network = load_network(workflow, bundle=method.bundle)

    def places(self, output: Path | None) -> tuple[Path, Path]:
        """Return the settings file and the log, in the bundle or below another folder."""
        if output is None:
            return self.path, self.method.root / "docs" / f"{self.path.stem}.csv"
        folder = output / self.method.bundle.name
        return folder / self.path.name, folder / f"{self.path.stem}.csv"

    @cached_property
    def content(self) -> str:
        """SHA-256 of what the images depend on besides the settings: inference configs, code and weights."""
        root, digest = self.method.root, hashlib.sha256()
        files = [*self.method.config_files, *sorted(root.rglob("*.py")), *sorted(root.glob("models/*.pt"))]
        for path in files:
            digest.update(f"{path.relative_to(root).as_posix()}|{path.stat().st_size}|".encode() + path.read_bytes())
        return digest.hexdigest()

    def takes(self, case: Case) -> bool:
        """Whether the method can reconstruct the measured modalities of a case."""
        return self._refusal(case.measurement) is None

    def uses_guide(self, case: Case) -> bool:
        """Whether the images of the measured modalities depend on the clean ones beside them, at the default."""
        measured = list(itertools.chain(*case.kinds.values()))
        channels = case.measurement.space.channel_index(measured)
        without = case.measurement.restrict(measured)
        if self._refusal(without) is not None:
            return True
        with self.tuning.override({}):
            images = [self.inferer(m, self.network, generator=torch.Generator().manual_seed(0))[:, channels]
                      for m in (case.measurement, without)]  # fmt: skip
        return not torch.equal(*images)

    def _refusal(self, measurement: Measurement) -> str | None:
        capability = getattr(self.inferer, "capability", None)
        return next(iter([] if capability is None else capability.refusals(measurement)), None)

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
    methods: Sequence[Method],
    data: ValidationData,
    *,
    trials: int = 24,
    metric: str = "psnr",
    seed: int = 0,
    kinds: Sequence[str] = (),
    output: Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Iterator[tuple[Method, Path, list[TunedKind]]]:
    """Tune methods one after another; yields each with its new settings file.

    Every kind of block in the tasks that a method takes gets ``trials`` trials on the first two of those tasks, see
    :class:`~multirecon.harness.tuning_search.Search`. Trials in the log are not run again, as long as bundle, data and
    design are those of the log.

    Args:
        methods: bundles and variants.
        data: the validation measurements.
        trials: trials a kind.
        metric: one of :data:`SCORES`.
        seed: of the design.
        kinds: kinds of block to tune; by default all that the tasks have. What is left out keeps its settings.
        output: folder for ``BUNDLE/tuning.json`` and ``BUNDLE/tuning.csv``; by default the settings go where the method
            reads them, and the log into the folder ``docs`` of the bundle.
        device: device of the networks; by default the bundles' own choice.
        progress: show a progress bar.

    Raises:
        ValueError: on an unknown metric, a method without ranges, one that takes none of the tasks, or one whose every
            trial fails.
    """
    if metric not in SCORES:
        raise ValueError(f"metric: expected one of {SCORES}, got {metric!r}")
    ready = [TunableMethod(method, device=device) for method in methods]
    for method in ready:
        Search(method.ranges, method.default, trials=trials, seed=seed)  # bad ranges end the run before it begins
    for method in ready:
        file, log = method.places(output)
        plan = _plan(method, data, kinds)
        if not plan and kinds:
            raise ValueError(f"bundle {method.name!r}: expected one of the kinds {list(kinds)} in {list(data.tasks)}")
        if not plan:
            raise ValueError(f"bundle {method.name!r}: expected a task with data it takes, got {list(data.tasks)}")
        before = _previous(method.tuning, file)
        settings = {k: v for k, v in before.get("settings", {}).items() if k not in plan}
        tuned = []
        with tqdm(total=trials * len(plan), unit="trial", disable=not progress or None) as bar:
            for kind, cases in plan.items():
                bar.set_description(f"{method.name} {kind}")
                tuned.append(_tune_kind(method, kind, cases, settings, TrialLog(log), bar, trials, metric, seed))
                settings[kind] = dict(tuned[-1].best.settings)
        held = {k: v for k, v in before.get("kinds", {}).items() if k in settings}
        content = {
            "format": FORMAT,
            "bundle": method.name,
            "version": method.method.bundle.version,
            "multirecon": f"{multirecon.__version__} ({package_hash()[:12]})",
            "split": SPLIT,
            "metric": metric,
            "trials": trials,
            "seed": seed,
            "settings": settings,
            "kinds": {**held, **{k.kind: k.record() for k in tuned}},
        }
        write_json(file, content)
        yield method.method, file, tuned


def _plan(method: TunableMethod, data: ValidationData, kinds: Sequence[str] = ()) -> dict[str, list[Case]]:
    """Return the cases of every kind of block, those of the first few tasks that have it.

    A kind with a guide is left out where the method does not look at it: it reads the settings of the kind without.
    """
    plan: dict[str, list[list[Case]]] = {}
    for name in data.tasks:
        cases = data.cases(name)
        if method.takes(cases[0]):
            for kind in cases[0].kinds:
                plan.setdefault(kind, []).append(cases)
    chosen = {
        kind: list(itertools.chain(*tasks[:TASKS_A_KIND])) for kind, tasks in plan.items() if not kinds or kind in kinds
    }
    return {
        kind: cases
        for kind, cases in chosen.items()
        if kind.removesuffix(GUIDE) not in chosen or not kind.endswith(GUIDE) or method.uses_guide(cases[0])
    }


def _tune_kind(
    method: TunableMethod,
    kind: str,
    cases: Sequence[Case],
    settings: Mapping[str, Mapping[str, float]],
    log: TrialLog,
    bar: Any,
    trials: int,
    metric: str,
    seed: int,
) -> TunedKind:
    known = {**method.tuning.fallback, **settings}
    others = {k: dict(v) for case in cases for k in case.kinds if k != kind and (v := known.get(k))}
    search = Search(method.ranges, method.default, trials=trials, seed=seed)
    design = {
        "kind": kind,
        "metric": metric,
        "trials": trials,
        "seed": seed,
        "bundle": method.content,
        "ranges": {name: [r.low, r.high, r.scale] for name, r in method.ranges.items()},
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
        raise ValueError(f"bundle {method.name!r}: expected a result for {kind}, got none in {trials} trials")
    edges = [n for n, r in method.ranges.items() if best.settings[n] in (r.low, r.high)]
    tasks = list(dict.fromkeys(case.task for case in cases))
    return TunedKind(kind, tasks, sorted({case.sample for case in cases}), history, best, edges)


def _previous(tuning: Tuning, file: Path) -> dict[str, Any]:
    """Return the content of an earlier settings file, checked; kinds that are not tuned again are kept."""
    if not file.exists():
        return {}
    Tuning(tuning.parameters, path=file)
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
