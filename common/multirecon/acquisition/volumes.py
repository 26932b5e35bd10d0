"""Simulated scans of volumes: PET with direct and oblique planes, and CT slice by slice."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..operators import LinearOperator, PETProjector3D, SliceStack
from ..space import ImageSpace
from .base import Scan, ScanContext, ScanResult
from .ct import TransmissionScan, rays_per_bin
from .pet import PETScan
from .smooth import blur_bins, smooth_field

__all__ = ["PETScan3D", "StackedCT"]


class PETScan3D(PETScan):
    r"""Emission counts of a cylindrical scanner, a ring behind every slice: ``y ~ Poisson(n a mean(P G x) + s + r)``.

    As :class:`~multirecon.acquisition.pet.PETScan`, in three dimensions. A bin of the data is the mean over the crystal
    width of both detectors: with a grid refined by ``f``, the true scanner has ``f`` rings for every ring of the model,
    and the bin of rings ``(r_1, r_2)`` averages the ``f^2`` pairs of their parts, as well as its rays across the bin.
    Scatter is spread along the axis too; background errors are smooth along it. Activity outside the axial field of
    view neither counts nor scatters.

    Args:
        counts: trues for each emission voxel (more than 1 % of the largest activity) of the method's grid.
        radius_mm: radius of the detector cylinder in mm.
        max_difference: largest ring difference of a plane.
        views: number of view angles over half a turn.
        bins: radial bins; the default covers the diagonal of the grid.
        bin_spacing_mm: radial bin width in mm; the default is one voxel.
        psf_fwhm_mm: resolution of the scanner in mm.
        model_psf_fwhm_mm: resolution that the model assumes in mm.
        attenuation: ``"known"``, or ``"ct"``: from the CT scanned before this one.
        scatter_fraction: scatter counts over trues.
        scatter_fwhm_mm: width of the blur of the scatter along the bins and along the axis in mm.
        randoms_fraction: random counts over trues.
        background_error: root mean square relative error of the background handed over.
        efficiency_spread: standard deviation of the logarithm of the detection efficiencies.

    Raises:
        ValueError: if a number is out of range, or the attenuation would come from an MR image.

    References:
        shepp1982

    Example:
        >>> PETScan3D(20.0, radius_mm=420.0, max_difference=5, attenuation="ct").max_difference
        5
    """

    def __init__(
        self,
        counts: float,
        *,
        radius_mm: float,
        max_difference: int,
        views: int = 60,
        bins: int | None = None,
        bin_spacing_mm: float | None = None,
        psf_fwhm_mm: float = 5.0,
        model_psf_fwhm_mm: float = 4.5,
        attenuation: str = "known",
        scatter_fraction: float = 0.3,
        scatter_fwhm_mm: float = 150.0,
        randoms_fraction: float = 0.3,
        background_error: float = 0.05,
        efficiency_spread: float = 0.05,
    ) -> None:
        super().__init__(
            counts,
            views=views,
            bins=bins,
            bin_spacing_mm=bin_spacing_mm,
            psf_fwhm_mm=psf_fwhm_mm,
            model_psf_fwhm_mm=model_psf_fwhm_mm,
            attenuation=attenuation,
            scatter_fraction=scatter_fraction,
            scatter_fwhm_mm=scatter_fwhm_mm,
            randoms_fraction=randoms_fraction,
            background_error=background_error,
            efficiency_spread=efficiency_spread,
        )
        if max_difference < 0 or not radius_mm > 0:
            raise ValueError("max_difference, radius_mm: expected >= 0 and > 0, "
                             f"got {max_difference} and {radius_mm}")  # fmt: skip
        if attenuation not in ("known", "ct"):
            raise ValueError(f"attenuation: expected 'known' or 'ct' in 3D, got {attenuation!r}")
        self.radius_mm = radius_mm
        self.max_difference = max_difference

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Simulate one volume ``(1, 1, *fine)`` of activity; returns counts ``(1, 1, planes, views, bins)``."""
        if len(context.space.shape) != 3 or context.space.shape[2] <= self.max_difference:
            raise ValueError(f"space: expected a volume (H, W, D) with more than {self.max_difference} slices, "
                             f"got {context.space.shape}")  # fmt: skip
        return super().acquire(fine, context)

    def describe(self) -> str:
        """Return in a few words what is measured."""
        text = super().describe().replace("a pixel", "a voxel")
        return f"3D, ring differences up to {self.max_difference}, {text}"

    @torch.no_grad()
    def _emission(self, fine: Tensor, context: ScanContext, *, bins: int, pitch_mm: float) -> tuple[Tensor, Tensor]:
        """Return what is detected and what attenuation takes away, averaged over the crystals, efficiency one."""
        space, factor = context.space, context.oversample
        rays = rays_per_bin(space, pitch_mm, factor)
        true = PETProjector3D(
            fine.shape[2:],
            [s / factor for s in space.spacing_mm],
            views=self.views,
            bins=bins * rays,
            rings=factor * space.shape[2],
            ring_spacing_mm=space.spacing_mm[2] / factor,
            radius_mm=self.radius_mm,
            max_difference=factor * (self.max_difference + 1) - 1,
            bin_spacing_mm=pitch_mm / rays,
            psf_fwhm_mm=self.psf_fwhm_mm,
        ).to(fine.device)
        emitted = true(fine)
        detected = emitted * true.attenuation_factors(self._true_attenuation(context))
        number = {pair: i for i, pair in enumerate(true.planes)}
        parts = [(a, b) for a in range(factor) for b in range(factor)]
        places = [[number[factor * low + a, factor * high + b] for a, b in parts]
                  for low, high in _planes(space.shape[2], self.max_difference)]  # fmt: skip
        index = torch.tensor(places, device=fine.device)
        means = [t.unflatten(-1, (bins, rays)).mean(-1)[:, :, index].mean(3) for t in (detected, emitted - detected)]
        return means[0], means[1]

    def _model(self, context: ScanContext, *, bins: int, pitch_mm: float, efficiency: Tensor) -> LinearOperator:
        space = context.space
        return PETProjector3D(
            space.shape,
            space.spacing_mm,
            views=self.views,
            bins=bins,
            rings=space.shape[2],
            ring_spacing_mm=space.spacing_mm[2],
            radius_mm=self.radius_mm,
            max_difference=self.max_difference,
            bin_spacing_mm=pitch_mm,
            attenuation=self._model_attenuation(context),
            efficiency=efficiency,
            psf_fwhm_mm=self.model_psf_fwhm_mm,
        )

    def _field(self, data: Tensor, generator: torch.Generator) -> Tensor:
        """Return a field that is smooth over the axial position of the planes, the views and the bins."""
        heights = [low + high for low, high in _planes(_rings(data.shape[2], self.max_difference), self.max_difference)]
        return smooth_field((max(heights) + 1, *data.shape[-2:]), generator)[heights].to(data)

    def _spread(self, lost: Tensor, context: ScanContext, pitch_mm: float) -> Tensor:
        spread = super()._spread(lost, context, pitch_mm)
        rings, width = context.space.shape[2], context.space.spacing_mm[2]
        # the planes of one ring difference follow each other along the axis
        sizes = [rings, *(rings - d for d in range(1, self.max_difference + 1) for _ in (1, -1))]
        segments = [
            blur_bins(part.movedim(2, -1), fwhm_mm=self.scatter_fwhm_mm, pitch_mm=width).movedim(-1, 2)
            for part in spread.split(sizes, dim=2)
        ]
        return torch.cat(segments, dim=2)


