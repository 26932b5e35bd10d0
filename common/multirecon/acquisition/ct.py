"""Simulated parallel-beam CT."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from ..likelihoods import TransmissionPoisson
from ..operators import ParallelBeam
from .base import Scan, ScanContext, ScanResult

__all__ = ["ParallelCT"]


class ParallelCT(Scan):
    r"""Photon counts of a parallel-beam scan: ``y ~ Poisson(I0 * mean_bin exp(-P x) + scatter)``.

    The rays are traced on the finer grid with ``oversample`` rays a bin, and transmitted intensities (not line
    integrals) are averaged over the bin; the operator handed over is the Joseph projector of the method's own grid.

    Args:
        views: number of views over ``arc``.
        photons: blank-scan counts ``I0`` a bin.
        bins: detector bins; the default covers the diagonal of the grid at one pixel a bin.
        arc: angle covered in radians.
        scatter: mean background counts a bin.
    """

    def __init__(
        self, views: int, *, photons: float = 1e5, bins: int | None = None, arc: float = pi, scatter: float = 0.0
    ) -> None:
        if views < 1 or not photons > 0 or scatter < 0:
            raise ValueError(f"views, photons, scatter: expected >= 1, > 0, >= 0, got {views}, {photons}, {scatter}")
        self.views = views
        self.photons = photons
        self.bins = bins
        self.arc = arc
        self.scatter = scatter

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Simulate one slice ``(1, 1, *fine)`` in 1/cm; returns counts ``(1, 1, views, bins)``."""
        space, factor = context.space, context.oversample
        pitch = min(space.spacing_mm)
        extent = sum((n * s) ** 2 for n, s in zip(space.shape, space.spacing_mm, strict=True)) ** 0.5
        bins = self.bins or 2 * int(extent / pitch / 2) + 2
        true = ParallelBeam(
            fine.shape[2:],
            [s / factor for s in space.spacing_mm],
            views=self.views,
            bins=bins * factor,
            bin_spacing_mm=pitch / factor,
            arc=self.arc,
        ).to(fine.device)
        with torch.no_grad():
            transmitted = torch.exp(-true(fine)).unflatten(-1, (bins, factor)).mean(-1)
        likelihood = TransmissionPoisson(self.photons, self.scatter)
        y = likelihood.sample(-torch.log(transmitted), context.generator)
        model = ParallelBeam(
            space.shape, space.spacing_mm, views=self.views, bins=bins, bin_spacing_mm=pitch, arc=self.arc
        )
        return ScanResult(y, model.to(fine.device), likelihood)
