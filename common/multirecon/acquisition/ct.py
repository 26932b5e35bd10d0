"""Simulated CT: parallel and fan beam, with scatter and a detector that blurs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import asin, ceil, hypot, pi, tan

import torch
from torch import Tensor

from ..likelihoods import TransmissionPoisson
from ..operators import FanBeam, ParallelBeam
from ..operators.projector import ViewProjector
from ..space import ImageSpace
from .base import Scan, ScanContext, ScanResult
from .smooth import blur_bins, wrongly_known

__all__ = ["FanCT", "ParallelCT", "TransmissionScan", "covering_bins", "rays_per_bin"]


def covering_bins(space: ImageSpace, pitch_mm: float) -> int:
    """Return the even number of parallel bins of ``pitch_mm`` that covers the diagonal of the (transaxial) grid."""
    extent = hypot(*(n * s for n, s in zip(space.shape[:2], space.spacing_mm[:2], strict=True)))
    return 2 * int(extent / pitch_mm / 2) + 2


def rays_per_bin(space: ImageSpace, pitch_mm: float, oversample: int) -> int:
    """Return how many rays the data of a bin are averaged over: none lies further from the next than a fine pixel."""
    return max(oversample, ceil(pitch_mm * oversample / min(space.spacing_mm) - 1e-6))


class TransmissionScan(Scan):
    r"""Photon counts of a CT scan: ``y ~ Poisson(I0 G mean_bin exp(-P x) + s)``.

    The rays are traced on the finer grid with ``oversample`` or more rays a bin, and transmitted intensities (not line
    integrals) are blurred by the detector and averaged over the bin. The operator handed over is the Joseph projector
    of the method's own grid, without the blur.

    Scatter is smooth but no scaled primary: ``s ~ blur(t (-log t))`` with the transmitted fraction ``t``, which grows
    with the first interactions and dies with attenuation, plus the constant ``scatter``. The method is told
    ``s exp(error * field)`` with a smooth random field.

    Args:
        views: number of views over ``arc``.
        photons: blank-scan counts ``I0`` a bin.
        bins: detector bins; the default covers the grid.
        bin_spacing_mm: bin width at the detector in mm; the default is one pixel at the rotation axis.
        arc: angle covered in radians.
        scatter: constant background in counts a bin.
        scatter_ratio: mean scatter over mean primary counts of the rays through the object.
        scatter_fwhm_mm: width of the blur of the scatter along the detector in mm.
        scatter_error: root mean square relative error of the background handed over.
        detector_fwhm_mm: width of the detector's blur in mm (in the data only).
    """

    def __init__(
        self,
        views: int,
        *,
        photons: float = 1e5,
        bins: int | None = None,
        bin_spacing_mm: float | None = None,
        arc: float = pi,
        scatter: float = 0.0,
        scatter_ratio: float = 0.0,
        scatter_fwhm_mm: float = 120.0,
        scatter_error: float = 0.0,
        detector_fwhm_mm: float = 0.0,
    ) -> None:
        if views < 1 or not photons > 0 or scatter < 0:
            raise ValueError(f"views, photons, scatter: expected >= 1, > 0, >= 0, got {views}, {photons}, {scatter}")
        shares = (scatter_ratio, scatter_fwhm_mm, scatter_error, detector_fwhm_mm)
        if min(shares) < 0:
            raise ValueError("scatter_ratio, scatter_fwhm_mm, scatter_error, detector_fwhm_mm: expected >= 0, "
                             f"got {shares}")  # fmt: skip
        self.views = views
        self.photons = photons
        self.bins = bins
        self.bin_spacing_mm = bin_spacing_mm
        self.arc = arc
        self.scatter = scatter
        self.scatter_ratio = scatter_ratio
        self.scatter_fwhm_mm = scatter_fwhm_mm
        self.scatter_error = scatter_error
        self.detector_fwhm_mm = detector_fwhm_mm

    @abstractmethod
    def detector(self, space: ImageSpace) -> tuple[int, float, float]:
        """Return the number of bins, their width in mm, and that width at the rotation axis."""

    @abstractmethod
    def beam(
        self, shape: Sequence[int], spacing_mm: Sequence[float], *, bins: int, pitch_mm: float, channels: int = 1
    ) -> ViewProjector:
        """Return the projector of a grid with the scan's views, of ``channels`` images alike."""

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Simulate one slice ``(1, 1, *fine)`` in 1/cm; returns counts ``(1, 1, views, bins)``."""
        transmitted = self.transmit(fine, context.space, context.oversample)
        y, likelihood = self.count(transmitted, context.space, context.generator)
        return ScanResult(y, self.model(context.space).to(fine.device), likelihood)

    @torch.no_grad()
    def transmit(self, fine: Tensor, space: ImageSpace, oversample: int) -> Tensor:
        """Return the transmitted fractions ``(N, 1, views, bins)`` of slices.

        Args:
            fine: ``(N, 1, *fine)`` attenuation in 1/cm on the refined grid.
            space: the method's space of one slice.
            oversample: refinement of the grid.
        """
        bins, pitch, inside = self.detector(space)
        rays = rays_per_bin(space, inside, oversample)
        spacing = [s / oversample for s in space.spacing_mm]
        true = self.beam(fine.shape[2:], spacing, bins=bins * rays, pitch_mm=pitch / rays).to(fine.device)
        through = torch.exp(-true(fine))
        through = blur_bins(through, fwhm_mm=self.detector_fwhm_mm, pitch_mm=pitch / rays)
        return through.unflatten(-1, (bins, rays)).mean(-1)

    def count(
        self, transmitted: Tensor, space: ImageSpace, generator: torch.Generator
    ) -> tuple[Tensor, TransmissionPoisson]:
        """Draw the counts of transmitted fractions ``(1, ..., views, bins)``; return them with the method's likelihood.

        Args:
            transmitted: see :meth:`transmit`.
            space: the method's space of one slice.
            generator: source of randomness.
        """
        scatter = self._scatter(transmitted, self.detector(space)[1])
        y = TransmissionPoisson(self.photons, scatter).sample(-torch.log(transmitted), generator)
        if isinstance(scatter, Tensor):
            scatter = wrongly_known(scatter, self.scatter_error, generator)
        return y, TransmissionPoisson(self.photons, scatter)

    def model(self, space: ImageSpace, channels: int = 1) -> ViewProjector:
        """Return the operator handed over, on the method's space of one slice."""
        bins, pitch, _ = self.detector(space)
        return self.beam(space.shape, space.spacing_mm, bins=bins, pitch_mm=pitch, channels=channels)

    def describe(self) -> str:
        """Return in a few words what is measured."""
        beam = "fan-beam" if isinstance(self, FanCT) else "parallel"
        scatter = f", scatter {self.scatter_ratio:.0%} of the primary" if self.scatter_ratio else ""
        return f"{self.views} {beam} views, {self.photons:g} photons{scatter}"

    def mismatch(self) -> tuple[str, ...]:
        """Return what the data hold and the model does not know."""
        blur = (f"detector blur of {self.detector_fwhm_mm:g} mm",) if self.detector_fwhm_mm else ()
        return (*blur, f"scatter known to {self.scatter_error:.0%}") if self.scatter_error else blur

    def _scatter(self, transmitted: Tensor, pitch_mm: float) -> float | Tensor:
        """Return the expected background counts, a tensor ``(1, 1, views, bins)`` where it depends on the object."""
        if self.scatter_ratio == 0 and self.scatter_error == 0:
            return self.scatter
        shape = blur_bins(-transmitted * torch.log(transmitted), fwhm_mm=self.scatter_fwhm_mm, pitch_mm=pitch_mm)
        behind = transmitted[transmitted < 0.99]
        level = self.scatter_ratio * self.photons * float(behind.mean() if behind.numel() else 0.0)
        return self.scatter + level * shape / shape.mean().clamp_min(1e-12)


