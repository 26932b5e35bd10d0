"""Filter banks as networks: one pass is the sparse approximation of an image stack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .coding import high_pass
from .filters import analyse, random_bank, synthesise, transfer
from .thresholds import shrink

__all__ = ["AnalysisOperator", "SynthesisDictionary"]


class AnalysisOperator(nn.Module):
    r"""``x -> W^T T(W x)`` with one tight frame a channel and the joint hard threshold ``T``.

    For an image that the frame represents sparsely that is the image itself; noise below the threshold is removed. New
    filters are random normal, the first one constant, of norm ``1 / size``.

    Args:
        channels: number of channels.
        filters: filters a channel, at least ``size^2``.
        size: side of a filter in pixels.
        precision: ``g``: positions are kept where ``sum_c g r_c^2 / 2 >= 1``, for images with maximum one.
        seed: of the new filters.

    Raises:
        ValueError: if the filters are too few to be a frame.

    References:
        chun2020, perelli2022

    Example:
        >>> from multirecon.priors.dictionaries.filters import nearest_tight_frame
        >>> W = AnalysisOperator(2, 9, 3, precision=1e12)
        >>> _ = W.filters.copy_(nearest_tight_frame(W.filters))
        >>> image = torch.rand(1, 2, 16, 16)
        >>> bool((W(image) - image).abs().max() < 1e-5)
        True
    """

    def __init__(
        self, channels: int, filters: int = 49, size: int = 7, *, precision: float = 1e3, seed: int = 0
    ) -> None:
        super().__init__()
        if filters < size * size:
            raise ValueError(f"filters: expected at least size^2 = {size * size}, got {filters}")
        if not precision > 0:
            raise ValueError(f"precision: expected > 0, got {precision}")
        generator = torch.Generator().manual_seed(seed)
        bank = random_bank(channels, filters, size, norm=1 / size, constant=True, generator=generator)
        self.filters = nn.Parameter(bank, requires_grad=False)
        self.precision = float(precision)

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the approximation ``(B, C, H, W)`` of images in units of their maximum; ``timestep`` is ignored."""
        responses = analyse(image, self.filters)
        energy = 0.5 * self.precision * responses.square().sum(1, keepdim=True)
        return synthesise(torch.where(energy >= 1.0, responses, torch.zeros_like(responses)), self.filters)


class SynthesisDictionary(nn.Module):
    r"""``x -> low-pass part + sum_k d_k * z_k`` with the sparse codes of the rest, by some ADMM iterations.

    The dictionary is shared by all channels; the codes of a stack are coupled by the norm over its channels. New
    filters are random normal with norm one.

    Args:
        filters: number of filters.
        size: side of a filter in pixels.
        sparsity: weight of the absolute values of the codes, for images with maximum one.
        coupling: weight of the norms over channels.
        iterations: ADMM iterations of a pass, with fixed coupling ``rho``.
        smoothing: weight of the low-pass part, see :func:`~multirecon.priors.dictionaries.coding.high_pass`.
        seed: of the new filters.

    Raises:
        ValueError: on a number out of range.

    References:
        wohlberg2016
    """

    def __init__(
        self,
        filters: int = 64,
        size: int = 8,
        *,
        sparsity: float = 0.02,
        coupling: float = 0.01,
        iterations: int = 20,
        smoothing: float = 5.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if filters < 1 or size < 1 or iterations < 1:
            raise ValueError(f"filters, size, iterations: expected >= 1, got {filters}, {size}, {iterations}")
        if min(sparsity, coupling, smoothing) < 0 or not sparsity + coupling > 0:
            raise ValueError(f"sparsity, coupling, smoothing: expected >= 0 and a positive sum of the first two, "
                             f"got {sparsity}, {coupling}, {smoothing}")  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        bank = random_bank(1, filters, size, norm=1.0, constant=False, generator=generator)
        self.filters = nn.Parameter(bank, requires_grad=False)
        self.sparsity, self.coupling = float(sparsity), float(coupling)
        self.iterations = int(iterations)
        self.smoothing = float(smoothing)

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the approximation ``(B, C, H, W)`` of images in units of their maximum; ``timestep`` is ignored."""
        signal = high_pass(image, self.smoothing)
        height, width = image.shape[-2], image.shape[-1]
        d = transfer(self.filters, height, width)
        rho = 50.0 * (self.sparsity + self.coupling) + 0.5
        power = d.abs().square().sum(1)[None, :, None]
        pull = d.conj() * torch.fft.rfft2(signal)[:, :, None]
        single = torch.full([1], self.sparsity / rho, dtype=image.dtype, device=image.device)
        group = torch.full([1], self.coupling / rho, dtype=image.dtype, device=image.device)
        z = torch.zeros_like(image)[:, :, None].expand(-1, -1, self.filters.shape[1], -1, -1)
        u = torch.zeros_like(z)
        for _ in range(self.iterations):
            right = pull + rho * torch.fft.rfft2(z - u)
            along = (d * right).sum(2, keepdim=True)
            x = torch.fft.irfft2((right - d.conj() * along / (rho + power)) / rho, s=[height, width])
            relaxed = 1.8 * x - 0.8 * z + u
            z = shrink(relaxed, single, group)
            u = relaxed - z
        return image - signal + synthesise(z, self.filters)
