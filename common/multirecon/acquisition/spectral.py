"""Simulated spectral CT: polyenergetic counts in one or several energy bins, and the slices it measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import Dataset

from ..data.cached_slices import CachedSlices
from ..data.datasets import PhantomSlices
from ..data.materials import materials_from_hu
from ..likelihoods import Likelihood, PolyenergeticPoisson, TransmissionPoisson, log_transform
from ..likelihoods.poisson import draw_counts
from ..operators import (
    ParallelBeam,
    SpectralProjector,
    energy_bins,
    mass_attenuation,
    tube_spectrum,
)
from .base import Scan, ScanContext, ScanResult
from .ct import covering_bins, rays_per_bin

__all__ = ["CachedSpectralSlices", "PolyenergeticCT", "SpectralSlices", "attenuation_at", "water_excess"]

BASIS = ("water", "bone")
MODELS = ("polyenergetic", "effective")
_LOWEST_KEV = 20.0
_STEP_KEV, _MODEL_STEP_KEV = 2.0, 5.0


class PolyenergeticCT(Scan):
    r"""Counts of a photon-counting scan: ``y_k ~ Poisson(mean_bin sum_E S_k(E) exp(-sum_m kappa_m(E) P rho_m) + s)``.

    The densities are the true fine maps ``"materials"`` of the sample; the spectrum is sampled every 2 keV and the
    detector blurs energies. One threshold makes a scan at one tube voltage (dual energy: two such scans).

    The ``"polyenergetic"`` model (unknown: the densities) assumes another tube filter, no energy blur and steps of
    5 keV, scaled to the blank scan. The ``"effective"`` one (unknown: one attenuation image a bin,
    ``y ~ Poisson(I0 exp(-P x_k) + s)``) corrects beam hardening as scanners do, for water: with ``f`` the curve from
    measured to single-energy logarithms, calibrated on water, ``I0 = I exp(f(p) - p)`` at ``p = log(I / y)``, so that
    the logarithm of the data is ``f(p)``; bone still hardens the beam.

    Args:
        views: number of views over ``arc``.
        kvp: tube voltage in kV.
        thresholds_kev: lower thresholds of the energy bins in keV.
        photons: counts in air of a detector bin, all energy bins together.
        model: ``"polyenergetic"`` or ``"effective"``.
        energies_kev: for the effective model, the energy in keV of the image of each bin.
        bins: detector bins; the default covers the diagonal of the grid at one pixel a bin.
        arc: angle covered in radians.
        filter_mm: aluminium filter of the tube in mm.
        model_filter_mm: that of the model in mm.
        resolution_kev: standard deviation of the recorded energies in keV.
        scatter: constant background in counts a bin, known.

    Raises:
        ValueError: on a number out of range or an unknown model.

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
        arc: float = pi,
        filter_mm: float = 6.0,
        model_filter_mm: float = 5.5,
        resolution_kev: float = 3.0,
        scatter: float = 0.0,
    ) -> None:
        if views < 1 or not photons > 0 or scatter < 0:
            raise ValueError(f"views, photons, scatter: expected >= 1, > 0, >= 0, got {views}, {photons}, {scatter}")
        if model not in MODELS:
            raise ValueError(f"model: expected one of {MODELS}, got {model!r}")
        if len(energies_kev) != (len(thresholds_kev) if model == "effective" else 0):
            raise ValueError(f"energies_kev: expected one energy a bin for the effective model, else none, "
                             f"got {list(energies_kev)}")  # fmt: skip
        self.views = views
        self.kvp = kvp
        self.photons = photons
        self.model = model
        self.bins = bins
        self.arc = arc
        self.scatter = scatter
        self.spectrum, self.attenuation = _spectrum(kvp, thresholds_kev, _STEP_KEV, filter_mm, resolution_kev)
        self.spectrum = self.spectrum * (photons / self.spectrum.sum())
        assumed, self.model_attenuation = _spectrum(kvp, thresholds_kev, _MODEL_STEP_KEV, model_filter_mm, 0.0)
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
        expected = len(BASIS) if self.model == "polyenergetic" else self.num_bins
        if context.space[context.modality].channels != expected:
            raise ValueError(f"modality {context.modality!r}: expected {expected} channels for the {self.model} model, "
                             f"got {context.space[context.modality].channels}")  # fmt: skip
        space, factor = context.space, context.oversample
        pitch = min(space.spacing_mm)
        bins = self.bins or covering_bins(space, pitch)
        rays = rays_per_bin(space, pitch, factor)
        spacing = [s / factor for s in space.spacing_mm]
        true = SpectralProjector(self._beam(densities.shape[2:], spacing, bins * rays, pitch / rays), len(BASIS))
        physics = PolyenergeticPoisson(self.spectrum, self.attenuation).to(fine.device)
        with torch.no_grad():
            mean = physics.mean(true.to(fine.device)(densities)).unflatten(-1, (bins, rays)).mean(-1)
        y = draw_counts(mean + self.scatter, context.generator)
        operator = SpectralProjector(self._beam(space.shape, space.spacing_mm, bins, pitch), expected)
        return ScanResult(y, operator.to(fine.device), self._likelihood(y).to(fine.device))

    def describe(self) -> str:
        """Return in a few words what is measured."""
        bins = f", {self.num_bins} energy bins" if self.num_bins > 1 else ""
        return f"{self.views} parallel views at {self.kvp:g} kV{bins}, {self.photons:g} photons"

    def mismatch(self) -> tuple[str, ...]:
        """Return what the data hold and the model does not know."""
        if self.model == "effective":
            return ("spectrum, corrected for water but not for bone",)
        return ("tube filter, energy blur and finer steps of the spectrum",)

    def _likelihood(self, y: Tensor) -> Likelihood:
        if self.model == "polyenergetic":
            return PolyenergeticPoisson(self.model_spectrum, self.model_attenuation, scatter=self.scatter)
        blank = self.spectrum.sum(1).reshape(1, -1, 1, 1).to(y)
        integrals, _ = log_transform(y, blank, self.scatter)
        wanted = mass_attenuation(("water",), self.energies_kev)[0]
        excess = water_excess(integrals, self.spectrum, self.attenuation[0], wanted=wanted)
        return TransmissionPoisson(blank * torch.exp(excess), self.scatter)

    def _beam(self, shape: Sequence[int], spacing_mm: Sequence[float], bins: int, pitch_mm: float) -> ParallelBeam:
        return ParallelBeam(shape, spacing_mm, views=self.views, bins=bins, bin_spacing_mm=pitch_mm, arc=self.arc)


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


