"""U-Net of slices made into a network of volumes by convolutions across slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .unet import ConvResample, Stage, UNet, _zeroed

__all__ = ["InflatedUNet", "SliceMixing"]


class SliceMixing(nn.Module):
    """Residual convolution across the slices of a volume, conditioned on time; it starts as the identity.

    GroupNorm over the volume, ``GN(h) (1 + scale) + shift``, SiLU, and a 1 x 1 x 3 convolution that starts at zero.

    Args:
        channels: channels of the features.
        embedding_channels: width of the time embedding.
        norm_num_groups: groups of the normalisation.
    """

    def __init__(self, channels: int, embedding_channels: int, norm_num_groups: int = 32) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_num_groups, channels)
        self.embedding = nn.Linear(embedding_channels, 2 * channels)
        self.conv = _zeroed(nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)))

    def forward(self, slices: Tensor, embedding: Tensor) -> Tensor:
        """Return features of the same shape.

        Args:
            slices: features ``(B D, C, H, W)``, the slices of a volume following each other.
            embedding: time embedding of the volumes ``(B, embedding_channels)``.
        """
        volume = slices.unflatten(0, (embedding.shape[0], -1)).transpose(1, 2)
        condition = self.embedding(F.silu(embedding)).to(volume.dtype)
        scale, shift = condition[:, :, None, None, None].chunk(2, dim=1)
        mixed = self.conv(F.silu(self.norm(volume) * (1 + scale) + shift))
        return slices + mixed.transpose(1, 2).flatten(0, 1)


class InflatedUNet(UNet):
    """2D U-Net on every slice with a :class:`SliceMixing` after every stage.

    Its convolutions are factorised into 3 x 3 x 1 and 1 x 1 x 3. With the weights of a trained :class:`UNet` it starts
    as that network on every slice, to rounding, and learns from there what neighbouring slices tell
    (:meth:`load_state_dict`).

    Args:
        in_channels: channels of the volume.
        out_channels: channels of the prediction.
        channels: width of each level, highest resolution first.
        kwargs: further arguments of :class:`UNet`.

    References:
        tran2018 (factorised convolutions), singer2022, blattmann2023 (layers across frames in a trained 2D network)

    Example:
        >>> net = InflatedUNet(1, out_channels=1, channels=[8, 8], norm_num_groups=8, middle_attention=False)
        >>> net(torch.ones(2, 1, 8, 8, 3), torch.tensor([10.0, 20.0])).shape
        torch.Size([2, 1, 8, 8, 3])
    """

    def __init__(self, in_channels: int, *, out_channels: int, channels: Any, **kwargs: Any) -> None:
        super().__init__(2, in_channels, out_channels=out_channels, channels=channels, **kwargs)
        groups = self.norm.num_groups

        def mixing(stage: Any) -> SliceMixing:
            return SliceMixing(_width(stage), self.time2.out_features, groups)

        self.encoder_mixing = nn.ModuleList([mixing(stage) for stage in self.encoder])
        self.middle1_mixing, self.middle2_mixing = mixing(self.middle1), mixing(self.middle2)
        self.decoder_mixing = nn.ModuleList([mixing(stage) for stage in self.decoder])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights of this network, or of a :class:`SliceNetwork` whose U-Net it then is on every slice."""
        if state_dict and all(name.startswith("network.") for name in state_dict):
            own = {name: value for name, value in self.state_dict().items() if "_mixing." in name}
            identity = {name: torch.zeros_like(value) for name, value in own.items() if ".conv." in name}
            state_dict = {
                **own,
                **identity,
                **{name.removeprefix("network."): value for name, value in state_dict.items()},
            }
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the prediction ``(B, out_channels, H, W, D)``.

        Args:
            image: noisy volumes ``(B, in_channels, H, W, D)``, H and W divisible by ``2 ** (levels - 1)``.
            timestep: diffusion time in steps, fractions allowed, ``(B,)`` or a single number; 0 where it is not given.

        Raises:
            ValueError: if H or W is not divisible as stated.
        """
        for size in image.shape[2:4]:
            if size % self.factor != 0:
                raise ValueError(f"image: expected rows and columns divisible by {self.factor}, got {image.shape}")
        batch, depth = image.shape[0], image.shape[4]
        volumes = self.embed(image, timestep)
        slices = volumes.repeat_interleave(depth, dim=0)
        hidden = self.stem(image.permute(0, 4, 1, 2, 3).flatten(0, 1))
        skips = [hidden]
        for stage, mixing in zip(self.encoder, self.encoder_mixing, strict=True):
            hidden = mixing(stage(hidden, slices), volumes)
            skips.append(hidden)
        hidden = self.middle1_mixing(self.middle1(hidden, slices), volumes)
        hidden = self.middle2_mixing(self.middle2(hidden, slices), volumes)
        for stage, mixing in zip(self.decoder, self.decoder_mixing, strict=True):
            entry = skips.pop()
            hidden = torch.cat([hidden, entry], dim=1) if self.concatenate else hidden + entry
            hidden = mixing(stage(hidden, slices), volumes)
        out = self.head(F.silu(self.norm(hidden)))
        return out.unflatten(0, (batch, depth)).permute(0, 2, 3, 4, 1)


def _width(stage: Stage) -> int:
    """Channels at the end of a stage."""
    block: Any = stage.block
    last = block.conv if isinstance(block, ConvResample) else block.conv2
    return int(last.out_channels)
