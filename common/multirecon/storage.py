"""HDF5 encoding of operators and likelihoods: a fixed table of kinds, plain arguments, nothing that executes."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from . import likelihoods, operators
from .hdf5 import MAX_DATASET_BYTES, member, read_numbers
from .likelihoods import Likelihood
from .operators import LinearOperator

__all__ = ["MAX_DATASET_BYTES", "decode", "encode", "kinds", "member", "read_tensor", "write_tensor"]

_PLAIN = (type(None), bool, int, float, str)


def kinds() -> dict[str, Callable[..., nn.Module]]:
    """Return the fixed table ``kind -> class`` of everything that a measurement file may contain."""
    table: dict[str, Callable[..., nn.Module]] = {}
    for module, base in ((operators, LinearOperator), (likelihoods, Likelihood)):
        table |= _exported(module, base)
    return table


def _exported(module: ModuleType, base: type) -> dict[str, Callable[..., nn.Module]]:
    classes: list[Any] = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
    return {c.kind: c for c in classes if c.kind}


def encode(group: h5py.Group, module: nn.Module) -> None:
    """Write an operator or a likelihood into an empty HDF5 group.

    Raises:
        ValueError: if its kind is not in the table, or an argument is not plain, a tensor, an operator, or a list or
            dictionary of these.
    """
    kind = getattr(module, "kind", "")
    if kind not in kinds():
        raise ValueError(f"{type(module).__name__}: expected a kind of {sorted(kinds())}, got {kind!r}")
    group.attrs["kind"] = kind
    plain: dict[str, Any] = {}
    for name, value in module.arguments().items():  # type: ignore[operator]
        if not _encode_value(group, name, value):
            plain[name] = value
    group.attrs["plain"] = json.dumps(plain)


def _encode_value(group: h5py.Group, name: str, value: Any) -> bool:
    """Write a tensor, module, or collection of modules; return False for a plain value."""
    if isinstance(value, Tensor):
        write_tensor(group, name, value)
    elif isinstance(value, nn.Module):
        encode(group.create_group(name), value)
    elif isinstance(value, list | tuple) and value and all(isinstance(v, nn.Module) for v in value):
        child = group.create_group(name)
        child.attrs["list"] = len(value)
        for index, item in enumerate(value):
            encode(child.create_group(str(index)), item)
    elif _is_plain(value):
        return False
    else:
        raise ValueError(f"{name}: expected a plain value, tensor or operator, got {type(value).__name__}")
    return True


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return isinstance(value, _PLAIN)


def decode(group: h5py.Group) -> nn.Module:
    """Rebuild an operator or a likelihood from its group.

    Raises:
        ValueError: on an unknown kind, a link out of the file, an object dataset, or arguments that do not fit.
    """
    where = group.name
    kind = _text(group, "kind")
    table = kinds()
    if kind not in table:
        raise ValueError(f"{where}: expected a kind of {sorted(table)}, got {kind!r}")
    try:
        arguments = json.loads(_text(group, "plain"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected JSON arguments, got {error}") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"{where}: expected a JSON object of arguments, got {type(arguments).__name__}")
    for name in group:
        arguments[name] = _decode_child(group, name)
    try:
        return table[kind](**arguments)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{where}: arguments do not fit kind {kind!r}: {error}") from None


def _decode_child(group: h5py.Group, name: str) -> Any:
    child = member(group, name)
    if isinstance(child, h5py.Dataset):
        return read_tensor(group, name)
    if "list" in child.attrs:
        count = int(child.attrs["list"])
        if sorted(child) != sorted(str(i) for i in range(count)):
            raise ValueError(f"{child.name}: expected {count} numbered members, got {sorted(child)}")
        return [decode(member(child, str(i))) for i in range(count)]
    return decode(child)


def _text(group: h5py.Group, name: str) -> str:
    value = group.attrs.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{group.name}: expected a text attribute {name!r}, got {type(value).__name__}")
    return value


def write_tensor(group: h5py.Group, name: str, tensor: Tensor) -> None:
    """Write a tensor as a dataset of its own dtype.

    Large ones are compressed where much of them is zero (k-space outside the mask): of noise and coil maps compression
    saves a tenth of the size and takes most of the time of reading.
    """
    array = tensor.detach().cpu().numpy()
    sparse = array.nbytes > 65536 and np.count_nonzero(array) <= array.size // 2
    group.create_dataset(name, data=array, **({"compression": "gzip", "compression_opts": 1} if sparse else {}))


def read_tensor(group: h5py.Group, name: str) -> Tensor:
    """Read a dataset as a tensor.

    Raises:
        ValueError: if it is not a numeric dataset stored in this file, is too large, or was cut short.
    """
    dataset = member(group, name)
    return torch.from_numpy(read_numbers(dataset, f"{group.name.rstrip('/')}/{name}"))
