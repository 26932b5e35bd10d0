"""Simulated PET: emission counts with attenuation, resolution, scatter and randoms."""

from __future__ import annotations

import torch
from torch import Tensor

from ..likelihoods import Poisson
from ..likelihoods.poisson import draw_counts
from ..operators import LinearOperator, PETProjector
from .attenuation import attenuation_from_ct, class_map, least_squares_image
from .base import Scan, ScanContext, ScanResult, block_mean
from .ct import covering_bins, rays_per_bin
from .smooth import blur_bins, smooth_field

__all__ = ["PETScan"]

KNOWN = "known"
_EMITS = 0.01  # of the largest activity: an emission pixel
_RANDOMS_TILT = 0.1


class PETScan(Scan):
    r"""Emission counts: ``y ~ Poisson(n a mean_bin(P G x) + s + r)``, simulated on the finer grid.

    In the data, attenuation ``a`` comes from the true fine map and the resolution ``G`` is the scanner's. The scan
    stops at a preset number of trues, which with the (known) time and calibration fixes ``n``; every bin has its own
    known detection efficiency. Scatter is the emission that attenuation takes away, spread out by a wide blur;
    randoms are nearly flat; neither is a scaled copy of the trues.

    The model handed over differs as a scanner's does: the projector of the method's own grid, another width of the
    resolution, attenuation from what was measured, and a background known up to a smooth error.

    Args:
        counts: trues for each emission pixel (more than 1 % of the largest activity) of the method's grid.
        views: number of view angles over half a turn.
        bins: radial bins; the default covers the diagonal of the grid.
        bin_spacing_mm: radial bin width in mm; the default is one pixel.
        psf_fwhm_mm: resolution of the scanner in mm.
        model_psf_fwhm_mm: resolution that the model assumes in mm.
        attenuation: where the model's attenuation map comes from: the name of a modality scanned before this one
            (``"ct"``: reconstructed, converted and blurred; any other: a class map of the MR image), or ``"known"``:
            the true map averaged to the method's grid.
        scatter_fraction: scatter counts over trues.
        scatter_fwhm_mm: width of the blur of the scatter along the bins in mm.
        randoms_fraction: random counts over trues.
        background_error: root mean square relative error of the background handed over.
        efficiency_spread: standard deviation of the logarithm of the detection efficiencies.

    Raises:
        ValueError: if a number is out of range.

    References:
        shepp1982

    Example:
        >>> PETScan(5.0, views=120, bin_spacing_mm=3.0, attenuation="ct").counts
        5.0
    """

    def __init__(
        self,
        counts: float,
        *,
        views: int = 120,
        bins: int | None = None,
        bin_spacing_mm: float | None = None,
        psf_fwhm_mm: float = 5.0,
        model_psf_fwhm_mm: float = 4.5,
        attenuation: str = KNOWN,
        scatter_fraction: float = 0.3,
        scatter_fwhm_mm: float = 150.0,
        randoms_fraction: float = 0.3,
        background_error: float = 0.05,
        efficiency_spread: float = 0.05,
    ) -> None:
        if not counts > 0 or views < 1:
            raise ValueError(f"counts, views: expected > 0 and >= 1, got {counts} and {views}")
        others = (psf_fwhm_mm, model_psf_fwhm_mm, scatter_fraction, scatter_fwhm_mm, randoms_fraction,
                  background_error, efficiency_spread)  # fmt: skip
        if min(others) < 0:
            raise ValueError("psf_fwhm_mm, model_psf_fwhm_mm, scatter_fraction, scatter_fwhm_mm, randoms_fraction, "
                             f"background_error, efficiency_spread: expected >= 0, got {others}")  # fmt: skip
        self.counts = counts
        self.views = views
        self.bins = bins
        self.bin_spacing_mm = bin_spacing_mm
        self.psf_fwhm_mm = psf_fwhm_mm
        self.model_psf_fwhm_mm = model_psf_fwhm_mm
        self.attenuation = attenuation
        self.scatter_fraction = scatter_fraction
        self.scatter_fwhm_mm = scatter_fwhm_mm
        self.randoms_fraction = randoms_fraction
        self.background_error = background_error
        self.efficiency_spread = efficiency_spread

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Simulate one slice ``(1, 1, *fine)`` of activity; returns counts ``(1, 1, views, bins)``."""
        space, draw = context.space, context.generator
        pitch = self.bin_spacing_mm or min(space.spacing_mm)
        bins = self.bins or covering_bins(space, pitch)
        detected, lost = self._emission(fine, context, bins=bins, pitch_mm=pitch)
        efficiency = self._efficiency(tuple(detected.shape), draw).to(fine)
        trues = efficiency * detected
        if not float(trues.sum()) > 0:
            raise ValueError(f"image[{context.modality!r}]: expected some activity that reaches the detector, got none")
        emitting = block_mean(fine, context.oversample) > _EMITS * fine.max()
        time = self.counts * float(emitting.sum()) / float(trues.sum())  # of the scan, times the calibration
        trues = time * trues
        background = self._background(self._spread(lost, context, pitch), trues, efficiency, generator=draw)
        y = draw_counts(trues + background, draw)
        known = self._believed(background, draw)
        model = self._model(context, bins=bins, pitch_mm=pitch, efficiency=time * efficiency)
        return ScanResult(y, model.to(fine.device), Poisson(known))

    def describe(self) -> str:
        """Return in a few words what is measured."""
        known = ", attenuation known" if self.attenuation == KNOWN else ""
        return (f"{self.counts:g} trues a pixel, {self.views} views, scatter {self.scatter_fraction:.0%}, randoms "
                f"{self.randoms_fraction:.0%} of the trues{known}")  # fmt: skip

    def mismatch(self) -> tuple[str, ...]:
        """Return what the data hold and the model does not know."""
        source = {KNOWN: "", "ct": "attenuation from the measured CT"}
        parts = (
            f"resolution {self.psf_fwhm_mm:g} mm, modelled {self.model_psf_fwhm_mm:g} mm",
            source.get(self.attenuation, f"attenuation from classes of {self.attenuation}"),
            f"background known to {self.background_error:.0%}" if self.background_error else "",
        )
        return tuple(part for part in parts if part)

    def _model(self, context: ScanContext, *, bins: int, pitch_mm: float, efficiency: Tensor) -> LinearOperator:
        """Return the operator handed over, on the method's grid."""
        return PETProjector(
            context.space.shape,
            context.space.spacing_mm,
            views=self.views,
            bins=bins,
            bin_spacing_mm=pitch_mm,
            attenuation=self._model_attenuation(context),
            efficiency=efficiency,
            psf_fwhm_mm=self.model_psf_fwhm_mm,
        )

    def _field(self, data: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random field of mean square one that broadcasts against the data and is smooth over neighbours."""
        return smooth_field(data.shape[-2:], generator).to(data)

    def _believed(self, background: Tensor, generator: torch.Generator) -> Tensor:
        """Return the background handed over: the true one up to a smooth relative error."""
        if self.background_error == 0:
            return background
        return background * torch.exp(self.background_error * self._field(background, generator))

    def _spread(self, lost: Tensor, context: ScanContext, pitch_mm: float) -> Tensor:
        """Return how the emission that attenuation took away reaches the detector as scatter."""
        return blur_bins(lost, fwhm_mm=self.scatter_fwhm_mm, pitch_mm=pitch_mm)

    def _efficiency(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if self.efficiency_spread == 0:
            return torch.ones(shape)
        return torch.exp(self.efficiency_spread * torch.randn(shape, generator=generator))

    @torch.no_grad()
    def _emission(self, fine: Tensor, context: ScanContext, *, bins: int, pitch_mm: float) -> tuple[Tensor, Tensor]:
        """Return what is detected and what attenuation takes away, averaged over the bins, efficiency one."""
        factor = context.oversample
        rays = rays_per_bin(context.space, pitch_mm, factor)
        spacing = [s / factor for s in context.space.spacing_mm]
        true = PETProjector(fine.shape[2:], spacing, views=self.views, bins=bins * rays,
                            bin_spacing_mm=pitch_mm / rays, psf_fwhm_mm=self.psf_fwhm_mm).to(fine.device)  # fmt: skip
        emitted = true(fine)
        detected = emitted * true.attenuation_factors(self._true_attenuation(context))
        lost = (emitted - detected).unflatten(-1, (bins, rays)).mean(-1)
        return detected.unflatten(-1, (bins, rays)).mean(-1), lost

    def _background(
        self, scattered: Tensor, trues: Tensor, efficiency: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """Return expected scatter and random counts, of the shape of the trues."""
        scatter = efficiency * scattered
        randoms = efficiency * torch.exp(_RANDOMS_TILT * self._field(trues, generator))
        parts = (self.scatter_fraction, scatter), (self.randoms_fraction, randoms)
        return torch.stack([f * trues.sum() * p / p.sum().clamp_min(1e-30) for f, p in parts]).sum(0)

    def _true_attenuation(self, context: ScanContext) -> Tensor:
        if "attenuation" not in context.fine:
            raise ValueError("attenuation: expected the true 511 keV map among the fine maps (key 'attenuation_fine' "
                             f"of a sample), got {sorted(context.fine)}")  # fmt: skip
        return context.fine["attenuation"]

    def _model_attenuation(self, context: ScanContext) -> Tensor:
        """Return ``(1, 1, *shape)`` in 1/cm: what the scanner believes."""
        if self.attenuation == KNOWN:
            return block_mean(self._true_attenuation(context), context.oversample)
        if self.attenuation not in context.measured:
            raise ValueError(f"attenuation: expected {KNOWN!r} or a modality scanned before {context.modality!r} "
                             f"({sorted(context.measured)}), got {self.attenuation!r}")  # fmt: skip
        image = least_squares_image(context.measured[self.attenuation])
        spacing = context.space.spacing_mm
        if self.attenuation != "ct":
            return class_map(image, spacing_mm=spacing)
        unit = context.space["ct"].unit
        if unit != "1/cm":
            raise ValueError(f"attenuation: expected CT images in 1/cm, got {unit!r}")
        return attenuation_from_ct(image, spacing_mm=spacing)
