"""Two-step material decomposition around any sampler: images of the bins first, or line integrals of the materials."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..acquisition.spectral import water_excess
from ..blocks import Blocks
from ..likelihoods import BlockLikelihood, Gaussian, Likelihood, PolyenergeticPoisson, TransmissionPoisson
from ..likelihoods.transmission import log_transform
from ..measurement import Measurement
from ..operators import BlockDiagonal, SpectralProjector, mass_attenuation
from ..solvers import decompose_counts, decompose_images
from ..space import ImageSpace
from .base import Callback, Capability, ImageSource, Reconstructor
from .tuning import Tuning, block_kind

__all__ = ["ImageDomainDecomposition", "ProjectionDomainDecomposition"]

_LARGEST_SIGMA = 1e3
"""Standard deviation in g/cm^2 of a ray that says nothing of a material; finite, so that whitened data stay finite."""


class _TwoStep(Reconstructor):
    """What both share: one block of material densities behind polyenergetic counts, and a sampler of another kind."""

    def __init__(
        self, sampler: Reconstructor, *, materials: Sequence[str], modality: str, source: ImageSource | None
    ) -> None:
        super().__init__(source=source)
        self.sampler = sampler
        self.materials = tuple(materials)
        self.modality = modality
        mass_attenuation(self.materials, [60.0])  # raises on an unknown name
        self.capability = Capability(
            operators=frozenset({SpectralProjector.kind}),
            likelihoods=frozenset({PolyenergeticPoisson.kind}),
            modalities=frozenset({modality}),
            ndim=frozenset({2}),
            shape=sampler.capability.shape,
            requires={modality: SpectralProjector.kind},
            channels={modality: len(self.materials)},
        )

    def _parts(self, measurement: Measurement) -> tuple[SpectralProjector, PolyenergeticPoisson, Tensor]:
        operator, likelihood = measurement.operator[self.modality], measurement.likelihood[self.modality]
        assert isinstance(operator, SpectralProjector)
        assert isinstance(likelihood, PolyenergeticPoisson)
        if likelihood.num_materials != len(self.materials):
            raise ValueError(f"{self.modality}: expected the materials {list(self.materials)}, "
                             f"got {likelihood.num_materials} of them")  # fmt: skip
        return operator, likelihood, measurement.y[self.modality]

    def _sample(
        self,
        measurement: Measurement,
        block: tuple[ImageSpace, SpectralProjector, Likelihood, Tensor],
        network: nn.Module | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the sampler's image of one block of data that the counts were turned into."""
        space, operator, likelihood, data = block
        (name,) = space.names
        stack = BlockDiagonal(space.with_affine(measurement.space.affine), {name: operator})
        turned = Measurement(Blocks({name: data}), stack, BlockLikelihood({name: likelihood}), measurement.metadata)
        with self._settings(measurement, turned, name):
            return self.sampler(turned, network, generator=generator).as_tensor()

    def _settings(self, measurement: Measurement, turned: Measurement, name: str) -> AbstractContextManager[object]:
        """Give the sampler the settings of the counts: it asks for those of the data that they were turned into."""
        tuning = getattr(self.sampler, "tuning", None)
        if not isinstance(tuning, Tuning):
            return nullcontext()
        return tuning.override({block_kind(turned, name): tuning.of(measurement, self.modality)})

    def _answer(self, measurement: Measurement, densities: Tensor, callback: Callback | None) -> Tensor:
        result = densities.new_zeros(len(densities), measurement.space.num_channels, *measurement.space.shape)
        result[:, measurement.space.channels(self.modality)] = densities
        if callback is not None:
            callback(0, result)
        return result


