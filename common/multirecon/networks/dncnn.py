"""Denoisers of plug-and-play reconstruction: a DnCNN that training constrains, and one made of Lipschitz layers."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DnCNN", "SpectralDnCNN", "convolution_bound", "convolution_norm"]


class DnCNN(nn.Module):
    r"""``D(x) = x + R(x)``: a residual chain of 3 x 3 convolutions without normalisation layers.

    Nothing in it depends on the statistics of its input, so that ``Q = 2 D - Id`` has a Jacobian that training can
    bound (:class:`multirecon.priors.nonexpansive.NonexpansiveLoss`). Published: 20 layers, 64 channels, leaky ReLU.

    Args:
        layers: convolutions.
        features: channels between them.
        activation: ``"leaky_relu"`` (slope 0.01, as published) or ``"softplus"``: differentiable everywhere, slope
            below 1.
        sharpness: of the softplus, in 1 / (unit of the features).
        channels: channels of the image.
        guides: further channels of the input, such as an MR image, that are seen and not denoised: what a map of
            images is firmly nonexpansive in is the image, for every guide.

    Raises:
        ValueError: on an unknown activation or sizes out of range.

    References:
        zhang2017, pesquet2021

    Example:
        >>> DnCNN(4, 8)(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 1, 16, 16])
    """

    def __init__(
        self,
        layers: int = 20,
        features: int = 64,
        *,
        activation: str = "leaky_relu",
        sharpness: float = 100.0,
        channels: int = 1,
        guides: int = 0,
    ) -> None:
        super().__init__()
        if layers < 3 or min(features, channels) < 1 or not sharpness > 0 or guides < 0:
            raise ValueError("layers, features, channels, sharpness, guides: expected >= 3, >= 1 (two), > 0 and >= 0, "
                             f"got {layers}, {features}, {channels}, {sharpness}, {guides}")  # fmt: skip
        self.smooth = _is_smooth(activation)
        self.sharpness, self.channels = sharpness, channels
        widths = [channels + guides, *[features] * (layers - 1), channels]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the denoised image ``(B, channels, H, W)`` of ``(B, channels + guides, H, W)``, no ``timestep``."""
        h, last = image, len(self.convolutions) - 1
        for k, convolution in enumerate(self.convolutions):
            h = convolution(h)
            if k < last:
                h = functional.softplus(h, self.sharpness) if self.smooth else functional.leaky_relu(h)
        return image[:, : self.channels] + h


