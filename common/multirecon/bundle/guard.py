"""The first thing that a bundle runs: refuses what MONAI would accept silently."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from monai.bundle.properties import InferProperties, TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from .package import check_package
from .weights import check_weights

__all__ = ["guard", "root_cause", "unknown_keys"]

TRACEBACK_SETTING = "MULTIRECON_TRACEBACK"
# Read by MONAI itself, by MONAI Label, or by MONAI's experiment tracking, though no config refers to them.
READ_ELSEWHERE = ("_meta_", "imports", "initialize", "run", "finalize", "save_execute_config")
# The options that MONAI Label shows: each must reach something, or it would be a knob that turns nothing.
OPTIONS = "displayable_configs"


def guard(*, allow: Sequence[str] = ()) -> None:
    """Check the workflow that is about to run; the first entry of a bundle's ``run``.

    ``{"_target_": "multirecon.bundle.guard"}`` in front of ``"$@evaluator.run()"`` makes a run fail that MONAI would
    let pass: a mistyped override or key (nothing refers to it, so it would do nothing), an empty data set (MONAI exits
    with 0), a bundle archive that meets another ``multirecon``; and what MONAI would only report in pages of
    tracebacks: a device that is not there, missing, damaged or foreign weights. Under ``python -m monai.bundle`` it
    also makes errors that this package raises end in one line; ``MULTIRECON_TRACEBACK=1`` brings the traceback back.

    It stands in ``run``, not in ``initialize``, because MONAI puts the bundle's folder on Python's path in between.
    MONAI hands an expression nothing but what it refers to, so the workflow is found on the call stack; where there is
    none (MONAI Label and Deploy run no ``run``), nothing is checked.

    Args:
        allow: keys that nothing refers to and that are meant to be there.

    Raises:
        ValueError: in one line.
    """
    workflow = _calling_workflow()
    if workflow is None:
        return
    _end_in_one_line()
    check_package(workflow.parser.get("_meta_", {}))
    unknown = unknown_keys(workflow, allow=allow)
    if unknown:
        raise ValueError("; ".join(unknown))
    _check_device(workflow)
    _check_checkpoint(workflow)
    _check_dataset(workflow)


def unknown_keys(workflow: ConfigWorkflow, *, allow: Sequence[str] = ()) -> list[str]:
    """Return one sentence for every key of the merged config that nothing refers to and nobody reads.

    Args:
        workflow: a config workflow with its overrides.
        allow: further keys that are meant to be there.
    """
    config = workflow.parser.get()
    known = {*_references(config), *_references(_loaded_files(workflow)), *_known_ids(), *allow}
    known |= {workflow.init_id, workflow.run_id, workflow.final_id}
    return list(_unknown(config, "", known))


def root_cause(error: BaseException) -> BaseException:
    """Return what went wrong, below what MONAI's parser and engines wrapped around it.

    That is the innermost clear line, a ValueError raised by this package (which may itself have a parser's error for a
    cause), and without one the innermost error.
    """
    clear = error if _is_clear(error) else None
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = cause
        clear = error if _is_clear(error) else clear
    return clear or error


def _unknown(config: Mapping[str, Any], prefix: str, known: set[str]) -> Iterable[str]:
    siblings = [str(key) for key in config]
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in known or str(key).startswith("_") or value is None:  # null: a key that was taken back
            continue
        if name == OPTIONS and isinstance(value, dict):
            yield from _unknown(value, f"{name}::", known)
            continue
        if any(k.startswith(f"{name}::") for k in known):
            if isinstance(value, dict) and "_target_" not in value:
                yield from _unknown(value, f"{name}::", known)
            continue
        others = sorted({k.removeprefix(prefix).split("::")[0] for k in known if k.startswith(prefix)} | set(siblings))
        close = difflib.get_close_matches(str(key), [o for o in others if o != key], n=1)
        hint = f" (did you mean {prefix + close[0]!r}?)" if close else ""
        yield f"unknown key {name!r}{hint}: nothing in the configuration refers to it"


def _references(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)
    elif isinstance(value, str):
        yield from map(ReferenceResolver.normalize_id, ReferenceResolver.match_refs_pattern(value))


def _loaded_files(workflow: ConfigWorkflow) -> list[Any]:
    """Return the config files that were merged: those in the bundle's folder whose every key is in the config.

    An override may take the only reference to a key away (``train#trainer#max_epochs`` that of ``max_epochs``), which
    makes no mistake of a key that the file itself uses.
    """
    loaded = []
    for path in sorted(Path(workflow.config_root_path).glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            keys = [ReferenceResolver.split_id(key.removeprefix("+"))[0] for key in content]
            if isinstance(content, dict) and all(key in workflow.parser for key in keys):
                loaded.append(content)
    return loaded


@cache
def _known_ids() -> frozenset[str]:
    properties = [p["id"] for p in (*InferProperties.values(), *TrainProperties.values())]
    tracking = [k for k, v in DEFAULT_MLFLOW_SETTINGS["configs"].items() if not isinstance(v, dict)]
    ids = [*READ_ELSEWHERE, *properties, *tracking, *_task_keys()]
    return frozenset(ReferenceResolver.normalize_id(i) for i in ids)


def _task_keys() -> list[str]:
    """Keys of a task file, which may be laid over ``inference.json``; the harness reads them."""
    path = Path(__file__).parents[1] / "tasks" / "task.schema.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["properties"])


def _check_device(workflow: ConfigWorkflow) -> None:
    if "device" not in workflow.parser:
        return
    name = workflow.parser.get_parsed_content("device")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected a device such as cpu or cuda:0, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: expected one of this machine, which has {torch.cuda.device_count()} CUDA devices, "
                         f"got {str(device)!r}")  # fmt: skip


def _check_checkpoint(workflow: ConfigWorkflow) -> None:
    """Read the weights that the run will load; they must be those of its network."""
    if "ckpt_path" in workflow.parser and "network_def" in workflow.parser:
        path = workflow.parser.get_parsed_content("ckpt_path")
        network = workflow.parser.get_parsed_content("network_def")
        if path and isinstance(network, torch.nn.Module):
            check_weights(path, network)


def _check_dataset(workflow: ConfigWorkflow) -> None:
    """Build the data set that the run will use, and refuse an empty one."""
    for key in ("dataset", "train::dataset"):
        if key in workflow.parser:
            dataset = workflow.parser.get_parsed_content(key)
            if hasattr(dataset, "__len__") and len(dataset) == 0:
                raise ValueError(f"{key.replace('::', '#')}: expected at least one sample, got none")


def _calling_workflow() -> ConfigWorkflow | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, ConfigWorkflow):
            return candidate
        frame = frame.f_back
    return None


def _end_in_one_line() -> None:
    """Under MONAI's command line, let errors of this package end in one line instead of a chain of tracebacks."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name == "monai.bundle.__main__" and not os.environ.get(TRACEBACK_SETTING):
        sys.excepthook = _one_line(sys.excepthook)


Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def _one_line(otherwise: Hook) -> Hook:
    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause = root_cause(error)
        if _is_clear(cause):
            sys.stdout.flush()
            print(f"error: {' '.join(str(cause).split())}", file=sys.stderr)
        else:
            otherwise(kind, error, traceback)

    return hook


def _is_clear(error: BaseException) -> bool:
    """Whether an error is a ValueError that this package raised."""
    if not isinstance(error, ValueError):
        return False
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", ""))
    return module.split(".")[0] == "multirecon"
