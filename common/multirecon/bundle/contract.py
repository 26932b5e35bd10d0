"""What every bundle promises, as checks that need neither a network nor a data set.

The public model zoo verifies an uploaded bundle in much the same way (files, metadata, network, TorchScript); the
contract tests, ``ci/verify_bundles.py`` and the scaffold run these checks, and the tests add those that need data.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from pathlib import Path
from shutil import copyfile
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigWorkflow
from monai.bundle.scripts import _get_fake_spatial_shape
from torch import Tensor, nn

from .folder import Bundle, find
from .guard import root_cause
from .loader import load, load_network, on_path
from .metadata import metadata_faults, schema_path
from .naming import check_name, check_version
from .upload import large_file_faults, logging_faults, requirement_faults
from .weights import read_weights, weights_hash

__all__ = ["CHECKS", "Inspection", "verify"]

REQUIRED_FILES = (
    "LICENSE",
    "docs/README.md",
    "configs/metadata.json",
    "configs/inference.json",
    "configs/train.json",
    "configs/evaluate.json",
    "configs/logging.conf",
    "models/model.pt",
)
# Left behind by other tools, and never part of a bundle.
REFUSED_FILES = ("models/verify_model.ts", "models/model.ts", "eval", "scripts", "multirecon")
GUARD = "multirecon.bundle.guard"


class Inspection:
    """One bundle while it is looked at; what several checks need is built once.

    Args:
        bundle: the bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        on_path(bundle)

    @cached_property
    def workflow(self) -> ConfigWorkflow:
        """The inference workflow, initialised."""
        return load(self.bundle)

    @cached_property
    def network(self) -> nn.Module:
        """``network_def`` with its weights, on the CPU."""
        return load_network(self.workflow, bundle=self.bundle).cpu()

    def example(self) -> Tensor:
        """Return a random input of the smallest shape that the metadata allow, ``(1, C, *spatial)``."""
        image = self.bundle.metadata["network_data_format"]["inputs"]["image"]
        shape = (1, image["num_channels"], *_get_fake_spatial_shape(image["spatial_shape"]))
        generator = torch.Generator().manual_seed(0)
        return torch.rand(shape, generator=generator, dtype=getattr(torch, image["dtype"]))


def files(look: Inspection) -> list[str]:
    """Standard form: every file is there, none that does not belong, configs are JSON with a guarded ``run``."""
    root = look.bundle.root
    wanted = [*REQUIRED_FILES, *(["configs/multi_gpu_train.json"] if look.bundle.learned else [])]
    wanted += [f"models/{name}.pt" for name in look.bundle.controls]
    faults = [f"{name}: expected a non-empty file, got none" for name in wanted if not _filled(root / name)]
    packed = "package" in look.bundle.metadata.get("multirecon", {})
    refused = [name for name in REFUSED_FILES if not (packed and name == "multirecon")]
    faults += [f"{name}: does not belong into a bundle" for name in refused if (root / name).exists()]
    extra = sorted(p.stem for p in (root / "models").glob("*.pt") if p.stem not in ("model", *look.bundle.controls))
    faults += [f"models/{name}.pt: expected an entry in multirecon.controls" for name in extra]
    modules = sorted(p.stem for p in root.glob("*.py") if not p.stem.startswith(look.bundle.name))
    faults += [f"{name}.py: expected a module that carries the bundle's name" for name in modules]
    for path in sorted(look.bundle.configs.glob("*.json")):
        faults += _config_faults(path)
    return faults + large_file_faults(look.bundle) + logging_faults(look.bundle)


def _filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _config_faults(path: Path) -> list[str]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"configs/{path.name}: expected JSON, got {error}"]
    faults = []
    run = config.get("run")
    first = run[0] if isinstance(run, list) and run else None
    if run is not None and not (isinstance(first, dict) and first.get("_target_") == GUARD):
        faults.append(f"configs/{path.name}: expected {{'_target_': '{GUARD}'}} first in 'run'")
    for where, text in _texts(config):
        if text.startswith("%") and text.endswith((".json", ".yaml", ".yml")):
            faults.append(f"configs/{path.name}: {where}: expected no file macro (it depends on the directory)")
        if os.path.isabs(text) and len(text) > 1:
            faults.append(f"configs/{path.name}: {where}: expected no absolute path, got {text!r}")
        if where.startswith(("initialize", "imports")) and "multirecon" in text:
            faults.append(f"configs/{path.name}: {where}: expected no multirecon before 'run' "
                          "(an archive's copy is not on Python's path yet)")  # fmt: skip
    return faults


def _texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, f"{where}#{key}" if where else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{where}#{index}")
    elif isinstance(value, str):
        yield where, value


def metadata(look: Inspection) -> list[str]:
    """``metadata.json`` against our schema, names and versions, variants; then MONAI's ``verify_metadata`` on it."""
    content = look.bundle.metadata
    faults = metadata_faults(content, name=look.bundle.name)
    for check, value in ((check_name, look.bundle.name), (check_version, look.bundle.version)):
        try:
            check(value)
        except ValueError as error:
            faults.append(str(error))
    stated = content.get("multirecon", {}).get("variants", {})
    if sorted(stated) != sorted(look.bundle.variants):
        faults.append(
            f"multirecon.variants: expected {list(look.bundle.variants)} as in configs/, got {sorted(stated)}"
        )
    if not faults:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            # An existing file is not downloaded; the address in the metadata stays MONAI's own.
            local = Path(folder) / "schema.json"
            copyfile(schema_path(), local)
            monai.bundle.verify_metadata(meta_file=str(look.bundle.configs / "metadata.json"), filepath=str(local))
    return faults


def requirements(look: Inspection) -> list[str]:
    """The packages in the metadata exist, and are all that the bundle's own modules import."""
    return requirement_faults(look.bundle)


