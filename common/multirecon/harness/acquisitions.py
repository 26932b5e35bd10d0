"""What was measured, in a few numbers: which recorded task is most like the measurement at hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..likelihoods import Gaussian
from ..measurement import Measurement

__all__ = ["acquisition_distance", "acquisition_text", "default_targets", "describe_acquisition"]

OTHER_KIND, OTHER_NAME, OTHER_BLOCK, OTHER_CLEAN = 2.0, 1.0, 1.0, 0.5
"""What a difference costs, in doublings of the sampling: another scanner, modality, further scan, clean image."""
NOISE = 0.5
"""What a doubling of the noise costs, likewise."""


def describe_acquisition(measurement: Measurement) -> dict[str, Any]:
    """Return what a measurement consists of, as plain values for a JSON file.

    ``blocks`` holds for every modality that was scanned (all but noiseless images) the kinds of operator and
    likelihood, ``sampling`` (the sampled share of k-space; else data per unknown) and ``noise`` (standard deviation
    over root mean square of the data; of counts, that of the mean count). ``clean`` and ``missing`` name modalities.
    """
    clean, blocks = [], {}
    for name in measurement.available:
        operator, likelihood, y = measurement.operator[name], measurement.likelihood[name], measurement.y[name]
        if name in measurement.given:
            clean.append(name)
            continue
        mask = getattr(operator, "mask", None)
        unknowns = math.prod(operator.domain_shape)
        share = float(mask.float().mean()) if isinstance(mask, torch.Tensor) else y[0].numel() / unknowns
        if isinstance(likelihood, Gaussian):
            measured = y[y != 0].abs().double()
            size = float(measured.square().mean().sqrt()) if measured.numel() else 0.0
            noise = float(likelihood.sigma.double().mean()) / size if size else math.inf
        else:
            noise = float(y.double().mean().clamp_min(1e-6)) ** -0.5
        blocks[name] = {
            "operator": operator.kind,
            "likelihood": likelihood.kind,
            "sampling": float(f"{share:.4g}"),
            "noise": float(f"{noise:.3g}"),
        }
    return {"blocks": blocks, "clean": sorted(clean), "missing": sorted(measurement.missing)}


def acquisition_text(acquisition: Mapping[str, Any]) -> str:
    """Return the description in words, for one line."""
    parts = []
    for name, block in acquisition["blocks"].items():
        share = block["sampling"]
        amount = f"{share:.0%} of k-space" if block["operator"] == "masked_fourier" else f"{share:.2g} data per unknown"
        parts.append(f"{name}: {block['operator']}, {block['likelihood']}, {amount}, noise {block['noise']:.2g}")
    for word in ("clean", "missing"):
        if acquisition[word]:
            parts.append(f"{word} {', '.join(acquisition[word])}")
    return "; ".join(parts) or "nothing measured"


def default_targets(acquisition: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is to be reconstructed: the modalities that were scanned; where all are clean, the missing ones."""
    return tuple(acquisition["blocks"]) or tuple(acquisition["missing"])


def acquisition_distance(
    mine: Mapping[str, Any], other: Mapping[str, Any], targets: Iterable[str], other_targets: Iterable[str]
) -> tuple[float, dict[str, str]] | None:
    r"""Return how far another acquisition is from mine, and which of its modalities stands for each target.

    The distance adds up, over the targets, ``|log2|`` of the ratio of samplings, half that of the noise, 1 for another
    modality and 2 for another operator; then 1 for every further scan and 0.5 for every clean image that only one of
    the two has. 0 is the same acquisition, 1 about twice the acceleration.

    Args:
        mine: see :func:`describe_acquisition`.
        other: the acquisition of a recorded task.
        targets: modalities to reconstruct.
        other_targets: those that the task evaluates.

    Returns:
        ``None`` where a target has no counterpart: no scan with its likelihood, or no missing modality of its name.
    """
    total, counterpart = 0.0, {}
    candidates = set(other_targets)
    for target in targets:
        block = mine["blocks"].get(target)
        if block is None:
            if target not in candidates or target not in other["missing"]:
                return None
            counterpart[target] = target
            continue
        costs = {
            name: _block_distance(block, theirs) + OTHER_NAME * (name != target)
            for name, theirs in other["blocks"].items()
            if name in candidates and theirs["likelihood"] == block["likelihood"]
        }
        if not costs:
            return None
        best = min(costs, key=lambda name: (costs[name], name))
        total += costs[best]
        counterpart[target] = best
        candidates.discard(best)
    further = set(mine["blocks"]) - set(counterpart), set(other["blocks"]) - set(counterpart.values())
    total += OTHER_BLOCK * len(further[0] ^ further[1])
    return total + OTHER_CLEAN * len(set(mine["clean"]) ^ set(other["clean"])), counterpart


def _block_distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    ratios = (_log_ratio(one["sampling"], other["sampling"]), NOISE * _log_ratio(one["noise"], other["noise"]))
    return sum(ratios) + OTHER_KIND * (one["operator"] != other["operator"])


def _log_ratio(a: float, b: float) -> float:
    if a == b:
        return 0.0
    smallest = 1e-6  # noiseless data are as good as very little noise
    return abs(math.log2(max(a, smallest) / max(b, smallest)))