class ParallelCT(TransmissionScan):
    r"""Photon counts of a parallel-beam scan, see :class:`TransmissionScan`.

    Args:
        views: number of views over ``arc``.
        photons: blank-scan counts ``I0`` a bin.
        bins: detector bins; the default covers the diagonal of the grid.
        bin_spacing_mm: bin width in mm; the default is one pixel.
        arc: angle covered in radians, half a turn by default.
        scatter: constant background in counts a bin.
        scatter_ratio: mean scatter over mean primary counts of the rays through the object.
        scatter_fwhm_mm: width of the blur of the scatter along the detector in mm.
        scatter_error: root mean square relative error of the background handed over.
        detector_fwhm_mm: width of the detector's blur in mm (in the data only).

    Example:
        >>> ParallelCT(60, photons=5e3, scatter_ratio=0.05, scatter_error=0.1).views
        60
    """

    def detector(self, space: ImageSpace) -> tuple[int, float, float]:
        """Return the number of bins and their width in mm, twice."""
        pitch = self.bin_spacing_mm or min(space.spacing_mm)
        return self.bins or covering_bins(space, pitch), pitch, pitch

    def beam(
        self, shape: Sequence[int], spacing_mm: Sequence[float], *, bins: int, pitch_mm: float, channels: int = 1
    ) -> ViewProjector:
        """Return the parallel beam of a grid."""
        return ParallelBeam(shape, spacing_mm, views=self.views, bins=bins, bin_spacing_mm=pitch_mm, arc=self.arc,
                            channels=channels)  # fmt: skip