def checkpoint(look: Inspection) -> list[str]:
    """``model.pt`` and the controls: tensors only, finite, strict; the hash is the one in the metadata.

    A control with a network of its own is the variant of its name: ``inference_NAME.json`` holds its ``network_def``.
    """
    own = look.bundle.metadata.get("multirecon", {})
    faults = []
    for name in ("model", *look.bundle.controls):
        workflow = load(look.bundle, name) if name in look.bundle.variants else look.workflow
        network = workflow.parser.get_parsed_content("network_def")
        path = look.bundle.weights.with_name(f"{name}.pt")
        state = read_weights(path)
        missing, unexpected = (
            sorted(network.state_dict().keys() - state.keys()),
            sorted(state.keys() - network.state_dict()),
        )
        if missing or unexpected:
            faults.append(f"models/{name}.pt: expected the names of network_def, got missing {missing[:3]}, "
                          f"unexpected {unexpected[:3]}")  # fmt: skip
            continue
        network.load_state_dict(state, strict=True)
        stated = own.get("weights", {}).get("sha256")
        if name == "model" and stated is not None and stated != weights_hash(state):
            faults.append(f"multirecon.weights.sha256: expected {weights_hash(state)}, got {stated}")
    return faults


def properties(look: Inspection) -> list[str]:
    """``check_properties()`` of the inference (every variant) and training workflows is empty."""
    faults = []
    workflows: list[tuple[str, ConfigWorkflow]] = [
        ("inference", look.workflow),
        ("train", load(look.bundle, workflow="train")),
    ]
    workflows += [(f"inference_{name}", load(look.bundle, name)) for name in look.bundle.variants]
    for name, workflow in workflows:
        with _quiet():
            missing = workflow.check_properties()
        faults += [f"{name}: property {item!r} is missing or has another ID" for item in missing or []]
    return faults


def tuning(look: Inspection) -> list[str]:
    """The ranges in the metadata are of settings that a config's ``tuning`` has, and its defaults lie inside them."""
    ranges = look.bundle.metadata.get("multirecon", {}).get("tuning", {})
    workflows = [look.workflow, *(load(look.bundle, name) for name in look.bundle.variants)] if ranges else []
    faults, known = [], set()
    for workflow in workflows:
        found = workflow.parser.get_parsed_content("tuning") if "tuning" in workflow.parser else None
        for name, default in getattr(found, "parameters", {}).items():
            known.add(name)
            low, high = (ranges[name][end] for end in ("low", "high")) if name in ranges else (default, default)
            if not low <= default <= high:
                faults.append(f"multirecon.tuning.{name}: expected a default in [{low:g}, {high:g}], got {default:g}")
    unknown = sorted(set(ranges) - known)
    if unknown:
        faults.append(f"multirecon.tuning: expected some of {sorted(known)}, the settings of 'tuning' in the inference "
                      f"configs, got {unknown}")  # fmt: skip
    return faults


def network_in_out(look: Inspection) -> list[str]:
    """MONAI's ``verify_net_in_out``; besides, the output's spatial shape is the one in the metadata."""
    with _quiet():
        monai.bundle.verify_net_in_out(net_id="network_def", device="cpu", **_files(look))
    pred = look.bundle.metadata["network_data_format"]["outputs"]["pred"]
    with torch.no_grad():
        shape = tuple(look.network(look.example()).shape)
    expected = (1, pred["num_channels"], *_get_fake_spatial_shape(pred["spatial_shape"]))
    return [] if shape == expected else [f"network_data_format.outputs.pred: expected {expected}, got {shape}"]


def torchscript(look: Inspection) -> list[str]:
    """MONAI's ``ckpt_export`` (scripting), loaded again: equal outputs."""
    example = look.example()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = str(Path(folder) / "model.ts")
        monai.bundle.ckpt_export(
            net_id="network_def", filepath=path, ckpt_file=str(look.bundle.weights), **_files(look)
        )
        return _differences(look.network, torch.jit.load(path), example)


def exported_program(look: Inspection) -> list[str]:
    """``torch.export``, saved and loaded again: equal outputs."""
    example = look.example()
    with _quiet():
        program = torch.export.export(look.network, (example,))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        return _differences(look.network, torch.export.load(buffer).module(), example)


def _files(look: Inspection) -> dict[str, str]:
    configs = look.bundle.configs
    return {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}


def _differences(network: nn.Module, other: Callable[[Tensor], Tensor], example: Tensor) -> list[str]:
    with torch.no_grad():
        expected, got = network(example), other(example)
    if got.shape != expected.shape:
        return [f"output: expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"]
    worst = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    return [] if worst < 1e-5 else [f"output: expected the network's, got a relative difference of {worst:.1e}"]


CHECKS: dict[str, Callable[[Inspection], list[str]]] = {
    "files": files,
    "metadata": metadata,
    "requirements": requirements,
    "checkpoint": checkpoint,
    "properties": properties,
    "tuning": tuning,
    "network": network_in_out,
    "torchscript": torchscript,
    "torch.export": exported_program,
}


def verify(bundle: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Run every check on a bundle and return its faults by the check's name; an empty list is a pass.

    Args:
        bundle: folder or name, see :func:`multirecon.bundle.find`.
    """
    look = Inspection(find(bundle))
    return {name: run_check(name, look) for name in CHECKS}


def run_check(name: str, look: Inspection) -> list[str]:
    """Return the faults that one check finds; an error in it is a fault too."""
    try:
        return CHECKS[name](look)
    except Exception as error:
        cause = root_cause(error)
        line = " ".join(str(cause).split())
        return [f"{type(cause).__name__}: {line[:300]}"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MONAI's summaries and PyTorch's deprecation notes of TorchScript out of the report."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
