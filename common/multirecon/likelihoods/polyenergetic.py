"""Spectral CT: counts behind materials, seen through a polyenergetic spectrum in one or several energy bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Likelihood
from .poisson import count_ratio, draw_counts, non_negative, of_samples, of_views, poisson_deviance

__all__ = ["PolyenergeticPoisson"]


class PolyenergeticPoisson(Likelihood):
    r"""``y_k ~ Poisson(I0 sum_E S_k(E) exp(-sum_m kappa_m(E) z_m) + s_k)``.

    ``z_m`` is the line integral of the density of material ``m``. A photon-counting detector, fast kVp switching and a
    dual-layer detector differ in ``S`` only. With one energy, one bin and one material it is
    :class:`~multirecon.likelihoods.TransmissionPoisson` of ``kappa z``.

    Args:
        spectrum: ``S``, expected counts in air of bin ``k`` from energy ``E``, shape ``(K, E)`` (source times
            detector response).
        attenuation: ``kappa``, mass attenuation in cm^2/g, shape ``(M, E)``.
        I0: relative flux of a ray: a number, or a tensor with the data's axes ``(1 or B, 1 or K, views, bins)``.
        scatter: expected background counts, likewise.

    Raises:
        ValueError: if shapes disagree, or a value is negative or not finite.

    Example:
        >>> likelihood = PolyenergeticPoisson(torch.tensor([[600.0, 400.0]]), torch.tensor([[0.2, 0.1]]))
        >>> likelihood.mean(torch.zeros(1, 1, 2, 3)).shape
        torch.Size([1, 1, 2, 3])
    """

    kind = "polyenergetic_poisson"
    counting = True

    def __init__(
        self,
        spectrum: Tensor,
        attenuation: Tensor,
        *,
        I0: float | Tensor = 1.0,
        scatter: float | Tensor = 0.0,
    ) -> None:
        super().__init__()
        if spectrum.ndim != 2 or attenuation.ndim != 2 or spectrum.shape[1] != attenuation.shape[1]:
            raise ValueError(f"spectrum and attenuation: expected shapes (bins, energies) and (materials, energies), "
                             f"got {tuple(spectrum.shape)} and {tuple(attenuation.shape)}")  # fmt: skip
        self.spectrum: Tensor
        self.attenuation: Tensor
        self.I0: Tensor
        self.scatter: Tensor
        self.register_buffer("spectrum", non_negative(spectrum, "spectrum"))
        self.register_buffer("attenuation", non_negative(attenuation, "attenuation"))
        self.register_buffer("I0", non_negative(I0, "I0"))
        self.register_buffer("scatter", non_negative(scatter, "scatter"))

    @property
    def num_bins(self) -> int:
        """Number of energy bins ``K``."""
        return self.spectrum.shape[0]

    @property
    def num_materials(self) -> int:
        """Number of materials ``M``."""
        return self.attenuation.shape[0]

    def data_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return ``(K, ...)`` for a predictor ``(M, ...)``."""
        return (self.num_bins, *shape[1:])

    def mean(self, z: Tensor) -> Tensor:
        """Return the expected counts ``(B, K, ...)`` behind ``z`` ``(B, M, ...)`` in g/cm^2."""
        primary = torch.einsum("ke,be...->bk...", self.spectrum.to(z), self._transmission(z))
        return self.I0.to(z) * primary + self.scatter.to(z)

    def sample(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Return Poisson counts ``(B, K, ...)`` drawn on the generator's device."""
        return draw_counts(self.mean(z), generator)

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        """Return half the Poisson deviance per sample, ``(B,)``."""
        return poisson_deviance(self.mean(z), y)

    def grad(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``sum_k (y_k / ybar_k - 1) I0 sum_E S_k kappa_m exp(...)``, shaped like ``z``."""
        transmission = self._transmission(z)
        spectrum, flux = self.spectrum.to(z), self.I0.to(z)
        ybar = flux * torch.einsum("ke,be...->bk...", spectrum, transmission) + self.scatter.to(z)
        back = torch.einsum("ke,bk...->be...", spectrum, flux * (count_ratio(y, ybar) - 1))
        return torch.einsum("me,be...->bm...", self.attenuation.to(z), transmission * back)

    def jacobian(self, z: Tensor) -> Tensor:
        """Return ``d ybar_k / d z_m`` of every ray, shape ``(B, K, M, ...)``."""
        mixed = torch.einsum("ke,me->kme", self.spectrum.to(z), self.attenuation.to(z))
        primary = torch.einsum("kme,be...->bkm...", mixed, self._transmission(z))
        flux = self.I0.to(z)
        # a flux per bin (ndim of the data) must not be read as one per material
        return -(flux.unsqueeze(2) if flux.ndim == z.ndim else flux) * primary

    def fisher(self, z: Tensor) -> Tensor:
        """Return the Fisher information of the materials of every ray, shape ``(B, M, M, ...)``."""
        jacobian, ybar = self.jacobian(z), self.mean(z)
        inverse = torch.where(ybar > 0, 1 / ybar.clamp_min(torch.finfo(z.dtype).tiny), torch.zeros_like(ybar))
        return torch.einsum("bkm...,bkn...,bk...->bmn...", jacobian, jacobian, inverse)

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the row sums of the Fisher information, shaped like ``z``: a diagonal that bounds it from above.

        All entries are non-negative because attenuation is, so ``diag(row sums) - F`` is positive semi-definite.
        """
        return self.fisher(z).sum(2)

    def _transmission(self, z: Tensor) -> Tensor:
        if z.shape[1] != self.num_materials:
            raise ValueError(f"z: expected {self.num_materials} materials on axis 1, got shape {tuple(z.shape)}")
        return torch.exp(-torch.einsum("me,bm...->be...", self.attenuation.to(z), z))

    def samples(self, start: int, stop: int) -> Likelihood:
        """Return the likelihood with the flux and scatter of samples ``start .. stop - 1``."""
        flux, scatter = of_samples(self.I0, start, stop), of_samples(self.scatter, start, stop)
        return PolyenergeticPoisson(self.spectrum, self.attenuation, I0=flux, scatter=scatter)

    def subset(self, index: int, count: int) -> PolyenergeticPoisson:
        """Return the likelihood of the views ``index, index + count, ...`` (last axis but one)."""
        flux, scatter = of_views(self.I0, index, count), of_views(self.scatter, index, count)
        return PolyenergeticPoisson(self.spectrum, self.attenuation, I0=flux, scatter=scatter)

    def join(self, likelihoods: Sequence[Likelihood]) -> Likelihood:
        """Return one likelihood for a batch; the samples must share the spectrum and the materials.

        Raises:
            ValueError: if spectra or attenuations differ.
        """
        for other in likelihoods:
            for name in ("spectrum", "attenuation"):
                mine, theirs = getattr(self, name), getattr(other, name)
                if mine.shape != theirs.shape or not torch.equal(mine, theirs):
                    raise ValueError(f"{name}: expected the same values in every sample of a batch")
        return super().join(likelihoods)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"spectrum": self.spectrum, "attenuation": self.attenuation, "I0": self.I0, "scatter": self.scatter}
