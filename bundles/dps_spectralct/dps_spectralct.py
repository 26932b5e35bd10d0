"""The control of the joint prior: one network that sees every energy by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SeparateBins"]


class SeparateBins(nn.Module):
    """One network for all energies that is shown one at a time: a prior without any coupling between them.

    The energies of a stack become samples of a batch. Constant planes say which energy it is, so that one set of
    weights stands for as many single-channel models, of the size of one.

    Args:
        network: ``(B, bands + channels, H, W), (B,) -> (B, bands, H, W)``.
        channels: energies.
        bands: coefficient channels of one energy.

    Example:
        >>> class Sum(nn.Module):
        ...     def forward(self, image, timestep):
        ...         return image.sum(1, keepdim=True)
        >>> SeparateBins(Sum(), 2, bands=1)(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1), torch.zeros(1)).flatten()
        tensor([4., 5.])
    """

    def __init__(self, network: nn.Module, channels: int, *, bands: int = 4) -> None:
        super().__init__()
        if channels < 1 or bands < 1:
            raise ValueError(f"channels, bands: expected >= 1, got {channels}, {bands}")
        self.network = network
        self.channels = channels
        self.bands = bands

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the prediction ``(B, channels * bands, H, W)`` of coefficients, energy by energy."""
        batch = image.shape[0]
        if timestep is None:
            timestep = torch.zeros(batch, device=image.device)
        single = image.reshape(batch * self.channels, self.bands, image.shape[2], image.shape[3])
        which = torch.eye(self.channels, dtype=image.dtype, device=image.device).repeat(batch, 1)
        planes = which[:, :, None, None].expand(-1, -1, image.shape[2], image.shape[3])
        times = timestep.reshape(-1).expand(batch).repeat_interleave(self.channels)
        return self.network(torch.cat([single, planes], dim=1), times).reshape(image.shape)
