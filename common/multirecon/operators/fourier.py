"""Undersampled multi-coil Cartesian MR: ``A = M F S``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi, prod
from typing import Any

import torch
from torch import Tensor

from ..batching import slice_samples
from .base import LinearOperator

__all__ = ["MaskedFourier", "centred_fft", "centred_ifft"]

_MOST_RUNS = 6


def centred_fft(image: Tensor, spatial_dims: int = 2) -> Tensor:
    r"""Return the orthonormal Fourier transform with both origins at index ``N // 2``.

    ``X[k] = N^{-1/2} sum_n x[n] exp(-2 pi i (k - N//2) (n - N//2) / N)`` along each of the last axes.

    Args:
        image: ``(..., *spatial)``, real or complex.
        spatial_dims: number of trailing axes that are transformed.

    Returns:
        Complex k-space of the same shape and unit.
    """
    axes = tuple(range(-spatial_dims, 0))
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(image, axes), dim=axes, norm="ortho"), axes)


def centred_ifft(kspace: Tensor, spatial_dims: int = 2) -> Tensor:
    """Return the inverse (and adjoint) of :func:`centred_fft`.

    Args:
        kspace: ``(..., *spatial)``, complex, the zero frequency at ``N // 2`` of every transformed axis.
        spatial_dims: number of trailing axes that are transformed.

    Returns:
        Complex image of the same shape and unit.
    """
    axes = tuple(range(-spatial_dims, 0))
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(kspace, axes), dim=axes, norm="ortho"), axes)


class MaskedFourier(LinearOperator):
    r"""Coil-wise sampled k-space of an image: ``(A x)_c = M F (S_c x)``.

    ``S_c`` are the coil maps, ``F`` is the centred orthonormal Fourier transform (zero frequency at index ``N // 2``,
    any size), ``M`` a 0/1 sampling mask. Data outside the mask are zero. With ``real_image`` the image is one real
    channel, its low-resolution phase being part of the maps, and the adjoint is ``Re(sum_c conj(S_c) F^H M y_c)``;
    otherwise the image is one complex channel. With ``sum_c |S_c|^2 <= 1`` the spectral norm is at most one.

    No ``fftshift`` is computed: moving both origins to ``N // 2`` multiplies image and k-space by separable phase ramps
    (a checkerboard of signs for even sizes); that of k-space is folded into a copy of the mask. Where the lines skipped
    along the last axis form a regular pattern, they are left out between the transform of that axis and those of the
    others, which costs and stores less than half of a whole transform at usual accelerations.

    Args:
        mask: 0/1 sampling pattern ``(*spatial)``, or one a sample ``(B, *spatial)``.
        maps: complex coil maps ``(coils, *spatial)``, or one set a sample ``(B, coils, *spatial)``.
        real_image: whether images are real.
        spatial_dims: 2 or 3; found from the shapes, needed only where they fit both.

    Raises:
        ValueError: if shapes disagree, the mask is not 0/1, or the maps are not complex.

    Example:
        >>> mask = torch.zeros(4, 6)
        >>> mask[:, ::2] = 1
        >>> A = MaskedFourier(mask, torch.ones(2, 4, 6, dtype=torch.complex64))
        >>> A(torch.ones(1, 1, 4, 6)).shape, A.adjoint(A(torch.ones(1, 1, 4, 6))).dtype
        (torch.Size([1, 2, 4, 6]), torch.float32)

    References:
        pruessmann1999
    """

    kind = "masked_fourier"

    def __init__(self, mask: Tensor, maps: Tensor, *, real_image: bool = True, spatial_dims: int | None = None) -> None:
        dims = _spatial_dims(mask, maps, spatial_dims)
        if not maps.is_complex():
            raise ValueError(f"maps: expected a complex dtype, got {maps.dtype}")
        mask = mask.to(maps.real.dtype)
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"mask: expected values 0 and 1 only, got {float(mask.min()):g} to {float(mask.max()):g}")
        spatial, coils = tuple(maps.shape[-dims:]), maps.shape[-dims - 1]
        super().__init__(
            (1, *spatial),
            (coils, *spatial),
            domain_dtype=maps.real.dtype if real_image else maps.dtype,
            range_dtype=maps.dtype,
        )
        self.real_image = bool(real_image)
        self.spatial_dims = dims
        self._axes = tuple(range(-dims, 0))
        # F along an axis commutes with a mask that is constant along it, and F^H F = 1: the gram leaves such leading
        # axes out (an axis after the first varying one stays in: transforms are fastest over trailing axes together).
        varying = [a for a in self._axes if bool((mask != mask.narrow(a, 0, 1)).any())]
        self._gram_axes = tuple(range(varying[0], 0)) if varying else ()
        self.mask: Tensor
        self.maps: Tensor
        self.register_buffer("mask", mask)
        self.register_buffer("maps", maps)
        self._fold()

    @property
    def coils(self) -> int:
        """Number of receive coils."""
        return self.range_shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return k-space ``(B, coils, *spatial)`` of images ``(B, 1, *spatial)``."""
        x = self.check_domain(x)
        if x.device.type != "cpu" or len(x) == 1 or (torch.is_grad_enabled() and x.requires_grad):
            return self._transform(x, self._turned_maps, self._turned_mask, self._sampled_mask)
        # One sample at a time on a CPU: the temporaries of a whole batch do not fit its caches.
        y = x.new_zeros((len(x), *self.range_shape), dtype=self.range_dtype)
        for b in range(len(x)):
            maps, *masks = (
                t[b : b + 1] if t.ndim > self.spatial_dims + 1 and len(t) > 1 else t
                for t in (self._turned_maps, self._turned_mask, self._sampled_mask)
            )
            self._transform(x[b : b + 1], maps, *masks, out=y[b : b + 1])
        return y

    def _transform(
        self, x: Tensor, maps: Tensor, mask: Tensor, sampled_mask: Tensor, *, out: Tensor | None = None
    ) -> Tensor:
        """Return the sampled spectra of the coil images, or write them into ``out``, which is zero."""
        coil_images = maps * x  # a real image stays real: half the products
        if not self._runs:
            spectrum = torch.fft.fftn(coil_images, dim=self._axes)
            return spectrum.mul_(mask) if out is None else torch.mul(spectrum, mask, out=out)
        lines = _gather(torch.fft.fft(coil_images, dim=-1), self._runs)
        lines = torch.fft.fftn(lines, dim=self._axes[:-1]).mul_(sampled_mask)
        return _scatter(lines, self._runs, coil_images.shape[-1], out=out)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the coil-combined image ``(B, 1, *spatial)`` of k-space ``(B, coils, *spatial)``."""

        def coil_image(part: Tensor) -> Tensor:
            if not self._runs:
                return torch.fft.ifftn(part * self._conjugate_mask, dim=self._axes, norm="forward")
            lines = _gather(part, self._runs) * self._conjugate_mask
            lines = torch.fft.ifftn(lines, dim=self._axes[:-1], norm="forward")
            return torch.fft.ifft(_scatter(lines, self._runs, part.shape[-1]), dim=-1, norm="forward")

        image = self._combine(self.check_range(y), coil_image, self._conjugate_turned_maps)
        return image.real.contiguous() if self.real_image else image

    def gram(self, x: Tensor) -> Tensor:
        """Return ``A^H A x`` with transforms along the undersampled axes only; the phase ramps cancel in it."""
        x, axes = self.check_domain(x).to(self.range_dtype), self._gram_axes

        def coil_image(maps: Tensor) -> Tensor:
            if not axes:
                return maps * x * self._shifted_mask
            spectrum = torch.fft.fftn(maps * x, dim=axes).mul_(self._shifted_mask)
            return torch.fft.ifftn(spectrum, dim=axes, norm="forward")

        image = self._combine(self.maps, coil_image, self._conjugate_maps)
        return image.real.contiguous() if self.real_image else image

    def samples(self, start: int, stop: int) -> MaskedFourier:
        """Return the operator with the masks and maps of the samples."""
        mask = slice_samples(self.mask, self.spatial_dims + 1, start, stop)
        maps = slice_samples(self.maps, self.spatial_dims + 2, start, stop)
        return MaskedFourier(mask, maps, real_image=self.real_image, spatial_dims=self.spatial_dims)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {
            "mask": self.mask,
            "maps": self.maps,
            "real_image": self.real_image,
            "spatial_dims": self.spatial_dims,
        }

    def _combine(self, coils: Tensor, coil_image: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
        """Return ``sum_c weight_c coil_image(coil c)`` of a tensor with a coil axis, which it keeps with size one."""
        axis = -self.spatial_dims - 1
        if coils.device.type != "cpu":
            return (weights * coil_image(coils)).sum(axis, keepdim=True)
        # One coil at a time on a CPU: what belongs to all coils is too large for its caches.
        each, parts = weights.split(1, axis), coils.split(1, axis)
        image = each[0] * coil_image(parts[0])
        for weight, part in zip(each[1:], parts[1:], strict=True):
            image = torch.addcmul(image, weight, coil_image(part))
        return image

    def _fold(self) -> None:
        """Make the buffers that follow from mask and maps: maps with phase ramps, conjugates, masks in both orders."""
        spatial = self.maps.shape[-self.spatial_dims :]
        mask = self.mask if self.mask.ndim == self.spatial_dims else self.mask.unsqueeze(1)
        turned = self.maps * _separable_ramp(spatial, constant=False).to(self.maps)
        # Transforms are computed without a factor, which is a pass over the data: the masks carry it.
        turned_mask = mask * (_separable_ramp(spatial, constant=True) / prod(spatial) ** 0.5).to(self.maps)
        gram_points = prod(spatial[axis] for axis in self._gram_axes)
        self._runs = _regular_runs(self.mask.flatten(0, -2).amax(0) > 0)
        sampled_mask = _gather(turned_mask, self._runs) if self._runs else turned_mask
        self._conjugate_maps: Tensor
        self._turned_maps: Tensor
        self._conjugate_turned_maps: Tensor
        self._turned_mask: Tensor
        self._sampled_mask: Tensor
        self._conjugate_mask: Tensor
        self._shifted_mask: Tensor
        for name, buffer in (
            ("_conjugate_maps", self.maps.conj().resolve_conj()),
            ("_turned_maps", turned),
            ("_conjugate_turned_maps", turned.conj().resolve_conj()),
            ("_turned_mask", turned_mask),
            ("_sampled_mask", sampled_mask),
            ("_conjugate_mask", sampled_mask.conj().resolve_conj()),
            ("_shifted_mask", torch.fft.ifftshift(mask, self._axes) / gram_points),
        ):
            self.register_buffer(name, buffer, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> MaskedFourier:
        super()._apply(fn, recurse)
        self._fold()  # again, so that a change of precision does not keep ramps rounded to the old one
        return self


def _separable_ramp(shape: Sequence[int], *, constant: bool) -> Tensor:
    """Return ``prod_axis exp(2 pi i c n / N)``, ``c = N // 2``, times ``exp(-2 pi i c^2 / N)`` with the constant."""
    ramp = torch.ones((), dtype=torch.complex128)
    for axis, size in enumerate(shape):
        centre = size // 2
        n = torch.arange(size, dtype=torch.float64) - (centre if constant else 0)
        turns = torch.remainder(centre * n, size) / size
        line = torch.polar(torch.ones_like(turns), 2 * pi * turns)
        if size % 2 == 0:
            line = line.real.round().to(line.dtype)  # exact signs
        ramp = ramp * line.reshape(-1, *[1] * (len(shape) - 1 - axis))
    return ramp


def _regular_runs(sampled: Tensor) -> tuple[slice, ...]:
    """Return equally spaced runs that list the sampled lines in order, or nothing where leaving lines out is no gain.

    Copies by a few strided slices are several times faster than by an index; a line pattern that needs more of them
    (random masks), or that keeps most lines, is not worth it.
    """
    lines = sampled.nonzero().flatten().tolist()
    runs: list[slice] = []
    first = 0
    while first < len(lines):
        last = min(first + 1, len(lines) - 1)
        step = max(lines[last] - lines[first], 1)
        while last + 1 < len(lines) and lines[last + 1] - lines[last] == step:
            last += 1
        runs.append(slice(lines[first], lines[last] + 1, step))
        first = last + 1
    return tuple(runs) if 0 < len(lines) <= 0.7 * len(sampled) and len(runs) <= _MOST_RUNS else ()


def _gather(lines: Tensor, runs: Sequence[slice]) -> Tensor:
    """Return the lines of the runs along the last axis, contiguous."""
    parts = [lines[..., run] for run in runs]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, -1)


def _scatter(lines: Tensor, runs: Sequence[slice], size: int, *, out: Tensor | None = None) -> Tensor:
    """Return the lines at their places among ``size`` along the last axis of ``out`` or of zeros."""
    full = lines.new_zeros((*lines.shape[:-1], size)) if out is None else out
    start = 0
    for run in runs:
        count = len(range(run.start, run.stop, run.step))
        full[..., run] = lines[..., start : start + count]
        start += count
    return full


def _spatial_dims(mask: Tensor, maps: Tensor, given: int | None) -> int:
    """Find the number of spatial axes for which both shapes make sense."""
    fitting = [
        dims
        for dims in (2, 3)
        if mask.ndim in (dims, dims + 1)
        and maps.ndim in (dims + 1, dims + 2)
        and mask.shape[-dims:] == maps.shape[-dims:]
        and (
            mask.ndim == dims
            or maps.ndim == dims + 1
            or mask.shape[0] == maps.shape[0]
            or 1 in (mask.shape[0], maps.shape[0])
        )
    ]
    if given is not None:
        fitting = [dims for dims in fitting if dims == given]
    elif len(fitting) == 2 and mask.shape[-3] == 1:
        fitting = [2]  # one coil and one sample rather than a volume of one slice
    if len(fitting) != 1:
        problem = "spatial_dims=2 or 3 to be given" if fitting else "(*spatial) or (B, *spatial)"
        raise ValueError(f"mask: expected {problem} for maps (coils, *spatial) or (B, coils, *spatial), got mask "
                         f"{tuple(mask.shape)}, maps {tuple(maps.shape)}, spatial_dims={given}")  # fmt: skip
    return fitting[0]