def attenuation_at(hu: Tensor, energies_kev: Sequence[float]) -> Tensor:
    """Return the attenuation in 1/cm at some photon energies of CT numbers, ``(B, energies, H, W)``.

    Args:
        hu: CT numbers in HU, ``(B, 1, H, W)``.
        energies_kev: photon energies in keV.

    Example:
        >>> attenuation_at(torch.zeros(1, 1, 1, 1), [60.0, 80.0]).flatten()
        tensor([0.2059, 0.1837])
    """
    mixing = mass_attenuation(BASIS, energies_kev).T.to(hu)
    return torch.einsum("km,bmhw->bkhw", mixing, torch.cat(materials_from_hu(hu), dim=1))


def _spectrum(
    kvp: float, thresholds_kev: Sequence[float], step_kev: float, filter_mm: float, resolution_kev: float
) -> tuple[Tensor, Tensor]:
    """Return the relative counts in air ``(bins, energies)`` and the mass attenuation ``(materials, energies)``."""
    energies = torch.arange(_LOWEST_KEV, kvp + step_kev / 2, step_kev, dtype=torch.float64)
    response = energy_bins(energies, thresholds_kev, resolution_kev=resolution_kev)
    return response * tube_spectrum(energies, kvp, filter_mm=filter_mm), mass_attenuation(BASIS, energies)


