"""Projection data of any source: stacks of 2D sinograms with what is known of their geometry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import refusal

__all__ = ["Projections", "Sinogram"]


@dataclass(frozen=True, eq=False)
class Sinogram:
    """Planes of parallel-beam counts, emission or transmission.

    Args:
        values: float32 ``(planes, views, bins)`` in counts (or another quantity that the metadata name).
        angles: ``(views,)`` in radians, or None where the file does not say.
        bin_spacing_mm: radial bin width in mm, or None.
        plane_spacing_mm: distance of direct planes in mm, or None.
        notes: what the reader noticed and did, one line each.
        metadata: plain values for provenance.

    Raises:
        ValueError: if shapes disagree, nothing is there, or values are not finite.
    """

    values: NDArray[np.float32]
    angles: NDArray[np.float64] | None = None
    bin_spacing_mm: float | None = None
    plane_spacing_mm: float | None = None
    notes: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or 0 in self.values.shape:
            raise refusal("values", "shape (planes, views, bins)", self.values.shape)
        if not np.isfinite(self.values).all():
            raise refusal("values", "finite float32 values", "NaN, Inf or numbers too large")
        if self.angles is not None and self.angles.shape != self.values.shape[1:2]:
            raise refusal("angles", f"{self.values.shape[1]} angles", self.angles.shape)


@dataclass(frozen=True, eq=False)
class Projections:
    """Parallel-beam detector readings with dark and flat fields: ``reading = gain (I0 exp(-A x) + dark)``.

    Args:
        values: float32 ``(rows, views, bins)`` raw readings.
        dark: float32 ``(rows, bins)`` mean reading without beam.
        white: float32 ``(rows, bins)`` mean reading without object.
        gain: reading per photon, from the variance of the flat fields; 1 where they are too few to tell.
        angles: ``(views,)`` in radians.
        bin_spacing_mm: detector pixel in mm, or None where the file does not say.
        notes: what the reader noticed and did, one line each.
        metadata: plain values for provenance.

    Raises:
        ValueError: if shapes disagree, or a flat field is not brighter than its dark field.
    """

    values: NDArray[np.float32]
    dark: NDArray[np.float32]
    white: NDArray[np.float32]
    gain: float
    angles: NDArray[np.float64]
    bin_spacing_mm: float | None = None
    notes: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, views, bins = self.values.shape
        for name, array, shape in (("dark", self.dark, (rows, bins)), ("white", self.white, (rows, bins)),
                                   ("angles", self.angles, (views,))):  # fmt: skip
            if array.shape != shape:
                raise refusal(name, f"shape {shape} for readings {self.values.shape}", array.shape)
        if not (self.white > self.dark).all():
            count = int((self.white <= self.dark).sum())
            raise refusal("white", "flat fields brighter than the dark fields", f"{count} pixels that are not")
        if not 0 < self.gain < np.inf:
            raise refusal("gain", "a number > 0", self.gain)

    def line_integrals(self, *, smallest: float = 1e-4) -> NDArray[np.float32]:
        """Return ``-log((reading - dark) / (white - dark))``, dimensionless ``(rows, views, bins)``.

        Args:
            smallest: transmission that smaller ones (and negative ones, of noise) are set to.
        """
        span = (self.white - self.dark)[:, None]
        return -np.log(np.maximum((self.values - self.dark[:, None]) / span, smallest)).astype(np.float32)