class SpectralDnCNN(nn.Module):
    r"""``D = (Id + N) / 2``, firmly nonexpansive by construction: ``N`` is a chain of 1-Lipschitz layers.

    Every kernel ``K`` is divided by ``max(1, |K|)``, the norm of the convolution as it acts on an image: power
    iteration with ``conv2d`` and its transpose, not on the reshaped kernel, whose norm is another number. The norms are
    buffers: :meth:`renew` continues the iteration (after every training step), :meth:`certify` sets them to
    :func:`convolution_bound`, which holds for images of every size. Published comparators of this kind generalise
    worse than penalised ones.

    Args:
        layers: convolutions.
        features: channels between them.
        activation: as in :class:`DnCNN`; both are 1-Lipschitz.
        sharpness: of the softplus.
        grid: side of the image on which norms are estimated.
        channels: channels of the image.

    Raises:
        ValueError: as :class:`DnCNN`.

    References:
        ryu2019

    Example:
        >>> SpectralDnCNN(4, 8)(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 1, 16, 16])
    """

    norms: Tensor

    def __init__(
        self,
        layers: int = 20,
        features: int = 64,
        *,
        activation: str = "leaky_relu",
        sharpness: float = 100.0,
        grid: int = 48,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.chain = DnCNN(layers, features, activation=activation, sharpness=sharpness, channels=channels)
        self.smooth, self.sharpness, self.grid = self.chain.smooth, sharpness, grid
        self.register_buffer("norms", torch.ones(layers))
        generator = torch.Generator().manual_seed(0)
        self._vectors = [torch.randn(1, c.in_channels, grid, grid, generator=generator) for c in self._layers()]
        self.renew(iterations=20)

    def _layers(self) -> list[nn.Conv2d]:
        return [c for c in self.chain.convolutions if isinstance(c, nn.Conv2d)]

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the denoised image ``(B, channels, H, W)``; ``timestep`` is ignored."""
        h, last = image, len(self.chain.convolutions) - 1
        for k, convolution in enumerate(self.chain.convolutions):
            # the bias is added after the division: it moves the output, not its differences
            bias = convolution(torch.zeros_like(h[:, :, :1, :1]))
            h = (convolution(h) - bias) / self.norms[k].clamp_min(1.0) + bias
            if k < last:
                h = functional.softplus(h, self.sharpness) if self.smooth else functional.leaky_relu(h)
        return 0.5 * (image + h)

    @torch.jit.unused
    @torch.no_grad()
    def renew(self, *, iterations: int = 1) -> None:
        """Continue the power iteration for the norm of every layer."""
        for k, layer in enumerate(self._layers()):
            norm, self._vectors[k] = convolution_norm(layer.weight, self._vectors[k], iterations=iterations)
            self.norms[k] = norm

    @torch.jit.unused
    @torch.no_grad()
    def certify(self) -> None:
        """Set the norms to upper bounds that hold for images of every size."""
        self.norms.copy_(torch.stack([convolution_bound(layer.weight) for layer in self._layers()]))


@torch.no_grad()
def convolution_norm(kernel: Tensor, vector: Tensor, *, iterations: int = 20) -> tuple[Tensor, Tensor]:
    """Return the norm of a zero-padded convolution and the image that attains it, by power iteration on ``K^T K``.

    Args:
        kernel: ``(out, in, k, k)``, ``k`` odd.
        vector: start ``(1, in, H, W)``; the size of the image on which the norm is taken.
        iterations: steps; the estimate grows towards the norm from below.
    """
    padding = kernel.shape[-1] // 2
    v = vector.to(kernel) / torch.linalg.vector_norm(vector.to(kernel))
    norm = torch.zeros((), dtype=kernel.dtype, device=kernel.device)
    for _ in range(iterations):
        out = functional.conv2d(v, kernel, padding=padding)
        norm = torch.linalg.vector_norm(out)
        v = functional.conv_transpose2d(out, kernel, padding=padding)
        v = v / torch.linalg.vector_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
    return norm, v


@torch.no_grad()
def convolution_bound(kernel: Tensor, *, frequencies: int = 48) -> Tensor:
    r"""Return an upper bound of the norm of a convolution on images of every size.

    A zero-padded convolution is a block of the one on the infinite plane, whose norm is the supremum over frequencies
    of the spectral norm of the transfer matrix. That of a ``k x k`` kernel is a trigonometric polynomial of degree at
    most ``d = (k - 1) / 2`` in each direction, so that with ``n`` frequencies a direction the supremum exceeds the
    maximum over the grid by at most a factor of ``1 / cos(pi d / n)`` a direction.

    Args:
        kernel: ``(out, in, k, k)``, ``k`` odd.
        frequencies: ``n``.
    """
    size = kernel.shape[-1]
    padded = functional.pad(kernel.double(), [0, frequencies - size, 0, frequencies - size])
    transfer = torch.fft.fft2(padded).permute(2, 3, 0, 1)
    # the transfer matrices of conjugate frequencies have the same norm
    largest = torch.linalg.matrix_norm(transfer[: frequencies // 2 + 1], ord=2).max()
    ripple = torch.cos(torch.tensor(torch.pi * (size // 2) / frequencies, dtype=torch.float64))
    return (largest / ripple**2).to(kernel)


def _is_smooth(activation: str) -> bool:
    if activation not in ("leaky_relu", "softplus"):
        raise ValueError(f"activation: expected 'leaky_relu' or 'softplus', got {activation!r}")
    return activation == "softplus"