class FanCT(TransmissionScan):
    r"""Photon counts of a fan-beam scan, see :class:`TransmissionScan`.

    Args:
        views: number of views over ``arc``.
        source_mm: distance from the source to the rotation axis in mm.
        detector_mm: distance from the rotation axis to the detector in mm.
        curved: whether the detector is an arc around the source.
        photons: blank-scan counts ``I0`` a bin.
        bins: detector bins; the default covers the circle around the grid.
        bin_spacing_mm: bin width at the detector in mm; the default is one pixel at the rotation axis.
        arc: angle covered in radians, a full turn by default.
        scatter: constant background in counts a bin.
        scatter_ratio: mean scatter over mean primary counts of the rays through the object.
        scatter_fwhm_mm: width of the blur of the scatter along the detector in mm.
        scatter_error: root mean square relative error of the background handed over.
        detector_fwhm_mm: width of the detector's blur in mm (in the data only).

    Example:
        >>> FanCT(90, source_mm=570.0, detector_mm=470.0).arc > 6
        True
    """

    def __init__(
        self,
        views: int,
        *,
        source_mm: float,
        detector_mm: float,
        curved: bool = False,
        photons: float = 1e5,
        bins: int | None = None,
        bin_spacing_mm: float | None = None,
        arc: float = 2 * pi,
        scatter: float = 0.0,
        scatter_ratio: float = 0.0,
        scatter_fwhm_mm: float = 120.0,
        scatter_error: float = 0.0,
        detector_fwhm_mm: float = 0.0,
    ) -> None:
        super().__init__(
            views,
            photons=photons,
            bins=bins,
            bin_spacing_mm=bin_spacing_mm,
            arc=arc,
            scatter=scatter,
            scatter_ratio=scatter_ratio,
            scatter_fwhm_mm=scatter_fwhm_mm,
            scatter_error=scatter_error,
            detector_fwhm_mm=detector_fwhm_mm,
        )
        self.source_mm = source_mm
        self.detector_mm = detector_mm
        self.curved = curved

    def detector(self, space: ImageSpace) -> tuple[int, float, float]:
        """Return the number of bins, their width in mm, and that width at the rotation axis."""
        magnification = (self.source_mm + self.detector_mm) / self.source_mm
        pitch = self.bin_spacing_mm or min(space.spacing_mm) * magnification
        corner = hypot(*(n * s / 2 for n, s in zip(space.shape, space.spacing_mm, strict=True)))
        if not corner < self.source_mm:
            raise ValueError(f"source_mm: expected a source beyond the corner ({corner:.4g} mm), got {self.source_mm}")
        angle = asin(corner / self.source_mm)
        half = (self.source_mm + self.detector_mm) * (angle if self.curved else tan(angle))
        return self.bins or 2 * ceil(half / pitch), pitch, pitch / magnification

    def beam(
        self, shape: Sequence[int], spacing_mm: Sequence[float], *, bins: int, pitch_mm: float, channels: int = 1
    ) -> ViewProjector:
        """Return the fan beam of a grid."""
        return FanBeam(
            shape,
            spacing_mm,
            views=self.views,
            bins=bins,
            source_mm=self.source_mm,
            detector_mm=self.detector_mm,
            bin_spacing_mm=pitch_mm,
            detector="curved" if self.curved else "flat",
            arc=self.arc,
            channels=channels,
        )
