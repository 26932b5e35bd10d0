"""Between physical values of an image stack and the range of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..space import ImageSpace
from ..units import hu_to_attenuation

__all__ = ["DEFAULT_KNOTS", "IntensityScaling"]

Knots = Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]

#: Physical value -> network value. MR is relative to a brain percentile, so that 1 is bright; CT in HU has the brain
#: window [-100, 200] in two thirds of the range, with air below and bone above compressed; PET is relative to grey
#: matter, and hot foci lie above 1.
DEFAULT_KNOTS: dict[str, tuple[tuple[float, float], ...]] = {
    "mr": ((0.0, -1.0), (1.0, 1.0)),
    "ct": ((-1000.0, -1.0), (-100.0, -0.8), (200.0, 0.5), (2000.0, 1.0)),
    "pet_fdg": ((0.0, -1.0), (1.5, 1.0)),
    "pet_amyloid": ((0.0, -1.0), (2.5, 1.0)),
}


class IntensityScaling:
    r"""Invertible map of every modality between its physical unit and the network's range, about [-1, 1].

    Piecewise linear and strictly increasing, ``x = x_0 + s_0 (v - v_0) + sum_k (s_k - s_{k-1}) max(v - v_k, 0)``;
    outside the knots the outer pieces go on, so nothing is clipped and ``inverse`` undoes the map exactly.

    Args:
        space: image space of the stack. A CT whose unit is ``"1/cm"`` is mapped through its CT number; any other
            is in HU.
        knots: pairs (physical value, network value) by modality, at least two each; of a modality with several
            channels one list for all of them, or a list of such lists, one a channel. The default is by name,
            see ``DEFAULT_KNOTS``, ``"mr"`` for every name that is not there.

    Raises:
        ValueError: if knots do not increase, or name a modality outside the space.

    Example:
        >>> space = ImageSpace(["t1", "ct"], (1, 1), (1.0, 1.0))
        >>> scaling = IntensityScaling(space)
        >>> x = scaling(torch.tensor([0.5, 50.0]).reshape(1, 2, 1, 1))
        >>> [round(v, 3) for v in x.flatten().tolist()], [round(v, 3) for v in scaling.inverse(x).flatten().tolist()]
        ([0.0, -0.15], [0.5, 50.0])
    """

    def __init__(self, space: ImageSpace, *, knots: Mapping[str, Knots] | None = None) -> None:
        unknown = sorted(set(knots or {}) - set(space.names))
        if unknown:
            raise ValueError(f"knots: expected modalities of {list(space.names)}, got {unknown}")
        self.space = space
        rows: list[list[list[float]]] = []
        for modality in space.modalities:
            chosen = (knots or {}).get(modality.name, DEFAULT_KNOTS.get(modality.name, DEFAULT_KNOTS["mr"]))
            lists = _channel_lists(chosen, modality.name, modality.channels)
            if modality.name == "ct" and modality.unit == "1/cm":
                lists = [[[float(hu_to_attenuation(torch.tensor(a, dtype=torch.float64))), b] for a, b in pairs]
                         for pairs in lists]  # fmt: skip
            rows += lists
        self.knots = rows
        self._forward = _Ramps(rows)
        self._inverse = _Ramps([[[b, a] for a, b in pairs] for pairs in rows])

    def __call__(self, stack: Tensor) -> Tensor:
        """Return the network's values ``(B, C, *shape)`` of a stack in physical units."""
        return self._forward(self._check(stack))

    def inverse(self, image: Tensor) -> Tensor:
        """Return the stack in physical units of network values ``(B, C, *shape)``."""
        return self._inverse(self._check(image))

    def slope(self, stack: Tensor) -> Tensor:
        """Return ``dx/dv`` at every value of a stack ``(B, C, *shape)`` in physical units."""
        return self._forward.slope(self._check(stack))

    def affine(self, name: str) -> tuple[float, float] | None:
        """Return ``(a, b)`` with ``physical = a + b * network`` for a modality, or None where there is no such pair.

        There is none where the map is not affine, or not the same for all channels.
        """
        lists = self.knots[self.space.channels(name)]
        pairs = lists[0]
        if len(pairs) > 2 or any(other != pairs for other in lists):
            return None
        (v0, x0), (v1, x1) = pairs
        b = (v1 - v0) / (x1 - x0)
        return v0 - b * x0, b

    def _check(self, stack: Tensor) -> Tensor:
        if stack.ndim < 2 or stack.shape[1] != len(self.knots):
            raise ValueError(f"stack: expected {len(self.knots)} channels for {list(self.space.names)}, "
                             f"got shape {tuple(stack.shape)}")  # fmt: skip
        return stack


def _channel_lists(knots: Knots, name: str, channels: int) -> list[list[list[float]]]:
    """Return the pairs of every channel of a modality."""
    nested = len(knots) > 0 and all(isinstance(v, Sequence) for pair in knots for v in pair)
    per_channel: list[Any] = list(knots) if nested else [knots] * channels
    lists = [[[float(a), float(b)] for a, b in pairs] for pairs in per_channel]
    if len(lists) != channels:
        raise ValueError(f"knots of {name!r}: expected one list of pairs or {channels}, got {len(lists)}")
    for pairs in lists:
        if len(pairs) < 2 or not all(p[0] < q[0] and p[1] < q[1] for p, q in pairwise(pairs)):
            raise ValueError(f"knots of {name!r}: expected two or more increasing pairs, got {pairs}")
    return lists


class _Ramps:
    """Sum of ramps per channel; channels with fewer pieces are padded with ramps of slope zero."""

    def __init__(self, rows: Sequence[Sequence[Sequence[float]]]) -> None:
        width = max(len(r) for r in rows) - 2
        start, change = (
            torch.zeros(3, len(rows), dtype=torch.float64),
            torch.zeros(2, width, len(rows), dtype=torch.float64),
        )
        for c, pairs in enumerate(rows):
            slopes = [(q[1] - p[1]) / (q[0] - p[0]) for p, q in pairwise(pairs)]
            start[:, c] = torch.tensor([pairs[0][0], pairs[0][1], slopes[0]], dtype=torch.float64)
            for k, (before, after) in enumerate(pairwise(slopes)):
                change[:, k, c] = torch.tensor([pairs[k + 1][0], after - before], dtype=torch.float64)
        self.start, self.change = start, change

    def __call__(self, values: Tensor) -> Tensor:
        shape = (-1, *[1] * (values.ndim - 2))
        start, change = self.start.to(values), self.change.to(values)
        v0, x0, slope = (row.reshape(shape) for row in start)
        out = x0 + slope * (values - v0)
        for knot, step in change.unbind(1):
            out = out + step.reshape(shape) * (values - knot.reshape(shape)).clamp(min=0)
        return out

    def slope(self, values: Tensor) -> Tensor:
        shape = (-1, *[1] * (values.ndim - 2))
        start, change = self.start.to(values), self.change.to(values)
        out = start[2].reshape(shape).expand_as(values)
        for knot, step in change.unbind(1):
            out = out + step.reshape(shape) * (values > knot.reshape(shape))
        return out
