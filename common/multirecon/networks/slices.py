"""A two-dimensional network on volumes, slice by slice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SliceNetwork"]


class SliceNetwork(nn.Module):
    """Runs a 2D network ``(image, timestep) -> pred`` on every slice of a volume: a prior that is blind along z.

    Args:
        network: the 2D network.

    Example:
        >>> from multirecon.networks.unet import UNet
        >>> net = SliceNetwork(UNet(2, 1, out_channels=1, channels=[8, 8], norm_num_groups=8, middle_attention=False))
        >>> net(torch.ones(2, 1, 8, 8, 3), torch.tensor([10.0, 20.0])).shape
        torch.Size([2, 1, 8, 8, 3])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the prediction ``(B, out_channels, H, W, D)``.

        Args:
            image: volumes ``(B, in_channels, H, W, D)``.
            timestep: diffusion time in steps ``(B,)`` or a single number; 0 where it is not given.
        """
        batch, depth = image.shape[0], image.shape[4]
        if timestep is None:
            timestep = torch.zeros(batch, device=image.device)
        timestep = timestep.reshape(-1).expand(batch).repeat_interleave(depth)
        slices = image.permute(0, 4, 1, 2, 3).flatten(0, 1)
        return self.network(slices, timestep).unflatten(0, (batch, depth)).permute(0, 2, 3, 4, 1)
