"""All metrics of one result, as plain numbers for a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from ..space import ImageSpace
from .image import bias, mae, nrmse, psnr, ssim
from .ranges import ReportingRange, reporting_range

__all__ = ["METRICS", "evaluate_image", "metric_unit"]

Metric = Callable[[Tensor, Tensor, ReportingRange, Tensor | None], Tensor]

# Taken in the unit of the stack and stated in the reporting unit: the offset of HU would enter NRMSE and SSIM.
METRICS: dict[str, Metric] = {
    "psnr": lambda p, t, r, m: psnr(p, t, data_range=r.stack_range, mask=m),
    "ssim": lambda p, t, r, m: ssim(p, t, data_range=r.stack_range, mask=m),
    "nrmse": lambda p, t, r, m: nrmse(p, t, mask=m),
    "mae": lambda p, t, r, m: mae(p, t, mask=m) * r.gain,
    "bias": lambda p, t, r, m: bias(p, t, mask=m) * r.gain,
}
HIGHER_IS_BETTER = frozenset({"psnr", "ssim"})


def metric_unit(name: str, unit: str) -> str:
    """Return the unit of a metric of a modality that is reported in ``unit`` (empty where it has none)."""
    return {"psnr": "dB", "mae": unit, "bias": unit}.get(name.partition("@")[0], "")


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
        values = {n: float(METRICS[n](p, t, reporting, None)) for n in names}
        for region, mask in (regions or {}).items():
            if bool(mask.any()):
                values |= {f"{n}@{region}": float(METRICS[n](p, t, reporting, mask)) for n in names}
        results[target] = values
    return results
