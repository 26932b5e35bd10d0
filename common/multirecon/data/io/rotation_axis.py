"""Where on the detector the rotation axis lies, from the projections alone."""

from __future__ import annotations

from math import pi

import numpy as np
from numpy.typing import NDArray

from .checks import refusal

__all__ = ["axis_of_mass", "axis_of_opposite_views", "estimate_axis"]

Lines = NDArray[np.floating]
_NEAR = pi / 36  # 5 degrees (or 2.5 steps between views): how far from opposite two views may be


def estimate_axis(lines: Lines, angles: NDArray[np.float64]) -> float:
    """Return the detector column of the rotation axis of a parallel-beam scan, to a fraction of a column.

    Opposite views decide where there are any (they do not mind an object that leaves the view a little, nor an offset
    of the logarithm); otherwise the path of the centre of mass does.

    Args:
        lines: line integrals ``(rows, views, bins)``, dimensionless.
        angles: view angles in radians.

    Raises:
        ValueError: if neither way is open: less than half a turn, or less than an eighth for the centre of mass.
    """
    try:
        return axis_of_opposite_views(lines, angles)
    except ValueError:
        return axis_of_mass(lines, angles)


def axis_of_opposite_views(lines: Lines, angles: NDArray[np.float64]) -> float:
    r"""Return the axis column by matching views with the mirror image of those half a turn away.

    :math:`p(\theta + \pi, s) = p(\theta, -s)`. A pair that lies :math:`\delta` off half a turn is displaced by an
    amount linear in :math:`\delta`; a line fitted to the pairs within 5 degrees is read at zero.

    Args:
        lines: line integrals ``(rows, views, bins)``, dimensionless.
        angles: view angles in radians.

    Raises:
        ValueError: if no two views are opposite to 5 degrees.
    """
    gap = angles[None, :] - angles[:, None]
    off = (gap + pi) % (2 * pi) - pi  # 0 for equal directions
    off = np.where(off > 0, off - pi, off + pi)  # 0 for opposite ones
    near = max(_NEAR, 2.5 * float(np.median(np.abs(np.diff(angles))))) if len(angles) > 1 else _NEAR
    first, second = np.nonzero(np.abs(off) <= near)
    keep = first < second
    first, second = first[keep], second[keep]
    if not len(first):
        raise refusal("angles", "two views half a turn apart (to 5 degrees)",
                      f"views over {np.degrees(np.ptp(angles)):.4g} degrees")  # fmt: skip
    delta = off[first, second]
    best = np.argsort(np.abs(delta), kind="stable")[:60]
    columns = np.array(
        [_mirror_centre(lines[:, i], lines[:, j]) for i, j in zip(first[best], second[best], strict=True)]
    )
    delta = delta[best]
    if np.ptp(delta) < 1e-6:
        return float(np.median(columns))
    # one outlying pair must not turn the line: fit, drop what lies far from it, fit again
    slope, centre = np.polyfit(delta, columns, 1)
    residual = np.abs(columns - centre - slope * delta)
    good = residual <= 3 * np.median(residual) + 1e-9
    return float(np.polyfit(delta[good], columns[good], 1)[1]) if np.ptp(delta[good]) > 1e-6 else float(centre)


def axis_of_mass(lines: Lines, angles: NDArray[np.float64]) -> float:
    r"""Return the axis column as the constant of :math:`c + a \cos\theta + b \sin\theta` fitted to centres of mass.

    Args:
        lines: line integrals ``(rows, views, bins)``, dimensionless; the object must be in every view as a whole.
        angles: view angles in radians.

    Raises:
        ValueError: if the angles do not determine the fit, or a view has no mass.
    """
    profile = lines.sum(axis=0, dtype=np.float64)
    mass = profile.sum(axis=1)
    if len(angles) < 3 or np.ptp(angles) < pi / 4 or not (mass > 0).all():
        raise refusal("angles", "views of an object over 45 degrees or more",
                      f"{len(angles)} over {np.degrees(np.ptp(angles)):.4g} degrees")  # fmt: skip
    centre = (profile * np.arange(profile.shape[1])).sum(axis=1) / mass
    design = np.stack([np.ones_like(angles), np.cos(angles), np.sin(angles)], axis=1)
    return float(np.linalg.lstsq(design, centre, rcond=None)[0][0])


def _mirror_centre(view: Lines, opposite: Lines) -> float:
    """Return the column about which two views ``(rows, bins)`` are mirror images, by correlation."""
    bins = view.shape[1]
    a = view - view.mean(axis=1, keepdims=True)
    b = opposite[:, ::-1] - opposite.mean(axis=1, keepdims=True)
    size = 2 * bins
    spectrum = (np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size))).sum(axis=0)
    match = np.fft.irfft(spectrum, size)
    peak = int(np.argmax(match))
    left, middle, right = match[peak - 1], match[peak], match[(peak + 1) % size]
    curve = left - 2 * middle + right
    shift = peak + (0.5 * (left - right) / curve if curve < 0 else 0.0)
    shift = shift - size if shift >= bins else shift
    return (bins - 1 + shift) / 2
