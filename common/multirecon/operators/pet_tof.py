r"""Time-of-flight geometry: lines divided into segments by a Gaussian timing resolution.

Event positions along a line are measured with a Gaussian error. Bin ``k`` of ``K`` covers positions around
``c_k = (k - (K - 1) / 2) * width`` along :math:`n_\theta` from the foot of the perpendicular through the rotation axis,
so a point at ``t`` on the line falls into it with the probability

.. math:: \tfrac12\left[\operatorname{erf}\frac{t - c_k + w/2}{\sqrt2\,\sigma}
          - \operatorname{erf}\frac{t - c_k - w/2}{\sqrt2\,\sigma}\right].

Over bins that cover the image these add to one: the sum over the bins is the projection without time of flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.sparse import csr_array
from scipy.special import erf

from .geometry import Array, Index, ParallelGeometry
from .joseph import joseph_matrix
from .pet_blur import FWHM_TO_SIGMA

__all__ = ["TOFGeometry"]

_REACH = 5.0  # standard deviations beyond which an event is not looked for


@dataclass(frozen=True)
class TOFGeometry(ParallelGeometry):
    """Parallel lines with time-of-flight bins, the slowest axis of the data.

    Args:
        shape: image size ``(H, W)``.
        spacing_mm: pixel size in mm along axis 0 and axis 1.
        angles: view angles in radians.
        bins: number of detector bins.
        pitch_mm: detector bin width in mm.
        offset_bins: displacement of the detector centre in bins.
        tof_bins: number of time-of-flight bins.
        tof_spacing_mm: width of a bin along the line in mm.
        tof_fwhm_mm: timing resolution (full width at half maximum) along the line in mm.
    """

    tof_bins: int
    tof_spacing_mm: float
    tof_fwhm_mm: float

    @property
    def size(self) -> tuple[int, ...]:
        """``(tof_bins, views, bins)``."""
        return (self.tof_bins, *super().size)

    def rays(self) -> tuple[Array, Array]:
        """Return points and directions, repeated for every time-of-flight bin."""
        points, directions = super().rays()
        return np.tile(points, (self.tof_bins, 1)), np.tile(directions, (self.tof_bins, 1))

    def matrix(self, rays: Index | None = None) -> csr_array:
        """Return the weights of all lines and bins, or of the numbered ones."""
        lines = len(self.angles) * self.bins
        chosen = np.arange(self.tof_bins * lines) if rays is None else rays
        points, directions = super().rays()
        points, directions = points[chosen % lines], directions[chosen % lines]
        centre = (chosen // lines - (self.tof_bins - 1) / 2) * self.tof_spacing_mm
        sigma, half = self.tof_fwhm_mm * FWHM_TO_SIGMA, self.tof_spacing_mm / 2

        def profile(part: slice, t: Array) -> Array:
            distance = t - centre[part][:, None, None]
            near = np.abs(distance) < half + _REACH * sigma
            d = distance[near] / (sqrt(2) * sigma)
            edge = half / (sqrt(2) * sigma)
            result = np.zeros_like(t)
            result[near] = 0.5 * (erf(d + edge) - erf(d - edge))
            return result

        return joseph_matrix(points, directions, shape=self.shape, spacing_mm=self.spacing_mm, profile=profile)

    def ray_permutation(self, Q: Index) -> Index | None:
        """Return the line onto which ``Q`` maps every line; turning a line round mirrors its bins."""
        found = self.view_permutation(Q)
        if found is None:
            return None
        view, flip = found
        turned = flip ^ (round(float(np.linalg.det(Q))) < 0)
        k = np.arange(self.tof_bins)[:, None]
        tof = np.where(turned, self.tof_bins - 1 - k, k)  # (tof, views)
        index = (tof * len(view) + view)[:, :, None] * self.bins + self.flipped_bins(flip)
        return index.ravel()
