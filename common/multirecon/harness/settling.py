"""How soon an iterative method is done: iterations and seconds until its image stays close to its last one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["SETTLED", "Settling", "settling"]

SETTLED = 1e-3
"""Relative distance to the last image, below which an image counts as done."""
_MOST_BYTES = 2**29  # of kept iterates; a method with more of them is not asked


@dataclass(frozen=True)
class _Iterate:
    number: int
    seconds: float
    image: Tensor


class Settling:
    """The callback of a run: keeps every iterate with the time at which it was there, its own time left out.

    A method that solves several blocks one after another counts its iterations from one again for each: every block
    is a run of its own, and the numbers are the sums.

    Args:
        clock: seconds, such as ``time.perf_counter``.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._runs: list[list[_Iterate]] = []
        self._begin, self._lost, self._bytes = clock(), 0.0, 0

    def __call__(self, iteration: int, estimate: Tensor, *_: Any) -> None:
        """Keep an iterate ``(B, C, *shape)``; ``iteration`` counts from one (or zero)."""
        entered = self._clock()
        if not self._runs or iteration <= self._runs[-1][-1].number:
            self._runs.append([])
        image = estimate.detach().to("cpu", torch.float32, copy=True)
        self._bytes += image.numel() * image.element_size()
        if self._bytes > _MOST_BYTES:
            for run in self._runs:
                run.clear()
            raise OverflowError(f"iterates: expected at most {_MOST_BYTES >> 20} MiB of them")
        self._runs[-1].append(_Iterate(iteration, entered - self._begin - self._lost, image))
        self._lost += self._clock() - entered

    def result(self, tolerance: float = SETTLED) -> dict[str, float]:
        """Return ``iterations``, ``settling_iterations`` and ``settling_seconds``; nothing where none was reported."""
        totals = {"iterations": 0.0, "settling_iterations": 0.0, "settling_seconds": 0.0}
        begin = 0.0
        for run in self._runs:
            done = settling([one.image for one in run], tolerance)
            totals["iterations"] += len(run)
            totals["settling_iterations"] += done + 1
            totals["settling_seconds"] += run[done].seconds - begin
            begin = run[-1].seconds
        return totals if self._runs else {}


def settling(images: Sequence[Tensor], tolerance: float = SETTLED) -> int:
    """Return the index from which on every image lies within ``tolerance |last|`` of the last one.

    Args:
        images: iterates of one run, at least one.
        tolerance: relative distance.

    Example:
        >>> settling([torch.tensor([v]) for v in (0.0, 1.0, 1.5, 0.9999, 1.0)])
        3
    """
    last = images[-1]
    bound = tolerance * float(last.norm())
    far = [index for index, image in enumerate(images) if float((image - last).norm()) > bound]
    return far[-1] + 1 if far else 0
