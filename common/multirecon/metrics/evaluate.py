"""All metrics of one result, as plain numbers for a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from ..space import ImageSpace
from .contrast import contrast_recovery, contrast_to_noise, surroundings
from .ensembles import LEVELS, crps, posterior_coverage
from .image import bias, mae, nrmse, psnr, rmse, ssim
from .ranges import ReportingRange, reporting_range
from .reslices import reslice_psnr, through_plane_variation
from .spectrum import high_frequency_ratio

__all__ = [
    "HIGHER_IS_BETTER",
    "IDEAL",
    "LESION_METRICS",
    "METRICS",
    "UNDIRECTED",
    "evaluate_image",
    "evaluate_samples",
    "metric_score",
    "metric_unit",
]

Metric = Callable[[Tensor, Tensor, ReportingRange, Tensor | None], Tensor]


def _crc(pred: Tensor, truth: Tensor, reporting: ReportingRange, lesion: Tensor | None) -> Tensor:
    lesion, background = _shell(lesion)
    # a ratio needs a scale on which zero means nothing there; HU + 1000 is proportional to the attenuation
    zero = -1000.0 if reporting.unit == "HU" and reporting.offset == 0 else 0.0
    return contrast_recovery(pred - zero, truth - zero, lesion=lesion, background=background)


def _cnr(pred: Tensor, truth: Tensor, reporting: ReportingRange, lesion: Tensor | None) -> Tensor:
    lesion, background = _shell(lesion)
    return contrast_to_noise(pred, lesion=lesion, background=background)


def _shell(lesion: Tensor | None) -> tuple[Tensor, Tensor]:
    if lesion is None:
        raise ValueError("mask: expected the mask of a lesion, got none")
    return lesion, surroundings(lesion)


# Taken in the unit of the stack and stated in the reporting unit: the offset of HU would enter NRMSE and SSIM.
METRICS: dict[str, Metric] = {
    "psnr": lambda p, t, r, m: psnr(p, t, data_range=r.stack_range, mask=m),
    "ssim": lambda p, t, r, m: ssim(p, t, data_range=r.stack_range, mask=m),
    "nrmse": lambda p, t, r, m: nrmse(p, t, mask=m),
    "mae": lambda p, t, r, m: mae(p, t, mask=m) * r.gain,
    "rmse": lambda p, t, r, m: rmse(p, t, mask=m) * r.gain,
    "bias": lambda p, t, r, m: bias(p, t, mask=m) * r.gain,
    "hfer": lambda p, t, r, m: high_frequency_ratio(p, t, mask=m),
    "tvz": lambda p, t, r, m: through_plane_variation(p, t, mask=m),
    "psnr_axial": lambda p, t, r, m: reslice_psnr(p, t, plane="axial", data_range=r.stack_range, mask=m),
    "psnr_sagittal": lambda p, t, r, m: reslice_psnr(p, t, plane="sagittal", data_range=r.stack_range, mask=m),
    "crc": _crc,
    "cnr": _cnr,
}
HIGHER_IS_BETTER = frozenset({"psnr", "psnr_axial", "psnr_sagittal", "ssim", "cnr"})
# best at a value of their own, so that a higher value is neither better nor worse
IDEAL = {
    "bias": 0.0,
    "crosstalk": 0.0,
    "hfer": 1.0,
    "tvz": 1.0,
    "crc": 1.0,
    **{f"coverage{round(100 * p)}": p for p in LEVELS},
}
UNDIRECTED = frozenset(IDEAL)
# have no value in a region that does not show what they measure
_PARTIAL = frozenset({"crc", "tvz", "psnr_axial", "psnr_sagittal"})
# taken only in regions called ``...lesion``, against the shell around them
LESION_METRICS = frozenset({"crc", "cnr"})


def metric_unit(name: str, unit: str) -> str:
    """Return the unit of a metric of a modality that is reported in ``unit`` (empty where it has none)."""
    metric = name.partition("@")[0]
    if metric == "crosstalk":
        return "mg/g"
    return "dB" if metric.startswith("psnr") else unit if metric in ("mae", "rmse", "bias", "crps") else ""


def metric_score(name: str, value: float) -> float:
    """Return a number in the unit of the metric that is larger where the value is better.

    The value itself, its negative for an error, the negative distance to the best value for a metric of :data:`IDEAL`.

    Args:
        name: metric, with or without ``@region``.
        value: its value.

    Example:
        >>> metric_score("psnr", 30.0), metric_score("mae", 2.0), metric_score("crc@lesion", 1.25)
        (30.0, -2.0, -0.25)
    """
    metric = name.partition("@")[0]
    if metric in IDEAL:
        return -abs(value - IDEAL[metric])
    return value if metric in HIGHER_IS_BETTER else -value


def evaluate_image(
    pred: Tensor,
    truth: Tensor,
    space: ImageSpace,
    *,
    targets: Iterable[str],
    metrics: Iterable[str] = ("psnr", "ssim", "nrmse"),
    regions: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """Return ``{modality: {metric: value}}`` of one sample; a regional value is called ``metric@region``.

    The metrics of :data:`LESION_METRICS` are taken in regions whose name ends in ``lesion`` and nowhere else; a
    modality whose truth does not show the lesion gets no contrast recovery.

    Args:
        pred: estimate ``(1, C, *shape)`` in stack units.
        truth: truth of the same shape.
        space: image space of both.
        targets: modalities to evaluate.
        metrics: names of :data:`METRICS`.
        regions: masks ``(*shape)`` by name, for values inside them; an empty mask gives no value.

    Raises:
        ValueError: on an unknown metric or modality, or shapes that do not fit the space.
    """
    space.check(pred, "prediction"), space.check(truth, "truth")
    names = list(metrics)
    unknown = sorted(set(names) - set(METRICS))
    if unknown:
        raise ValueError(f"metrics: expected some of {sorted(METRICS)}, got {unknown}")
    results: dict[str, dict[str, float]] = {}
    for target in targets:
        channels, reporting = space.channels(target), reporting_range(space[target])
        p, t = pred[:, channels].cpu(), truth[:, channels].cpu()
        values = {n: float(METRICS[n](p, t, reporting, None)) for n in names if n not in LESION_METRICS}
        for region, mask in (regions or {}).items():
            if bool(mask.any()):
                here = [n for n in names if n not in LESION_METRICS or region.endswith("lesion")]
                found = {f"{n}@{region}": float(METRICS[n](p, t, reporting, mask)) for n in here}
                values |= {n: v for n, v in found.items() if n.partition("@")[0] not in _PARTIAL or not math.isnan(v)}
        results[target] = values
    return results


def evaluate_samples(
    samples: Tensor,
    truth: Tensor,
    space: ImageSpace,
    *,
    targets: Iterable[str],
    regions: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """Return how honest posterior samples of one measurement are: ``{modality: {"crps": ..., "coverage80": ...}}``.

    Air that every sample leaves at zero would count as covered, so the values are taken where the truth is not zero
    and, as ``metric@region``, inside the regions. Levels that the number of samples cannot support are left out.

    Args:
        samples: ``(S, 1, C, *shape)`` in stack units, S at least 2.
        truth: ``(1, C, *shape)``.
        space: image space of both.
        targets: modalities to evaluate.
        regions: masks ``(*shape)`` by name; an empty mask gives no value.

    Raises:
        ValueError: on an unknown modality, fewer than two samples, or shapes that do not fit the space.
    """
    space.check(truth, "truth")
    count = len(samples)
    levels = [p for p in LEVELS if 1 / (count + 1) <= p <= (count - 1) / (count + 1)]
    results: dict[str, dict[str, float]] = {}
    for target in targets:
        channels, reporting = space.channels(target), reporting_range(space[target])
        x, t = samples[:, :, channels].cpu(), truth[:, channels].cpu()
        places = {
            "": t[0].abs().amax(0) > 1e-3 * reporting.stack_range,
            **{f"@{n}": m for n, m in (regions or {}).items()},
        }
        values: dict[str, float] = {}
        for suffix, mask in places.items():
            if bool(mask.any()):
                values[f"crps{suffix}"] = float(crps(x, t, mask=mask)) * reporting.gain
                found = posterior_coverage(x, t, levels=levels, mask=mask)
                values |= {f"coverage{round(100 * p)}{suffix}": float(v) for p, v in found.items()}
        results[target] = values
    return results
