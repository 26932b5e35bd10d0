"""From CT numbers to other things: 511 keV attenuation, basis material densities, and the compressed CT scale.

The compressed scale is what networks see: [-100, 200] HU, where brain, blood and fat lie, takes two thirds of [0, 1],
air and bone share the rest. It is piecewise linear, so it can be inverted without loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CT_KNOTS_HU", "CT_KNOTS_UNIT", "attenuation_511", "hu_to_unit", "materials_from_hu", "unit_to_hu"]

CT_KNOTS_HU = (-1000.0, -100.0, 200.0, 2000.0)
CT_KNOTS_UNIT = (0.0, 0.10, 0.75, 1.0)
WATER_511 = 0.096  # 1/cm
_BONE_SLOPE = 4.5e-5  # 1/cm per HU


def hu_to_unit(hu: Tensor) -> Tensor:
    """Map CT numbers onto the compressed scale, linear between the knots.

    ===========  =====
    HU           value
    ===========  =====
    -1000        0
    -100         0.10
    200          0.75
    2000         1
    ===========  =====

    The outer pieces go on as straight lines, so values beyond the table are neither clipped nor lost.

    Args:
        hu: CT numbers in HU, any shape.

    Returns:
        Values of the same shape, dimensionless.

    Example:
        >>> hu_to_unit(torch.tensor([-1000.0, 50.0, 2000.0]))
        tensor([0.0000, 0.4250, 1.0000])
    """
    return _piecewise(hu, CT_KNOTS_HU, CT_KNOTS_UNIT)


def unit_to_hu(unit: Tensor) -> Tensor:
    """Return the CT numbers in HU of values on the compressed scale: the inverse of ``hu_to_unit``.

    Args:
        unit: values on the compressed scale, any shape.
    """
    return _piecewise(unit, CT_KNOTS_UNIT, CT_KNOTS_HU)


def attenuation_511(hu: Tensor) -> Tensor:
    """Return the linear attenuation at 511 keV in 1/cm.

    ``0.096 (1 + HU / 1000)`` up to water and ``0.096 + 4.5e-5 HU`` above, because bone stops fewer 511 keV photons
    than its CT number suggests.

    Args:
        hu: CT numbers in HU, any shape.
    """
    return torch.where(hu <= 0, WATER_511 * (1 + hu / 1000), WATER_511 + _BONE_SLOPE * hu)


def materials_from_hu(hu: Tensor) -> tuple[Tensor, Tensor]:
    """Return water and bone densities in g/cm^3 that explain CT numbers in a two-material basis.

    Up to 80 HU all is water, ``1 + HU / 1000``; above, ``f = min(1, (HU - 80) / 1400)`` mixes towards 1.45 bone and 0.3
    water.

    Args:
        hu: CT numbers in HU, any shape.
    """
    f = ((hu - 80) / 1400).clamp(0, 1)
    return torch.where(hu <= 80, 1 + hu / 1000, 1.08 * (1 - f) + 0.3 * f), 1.45 * f


def _piecewise(x: Tensor, knots: tuple[float, ...], values: tuple[float, ...]) -> Tensor:
    edges = torch.tensor(knots[1:-1], dtype=x.dtype, device=x.device)
    piece = torch.bucketize(x, edges)
    x0, v0 = (torch.tensor(k, dtype=x.dtype, device=x.device) for k in (knots, values))
    slope = (v0[1:] - v0[:-1]) / (x0[1:] - x0[:-1])
    return v0[:-1][piece] + slope[piece] * (x - x0[:-1][piece])
