"""Simulated spectral CT: polyenergetic counts in one or several energy bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..likelihoods import Likelihood, PolyenergeticPoisson, TransmissionPoisson, log_transform
from ..likelihoods.poisson import draw_counts
from ..operators import SpectralProjector, energy_bins, mass_attenuation, tube_spectrum
from .base import Scan, ScanContext, ScanResult
from .ct import FanCT, ParallelCT, TransmissionScan, rays_per_bin
from .spectral_slices import BASIS

__all__ = ["PolyenergeticCT", "water_excess"]

MODELS = ("polyenergetic", "effective")
_LOWEST_KEV = 20.0
_STEP_KEV, _MODEL_STEP_KEV = 2.0, 5.0


class PolyenergeticCT(Scan):
    r"""Counts of a photon-counting scan: ``y_k ~ Poisson(mean_bin sum_E S_k(E) exp(-sum_m kappa_m(E) P rho_m) + s)``.

    The densities are the true fine maps ``"materials"`` of the sample; the spectrum is sampled every 2 keV and the
    detector blurs energies. One threshold makes a scan at one tube voltage (dual energy: two such scans).

    The ``"polyenergetic"`` model (unknown: the densities) assumes another tube filter, another energy blur (none by
    default) and wider steps of energy, scaled to the blank scan. The ``"effective"`` one (unknown: one attenuation
    image a bin, ``y ~ Poisson(I0 exp(-P x_k) + s)``) corrects beam hardening as scanners do, for water: with ``f`` the
    curve from measured to single-energy logarithms, calibrated on water, ``I0 = I exp(f(p) - p)`` at
    ``p = log(I / y)``, so that the logarithm of the data is ``f(p)``; bone still hardens the beam. A scanner that is
    not ``calibrated`` has that curve from the assumed spectrum.

    The beam is parallel, or a fan where ``source_mm`` and ``detector_mm`` are given.

    Args:
        views: number of views over ``arc``.
        kvp: tube voltage in kV.
        thresholds_kev: lower thresholds of the energy bins in keV.
        photons: counts in air of a detector bin, all energy bins together.
        model: ``"polyenergetic"`` or ``"effective"``.
        energies_kev: for the effective model, the energy in keV of the image of each bin.
        bins: detector bins; the default covers the grid.
        arc: angle covered in radians; by default half a turn, of a fan beam a full one.
        source_mm: distance of a fan beam's source to the rotation axis in mm.
        detector_mm: distance of the rotation axis to its detector in mm.
        bin_spacing_mm: bin width at the detector in mm; the default is one pixel at the rotation axis.
        materials: basis materials of the true densities, water first; the polyenergetic model's unknowns.
        filter_mm: aluminium filter of the tube in mm.
        model_filter_mm: that of the model in mm.
        resolution_kev: standard deviation of the recorded energies in keV.
        model_resolution_kev: that of the model.
        model_step_kev: energy step of the model in keV.
        calibrated: whether the water curve of the effective model is that of the true spectrum.
        scatter: constant background in counts a bin, known.

    Raises:
        ValueError: on a number out of range, an unknown model or material, or half a fan beam.

    References:
        alvarez1976

    Example:
        >>> PolyenergeticCT(120, kvp=120.0, thresholds_kev=[20.0, 50.0, 80.0], model="polyenergetic").num_bins
        3
    """

    def __init__(
        self,
        views: int,
        *,
        kvp: float,
        thresholds_kev: Sequence[float] = (_LOWEST_KEV,),
        photons: float = 1e5,
        model: str = "effective",
        energies_kev: Sequence[float] = (),
        bins: int | None = None,
        arc: float | None = None,
        source_mm: float | None = None,
        detector_mm: float | None = None,
        bin_spacing_mm: float | None = None,
        materials: Sequence[str] = BASIS,
        filter_mm: float = 6.0,
        model_filter_mm: float = 5.5,
        resolution_kev: float = 3.0,
        model_resolution_kev: float = 0.0,
        model_step_kev: float = _MODEL_STEP_KEV,
        calibrated: bool = True,
        scatter: float = 0.0,
    ) -> None:
        if views < 1 or not photons > 0 or scatter < 0:
            raise ValueError(f"views, photons, scatter: expected >= 1, > 0, >= 0, got {views}, {photons}, {scatter}")
        if model not in MODELS:
            raise ValueError(f"model: expected one of {MODELS}, got {model!r}")
        if len(energies_kev) != (len(thresholds_kev) if model == "effective" else 0):
            raise ValueError(f"energies_kev: expected one energy a bin for the effective model, else none, "
                             f"got {list(energies_kev)}")  # fmt: skip
        if (source_mm is None) != (detector_mm is None):
            raise ValueError(f"source_mm, detector_mm: expected both or none, got {source_mm} and {detector_mm}")
        if not materials or materials[0] != "water":
            raise ValueError(f"materials: expected water first, got {list(materials)}")
        settings: dict[str, Any] = {"photons": photons, "bins": bins, "bin_spacing_mm": bin_spacing_mm}
        settings |= {} if arc is None else {"arc": arc}
        self.geometry: TransmissionScan = (
            ParallelCT(views, **settings)
            if source_mm is None or detector_mm is None
            else FanCT(views, source_mm=source_mm, detector_mm=detector_mm, **settings)
        )
        self.views = views
        self.kvp = kvp
        self.photons = photons
        self.model = model
        self.scatter = scatter
        self.materials = tuple(materials)
        self.calibrated = calibrated
        self.knows_blur = model_resolution_kev > 0

        def spectrum(step_kev: float, filter_mm: float, resolution_kev: float) -> tuple[Tensor, Tensor]:
            return _spectrum(kvp, thresholds_kev, step_kev, filter_mm, resolution_kev, self.materials)

        self.spectrum, self.attenuation = spectrum(_STEP_KEV, filter_mm, resolution_kev)
        self.spectrum = self.spectrum * (photons / self.spectrum.sum())
        assumed, self.model_attenuation = spectrum(model_step_kev, model_filter_mm, model_resolution_kev)
        blank = self.spectrum.sum(1, keepdim=True)
        self.model_spectrum = assumed * (blank / assumed.sum(1, keepdim=True))
        self.energies_kev = tuple(energies_kev)

    @property
    def num_bins(self) -> int:
        """Number of energy bins."""
        return len(self.spectrum)

    def acquire(self, fine: Tensor, context: ScanContext) -> ScanResult:
        """Simulate one slice; returns counts ``(1, energy bins, views, bins)``."""
        if "materials" not in context.fine:
            raise ValueError("materials: expected the true densities among the fine maps (key 'materials_fine' of a "
                             f"sample), got {sorted(context.fine)}")  # fmt: skip
        densities = context.fine["materials"]
        if densities.shape[1] != len(self.materials):
            raise ValueError(f"materials: expected the densities of {list(self.materials)}, "
                             f"got {densities.shape[1]} maps")  # fmt: skip
        expected = len(self.materials) if self.model == "polyenergetic" else self.num_bins
        if context.space[context.modality].channels != expected:
            raise ValueError(f"modality {context.modality!r}: expected {expected} channels for the {self.model} model, "
                             f"got {context.space[context.modality].channels}")  # fmt: skip
        space, factor = context.space, context.oversample
        bins, pitch, inside = self.geometry.detector(space)
        rays = rays_per_bin(space, inside, factor)
        spacing = [s / factor for s in space.spacing_mm]
        beam = self.geometry.beam(densities.shape[2:], spacing, bins=bins * rays, pitch_mm=pitch / rays)
        true = SpectralProjector(beam, len(self.materials))
        physics = PolyenergeticPoisson(self.spectrum, self.attenuation).to(fine.device)
        with torch.no_grad():
            mean = physics.mean(true.to(fine.device)(densities)).unflatten(-1, (bins, rays)).mean(-1)
        y = draw_counts(mean + self.scatter, context.generator)
        operator = SpectralProjector(self.geometry.model(space), expected)
        return ScanResult(y, operator.to(fine.device), self._likelihood(y).to(fine.device))

    def describe(self) -> str:
        """Return in a few words what is measured."""
        bins = f", {self.num_bins} energy bins" if self.num_bins > 1 else ""
        beam = "fan-beam" if isinstance(self.geometry, FanCT) else "parallel"
        return f"{self.views} {beam} views at {self.kvp:g} kV{bins}, {self.photons:g} photons"

    def mismatch(self) -> tuple[str, ...]:
        """Return what the data hold and the model does not know."""
        if self.model == "effective":
            curve = "" if self.calibrated else " (by the assumed spectrum)"
            others = " or ".join(self.materials[1:])
            return (f"spectrum, corrected for water{curve} but not for {others}",)
        blur = "part of the energy blur" if self.knows_blur else "energy blur"
        return (f"tube filter, {blur} and finer steps of the spectrum",)

    def _likelihood(self, y: Tensor) -> Likelihood:
        if self.model == "polyenergetic":
            return PolyenergeticPoisson(self.model_spectrum, self.model_attenuation, scatter=self.scatter)
        blank = self.spectrum.sum(1).reshape(1, -1, 1, 1).to(y)
        integrals, _ = log_transform(y, blank, self.scatter)
        wanted = mass_attenuation(("water",), self.energies_kev)[0]
        spectrum, attenuation = (
            (self.spectrum, self.attenuation) if self.calibrated else (self.model_spectrum, self.model_attenuation)
        )
        excess = water_excess(integrals, spectrum, attenuation[0], wanted=wanted)
        return TransmissionPoisson(blank * torch.exp(excess), self.scatter)


def water_excess(integrals: Tensor, spectrum: Tensor, water: Tensor, *, wanted: Tensor) -> Tensor:
    r"""Return ``f(p) - p`` of log data ``p``, with ``f`` the curve from measured to single-energy logarithms of water.

    The curve is calibrated on water up to 60 g/cm^2 and goes on with its last slope.

    Args:
        integrals: logarithms ``log(I / y)``, ``(B, bins, views, detector bins)``.
        spectrum: counts in air ``(bins, energies)``.
        water: mass attenuation of water in cm^2/g at these energies, ``(energies,)``.
        wanted: that of water at the single energy of every bin, ``(bins,)``.
    """
    depth = torch.arange(0.0, 60.5, 0.5, dtype=torch.float64)  # g/cm^2
    through = spectrum.double().cpu() @ torch.exp(-water.double().cpu()[:, None] * depth)
    curves = torch.log(through[:, :1] / through)
    excess = torch.empty_like(integrals)
    for k, curve in enumerate(curves):
        p = integrals[:, k].double().cpu()
        index = torch.searchsorted(curve, p.contiguous()).clamp(1, len(curve) - 1)
        slope = (p - curve[index - 1]) / (curve[index] - curve[index - 1])
        excess[:, k] = (float(wanted[k]) * (depth[index - 1] + 0.5 * slope) - p).to(integrals)
    return excess


def _spectrum(
    kvp: float,
    thresholds_kev: Sequence[float],
    step_kev: float,
    filter_mm: float,
    resolution_kev: float,
    materials: Sequence[str],
) -> tuple[Tensor, Tensor]:
    """Return the relative counts in air ``(bins, energies)`` and the mass attenuation ``(materials, energies)``."""
    energies = torch.arange(_LOWEST_KEV, kvp + step_kev / 2, step_kev, dtype=torch.float64)
    response = energy_bins(energies, thresholds_kev, resolution_kev=resolution_kev)
    return response * tube_spectrum(energies, kvp, filter_mm=filter_mm), mass_attenuation(materials, energies)