class ImageDomainDecomposition(_TwoStep):
    r"""Images of the energy bins by a sampler, then the densities behind them, pixel by pixel (im-TDPS).

    Counts of bin ``k`` become a scan at a single energy, with beam hardening corrected for water as scanners do,
    ``y ~ Poisson(I exp(f(p) - p) exp(-P x_k) + s)``; the sampler reconstructs all bins; then

    .. math:: \rho = \arg\min_{\rho \ge 0} \|x - M \rho\|_C^2, \quad M_{km} = \kappa_m(E_k),

    with the counts of the bins as weights ``C`` and ``M`` the attenuation at the energies that the correction leads to.

    Args:
        sampler: reconstructs the modality ``bins``.
        bins: space of the bins' images, one modality.
        energies_kev: energy of the image of every bin, in keV.
        materials: names of the materials in channel order, water first: the correction is for it.
        modality: modality of the densities in the measurement.
        source: how an image stack becomes a Measurement.

    Raises:
        ValueError: on an unknown material, another first material than water, or fewer bins than materials.

    References:
        vazia2024materials
    """

    def __init__(
        self,
        sampler: Reconstructor,
        *,
        bins: ImageSpace,
        energies_kev: Sequence[float],
        materials: Sequence[str] = ("water", "bone"),
        modality: str = "materials",
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(sampler, materials=materials, modality=modality, source=source)
        if self.materials[0] != "water":
            raise ValueError(f"materials: expected water first, got {list(materials)}")
        if len(bins.names) != 1 or bins.num_channels != len(energies_kev) or len(energies_kev) < len(self.materials):
            raise ValueError(f"bins, energies_kev: expected one modality with a channel an energy, at least "
                             f"{len(self.materials)}, got {list(bins.names)}, {list(energies_kev)}")  # fmt: skip
        self.bins = bins
        self.mixing = mass_attenuation(self.materials, energies_kev).T.contiguous()

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, H, W)`` with the densities in g/cm^3.

        Raises:
            ValueError: if the counts have another number of bins than the images.
        """
        operator, likelihood, y = self._parts(measurement)
        if likelihood.num_bins != len(self.mixing):
            raise ValueError(f"{self.modality}: expected counts in {len(self.mixing)} bins, got {likelihood.num_bins}")
        scan = single_energies(likelihood, y, self.mixing[:, 0])
        projector = SpectralProjector(operator.projector, len(self.mixing))
        images = self._sample(measurement, (self.bins, projector, scan, y), network, generator)
        counts = y.mean(dim=(2, 3))
        single = [
            decompose_images(image[None], self.mixing, weight=weight)
            for image, weight in zip(images, counts, strict=True)
        ]
        return self._answer(measurement, torch.cat(single), callback)


class ProjectionDomainDecomposition(_TwoStep):
    r"""Line integrals of the materials by maximum likelihood, ray by ray, then their images by a sampler (proj-TDPS).

    The first step is exact in the spectrum; its noise grows where few counts tell the materials apart, and the second
    knows it as a standard deviation ``(F^{-1})_{mm}^{1/2}`` a ray and material from the Fisher information ``F``. As
    published, every material is then reconstructed from its own line integrals: that the errors of the materials are
    opposite to each other is not used.

    Args:
        sampler: reconstructs the densities from Gaussian line integrals.
        materials: names of the materials in channel order.
        modality: modality of the densities, in the measurement and in the sampler's stack.
        source: how an image stack becomes a Measurement.

    References:
        vazia2024materials, schirra2013
    """

    def __init__(
        self,
        sampler: Reconstructor,
        *,
        materials: Sequence[str] = ("water", "bone"),
        modality: str = "materials",
        source: ImageSource | None = None,
    ) -> None:
        super().__init__(sampler, materials=materials, modality=modality, source=source)

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        """Return the stack ``(B, C, H, W)`` with the densities in g/cm^3."""
        operator, likelihood, y = self._parts(measurement)
        integrals, sigma = material_integrals(likelihood, y)
        space = measurement.space.select([self.modality])
        densities = self._sample(measurement, (space, operator, Gaussian(sigma), integrals), network, generator)
        return self._answer(measurement, densities, callback)


def single_energies(likelihood: PolyenergeticPoisson, y: Tensor, water: Tensor) -> TransmissionPoisson:
    """Return the likelihood of attenuation images at one energy a bin, beam hardening corrected for water.

    Args:
        likelihood: spectra, and the materials of which the first is water.
        y: counts ``(B, K, views, bins)``.
        water: mass attenuation of water in cm^2/g at the energy of every bin, ``(K,)``.
    """
    blank = likelihood.I0.to(y) * likelihood.spectrum.to(y).sum(1).reshape(1, -1, 1, 1)
    integrals, _ = log_transform(y, blank, likelihood.scatter)
    excess = water_excess(integrals, likelihood.spectrum, likelihood.attenuation[0], wanted=water)
    return TransmissionPoisson(blank * torch.exp(excess), likelihood.scatter)


def material_integrals(likelihood: PolyenergeticPoisson, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum-likelihood line integrals in g/cm^2 and their standard deviations, ``(B, M, views, bins)``.

    Args:
        likelihood: spectra and materials.
        y: counts ``(B, K, views, bins)``.
    """
    integrals, information = decompose_counts(likelihood, y)
    matrix = information.movedim((1, 2), (-2, -1)).double()
    scale = torch.diagonal(matrix, dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-12)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    covariance = torch.linalg.inv(matrix + 1e-9 * scale * eye)
    sigma = torch.diagonal(covariance, dim1=-2, dim2=-1).movedim(-1, 1).clamp_min(0).sqrt()
    return integrals, sigma.clamp(1e-6, _LARGEST_SIGMA).to(y)
