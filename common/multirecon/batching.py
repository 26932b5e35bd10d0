"""Joining and slicing of modules that hold one set of tensors a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["join_modules", "slice_samples"]


def slice_samples(tensor: Tensor, per_sample_ndim: int, start: int, stop: int) -> Tensor:
    """Return ``tensor[start:stop]`` if it has a batch axis (``per_sample_ndim`` axes in all) longer than one."""
    return tensor[start:stop] if tensor.ndim == per_sample_ndim and tensor.shape[0] > 1 else tensor


def join_modules(modules: Sequence[Any]) -> Any:
    """Return one module for the batch whose samples each given module describes; see ``LinearOperator.join``."""
    first = modules[0]
    if len(modules) == 1 or all(m is first for m in modules):
        return first
    if any(type(m) is not type(first) for m in modules):
        raise ValueError(f"batch: expected operators of one class, got {sorted({type(m).__name__ for m in modules})}")
    rows = [m.arguments() for m in modules]
    return type(first)(**{key: _join_argument(key, [row[key] for row in rows]) for key in rows[0]})


def _join_argument(key: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, nn.Module):
        return join_modules(values)
    if isinstance(first, list | tuple) and first and all(isinstance(v, nn.Module) for v in first):
        return [join_modules(column) for column in zip(*values, strict=True)]
    if isinstance(first, Tensor):
        if all(v is first or (v.shape == first.shape and torch.equal(v, first)) for v in values):
            return first
        if all(v.ndim and v.shape[0] == 1 for v in values):
            return torch.cat(values)
        raise ValueError(f"{key}: expected equal tensors or a leading sample axis of 1, got {tuple(first.shape)}")
    if any(v != first for v in values):
        raise ValueError(f"{key}: expected the same value in every sample of a batch, got {values[:2]}")
    return first
