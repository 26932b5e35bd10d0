"""Everything that Python code can get at from the objects it was handed, and whether the truth is among it."""

import functools
import gc
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What every program reaches anyway; through it everything else.
NOT_FOLLOWED = (types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.GetSetDescriptorType)
OWN = ("multirecon",)
CLOSE = 0.02


def reachable(*roots: Any, own: tuple[str, ...] = OWN) -> Iterator[tuple[str, Any]]:
    """Yield every object that can be reached from the roots, with the way there.

    Attributes, containers, closures, default arguments, bound methods, partial functions, weak references, suspended
    generators, tracebacks, base tensors and arrays are followed; modules and global variables are not. Of classes, the
    data attributes of those that belong to the packages ``own`` are.
    """
    modules = {id(vars(module)) for module in list(sys.modules.values()) if isinstance(module, types.ModuleType)}
    queue = deque((type(root).__name__, root) for root in roots)
    seen: set[int] = set()
    keep = []  # objects made on the way must stay alive, or their ids are used again
    while queue:
        way, item = queue.popleft()
        if id(item) in seen or id(item) in modules or isinstance(item, NOT_FOLLOWED):
            continue
        seen.add(id(item))
        keep.append(item)
        yield way, item
        for name, child in _children(item, own):
            queue.append((f"{way}.{name}" if len(way) < 200 else way, child))


def _children(item: Any, own: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(item, type):
        if item.__module__.split(".")[0] in own:
            data = {n: v for n, v in vars(item).items() if not n.startswith("__") and not callable(v)}
            yield from data.items()
        return
    if isinstance(item, types.FunctionType):
        for cell in item.__closure__ or ():
            try:
                yield "closure", cell.cell_contents
            except ValueError:  # an empty cell
                continue
        yield from (("default", v) for v in item.__defaults__ or ())
        yield from (item.__kwdefaults__ or {}).items()
        yield from vars(item).items()
        return
    if isinstance(item, dict):
        yield from ((str(k)[:40], v) for k, v in item.items())
        yield from (("key", k) for k in item if not isinstance(k, str | int))
        return
    if isinstance(item, weakref.ref):
        yield "weakref", item()
        return
    if isinstance(item, types.FrameType):
        yield from item.f_locals.items()
        return
    if isinstance(item, types.TracebackType):
        yield "frame", item.tb_frame
        yield "next", item.tb_next
        return
    if isinstance(item, functools.partial):
        yield from (("partial", v) for v in (item.func, item.args, item.keywords))
        return
    yield from _of_arrays(item)
    yield from (vars(item).items() if hasattr(item, "__dict__") else ())
    yield "class", type(item)
    yield from ((type(child).__name__, child) for child in gc.get_referents(item))


def _of_arrays(item: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, Tensor):
        yield "base", item._base
        yield "grad", item.grad if item.is_leaf else None
    if isinstance(item, np.ndarray):
        yield "base", item.base


def leaks(truth: Tensor, *roots: Any, own: tuple[str, ...] = OWN) -> list[str]:
    """Return the ways from the roots to the truth, or to something close to it.

    Args:
        truth: what must not be found, ``(B, C, *shape)``; only the modalities that were not handed over as images.
        *roots: what a reconstructor receives.
        own: packages whose classes are looked into.
    """
    found = []
    for way, item in reachable(*roots, own=own):
        if isinstance(item, np.ndarray) and item.dtype.kind in "fc" and item.size:
            item = torch.from_numpy(np.ascontiguousarray(item))
        if isinstance(item, Tensor) and (item.is_floating_point() or item.is_complex()) and _tells(item, truth):
            found.append(way)
    return found


def _tells(tensor: Tensor, truth: Tensor) -> bool:
    """Whether a tensor, its storage, or the graph behind it holds a channel of the truth, at any refinement."""
    tensor = tensor.detach() if tensor.layout == torch.strided else tensor.detach().values()  # of a sparse matrix
    parts = [tensor.real, tensor.imag, tensor.abs()] if tensor.is_complex() else [tensor]
    return any(_close(part.double().cpu(), truth) for part in parts) or _in_storage(tensor, truth)


def _close(tensor: Tensor, truth: Tensor) -> bool:
    spatial = truth.shape[2:]
    if tensor.ndim < len(spatial):
        return False
    factors = [n // s for n, s in zip(tensor.shape[-len(spatial) :], spatial, strict=True)]
    if min(factors) < 1 or any(
        f * s != n for f, s, n in zip(factors, spatial, tensor.shape[-len(spatial) :], strict=True)
    ):
        return False
    coarse = tensor.reshape(-1, *tensor.shape[-len(spatial) :])
    for axis, factor in enumerate(factors, start=1):
        coarse = coarse.unflatten(axis, (-1, factor)).mean(axis + 1)
    candidates, targets = coarse.flatten(1), truth.double().flatten(2).flatten(0, 1)
    targets = targets[targets.norm(dim=1) > 0]
    # the best multiple of a candidate: units do not hide it
    scale = (candidates @ targets.T) / candidates.square().sum(1, keepdim=True).clamp_min(1e-30)
    error = (scale[..., None] * candidates[:, None] - targets).norm(dim=-1) / targets.norm(dim=-1)
    return bool((error < CLOSE).any())


def _in_storage(tensor: Tensor, truth: Tensor) -> bool:
    """Whether a channel of the truth lies in the memory behind a view."""
    if tensor.dtype != truth.dtype or tensor.device != truth.device or not tensor.untyped_storage().nbytes():
        return False
    flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    for channel in truth.flatten(2).flatten(0, 1):
        peak = int(channel.abs().argmax())
        if channel[peak] == 0:
            continue
        for start in (torch.nonzero(flat == channel[peak]).flatten() - peak)[:1000].tolist():
            if 0 <= start <= len(flat) - len(channel) and torch.equal(flat[start : start + len(channel)], channel):
                return True
    return False
