"""Regional uptake patterns of FDG and florbetapir in box coordinates of the cerebrum."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["amyloid_pattern", "fdg_pattern"]


def _bump(box: Tensor, centre: tuple[float, float, float], width: tuple[float, float, float]) -> Tensor:
    shift = torch.tensor(centre, device=box.device)[:, None]
    return torch.exp(-(((box - shift) / torch.tensor(width, device=box.device)[:, None]) ** 2).sum(0))


def _regions(box: Tensor) -> dict[str, Tensor]:
    """Gaussian weights of cortical regions; ``box`` is ``(3, n)`` with left and right folded onto ``|x|``."""
    box = torch.stack([box[0].abs(), box[1], box[2]])
    return {
        "precuneus": _bump(box, (0, -0.55, 0.25), (0.25, 0.3, 0.35)),
        "occipital": _bump(box, (0, -0.9, 0), (0.35, 0.2, 0.3)),
        "parietal": torch.exp(-(((box[1] + 0.45) / 0.3) ** 2) - ((box[2] - 0.35) / 0.4) ** 2),
        "medial_temporal": _bump(box, (0.5, 0.1, -0.3), (0.3, 0.4, 0.3)),
        "lateral_temporal": _bump(box, (0.85, -0.1, -0.4), (0.25, 0.5, 0.35)),
        "sensorimotor": torch.exp(-((box[1] / 0.12) ** 2) - ((box[2] - 0.6) / 0.4) ** 2),
        "frontal": torch.sigmoid((box[1] - 0.25) / 0.12),
    }


def fdg_pattern(box: Tensor, *, hypometabolism: float) -> Tensor:
    """Return the factor on cortical FDG uptake.

    Args:
        box: ``(3, n)`` position in the cerebrum's bounding box, each axis -1 to 1 (left-right, back-front, down-up).
        hypometabolism: temporo-parietal loss, 0 (none) to about 0.35.

    Returns:
        ``(n,)`` factors around 1.
    """
    r = _regions(box)
    loss = r["parietal"] * (1 - r["occipital"]) + 0.5 * r["precuneus"]
    gain = 0.12 * r["precuneus"] + 0.15 * r["occipital"] + 0.05 * r["frontal"] - 0.12 * r["medial_temporal"]
    return (1 + gain - hypometabolism * loss).clamp_min(0.2)


def amyloid_pattern(box: Tensor, *, burden: float) -> Tensor:
    """Return the factor on cortical florbetapir uptake.

    Args:
        box: ``(3, n)`` position in the cerebrum's bounding box, each axis -1 to 1.
        burden: 0 to 0.06 amyloid-negative, 0.45 to 1 positive.

    Returns:
        ``(n,)`` factors of 1 and above.
    """
    r = _regions(box)
    pattern = (
        0.9 * r["frontal"]
        + 1.0 * r["precuneus"]
        + 0.8 * r["parietal"] * (1 - 0.6 * r["sensorimotor"])
        + 0.5 * r["lateral_temporal"]
        - 0.3 * r["occipital"]
        - 0.3 * r["medial_temporal"]
        - 0.2 * r["sensorimotor"]
    )
    return 1 + burden * pattern.clamp(0, 1.2)
