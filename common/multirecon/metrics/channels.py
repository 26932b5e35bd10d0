"""Metrics of every channel by itself: each energy of a modality, and each material in mg/mL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..space import ImageSpace, Modality
from .image import bias, nrmse, psnr, rmse, ssim
from .ranges import ReportingRange, reporting_range

__all__ = ["channel_key", "channel_range", "channel_ranges", "crosstalk", "evaluate_channels"]

_DENSITY = "g/cm^3"
_PEAK_MG_ML = {"iodine": 10.0}
"""Data ranges of materials that come in small amounts; of others, the scale of the modality."""
_HEAD, _BONE = 0.1, 0.2  # g/cm^3


def channel_key(modality: str, channel: str) -> str:
    """Return the name under which a record keeps a channel, such as ``materials:water``."""
    return f"{modality}:{channel}"


def channel_range(modality: Modality, channel: str) -> ReportingRange:
    """Return how the values of a channel are stated: densities in mg/mL, energies as their modality.

    Args:
        modality: the modality.
        channel: name of the channel.

    Example:
        >>> channel_range(Modality("materials", channels=3, unit="g/cm^3"), "iodine").data_range
        10.0
    """
    if modality.unit != _DENSITY:
        return reporting_range(modality)
    peak = _PEAK_MG_ML.get(channel, 1e3 * modality.scale)
    return ReportingRange("mg/mL", peak, (0.0, peak), 0.2 * peak, 1e3)


def channel_ranges(space: ImageSpace, channels: Mapping[str, Sequence[str]]) -> dict[str, ReportingRange]:
    """Return ``{"modality:channel": range}`` of the channels that have names."""
    return {channel_key(m, label): channel_range(space[m], label) for m, labels in channels.items() for label in labels}


def crosstalk(pred: Tensor, truth: Tensor, *, source: Tensor, mask: Tensor) -> Tensor:
    r"""Return the slope of a material's error over the density of another, per sample ``(B,)``: signal that leaked.

    .. math:: \frac{\operatorname{cov}(\hat\rho - \rho, \rho_s)}{\operatorname{var}(\rho_s)}

    over the pixels of a mask; NaN where the other material is the same everywhere.

    Args:
        pred: estimate ``(B, 1, *spatial)`` of the material.
        truth: its truth.
        source: true density ``(B, 1, *spatial)`` of the other material.
        mask: ``(*spatial)``.
    """
    error, other = ((v.double()[:, 0])[:, mask] for v in (pred - truth, source))
    other = other - other.mean(1, keepdim=True)
    spread = other.square().mean(1)
    return torch.where(spread > 1e-12, (error * other).mean(1) / spread.clamp_min(1e-12), torch.nan)


def evaluate_channels(
    pred: Tensor,
    truth: Tensor,
    space: ImageSpace,
    *,
    channels: Mapping[str, Sequence[str]],
    places: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """Return ``{"modality:channel": {metric: value}}`` of one sample; see :func:`channel_key`.

    Every channel has PSNR and SSIM, an energy NRMSE and bias besides. A material has bias and root mean square error in
    mg/mL, in the head (``@head``: more than 0.1 g/mL of anything), in bone (``@bone``: more than 0.2 g/mL of it), in
    soft tissue (``@soft``: the head without bone and without the places) and in the places; and the crosstalk of bone
    into it in mg/g.

    Args:
        pred: estimate ``(1, C, *shape)`` in stack units.
        truth: truth of the same shape.
        space: image space of both.
        channels: names of the channels of the modalities to evaluate.
        places: masks ``(*shape)`` by name in which materials are measured too; an empty one gives no value.

    Raises:
        ValueError: on an unknown modality, another number of channels, or shapes that do not fit the space.
    """
    space.check(pred, "prediction"), space.check(truth, "truth")
    results: dict[str, dict[str, float]] = {}
    for name, labels in channels.items():
        modality, here = space[name], space.channels(name)
        if len(labels) != modality.channels:
            raise ValueError(f"channels of {name!r}: expected {modality.channels} names, got {list(labels)}")
        densities = truth[:, here].cpu()
        masks = _masks(densities, labels, places or {}) if modality.unit == _DENSITY else {}
        for k, label in enumerate(labels):
            p, t = pred[:, here][:, k : k + 1].cpu(), densities[:, k : k + 1]
            reporting = channel_range(modality, label)
            values = {
                "psnr": float(psnr(p, t, data_range=reporting.stack_range)),
                "ssim": float(ssim(p, t, data_range=reporting.stack_range)),
            }
            if modality.unit != _DENSITY:
                values |= {"nrmse": float(nrmse(p, t)), "bias": float(bias(p, t)) * reporting.gain}
            for region, mask in masks.items():
                values[f"bias@{region}"] = float(bias(p, t, mask=mask)) * reporting.gain
                values[f"rmse@{region}"] = float(rmse(p, t, mask=mask)) * reporting.gain
            if "bone" in labels and label != "bone" and "head" in masks:
                source = densities[:, labels.index("bone")][:, None]
                leaked = float(crosstalk(p, t, source=source, mask=masks["head"])) * reporting.gain
                values |= {} if math.isnan(leaked) else {"crosstalk": leaked}
            results[channel_key(name, label)] = values
    return results


def _masks(densities: Tensor, labels: Sequence[str], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks in which materials are measured, the empty ones left out."""
    masks = {"head": densities[0].sum(0) > _HEAD}
    hard = torch.zeros_like(masks["head"])
    if "bone" in labels:
        hard = masks["bone"] = densities[0, list(labels).index("bone")] > _BONE
    given = {name: mask.cpu().bool() for name, mask in places.items()}
    taken = torch.stack([hard, *given.values()]).any(0)
    masks["soft"] = masks["head"] & ~taken
    return {name: mask for name, mask in {**masks, **given}.items() if bool(mask.any())}
