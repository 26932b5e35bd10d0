"""A bundle as a MONAI workflow, ready to use from Python."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from torch import nn

from .folder import Bundle, find
from .guard import unknown_keys
from .package import check_package
from .weights import read_weights

__all__ = ["config_files", "load", "load_network", "on_path"]

WORKFLOWS = {"inference": ("inference.json",), "train": ("train.json",), "evaluate": ("train.json", "evaluate.json")}


def config_files(bundle: Bundle, variant: str | None = None, *, workflow: str = "inference") -> list[Path]:
    """Return the config files in the order in which they are laid over each other.

    Args:
        bundle: the bundle.
        variant: ``NAME`` of the overlay ``configs/inference_NAME.json``.
        workflow: ``"inference"``, ``"train"`` or ``"evaluate"``.

    Raises:
        ValueError: on an unknown workflow or variant, or a missing file.
    """
    if workflow not in WORKFLOWS:
        raise ValueError(f"workflow: expected one of {list(WORKFLOWS)}, got {workflow!r}")
    names = list(WORKFLOWS[workflow])
    if variant:
        if workflow != "inference" or variant not in bundle.variants:
            raise ValueError(f"variant of {bundle.name!r}: expected one of {list(bundle.variants)}, got {variant!r}")
        names.append(f"inference_{variant}.json")
    files = [bundle.configs / name for name in names]
    for file in files:
        if not file.is_file():
            raise ValueError(f"bundle {bundle.name!r}: expected the file configs/{file.name}, got none")
    return files


def load(
    bundle: str | os.PathLike[str],
    variant: str | None = None,
    *,
    workflow: str = "inference",
    overlays: Sequence[str | os.PathLike[str]] = (),
    log: bool = False,
    **overrides: Any,
) -> ConfigWorkflow:
    """Return an initialised MONAI workflow of a bundle: its components can be asked for, and it can ``run()``.

    The bundle's folder is put on Python's path as ``python -m monai.bundle run`` does, and ``bundle_root`` is set, so
    that it works from any directory.

    Args:
        bundle: folder or name, see :func:`multirecon.bundle.find`.
        variant: ``NAME`` of the overlay ``configs/inference_NAME.json``.
        workflow: ``"inference"``, ``"train"`` or ``"evaluate"``.
        overlays: further config files laid over it, such as a task.
        log: apply the bundle's ``logging.conf`` to this process.
        **overrides: config ID -> value; nested IDs as in ``**{"inferer#batch_size": 4}``.

    Returns:
        The workflow, after ``initialize()``.

    Raises:
        ValueError: if a file is missing, an override changes nothing, or a packed bundle meets another multirecon.
    """
    found = find(bundle)
    check_package(found.metadata)
    files = [*config_files(found, variant, workflow=workflow), *map(Path, overlays)]
    on_path(found)
    level = logging.root.manager.disable
    logging.disable(level if log else max(level, logging.WARNING))  # MONAI warns that it applies no logging.conf
    try:
        built = ConfigWorkflow(
            config_file=[str(f) for f in files],
            workflow_type="inference" if workflow == "inference" else "train",
            logging_file=None if log else False,
            bundle_root=str(found.root),
            **overrides,
        )
    except KeyError as error:
        raise ValueError(f"override of {found.name!r}: expected an existing key, got {error.args[0]}") from error
    finally:
        logging.disable(level)
    unknown = unknown_keys(built)
    if unknown:
        raise ValueError(f"bundle {found.name!r}: {'; '.join(unknown)}")
    built.initialize()
    return built


def load_network(
    workflow: ConfigWorkflow, *, control: str | None = None, bundle: str | os.PathLike[str] | None = None
) -> nn.Module:
    """Return a workflow's network with its checkpoint loaded, strictly, in evaluation mode.

    A workflow loads its checkpoint only when it runs (a handler does); this is for calling the inferer directly.

    Args:
        workflow: an initialised workflow.
        control: name of a further checkpoint ``models/NAME.pt``; the default is the one that the ``ckpt_path`` of the
            workflow names, ``model.pt`` where it names none of the bundle's.
        bundle: the bundle, where ``bundle_root`` of the workflow is not its folder.

    Raises:
        ValueError: if the checkpoint is missing, or its names or shapes differ from the network's.
    """
    root = Bundle(Path(bundle if bundle is not None else workflow.parser.get_parsed_content("bundle_root")).absolute())
    if control is None and "ckpt_path" in workflow.parser:
        named = Path(str(workflow.parser.get_parsed_content("ckpt_path"))).stem
        control = named if named in root.controls else None
    if control is not None and control not in root.controls:
        raise ValueError(f"control of {root.name!r}: expected one of {list(root.controls)}, got {control!r}")
    path = root.weights if control is None else root.weights.with_name(f"{control}.pt")
    parser = workflow.parser
    network = parser.get_parsed_content("network" if "network" in parser else "network_def")
    try:
        network.load_state_dict(read_weights(path), strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: expected the names and shapes of network_def: {' '.join(str(error).split())}"
        ) from None
    return network.eval()


def on_path(bundle: Bundle) -> None:
    """Put the bundle's folder on Python's path, behind the first entry, as MONAI does."""
    if str(bundle.root) not in sys.path:
        sys.path.insert(1, str(bundle.root))
