"""Checkpoints: tensors only, one state dict of the main network, and what proves that they matter."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from torch import Tensor, nn

from ..files import save_tensors

__all__ = ["check_weights", "fresh_network", "read_weights", "reinitialise", "weights_hash", "write_weights"]


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint file; nothing in it can execute.

    Raises:
        ValueError: if it cannot be read with ``weights_only=True``, is not a flat dictionary of finite tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"checkpoint: expected an existing file, got {os.fspath(path)!r}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        line = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: expected a checkpoint that loads with weights_only=True, got {line}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a state dict, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: expected tensors only, got {type(value).__name__} under {name!r}")
        if (value.is_floating_point() or value.is_complex()) and not torch.isfinite(value).all():
            raise ValueError(f"{path}: expected finite values, got NaN or Inf in {name!r}")
    return dict(content)


def check_weights(path: str | os.PathLike[str], network: nn.Module) -> None:
    """Raise ValueError unless a checkpoint holds finite tensors of the names and shapes of a network.

    Args:
        path: the checkpoint.
        network: the network that it is meant for.
    """
    given, wanted = read_weights(path), network.state_dict()
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or unknown:
        raise ValueError(f"{path}: expected the weights of {type(network).__name__}, got none for {missing[:3]} and "
                         f"unknown ones for {unknown[:3]}")  # fmt: skip
    for name, value in wanted.items():
        if value.shape != given[name].shape:
            raise ValueError(f"{path}: {name}: expected shape {tuple(value.shape)}, got {tuple(given[name].shape)}")


def write_weights(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> Path:
    """Write a state dict as a checkpoint, compressed, whole or not at all, and return its path."""
    return save_tensors(state, path)


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state dict (names, shapes, dtypes, bytes), whatever file it came from."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fresh_network(config: Mapping[str, Any], *, seed: int = 0) -> nn.Module:
    """Return ``network_def`` of a config as its constructor draws it, with weights that no checkpoint has touched.

    Args:
        config: content of ``inference.json`` or ``train.json``.
        seed: of the initial weights; the global random state is left as it was.

    Raises:
        ValueError: if ``network_def`` is not a network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConfigParser(copy.deepcopy(dict(config))).get_parsed_content("network_def")
    if not isinstance(network, nn.Module):
        raise ValueError(f"network_def: expected a torch.nn.Module, got {type(network).__name__}")
    return network


def reinitialise(workflow: ConfigWorkflow, *, seed: int = 0) -> nn.Module:
    """Replace the weights of a workflow's ``network_def`` by freshly drawn ones, in place, and return the network.

    A method that ignores its network does not notice; the contract asks a bundle with trained weights to lose 2 dB.

    Args:
        workflow: an initialised workflow, see :func:`multirecon.bundle.load`.
        seed: of the new weights.

    Raises:
        ValueError: if the constructor draws the very weights that are already there.
    """
    network = workflow.parser.get_parsed_content("network_def")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fresh = fresh_network(workflow.parser.get(), seed=seed).state_dict()
    network.load_state_dict(fresh, strict=True)
    if before and all(torch.equal(before[name].cpu(), fresh[name].cpu()) for name in before):
        raise ValueError("network_def: expected other weights after drawing them anew, got the same "
                         "(the network was not trained, or its constructor loads a checkpoint)")  # fmt: skip
    return network
