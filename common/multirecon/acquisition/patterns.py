"""A single-pixel camera: Hadamard patterns in the order of their variance over training images."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

import torch
from torch import Tensor

from ..likelihoods import Gaussian
from ..operators import Hadamard
from .base import Scan, ScanContext, ScanResult, block_mean
from .smooth import blur_bins

__all__ = ["HadamardCamera"]


class HadamardCamera(Scan):
    """The first ``patterns`` Walsh-Hadamard coefficients of a blurred image, with white noise.

    The patterns are ordered by the variance of their coefficients over T1 slices of the training anatomies
    (``hadamard_t1_64.json``, written by ``ci/build_hadamard_order.py``), so that few of them hold most of an image. The
    blur of the optics is not part of the model.

    Args:
        patterns: number of patterns ``M``.
        sigma: standard deviation of the noise of a coefficient of the orthonormal transform, in the unit of the image.
        blur_mm: full width at half maximum of the optics in mm.

    Raises:
        ValueError: if a number is out of range.

    References:
        duarte2008
    """

    def __init__(self, patterns: int, *, sigma: float = 0.01, blur_mm: float = 0.0) -> None:
        known = len(_order()[1])
        if not 1 <= patterns <= known:
            raise ValueError(f"patterns: expected a number from 1 to {known}, got {patterns}")
        if not sigma > 0 or blur_mm < 0:
            raise ValueError(f"sigma, blur_mm: expected > 0 and >= 0, got {sigma} and {blur_mm}")
        self.patterns, self.sigma, self.blur_mm = int(patterns), sigma, blur_mm

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Simulate one sample.

        Raises:
            ValueError: if the grid is not the one whose patterns are ordered.
        """
        shape, rows = _order()
        if context.space.shape != shape:
            raise ValueError(f"grid: expected {shape}, whose patterns are ordered, got {context.space.shape}")
        along = [h / context.oversample for h in context.space.spacing_mm]
        seen = blur_bins(fine.mT.contiguous(), fwhm_mm=self.blur_mm, pitch_mm=along[0]).mT.contiguous()
        image = block_mean(blur_bins(seen, fwhm_mm=self.blur_mm, pitch_mm=along[1]), context.oversample)
        operator = Hadamard(image.shape[1:], torch.tensor(rows[: self.patterns]))
        likelihood = Gaussian(self.sigma)
        return ScanResult(likelihood.sample(operator(image), context.generator), operator, likelihood)

    def describe(self) -> str:
        """Return in a few words what is measured."""
        return f"{self.patterns} Hadamard patterns of largest variance, noise {self.sigma:g}"

    def mismatch(self) -> tuple[str, ...]:
        """Return what the data hold and the model does not know."""
        return (f"optics blur of {self.blur_mm:g} mm",) if self.blur_mm else ()


@cache
def _order() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the grid, and the numbers of its patterns by falling variance."""
    text = resources.files(__package__).joinpath("hadamard_t1_64.json").read_text(encoding="utf-8")
    values = json.loads(text)
    return tuple(values["shape"]), tuple(values["rows"])
