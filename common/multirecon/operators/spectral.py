"""Spectral CT: materials and energy bins as channels, one projection for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import LinearOperator
from .materials import mass_attenuation

__all__ = ["ChannelMixing", "MaterialBasis", "SpectralProjector", "effective_attenuation"]


class ChannelMixing(LinearOperator):
    r"""Linear combinations of channels: ``(A x)_k = sum_m M_km x_m`` at every voxel.

    Args:
        matrix: real mixing matrix ``M``, shape ``(K, channels)``.
        shape: image shape ``(channels, *spatial)``.

    Raises:
        ValueError: if the matrix does not fit the shape.

    Example:
        >>> A = ChannelMixing(torch.tensor([[1.0, 1.0]]), (2, 4, 4))
        >>> A(torch.ones(3, 2, 4, 4)).shape
        torch.Size([3, 1, 4, 4])
    """

    kind = "channel_mixing"

    def __init__(self, matrix: Tensor, shape: Sequence[int]) -> None:
        shape = tuple(int(n) for n in shape)
        if matrix.ndim != 2 or matrix.shape[1] != shape[0]:
            raise ValueError(f"matrix: expected shape (K, {shape[0]}), got {tuple(matrix.shape)}")
        super().__init__(shape, (matrix.shape[0], *shape[1:]), domain_dtype=matrix.dtype, range_dtype=matrix.dtype)
        self.matrix: Tensor
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, K, *spatial)`` of ``(B, channels, *spatial)``."""
        return torch.einsum("km,bm...->bk...", self.matrix, self.check_domain(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``(B, channels, *spatial)`` of ``(B, K, *spatial)``."""
        return torch.einsum("km,bk...->bm...", self.matrix, self.check_range(y))

    def gram(self, x: Tensor) -> Tensor:
        """Return ``M^T M x``."""
        return torch.einsum("mn,bn...->bm...", self.matrix.T @ self.matrix, self.check_domain(x))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return the minimum-norm least-squares densities, voxel by voxel."""
        return torch.einsum("mk,bk...->bm...", torch.linalg.pinv(self.matrix), self.check_range(y))

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"matrix": self.matrix, "shape": list(self.domain_shape)}


class MaterialBasis(ChannelMixing):
    r"""Attenuation at some energies from material densities: ``mu(E_k) = sum_m kappa_m(E_k) rho_m``.

    Args:
        materials: basis materials in channel order, see :func:`~multirecon.operators.mass_attenuation`.
        energies_kev: energies of the attenuation images in keV.
        spatial: spatial shape of the images.

    Raises:
        ValueError: on an unknown material or an energy outside the tables.

    References:
        alvarez1976

    Example:
        >>> A = MaterialBasis(["water", "bone"], [60.0, 80.0, 100.0], (8, 8))
        >>> rho = torch.zeros(1, 2, 8, 8)
        >>> rho[:, 0] = 1.0  # water, 1 g/cm^3
        >>> A(rho)[0, :, 0, 0]  # 1/cm
        tensor([0.2059, 0.1837, 0.1707])
    """

    kind = "material_basis"

    def __init__(self, materials: Sequence[str], energies_kev: Sequence[float], spatial: Sequence[int]) -> None:
        super().__init__(mass_attenuation(materials, energies_kev).T.contiguous(), (len(materials), *spatial))
        self.materials = tuple(materials)
        self.energies_kev = tuple(float(e) for e in energies_kev)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {
            "materials": list(self.materials),
            "energies_kev": list(self.energies_kev),
            "spatial": list(self.domain_shape[1:]),
        }


class SpectralProjector(LinearOperator):
    """One projector for every channel: materials or energy bins ride along as extra samples of a batch.

    ``SpectralProjector(P, M)`` gives the material line integrals of a polyenergetic likelihood, and
    ``SpectralProjector(P, K) @ MaterialBasis(...)`` monoenergetic bins of material images.

    Args:
        projector: projector of one-channel images, shape ``(1, *spatial) -> (1, *data)``, the same for all samples.
        channels: number of channels.

    Raises:
        ValueError: if the projector has more than one channel.

    Example:
        >>> from multirecon.operators import Identity
        >>> SpectralProjector(Identity((1, 4, 4)), 3)
        SpectralProjector(
          (3, 4, 4) -> (3, 4, 4)
          (projector): Identity((1, 4, 4) -> (1, 4, 4))
        )
    """

    kind = "spectral_projector"

    def __init__(self, projector: LinearOperator, channels: int) -> None:
        if projector.domain_shape[0] != 1 or projector.range_shape[0] != 1:
            raise ValueError(
                f"projector: expected one channel, got {projector.domain_shape} -> {projector.range_shape}"
            )
        if channels < 1:
            raise ValueError(f"channels: expected >= 1, got {channels}")
        super().__init__(
            (channels, *projector.domain_shape[1:]),
            (channels, *projector.range_shape[1:]),
            domain_dtype=projector.domain_dtype,
            range_dtype=projector.range_dtype,
        )
        self.projector = projector
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, channels, *data)`` of ``(B, channels, *spatial)``."""
        return self._unfold(self.projector(self._fold(self.check_domain(x))))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``(B, channels, *spatial)`` of ``(B, channels, *data)``."""
        return self._unfold(self.projector.adjoint(self._fold(self.check_range(y))))

    def gram(self, x: Tensor) -> Tensor:
        """Return the projector's gram of every channel."""
        return self._unfold(self.projector.gram(self._fold(self.check_domain(x))))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return the projector's pseudo-inverse of every channel."""
        return self._unfold(self.projector.pseudo_inverse(self._fold(self.check_range(y))))

    def subset(self, index: int, count: int) -> SpectralProjector:
        """Return the operator of the views ``index, index + count, ...``.

        Raises:
            ValueError: if the projector has no subsets.
        """
        if not hasattr(self.projector, "subset"):
            raise ValueError(f"projector: expected one with subsets, got {type(self.projector).__name__}")
        return SpectralProjector(self.projector.subset(index, count), self.channels)  # type: ignore[operator]

    def _fold(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 1, *x.shape[2:])

    def _unfold(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.channels, *x.shape[2:])

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"projector": self.projector, "channels": self.channels}


def effective_attenuation(spectrum: Tensor, attenuation: Tensor, *, path: Tensor | None = None) -> Tensor:
    r"""Return the effective mass attenuation of every material in every bin.

    ``M_km = sum_E w_k(E) kappa_m(E)`` with ``w_k(E) ~ S_k(E) exp(-sum_m kappa_m(E) path_m)`` normalised to one: the
    derivative of the log signal behind a typical object, which is what an image-domain decomposition divides by.

    Args:
        spectrum: counts in air ``S``, ``(K, E)``.
        attenuation: mass attenuation ``kappa`` in cm^2/g, ``(M, E)``.
        path: typical line integrals of the densities in g/cm^2, ``(M,)``; zero by default.

    Returns:
        Mixing matrix ``(K, M)`` in cm^2/g.

    Raises:
        ValueError: if shapes disagree.

    Example:
        >>> effective_attenuation(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.3, 0.1]]))
        tensor([[0.2000]])
    """
    if spectrum.ndim != 2 or attenuation.ndim != 2 or spectrum.shape[1] != attenuation.shape[1]:
        raise ValueError(f"spectrum and attenuation: expected shapes (K, E) and (M, E), "
                         f"got {tuple(spectrum.shape)} and {tuple(attenuation.shape)}")  # fmt: skip
    weights = spectrum if path is None else spectrum * torch.exp(-path.to(attenuation) @ attenuation)
    return (weights / weights.sum(1, keepdim=True)) @ attenuation.T
