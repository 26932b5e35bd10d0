"""Gaussian resolution model in image space."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, erf, log, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import LinearOperator

__all__ = ["FWHM_TO_SIGMA", "GaussianBlur", "gaussian_kernel"]

FWHM_TO_SIGMA = 1.0 / sqrt(8.0 * log(2.0))


def gaussian_kernel(fwhm_mm: float, spacing_mm: float) -> Tensor:
    """Return an odd, symmetric float64 kernel of unit sum: the Gaussian integrated over the pixels.

    Args:
        fwhm_mm: full width at half maximum in mm, 0 for the identity.
        spacing_mm: pixel size in mm.
    """
    if fwhm_mm == 0:
        return torch.ones(1, dtype=torch.float64)
    sigma = fwhm_mm * FWHM_TO_SIGMA / spacing_mm
    radius = max(1, ceil(4 * sigma))
    edges = [0.5 * erf((k - 0.5) / (sigma * sqrt(2))) for k in range(-radius, radius + 2)]
    kernel = torch.tensor(edges, dtype=torch.float64).diff()
    return kernel / kernel.sum()


class GaussianBlur(LinearOperator):
    """Separable Gaussian blur with zeros outside the image: ``A = A^T``.

    Args:
        shape: image shape ``(C, *spatial)`` with two or three spatial axes.
        spacing_mm: voxel size along each spatial axis in mm.
        fwhm_mm: full width at half maximum in mm, one number or one an axis.

    Raises:
        ValueError: if the numbers of axes disagree or a width is negative.

    Example:
        >>> x = torch.zeros(1, 1, 9, 9); x[..., 4, 4] = 1
        >>> float(GaussianBlur((1, 9, 9), (2.0, 2.0), fwhm_mm=4.0)(x).sum().round(decimals=4))
        1.0
    """

    kind = "gaussian_blur"

    def __init__(self, shape: Sequence[int], spacing_mm: Sequence[float], *, fwhm_mm: float | Sequence[float]) -> None:
        super().__init__(shape, shape)
        axes = len(self.domain_shape) - 1
        widths = [float(fwhm_mm)] * axes if isinstance(fwhm_mm, (int, float)) else [float(w) for w in fwhm_mm]
        if len(spacing_mm) != axes or len(widths) != axes or min(widths) < 0 or min(spacing_mm) <= 0:
            raise ValueError(f"spacing_mm, fwhm_mm: expected {axes} positive spacings and widths >= 0, "
                             f"got {tuple(spacing_mm)} and {widths}")  # fmt: skip
        self.spacing_mm = tuple(float(s) for s in spacing_mm)
        self.fwhm_mm = tuple(widths)
        for axis, (width, spacing) in enumerate(zip(widths, self.spacing_mm, strict=True)):
            self.register_buffer(f"kernel_{axis}", gaussian_kernel(width, spacing), persistent=False)
        super().to(torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Return the blurred image."""
        return self._blur(self.check_domain(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the blurred image: the kernel is symmetric."""
        return self._blur(self.check_range(y))

    def _blur(self, x: Tensor) -> Tensor:
        if x.is_complex():
            return torch.complex(self._blur(x.real), self._blur(x.imag))
        for axis in range(len(self.fwhm_mm)):
            kernel: Tensor = getattr(self, f"kernel_{axis}").to(x)
            if len(kernel) > 1:
                rows = x.movedim(axis + 2, -1)
                flat = rows.reshape(-1, 1, rows.shape[-1])
                x = F.conv1d(flat, kernel[None, None], padding="same").reshape(rows.shape).movedim(-1, axis + 2)
        return x

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        shape, spacing, fwhm = list(self.domain_shape), list(self.spacing_mm), list(self.fwhm_mm)
        return {"shape": shape, "spacing_mm": spacing, "fwhm_mm": fwhm}