class StackedCT(Scan):
    """A CT volume measured slice by slice: each slice of the method is the mean of the finer slices it covers.

    The mean is over transmitted intensities, as across the width of a detector row, not over attenuation; the model
    projects the slice as if it were uniform along the axis.

    Args:
        scan: how one slice is measured.

    Example:
        >>> from multirecon.acquisition import ParallelCT
        >>> StackedCT(ParallelCT(60, photons=1e4)).describe()
        'slice by slice: 60 parallel views, 10000 photons'
    """

    def __init__(self, scan: TransmissionScan) -> None:
        self.scan = scan

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Simulate one volume ``(1, 1, *fine)`` in 1/cm; returns counts ``(1, 1, D, views, bins)``."""
        space = context.space
        if len(space.shape) != 3:
            raise ValueError(f"space: expected a volume (H, W, D), got {space.shape}")
        plane = ImageSpace([space[context.modality]], space.shape[:2], space.spacing_mm[:2])
        depth, factor = space.shape[2], context.oversample
        transmitted = self.scan.transmit(fine[0].movedim(-1, 0), plane, factor)
        slices = transmitted.unflatten(0, (depth, factor)).mean(1).movedim(0, 1)[None]
        y, likelihood = self.scan.count(slices, plane, context.generator)
        model = SliceStack(self.scan.model(plane, channels=depth), slices=depth)
        return ScanResult(y, model.to(fine.device), likelihood)

    def describe(self) -> str:
        """Return in a few words what is measured."""
        return f"slice by slice: {self.scan.describe()}"

    def mismatch(self) -> tuple[str, ...]:
        """Return what the data hold and the model does not know."""
        return self.scan.mismatch()


@cache
def _planes(rings: int, max_difference: int) -> tuple[tuple[int, int], ...]:
    """Return the ring pairs in the order of the data of ``PETProjector3D``."""
    signed = [0] + [sign * d for d in range(1, max_difference + 1) for sign in (1, -1)]
    return tuple((low, low + d) if d >= 0 else (low - d, low) for d in signed for low in range(rings - abs(d)))


def _rings(planes: int, max_difference: int) -> int:
    """Return the number of rings that have this many planes up to a ring difference."""
    return (planes + max_difference * (max_difference + 1)) // (2 * max_difference + 1)
