"""Guests: a model or algorithm of deepinv as a row of the leaderboard, described by one JSON file.

A guest is data, not code: classes come from three packages of deepinv, arguments are plain values, weights are local
files read as tensors. On the disk it becomes an ordinary bundle, so that the harness runs it like any other method.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..bundle.folder import Bundle
from ..files import atomic_path
from .methods import Method
from .workspace import write_json

__all__ = ["Guest", "build_guest", "read_guest", "resolve_target"]

TARGET = re.compile(r"deepinv\.(models|optim|sampling)\.[A-Z][A-Za-z0-9_]*")
REFUSED = ("Client", "DiffusersDenoiserWrapper")
"""Classes that talk to servers."""
KEYS = {"name", "description", "model", "clean_sigma", "capability"}
CAPABILITY = {"operators", "likelihoods", "modalities", "ndim"}
LIKELIHOODS = ("gaussian", "poisson", "transmission_poisson")
RECONSTRUCTOR = "multirecon.interop.guests.GuestReconstructor"


@dataclass(frozen=True)
class Guest:
    """A checked description.

    Args:
        name: the row of the table; letters, digits and underscores.
        description: one sentence.
        model: the object to build: ``_target_``, its arguments (plain values and further objects), and ``_weights_``
            where it has some.
        clean_sigma: noise level given to noiseless data, as a fraction of the modality's scale.
        capability: arguments of :class:`multirecon.reconstruction.Capability`.
        folder: folder that weight files are relative to.
    """

    name: str
    description: str
    model: Mapping[str, Any]
    clean_sigma: float
    capability: Mapping[str, Any]
    folder: Path

    def method(self, shelf: Path) -> Method:
        """Write the guest as a bundle below a folder, and return it as a method.

        Args:
            shelf: folder of the bundle; it must stay as long as the method is used.
        """
        root = shelf / self.name
        (root / "models").mkdir(parents=True, exist_ok=True)
        for name in _weight_files(self.model):
            with atomic_path(root / "models" / Path(name).name) as draft:
                shutil.copyfile(self.folder / name, draft)
        write_json(root / "configs" / "metadata.json", {
            "name": self.name, "version": version("deepinv"), "description": self.description,
        })  # fmt: skip
        write_json(root / "configs" / "guest.json", {
            "model": self.model, "clean_sigma": self.clean_sigma, "capability": self.capability,
        })  # fmt: skip
        write_json(root / "configs" / "inference.json", INFERENCE)
        return Method(Bundle(root.absolute()))


INFERENCE: dict[str, Any] = {
    "imports": ["$import os", "$import torch"],
    "bundle_root": ".",
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "dataset_dir": "",
    "output_dir": "$os.path.join(@bundle_root, 'eval')",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "multirecon.inputs.LoadInputd", "keys": "image"}],
    },
    "dataset": {
        "_target_": "multirecon.inputs.InputFolder",
        "dataset_dir": "@dataset_dir",
        "transform": "@preprocessing",
    },
    "dataloader": {
        "_target_": "DataLoader",
        "dataset": "@dataset",
        "batch_size": 1,
        "collate_fn": {"_target_": "multirecon.engines.collate", "_mode_": "callable"},
    },
    "inferer": {
        "_target_": RECONSTRUCTOR,
        "file": "$os.path.join(@bundle_root, 'configs', 'guest.json')",
        "models": "$os.path.join(@bundle_root, 'models')",
    },
    "network_def": "$@inferer.model",
    "network": "$@network_def.to(@device)",
    "handlers": [{"_target_": "multirecon.engines.SaveReconstructions", "output_dir": "@output_dir"}],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "prepare_batch": {"_target_": "multirecon.engines.PrepareMeasurement"},
        "val_handlers": "@handlers",
        "decollate": False,
    },
    "initialize": ["$monai.utils.set_determinism(seed=0)"],
    "run": [{"_target_": "multirecon.bundle.guard"}, "$@evaluator.run()"],
}


def read_guest(path: str | os.PathLike[str]) -> Guest:
    """Return the guest of a JSON file.

    Raises:
        ValueError: naming the file and the key: not JSON, an unknown key, a class that is not allowed or does not
            exist, an argument that it does not have, or a missing weight file.
    """
    source = Path(path)
    if not source.is_file():
        raise ValueError(f"guest: expected an existing JSON file, got {str(path)!r}")
    try:
        values = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"guest {str(source)!r}: expected JSON, got {error}") from None
    try:
        return _checked(values, source.parent)
    except ValueError as error:
        raise ValueError(f"guest {str(source)!r}: {error}") from None


def _checked(values: Any, folder: Path) -> Guest:
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object, got {type(values).__name__}")
    unknown, missing = sorted(set(values) - KEYS), sorted({"name", "model"} - set(values))
    if unknown or missing:
        raise ValueError(f"expected the keys {sorted(KEYS)}, got unknown {unknown} and missing {missing}")
    name, sigma, capability = values["name"], values.get("clean_sigma", 0.01), values.get("capability", {})
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,59}", name):
        raise ValueError(f"name: expected lower-case letters, digits and underscores, got {name!r}")
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not sigma > 0:
        raise ValueError(f"clean_sigma: expected a number > 0, got {sigma!r}")
    if not isinstance(capability, dict) or set(capability) - CAPABILITY:
        raise ValueError(f"capability: expected lists for some of {sorted(CAPABILITY)}, got {capability!r}")
    for key, items in capability.items():
        kind = int if key == "ndim" else str
        if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
            raise ValueError(f"capability.{key}: expected a list, got {items!r}")
    capability = {"likelihoods": [*LIKELIHOODS], "ndim": [2], **capability}
    if not isinstance(values["model"], dict):
        raise ValueError(f"model: expected an object with _target_, got {values['model']!r}")
    _check_object(values["model"], "model", folder)
    return Guest(name, str(values.get("description", "")), values["model"], float(sigma), capability, folder)


def _check_object(value: Mapping[str, Any], where: str, folder: Path) -> None:
    target = resolve_target(value.get("_target_"), where)
    known = inspect.signature(target).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for key, item in value.items():
        place = f"{where}.{key}"
        if key == "_target_":
            continue
        if key == "_weights_":
            if not isinstance(item, str) or Path(item).name != item or not (folder / item).is_file():
                raise ValueError(f"{place}: expected the name of a file beside the JSON file, got {item!r}")
        elif key == "pretrained":
            raise ValueError(f"{place}: expected weights as _weights_, the name of a local file, got {item!r}")
        elif key not in known and not open_ended:
            raise ValueError(f"{place}: expected an argument of {target.__name__}: {list(known)}, got {key!r}")
        else:
            _check_value(item, place, folder)


def _check_value(value: Any, where: str, folder: Path) -> None:
    if isinstance(value, Mapping):
        if "_target_" in value:
            _check_object(value, where, folder)
        else:
            for key, item in value.items():
                _check_value(item, f"{where}.{key}", folder)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_value(item, f"{where}.{index}", folder)


def resolve_target(target: Any, where: str = "model") -> type:
    """Return the class that a guest names.

    Raises:
        ValueError: if it is none of ``deepinv.models``, ``deepinv.optim`` and ``deepinv.sampling``.
    """
    allowed = "a class deepinv.models.NAME, deepinv.optim.NAME or deepinv.sampling.NAME"
    if not isinstance(target, str) or not TARGET.fullmatch(target):
        raise ValueError(f"{where}._target_: expected {allowed}, got {target!r}")
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    if not isinstance(found, type) or name in REFUSED:
        raise ValueError(f"{where}._target_: expected {allowed}, got {target!r}")
    return found


def build_guest(value: Any, models: Path) -> Any:
    """Return the object of a checked description, with its weights; nothing is downloaded.

    Args:
        value: an object with ``_target_``, or a plain value.
        models: folder of the weight files.

    Raises:
        ValueError: if an object cannot be built, or its weights do not fit.
    """
    if isinstance(value, list):
        return [build_guest(item, models) for item in value]
    if not isinstance(value, Mapping):
        return value
    arguments = {key: build_guest(item, models) for key, item in value.items() if not key.startswith("_")}
    if "_target_" not in value:
        return arguments
    target = resolve_target(value["_target_"])
    parameters = inspect.signature(target).parameters
    if "pretrained" in parameters:  # deepinv's default downloads
        arguments["pretrained"] = False if isinstance(parameters["pretrained"].default, bool) else None
    try:
        built = target(**arguments)
    except Exception as error:
        raise ValueError(f"{value['_target_']}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if "_weights_" in value:
        _load_weights(built, models / value["_weights_"])
    return built


def _load_weights(module: Any, path: Path) -> None:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(state, strict=True)
    except Exception as error:
        raise ValueError(f"_weights_ {path.name!r}: {' '.join(str(error).split())[:300]}") from error


def _weight_files(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if "_weights_" in value:
            yield value["_weights_"]
        value = [*value.values()]
    if isinstance(value, list):
        for item in value:
            yield from _weight_files(item)
