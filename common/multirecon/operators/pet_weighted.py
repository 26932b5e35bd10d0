r"""What the 2D and the 3D PET projector share: weights of the data, resolution, samples and subsets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ..batching import slice_samples
from .base import LinearOperator
from .pet_blur import GaussianBlur

__all__ = ["WeightedProjector"]


class WeightedProjector(LinearOperator):
    r"""``A = diag(n exp(-P mu)) P G`` with line integrals ``P`` that a subclass supplies.

    Args:
        domain_shape: shape of one image ``(C, *spatial)``.
        range_shape: shape of one datum, views and bins last.
        spacing_mm: voxel size along each spatial axis in mm.
        efficiency: ``n``: a number, or a tensor that broadcasts against the data ``(B, *range_shape)``.
        psf_fwhm_mm: width of the Gaussian resolution ``G`` in mm, 0 for none.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    weight: Tensor

    def __init__(
        self,
        domain_shape: Sequence[int],
        range_shape: Sequence[int],
        *,
        spacing_mm: Sequence[float],
        efficiency: float | Tensor,
        psf_fwhm_mm: float | Sequence[float],
    ) -> None:
        super().__init__(domain_shape, range_shape)
        self.blur = GaussianBlur(domain_shape, spacing_mm, fwhm_mm=psf_fwhm_mm) if psf_fwhm_mm else None
        #: efficiencies as a number or as ``(B or 1, *broadcastable to range_shape)``
        self.efficiency = efficiency
        if isinstance(efficiency, Tensor):
            self.efficiency = _broadcastable(efficiency, self.range_shape, "efficiency")
        elif not 0 <= efficiency < float("inf"):
            raise ValueError(f"efficiency: expected a finite number >= 0, got {efficiency}")
        #: attenuation in 1/cm, ``(B or 1, C or 1, *spatial)``, or None
        self.attenuation: Tensor | None = None
        ones = torch.ones((1,) * (1 + len(self.range_shape)))
        self.register_buffer("weight", ones * self.efficiency, persistent=False)

    @abstractmethod
    def integrate(self, x: Tensor, *, transposed: bool = False) -> Tensor:
        """Return ``P x`` in cm times the image's unit, or ``P^T x``."""

    @abstractmethod
    def attenuation_factors(self, attenuation: Tensor) -> Tensor:
        """Return ``exp(-P mu)``, which broadcasts against the data, of ``(B, C, *spatial)`` maps in 1/cm."""

    @property
    @abstractmethod
    def angles(self) -> tuple[float, ...]:
        """View angles in radians."""

    def attenuate(self, attenuation: Tensor | None) -> None:
        """Make the attenuation of an object part of the weights (called once, by constructors)."""
        if attenuation is not None:
            self.attenuation = _broadcastable(attenuation.detach(), self.domain_shape, "attenuation")
            self.weight = self.weight * self.attenuation_factors(self.attenuation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the expected counts without background, ``(B, *range_shape)``."""
        y = self.integrate(self.check_domain(x) if self.blur is None else self.blur(x))
        return self.weight.to(y.real.dtype) * y

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``G^T P^T`` of the weighted data, ``(B, *domain_shape)``."""
        weight = self.weight.to(torch.promote_types(self.check_range(y).real.dtype, torch.float32))
        x = self.integrate(weight * y, transposed=True)
        return x if self.blur is None else self.blur.adjoint(x)

    def samples(self, start: int, stop: int) -> Self:
        """Return the operator of samples ``start .. stop - 1`` of per-sample maps and efficiencies."""
        cut = lambda t: slice_samples(t, t.ndim, start, stop) if isinstance(t, Tensor) else t  # noqa: E731
        if len(self.weight) == 1:
            return self
        return self._rebuilt({}, cut(self.weight), cut(self.efficiency), cut(self.attenuation))

    def subset(self, index: int, count: int) -> Self:
        """Return the operator of the views ``index, index + count, ...`` (an ordered subset).

        Raises:
            ValueError: unless ``0 <= index < count <= views``.
        """
        if not 0 <= index < count <= len(self.angles):
            raise ValueError(f"index, count: expected 0 <= index < count <= {len(self.angles)}, got {index}, {count}")
        angles = list(self.angles[index::count])
        every = lambda t: t[..., index::count, :] if isinstance(t, Tensor) and t.shape[-2] > 1 else t  # noqa: E731
        changes = {"angles": angles, "views": len(angles)}
        return self._rebuilt(changes, every(self.weight), every(self.efficiency), self.attenuation)

    def _rebuilt(
        self, changes: dict[str, Any], weight: Tensor, efficiency: float | Tensor, attenuation: Tensor | None
    ) -> Self:
        """Return the operator of some views or samples; the attenuation is not projected again."""
        plain = {**self.arguments(), **changes, "efficiency": 1.0, "attenuation": None}
        result = type(self)(**plain).to(self.weight)
        result.weight, result.efficiency, result.attenuation = weight, efficiency, attenuation
        return result


def _broadcastable(value: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Return a tensor with a leading sample axis that broadcasts against ``(B, *shape)``, in float32.

    Raises:
        ValueError: if it does not broadcast, or is not real, finite and >= 0.
    """
    full = value.reshape((1,) * (1 + len(shape) - value.ndim) + tuple(value.shape))
    fits = full.ndim == 1 + len(shape) and all(n in (1, m) for n, m in zip(full.shape[1:], shape, strict=True))
    if not fits or full.is_complex() or not bool((torch.isfinite(full) & (full >= 0)).all()):
        raise ValueError(f"{name}: expected real, finite values >= 0 that broadcast against (B, {shape}), "
                         f"got shape {tuple(value.shape)}")  # fmt: skip
    return full.to(torch.float32)
