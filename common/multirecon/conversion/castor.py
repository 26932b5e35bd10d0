"""CASToR events of one detector ring as a Measurement: histograms as they are, list-mode data counted line by line."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..blocks import Blocks
from ..data.io import CastorEvents
from ..data.io.checks import refusal
from ..likelihoods import BlockLikelihood, Poisson
from ..measurement import Measurement
from ..operators import BlockDiagonal, ComposedOperator, Diagonal, LineProjector
from ..space import ImageSpace, Modality

__all__ = ["castor_measurement"]

_SAME_RING_MM = 1.0
_MOST_LINES = 2_000_000
_FACTORS = ("attenuation", "normalisation")
_RATES = ("randoms", "scatter")

Pairs = NDArray[np.int64]
Values = NDArray[np.float64]


def castor_measurement(
    data: CastorEvents,
    crystals: NDArray[np.floating],
    *,
    lines: CastorEvents | None = None,
    modality: str = "pet_fdg",
    size: int = 128,
    spacing_mm: Sequence[float] = (),
) -> Measurement:
    r"""Return events of one ring as counts of lines, :math:`y \sim \mathrm{Poisson}(P x / (a n) + T(r + s))`.

    A histogram lists its lines. List-mode events are counted: the likelihood of a list is that of the counts of all
    lines up to a constant, so nothing is lost but the order of the events (and their time of flight, which is left out
    with a note). That needs every line that could have detected something: those of ``lines``, or all pairs of crystals
    of the ring whose line crosses the image. Where no event was seen the rates of randoms and scatter are unknown and
    taken as zero: they would add a constant to the likelihood and nothing else.

    Args:
        data: list-mode or histogram events; ``a`` and ``n`` are their attenuation and normalisation factors, ``r`` and
            ``s`` the random and scatter rates, ``T`` the duration.
        crystals: ``(crystals, 3)`` positions in mm; all events must lie within 1 mm of one plane.
        lines: normalization file for list-mode data: every line with its factors.
        modality: key of the image, in counts per cm of path.
        size: pixels along each side.
        spacing_mm: pixel size in mm; by default the square inside the ring.

    Raises:
        ValueError: on several lines an event, crystals out of the table, more than one ring; on list-mode data with
            factors but without ``lines``, or with scatter rates and time of flight (they hold for a time bin).
    """
    notes: list[str] = []
    pairs = _pairs(data, crystals, "path")
    used = crystals[np.unique(pairs)]
    if np.ptp(used[:, 2]) > _SAME_RING_MM:
        raise refusal("path", "events within one ring", f"crystals over {np.ptp(used[:, 2]):.4g} mm of the axis")
    radius = float(np.hypot(used[:, 0], used[:, 1]).max())
    spacing = tuple(spacing_mm) or (2**0.5 * radius / size,) * 2
    if data.mode == "histogram":
        if lines is not None:
            raise refusal("normalization", "no such option for a histogram, which lists its lines", "a file")
        counts, rate, factor = _total(data.events["amount"]), _rate(data), _factor(data)
        if data.events["amount"].shape[1] > 1:
            notes.append("bins of time of flight added up")
    else:
        reach = 0.5 * size * hypot(*spacing)
        pairs, factor, counts, rate = _histogram(data, pairs, lines, crystals, float(used[:, 2].mean()), reach, notes)
    projector = LineProjector((size, size), spacing, starts=_points(crystals, pairs[:, 0]),
                              ends=_points(crystals, pairs[:, 1]))  # fmt: skip
    space = ImageSpace([Modality(modality)], (size, size), spacing)
    affine = space.affine.clone()
    affine[2, 3] = float(used[:, 2].mean())
    operator = ComposedOperator([Diagonal(_tensor(1 / factor)[None]), projector])
    facts: dict[str, Any] = {"format": "castor", "mode": data.mode, "scanner": data.scanner,
                             "duration_s": data.duration_s, "simulated": False, "notes": notes}  # fmt: skip
    return Measurement(
        Blocks({modality: _tensor(counts)[None, None]}),
        BlockDiagonal(space.with_affine(affine), {modality: operator}),
        BlockLikelihood({modality: Poisson(_tensor(rate * data.duration_s)[None, None])}),
        facts,
    )


def _histogram(
    data: CastorEvents,
    pairs: Pairs,
    lines: CastorEvents | None,
    crystals: NDArray[np.floating],
    height: float,
    reach: float,
    notes: list[str],
) -> tuple[Pairs, Values, Values, Values]:
    """Return lines, factors, counts and mean rates of list-mode events."""
    names = data.events.dtype.names or ()
    if "tof_ps" in names:
        if "scatter" in names:
            raise refusal("path", "no scatter rates beside time of flight, which is left out",
                          "rates that hold for a time bin")  # fmt: skip
        notes.append("time of flight left out")
    if lines is None:
        corrected = [n for n in _FACTORS if n in names and bool((data.events[n] != 1).any())]
        if corrected:
            raise refusal("normalization", f"a CASToR normalization file with the factors of all lines ({corrected[0]} "
                          "is known of the detected ones alone)", "none")  # fmt: skip
        possible = _ring_pairs(crystals, height, reach)
        factor = np.ones(len(possible))
        notes.append(f"all {len(possible)} pairs of crystals whose line crosses the image taken as able to detect")
    else:
        if lines.mode != "normalization":
            raise refusal("normalization", "a CASToR normalization file", f"{lines.mode} data")
        possible, factor = _pairs(lines, crystals, "normalization"), _factor(lines)
    count = len(crystals)
    keys = np.sort(possible, axis=1) @ (count, 1)
    order = np.argsort(keys)
    keys, possible, factor = keys[order], possible[order], factor[order]
    if (np.diff(keys) == 0).any():
        raise refusal("normalization", "every line once", "a pair of crystals twice")
    wanted = np.sort(pairs, axis=1) @ (count, 1)
    at = np.searchsorted(keys, wanted).clip(0, len(keys) - 1)
    found = keys[at] == wanted
    if not found.any():
        raise refusal("path", "events on the lines of the scanner", "none")
    if not found.all():
        notes.append(f"{int((~found).sum())} of {len(found)} events left out: not on these lines")
    counts = np.bincount(at[found], minlength=len(keys)).astype(np.float64)
    total = np.bincount(at[found], weights=_rate(data)[found], minlength=len(keys))
    return possible, factor, counts, total / np.maximum(counts, 1)


def _pairs(data: CastorEvents, crystals: NDArray[np.floating], argument: str) -> Pairs:
    if data.events["crystals"].shape[1] > 1:
        raise refusal(argument, "one line an event", f"up to {data.events['crystals'].shape[1]}")
    pairs = data.events["crystals"][:, 0].astype(np.int64)
    if pairs.max() >= len(crystals):
        raise refusal("scanner", f"a table of {pairs.max() + 1} crystals or more", len(crystals))
    return pairs


def _ring_pairs(crystals: NDArray[np.floating], height: float, reach: float) -> Pairs:
    """Return the pairs of crystals of a ring whose line passes the axis within ``reach`` mm."""
    ring = np.nonzero(np.abs(crystals[:, 2] - height) <= _SAME_RING_MM)[0]
    if len(ring) * (len(ring) - 1) // 2 > _MOST_LINES:
        raise refusal("normalization", f"a file of the lines of a ring of {len(ring)} crystals", "none")
    first, second = np.triu_indices(len(ring), 1)
    pairs = np.stack([ring[first], ring[second]], axis=1)
    start, end = (crystals[pairs[:, k], :2].astype(np.float64) for k in (0, 1))
    length = np.maximum(np.hypot(*(end - start).T), 1e-12)
    distance = np.abs(start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0]) / length
    return np.asarray(pairs[distance < reach])


def _factor(data: CastorEvents) -> Values:
    """Return the product of the correction factors of every event."""
    names = data.events.dtype.names or ()
    factor = np.ones(len(data.events))
    for name in _FACTORS:
        if name in names:
            factor = factor * data.events[name].astype(np.float64)
    if factor.min() <= 0:
        raise refusal("path", "correction factors > 0", "0")
    return factor


def _rate(data: CastorEvents) -> Values:
    """Return the rate of randoms and scatter of every event in counts/s, bins of time of flight added up."""
    names = data.events.dtype.names or ()
    return sum((_total(data.events[n]) for n in _RATES if n in names), np.zeros(len(data.events)))


def _total(values: NDArray[Any]) -> Values:
    return values.astype(np.float64).reshape(len(values), -1).sum(1)


def _points(crystals: NDArray[np.floating], index: Pairs) -> list[list[float]]:
    return crystals[index, :2].tolist()


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
