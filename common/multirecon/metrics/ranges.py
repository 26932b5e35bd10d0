"""The one table of units, data ranges and display windows in which results are stated."""

from __future__ import annotations

from dataclasses import dataclass

from ..space import Modality
from ..units import WATER_ATTENUATION_70KEV

__all__ = ["ReportingRange", "reporting_range"]

MR = frozenset({"t1", "t2", "flair", "t2star", "pd"})


@dataclass(frozen=True)
class ReportingRange:
    r"""How the values of one modality are stated: ``reported = gain * stack + offset``.

    Args:
        unit: unit of the reported values, of ``data_range`` and of the windows.
        data_range: ``R`` in ``PSNR = 10 log10(R^2 / MSE)`` and in the constants of SSIM; never the image's own.
        window: values shown as black and as white.
        error: error shown at full colour (error maps cover ``-error .. error``).
        gain: factor from stack values to reported values.
        offset: reported value of a stack value of zero.

    Example:
        >>> reporting_range(Modality("ct", unit="1/cm")).data_range
        1000.0
    """

    unit: str
    data_range: float
    window: tuple[float, float]
    error: float
    gain: float = 1.0
    offset: float = 0.0

    @property
    def stack_range(self) -> float:
        """The data range in the unit of the stack."""
        return self.data_range / self.gain


def reporting_range(modality: Modality) -> ReportingRange:
    """Return the range of a modality.

    * MR contrasts (dimensionless): range 1.
    * CT: stated in HU, range 1000 HU, which covers a whole head from air to skull; the stack may hold 1/cm or HU.
    * PET: stated relative to ``modality.scale`` (the mean over the brain), range 2.
    * anything else (energy bins, materials): its own unit, range = ``modality.scale``.

    Args:
        modality: the modality, whose ``unit`` is the unit of the stack.

    Raises:
        ValueError: on a CT modality in another unit than 1/cm or HU.
    """
    name, scale = modality.name, modality.scale
    if name in MR:
        return ReportingRange("1", 1.0, (0.0, 1.0), 0.2)
    if name == "ct":
        if modality.unit == "HU":
            return ReportingRange("HU", 1000.0, (-100.0, 200.0), 100.0)
        if modality.unit == "1/cm":
            return ReportingRange("HU", 1000.0, (-100.0, 200.0), 100.0, 1000.0 / WATER_ATTENUATION_70KEV, -1000.0)
        raise ValueError(f"unit of modality 'ct': expected '1/cm' or 'HU', got {modality.unit!r}")
    if name.startswith("pet"):
        return ReportingRange("brain mean", 2.0, (0.0, 2.0), 0.5, 1.0 / scale)
    return ReportingRange(modality.unit, scale, (0.0, scale), 0.2 * scale)
