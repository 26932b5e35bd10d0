"""Unit conversions, fixed once: Hounsfield units stay at the border, 1/cm inside."""

from __future__ import annotations

from torch import Tensor

__all__ = ["WATER_ATTENUATION_70KEV", "attenuation_to_hu", "hu_to_attenuation", "is_hounsfield_outside"]

# NIST XCOM total attenuation of liquid water at 70 keV (the effective energy of a 120 kVp head scan), in 1/cm.
WATER_ATTENUATION_70KEV = 0.1929


def hu_to_attenuation(hu: Tensor, *, water: float = WATER_ATTENUATION_70KEV) -> Tensor:
    """Return the linear attenuation in 1/cm of a CT number image in HU: ``water * (1 + HU / 1000)``.

    Args:
        hu: CT numbers in HU, any shape; values below -1000 HU (padding) give negative attenuation, unclipped.
        water: attenuation of water in 1/cm at the effective energy.
    """
    return water * (1.0 + hu / 1000.0)


def attenuation_to_hu(attenuation: Tensor, *, water: float = WATER_ATTENUATION_70KEV) -> Tensor:
    """Return CT numbers in HU of a linear attenuation image in 1/cm: ``1000 (mu / water - 1)``.

    Args:
        attenuation: linear attenuation in 1/cm, any shape.
        water: attenuation of water in 1/cm at the effective energy.
    """
    return 1000.0 * (attenuation / water - 1.0)


def is_hounsfield_outside(name: str, unit: str) -> bool:
    """Whether a modality is stated in HU at the border (files, images handed in and out): a CT image in 1/cm inside.

    Args:
        name: key of the modality.
        unit: its unit inside.
    """
    return name == "ct" and unit == "1/cm"
