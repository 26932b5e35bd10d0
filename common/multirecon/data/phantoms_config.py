"""All knobs of the phantom in one frozen record."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

__all__ = ["PhantomConfig"]

Range = tuple[float, float]


@dataclass(frozen=True)
class PhantomConfig:
    """What a phantom looks like and how much subjects differ. Ranges are drawn uniformly per subject.

    Args:
        spacing_mm: voxel size in mm; the default makes 2 x 2 in-plane voxels one pixel of the 1.875 mm grid.
        matrix: in-plane number of voxels; the default covers 240 mm.
        coverage: ``"useful"`` (from 18 % of the cerebrum's height to 2 mm below its top), ``"brain"`` or ``"head"``.
        z_mm: explicit range of heights in mm above the middle of the cerebrum instead of ``coverage``.
        deformation: strength of the random deformation; 0 keeps the anatomy as it is.
        rotation_deg: half-range of the axial rotation in degrees.
        scale: range of the head's scale.
        shear: half-range of the shears.
        elastic_mm: range of the standard deviation of the elastic displacement in mm.
        elastic_sigma_mm: range of its smoothness in mm.
        mirror: exchange left and right in half of the subjects.
        parameter_spread: relative standard deviation of every tissue parameter between subjects.
        sequence_jitter: relative half-range of the sequence settings.
        texture: strength of all tissue texture.
        vessels: strength of small veins and perivascular spaces.
        bias: range of the amplitude of the receive bias field.
        ms_probability: share of subjects with MS-like lesions.
        ms_count: range of their number.
        infarct_probability: share of subjects with an infarct.
        microbleed_probability: share of subjects with microbleeds.
        microbleed_count: range of their number.
        pet_lesion_probability: share of subjects with PET-only hot or cold foci.
        amyloid_positive_probability: share of amyloid-positive subjects.
        hypometabolism: range of the temporo-parietal FDG loss.
        contrast_agent: range of the iodine concentration in vessels in g/cm^3.
        skull_stripped: set everything outside the brain mask to background, as public research images often are.
        mr_noise: standard deviation of Rician noise relative to the MR scale; 0 leaves noise to the acquisition.
        ct_noise_hu: standard deviation of CT noise in HU, smooth over 0.7 mm.
        pet_fwhm_mm: full width at half maximum of a blur of the PET images in mm; 0 gives the activity itself.

    Raises:
        ValueError: if a value is outside its meaning.

    Example:
        >>> PhantomConfig(ms_probability=1.0, coverage="brain").ms_count
        (6, 16)
    """

    spacing_mm: tuple[float, float, float] = (0.9375, 0.9375, 0.9375)
    matrix: int = 256
    coverage: str = "useful"
    z_mm: Range | None = None
    deformation: float = 1.0
    rotation_deg: float = 10.0
    scale: Range = (0.9, 1.1)
    shear: float = 0.02
    elastic_mm: Range = (0.8, 2.2)
    elastic_sigma_mm: Range = (9.0, 20.0)
    mirror: bool = True
    parameter_spread: float = 0.05
    sequence_jitter: float = 0.06
    texture: float = 1.0
    vessels: float = 1.0
    bias: Range = (0.06, 0.14)
    ms_probability: float = 0.5
    ms_count: tuple[int, int] = (6, 16)
    infarct_probability: float = 0.15
    microbleed_probability: float = 0.3
    microbleed_count: tuple[int, int] = (1, 5)
    pet_lesion_probability: float = 0.2
    amyloid_positive_probability: float = 0.4
    hypometabolism: Range = (0.0, 0.35)
    contrast_agent: Range = (0.003, 0.007)
    skull_stripped: bool = False
    mr_noise: float = 0.0
    ct_noise_hu: float = 0.0
    pet_fwhm_mm: float = 0.0

    def __post_init__(self) -> None:
        if len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm: expected three positive numbers, got {self.spacing_mm}")
        if self.matrix < 16:
            raise ValueError(f"matrix: expected at least 16, got {self.matrix}")
        if self.coverage not in ("useful", "brain", "head"):
            raise ValueError(f"coverage: expected 'useful', 'brain' or 'head', got {self.coverage!r}")
        for item in fields(self):
            value: Any = getattr(self, item.name)
            if item.name.endswith("_probability") and not 0 <= value <= 1:
                raise ValueError(f"{item.name}: expected a number in [0, 1], got {value}")
            pair = isinstance(value, (tuple, list)) and len(value) == 2
            if pair and not value[0] <= value[1]:
                raise ValueError(f"{item.name}: expected a range (low, high), got {value}")
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{item.name}: expected a number >= 0, got {value}")
            if isinstance(value, list):  # JSON has no tuples; the record must stay hashable
                object.__setattr__(self, item.name, tuple(value))
