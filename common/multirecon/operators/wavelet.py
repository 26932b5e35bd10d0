"""Orthonormal wavelet transforms: Haar as channels, and periodised filter banks as a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pywt
import torch
from torch import Tensor

from .base import LinearOperator

__all__ = ["Haar", "Wavelet"]


class Haar(LinearOperator):
    r"""The orthonormal Haar transform with sub-bands as channels: ``(C, H, W) -> (4 C, H/2, W/2)``, or ``8 C`` in 3D.

    Along every axis ``low = (a + b) / sqrt 2`` and ``high = (a - b) / sqrt 2`` of neighbouring samples. The bands of
    one channel follow each other, in the order LL, LH, HL, HH (LLL, LLH, ..., HHH), the last letter standing for the
    last axis. A further level transforms every band again (a wavelet packet), so that all bands keep one size.

    Args:
        shape: ``(C, *spatial)`` with two or three spatial axes, each divisible by ``2 ** levels``.
        levels: number of levels.
        low_scale: the lowest band is divided by it; ``2 ** (levels * D / 2)`` gives a constant image its own value. The
            transform is orthonormal for 1 only; ``pseudo_inverse`` is the exact inverse always.

    Raises:
        ValueError: if the shape cannot be halved so often.

    Example:
        >>> W = Haar((1, 4, 4))
        >>> W(torch.ones(1, 1, 4, 4))[0, :, 0, 0].tolist()
        [2.0, 0.0, 0.0, 0.0]

    References:
        mallat2009
    """

    kind = "haar"

    def __init__(self, shape: Sequence[int], *, levels: int = 1, low_scale: float = 1.0) -> None:
        channels, *spatial = (int(n) for n in shape)
        _check_halving(spatial, levels)
        if not low_scale > 0:
            raise ValueError(f"low_scale: expected > 0, got {low_scale}")
        self.levels, self.low_scale = int(levels), float(low_scale)
        self._dims = len(spatial)
        bands = 2 ** (self._dims * levels)
        super().__init__((channels, *spatial), (channels * bands, *(n // 2**levels for n in spatial)))
        self.bands = bands

    def forward(self, x: Tensor) -> Tensor:
        """Return the bands ``(B, channels * bands, *spatial / 2^levels)`` of ``(B, channels, *spatial)``."""
        x = self.check_domain(x)
        for _ in range(self.levels):
            x = _haar_analysis(x, self._dims)
        return self._scale_low(x, 1 / self.low_scale)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the image of the bands; the inverse too where ``low_scale`` is 1."""
        return self._synthesis(self._scale_low(self.check_range(y), 1 / self.low_scale))

    def gram(self, x: Tensor) -> Tensor:
        """Return ``x`` where ``low_scale`` is 1."""
        return self.check_domain(x) if self.low_scale == 1 else self.adjoint(self(x))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return the image whose bands are ``y``."""
        return self._synthesis(self._scale_low(self.check_range(y), self.low_scale))

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"shape": list(self.domain_shape), "levels": self.levels, "low_scale": self.low_scale}

    def _synthesis(self, y: Tensor) -> Tensor:
        for _ in range(self.levels):
            y = _haar_synthesis(y, self._dims)
        return y

    def _scale_low(self, bands: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return bands
        weight = bands.new_ones(self.bands)
        weight[0] = scale
        return bands * weight.repeat(self.domain_shape[0]).reshape(-1, *[1] * self._dims)


class Wavelet(LinearOperator):
    r"""A periodised orthonormal wavelet transform in the pyramid layout: ``(C, *spatial) -> (C, *spatial)``.

    Every level splits the low band along each axis by circular convolution with the filter pair, keeping every second
    sample; the low half replaces the first half of the axis, the high half the second. The filter pair acts as one
    orthogonal matrix along each axis, so that the adjoint is the inverse to rounding.

    Args:
        shape: ``(C, *spatial)`` with two or three spatial axes, each divisible by ``2 ** levels``.
        name: an orthogonal wavelet of PyWavelets: ``"haar"``, ``"db1"`` ... ``"db38"``, ``"sym2"`` ..., ``"coif1"`` ...
        levels: number of levels.

    Raises:
        ValueError: if the name is not an orthogonal wavelet or the shape cannot be halved so often.

    Example:
        >>> W = Wavelet((1, 8, 8), "db2", levels=2)
        >>> x = torch.randn(2, 1, 8, 8)
        >>> torch.allclose(W.adjoint(W(x)), x, atol=1e-5)
        True

    References:
        mallat2009
        daubechies1988
    """

    kind = "wavelet"

    def __init__(self, shape: Sequence[int], name: str = "db4", *, levels: int = 1) -> None:
        if name not in pywt.wavelist(kind="discrete") or not pywt.Wavelet(name).orthogonal:
            raise ValueError(f"name: expected an orthogonal wavelet such as 'db4', 'sym4' or 'coif1', got {name!r}")
        spatial = tuple(int(n) for n in shape[1:])
        _check_halving(spatial, levels)
        super().__init__(shape, shape)
        self.name, self.levels = name, int(levels)
        self._sizes = sorted({n // 2**level for n in spatial for level in range(levels)})
        self._build(torch.device("cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the coefficients ``(B, C, *spatial)`` in the pyramid layout."""
        x = self.check_domain(x)
        for level in range(self.levels):
            x = self._level(x, level, transposed=False)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the image of the coefficients: the inverse."""
        y = self.check_range(y)
        for level in reversed(range(self.levels)):
            y = self._level(y, level, transposed=True)
        return y

    def gram(self, x: Tensor) -> Tensor:
        """Return ``x``: the transform is orthonormal."""
        return self.check_domain(x)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return the inverse, which is the adjoint."""
        return self.adjoint(y)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"shape": list(self.domain_shape), "name": self.name, "levels": self.levels}

    def _level(self, x: Tensor, level: int, *, transposed: bool) -> Tensor:
        sizes = [n // 2**level for n in self.domain_shape[1:]]
        corner = (slice(None), slice(None), *(slice(0, n) for n in sizes))
        part = x[corner]
        for axis, size in enumerate(sizes):
            matrix = getattr(self, f"_matrix_{size}")
            matrix = matrix.mT if transposed else matrix
            place = axis - len(sizes)
            if place == -1:
                part = part @ matrix.mT
            else:
                part = (matrix @ part.flatten(place + 1)).unflatten(-1, part.shape[place + 1 :])
        if level == 0:
            return part
        x = x.clone()
        x[corner] = part
        return x

    def _build(self, device: torch.device) -> None:
        for size in self._sizes:
            matrix = _filter_matrix(self.name, size).to(device, self.domain_dtype)
            self.register_buffer(f"_matrix_{size}", matrix, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Wavelet:
        super()._apply(fn, recurse)
        self._build(self._reference_tensor().device)  # again, so that a change of precision leaves no rounded filters
        return self


def _check_halving(spatial: Sequence[int], levels: int) -> None:
    if len(spatial) not in (2, 3) or levels < 1 or any(n % 2**levels or n < 1 for n in spatial):
        raise ValueError(f"shape, levels: expected two or three spatial sizes divisible by 2 ** levels (levels >= 1), "
                         f"got {tuple(spatial)} and {levels}")  # fmt: skip


def _haar_analysis(x: Tensor, dims: int) -> Tensor:
    """Return one level: ``(B, C, *spatial) -> (B, 2^dims C, *spatial / 2)``."""
    bands = [x * 2 ** (-dims / 2)]
    for axis in range(-dims, 0):
        pairs = [b.unflatten(axis, (-1, 2)).unbind(axis) for b in bands]
        bands = [band for a, b in pairs for band in (a + b, a - b)]
    return torch.stack(bands, dim=2).flatten(1, 2)


def _haar_synthesis(y: Tensor, dims: int) -> Tensor:
    """Return the inverse of :func:`_haar_analysis`."""
    bands = list((y * 2 ** (-dims / 2)).unflatten(1, (-1, 2**dims)).unbind(2))
    for axis in range(-1, -dims - 1, -1):
        pairs = zip(bands[::2], bands[1::2], strict=True)
        bands = [torch.stack((low + high, low - high), dim=axis).flatten(axis - 1, axis) for low, high in pairs]
    return bands[0]


def _filter_matrix(name: str, size: int) -> Tensor:
    """Return the orthogonal ``(size, size)`` matrix of one level: low-pass rows above high-pass rows (float64)."""
    wavelet = pywt.Wavelet(name)
    half, taps = size // 2, wavelet.dec_len
    matrix = torch.zeros(size, size, dtype=torch.float64)
    position = torch.arange(half)[:, None] * 2 + taps // 2 - torch.arange(taps)[None, :]
    row = torch.arange(half)[:, None].expand(half, taps)
    for block, filter_taps in enumerate((wavelet.dec_lo, wavelet.dec_hi)):
        values = torch.tensor(filter_taps, dtype=torch.float64).expand(half, taps)
        matrix.index_put_((row + block * half, position % size), values, accumulate=True)
    # some tabulated filters are orthonormal to 1e-12 only: one Newton step to the nearest orthogonal matrix
    return 1.5 * matrix - 0.5 * matrix @ (matrix.mT @ matrix)