class SpectralSlices(Dataset[dict[str, Any]]):
    """Phantom slices as material densities and attenuation images at single energies.

    Water and bone are found from the CT numbers of the twice finer grid; everything else is linear in them, so that
    the block means of ``fine`` are ``image``. Items are those of :class:`~multirecon.data.datasets.PhantomSlices` with
    these channels, and ``materials_fine`` ``(2, 2H, 2W)`` in g/cm^3.

    Args:
        split: as for ``PhantomSlices``.
        seeds: as for ``PhantomSlices``.
        modalities: channel groups in order: ``"materials"`` (water, bone in g/cm^3) or keys of ``energies_kev``.
        energies_kev: energies in keV of the attenuation images (1/cm) of each other modality, one a channel.
        **settings: further arguments of ``PhantomSlices`` (slices, shape, spacing_mm, anatomies, ...).

    Raises:
        ValueError: on a modality without energies.

    Example:
        >>> tiny = {"spacing_mm": (3.75, 3.75, 3.75), "matrix": 64}
        >>> data = SpectralSlices("test", modalities=["ct_low"], energies_kev={"ct_low": [60.0]}, slices=1,
        ...                       anatomies=["mni152"], shape=(64, 64), spacing_mm=3.75, config=tiny)
        >>> data[0]["image"].shape, data[0]["materials_fine"].shape
        (torch.Size([1, 64, 64]), torch.Size([2, 128, 128]))
    """

    def __init__(
        self,
        split: str,
        seeds: int | Sequence[int] = 1,
        *,
        modalities: Sequence[str] = ("materials",),
        energies_kev: Mapping[str, Sequence[float]] | None = None,
        **settings: Any,
    ) -> None:
        self.modalities = tuple(modalities)
        self.phantoms = PhantomSlices(split, seeds, **{**settings, "modalities": ["ct"], "ct_unit": "HU", "fine": True})
        self.mixing = channel_mixing(modalities, energies_kev)

    @property
    def samples(self) -> tuple[tuple[str, int], ...]:
        """Pairs (anatomy, seed)."""
        return self.phantoms.samples

    def __len__(self) -> int:
        return len(self.phantoms)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one slice."""
        item = self.phantoms[index]
        materials = torch.stack(materials_from_hu(item["fine"][0]))
        fine = torch.einsum("km,mhw->khw", self.mixing, materials)
        return {**item, "image": avg_pool2d(fine, 2), "fine": fine, "materials_fine": materials}


class CachedSpectralSlices(Dataset[dict[str, Any]]):
    """Cached slices as material densities and attenuation images at single energies; what training reads.

    The same channels as :class:`SpectralSlices`, from the CT numbers of the stored grid: on the edges of bone, where a
    pixel holds two tissues, they differ slightly from the block means of the finer grid.

    Args:
        folder: folder of a set made by ``multirecon dataset build``.
        modalities: channel groups, as for ``SpectralSlices``.
        energies_kev: as for ``SpectralSlices``.
        split: if given, refuse a set of another split.

    Raises:
        ValueError: on a modality without energies, or a folder that ``CachedSlices`` refuses.
    """

    def __init__(
        self,
        folder: str | Path,
        modalities: Sequence[str] = ("materials",),
        *,
        energies_kev: Mapping[str, Sequence[float]] | None = None,
        split: str | None = None,
    ) -> None:
        self.mixing = channel_mixing(modalities, energies_kev)
        self.slices = CachedSlices(folder, ["ct"], units="phantom", split=split)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one slice: ``image`` ``(C, H, W)`` in g/cm^3 and 1/cm, ``brain``, ``regions`` and ``id``."""
        item = self.slices[index]
        materials = torch.stack(materials_from_hu(item["image"][0]))
        return {**item, "image": torch.einsum("km,mhw->khw", self.mixing, materials)}


def channel_mixing(modalities: Sequence[str], energies_kev: Mapping[str, Sequence[float]] | None) -> Tensor:
    """Return what makes the channels of modalities of densities of water and bone, ``(C, 2)``.

    Raises:
        ValueError: on a modality without energies.
    """
    energies = dict(energies_kev or {})
    unknown = [m for m in modalities if m != "materials" and m not in energies]
    if unknown or not modalities:
        raise ValueError(f"modalities: expected 'materials' or keys of energies_kev {sorted(energies)}, "
                         f"got {list(modalities)}")  # fmt: skip
    return torch.cat([torch.eye(2) if m == "materials" else mass_attenuation(BASIS, energies[m]).T for m in modalities])
