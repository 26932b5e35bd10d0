"""Time-conditioned U-Net of denoising diffusion models in two and three dimensions, scriptable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["UNET_CONFIGURATIONS", "Attention", "ResidualBlock", "UNet", "timestep_embedding", "unet_configuration"]

_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}

#: Counted configurations of the pixel-domain prior, without the numbers of channels.
UNET_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "large": {
        "channels": (256, 256, 512, 512, 1024, 1024),
        "num_res_blocks": 2,
        "attention_levels": (False, False, False, True, True, True),
    },
    "base": {
        "channels": (128, 128, 256, 256, 512, 512),
        "num_res_blocks": 2,
        "attention_levels": (False, False, False, True, True, True),
    },
    "slim": {
        "channels": (128, 128, 256, 256, 512, 512),
        "num_res_blocks": 1,
        "attention_levels": (False, False, False, False, True, False),
    },
    "gpu128": {
        "channels": (128, 128, 256, 384, 512),
        "num_res_blocks": 2,
        "attention_levels": (False, False, True, True, True),
    },
    "mid128": {
        "channels": (64, 64, 128, 192, 256),
        "num_res_blocks": 2,
        "attention_levels": (False, False, False, True, True),
    },
    "cpu": {
        "channels": (32, 64, 64, 128),
        "num_res_blocks": 1,
        "attention_levels": (False, False, False, True),
        "num_head_channels": 32,
    },
}


def unet_configuration(
    name: str, *, in_channels: int = 5, out_channels: int = 5, spatial_dims: int = 2
) -> dict[str, Any]:
    """Return the arguments of :class:`UNet` for a named configuration.

    Args:
        name: ``large``, ``base``, ``slim`` (for 256 x 256 images), ``gpu128``, ``mid128`` or ``cpu`` (for 128 x 128).
        in_channels: channels of the image.
        out_channels: channels of the prediction.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in UNET_CONFIGURATIONS:
        raise ValueError(f"name: expected one of {list(UNET_CONFIGURATIONS)}, got {name!r}")
    return {
        "spatial_dims": spatial_dims,
        "in_channels": in_channels,
        "out_channels": out_channels,
        **UNET_CONFIGURATIONS[name],
    }


def timestep_embedding(timestep: Tensor, channels: int, max_period: float = 10000.0) -> Tensor:
    r"""Return the sinusoidal embedding ``[cos(t w_k), sin(t w_k)]``, ``w_k = max_period^{-k / (channels / 2)}``.

    Args:
        timestep: diffusion time in steps, fractions allowed, ``(B,)``.
        channels: even width of the embedding.
        max_period: longest period over 2 pi, in steps.

    Returns:
        ``(B, channels)`` in float32.
    """
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angle = timestep.to(torch.float32)[:, None] * torch.exp(-math.log(max_period) * exponent)[None]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)


class ResidualBlock(nn.Module):
    r"""Residual block with time conditioning and, if asked, a change of resolution inside.

    Main path: GroupNorm, SiLU, (resampling,) 3-convolution, GroupNorm, conditioning, SiLU, dropout, 3-convolution that
    starts at zero. Conditioning is ``GN(h) (1 + scale) + shift``, or ``GN(h + shift)`` without ``scale_shift``.
    The skip is resampled alike and gets a 1-convolution only where the number of channels changes. Resolution falls by
    average pooling and rises by nearest-neighbour repetition, by two along every axis.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        embedding_channels: width of the time embedding.
        norm_num_groups: groups of the normalisations.
        dropout: dropout probability.
        scale_shift: condition by scale and shift instead of adding.
        resample: ``"none"``, ``"down"`` or ``"up"``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        out_channels: int,
        embedding_channels: int,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: str = "none",
    ) -> None:
        super().__init__()
        conv = _CONV[spatial_dims]
        self.scale_shift = scale_shift
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels)
        self.resample = Resample(spatial_dims, resample)
        self.conv1 = conv(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_channels, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zeroed(conv(out_channels, out_channels, 3, padding=1))
        self.skip: nn.Module = nn.Identity() if in_channels == out_channels else conv(in_channels, out_channels, 1)

    def forward(self, image: Tensor, embedding: Tensor) -> Tensor:
        """Return the features ``(B, out_channels, *shape')`` of features ``(B, in_channels, *shape)``.

        Args:
            image: features.
            embedding: time embedding ``(B, embedding_channels)``.
        """
        hidden = self.conv1(self.resample(F.silu(self.norm1(image))))
        condition = self.embedding(F.silu(embedding)).to(hidden.dtype)
        condition = condition.reshape(list(condition.shape) + [1] * (image.ndim - 2))
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + condition)
        return self.skip(self.resample(image)) + self.conv2(self.dropout(F.silu(hidden)))


class Resample(nn.Module):
    """Halving by average pooling, doubling by repetition, or nothing; along every axis."""

    def __init__(self, spatial_dims: int, mode: str) -> None:
        super().__init__()
        if mode not in ("none", "down", "up"):
            raise ValueError(f"resample: expected 'none', 'down' or 'up', got {mode!r}")
        self.mode = mode
        self.spatial_dims = spatial_dims

    def forward(self, image: Tensor) -> Tensor:
        """Return the resampled features ``(B, C, *shape')``."""
        if self.mode == "up":
            return F.interpolate(image, scale_factor=2.0, mode="nearest")
        if self.mode == "down":
            return F.avg_pool2d(image, 2) if self.spatial_dims == 2 else F.avg_pool3d(image, 2)
        return image


class ConvResample(nn.Module):
    """Halving by a strided convolution, or doubling by repetition and a convolution; the embedding is ignored."""

    def __init__(self, spatial_dims: int, channels: int, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.conv = _CONV[spatial_dims](channels, channels, 3, stride=2 if mode == "down" else 1, padding=1)

    def forward(self, image: Tensor, embedding: Tensor) -> Tensor:
        """Return the resampled features ``(B, channels, *shape')``."""
        if self.mode == "up":
            image = F.interpolate(image, scale_factor=2.0, mode="nearest")
        return self.conv(image)


class Attention(nn.Module):
    r"""Self-attention over all positions: ``h + W_o softmax(q^T k / sqrt(d)) v`` with a zero-started ``W_o``.

    Args:
        channels: channels of the features.
        head_channels: width of one head; must divide ``channels``.
        norm_num_groups: groups of the normalisation.
    """

    def __init__(self, channels: int, *, head_channels: int = 64, norm_num_groups: int = 32) -> None:
        super().__init__()
        if channels % head_channels:
            raise ValueError(f"num_head_channels: expected a divisor of {channels}, got {head_channels}")
        self.head_channels = head_channels
        self.norm = nn.GroupNorm(norm_num_groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.project = _zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the features ``(B, channels, *shape)`` of features of the same shape."""
        batch, channels = image.shape[0], image.shape[1]
        qkv = self.qkv(self.norm(image).flatten(2))
        qkv = qkv.reshape(batch, 3, channels // self.head_channels, self.head_channels, -1).transpose(3, 4)
        hidden = F.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        hidden = self.project(hidden.transpose(2, 3).reshape(batch, channels, -1))
        return image + hidden.reshape(image.shape)


class PassThrough(nn.Module):
    """Returns its first argument."""

    def forward(self, image: Tensor, embedding: Tensor) -> Tensor:
        """Return ``image``."""
        return image


class Stage(nn.Module):
    """One entry of the encoder or decoder: a block, attention or none, and (in the decoder) a change of resolution."""

    def __init__(self, block: nn.Module, attention: nn.Module | None = None, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.block = block
        self.attention = nn.Identity() if attention is None else attention
        self.resample = PassThrough() if resample is None else resample

    def forward(self, image: Tensor, embedding: Tensor) -> Tensor:
        """Return the features of the stage."""
        return self.resample(self.attention(self.block(image, embedding)), embedding)


class UNet(nn.Module):
    r"""U-Net of denoising diffusion with time conditioning and attention, ``forward(image, timestep) -> pred``.

    3-convolution stem; a level holds ``num_res_blocks`` residual blocks (one more in the decoder), each followed by
    attention where asked; between levels the resolution changes by two. Every encoder entry is a skip, concatenated or
    added in the decoder. The head is GroupNorm, SiLU and a 3-convolution that starts at zero, so the untrained network
    returns exactly zero. With added skips the decoder's blocks change the number of channels where the next skip does.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the prediction.
        channels: width of each level, highest resolution first.
        num_res_blocks: residual blocks a level, one number or one a level.
        attention_levels: which levels have attention; none by default.
        num_head_channels: width of an attention head.
        norm_num_groups: groups of every normalisation.
        dropout: dropout probability inside the residual blocks.
        scale_shift: condition on time by scale and shift instead of adding.
        resblock_updown: change resolution inside residual blocks instead of by single convolutions.
        skip: ``"concat"`` or ``"add"``.
        middle_attention: attention between the two blocks of lowest resolution.

    Raises:
        ValueError: if lengths disagree, or a width is not divisible as the normalisation and attention need.

    References:
        nichol2021, dhariwal2021, friedrich2024 (added skips)

    Example:
        >>> net = UNet(**unet_configuration("cpu", in_channels=1, out_channels=1))
        >>> net(torch.ones(1, 1, 16, 16), torch.tensor([10.0])).abs().max().item()
        0.0
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        out_channels: int,
        channels: Sequence[int],
        num_res_blocks: int | Sequence[int] = 2,
        attention_levels: Sequence[bool] | None = None,
        num_head_channels: int = 64,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resblock_updown: bool = True,
        skip: str = "concat",
        middle_attention: bool = True,
    ) -> None:
        super().__init__()
        levels = len(channels)
        blocks = [num_res_blocks] * levels if isinstance(num_res_blocks, int) else list(num_res_blocks)
        attends = [False] * levels if attention_levels is None else list(attention_levels)
        if spatial_dims not in _CONV:
            raise ValueError(f"spatial_dims: expected 2 or 3, got {spatial_dims}")
        if not levels or len(blocks) != levels or len(attends) != levels:
            raise ValueError(f"channels, num_res_blocks, attention_levels: expected one entry a level, got {levels}, "
                             f"{len(blocks)}, {len(attends)}")  # fmt: skip
        if any(c % norm_num_groups or c % 2 for c in channels):
            raise ValueError(f"channels: expected even multiples of norm_num_groups={norm_num_groups}, got {channels}")
        if skip not in ("concat", "add"):
            raise ValueError(f"skip: expected 'concat' or 'add', got {skip!r}")
        conv, width = _CONV[spatial_dims], channels[0]
        self.embedding_width = width
        self.factor = 2 ** (levels - 1)
        self.concatenate = skip == "concat"
        self.time1 = nn.Linear(width, 4 * width)
        self.time2 = nn.Linear(4 * width, 4 * width)
        self.stem = conv(in_channels, width, 3, padding=1)

        def block(inside: int, outside: int, mode: str = "none") -> nn.Module:
            if mode != "none" and not resblock_updown:
                return ConvResample(spatial_dims, inside, mode)
            return ResidualBlock(
                spatial_dims,
                inside,
                out_channels=outside,
                embedding_channels=4 * width,
                norm_num_groups=norm_num_groups,
                dropout=dropout,
                scale_shift=scale_shift,
                resample=mode,
            )

        def attention(features: int, wanted: bool) -> nn.Module | None:
            if not wanted:
                return None
            return Attention(features, head_channels=num_head_channels, norm_num_groups=norm_num_groups)

        encoder, skips, now = [], [width], width
        for level, features in enumerate(channels):
            for _ in range(blocks[level]):
                encoder.append(Stage(block(now, features), attention(features, attends[level])))
                now = features
                skips.append(now)
            if level < levels - 1:
                encoder.append(Stage(block(now, now, "down")))
                skips.append(now)
        self.encoder = nn.ModuleList(encoder)
        self.middle1 = Stage(block(now, now), attention(now, middle_attention))
        self.middle2 = Stage(block(now, now))

        decoder = []
        for level in reversed(range(levels)):
            for index in range(blocks[level] + 1):
                entry = skips.pop()
                outside = channels[level] if self.concatenate else (skips[-1] if skips else width)
                up = block(outside, outside, "up") if level and index == blocks[level] else None
                inside = now + entry if self.concatenate else entry
                decoder.append(Stage(block(inside, outside), attention(outside, attends[level]), up))
                now = outside
        self.decoder = nn.ModuleList(decoder)
        self.norm = nn.GroupNorm(norm_num_groups, now)
        self.head = _zeroed(conv(now, out_channels, 3, padding=1))

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the prediction ``(B, out_channels, *shape)``.

        Args:
            image: noisy image ``(B, in_channels, *shape)``, every axis divisible by ``2 ** (levels - 1)``.
            timestep: diffusion time in steps, fractions allowed, ``(B,)`` or a single number; 0 where it is not given.

        Raises:
            ValueError: if an axis of the image is not divisible as stated.
        """
        for size in image.shape[2:]:
            if size % self.factor != 0:
                raise ValueError(f"image: expected axes divisible by {self.factor}, got {image.shape}")
        embedding = self.embed(image, timestep)
        hidden = self.stem(image)
        skips = [hidden]
        for stage in self.encoder:
            hidden = stage(hidden, embedding)
            skips.append(hidden)
        hidden = self.middle2(self.middle1(hidden, embedding), embedding)
        for stage in self.decoder:
            entry = skips.pop()
            hidden = stage(torch.cat([hidden, entry], dim=1) if self.concatenate else hidden + entry, embedding)
        return self.head(F.silu(self.norm(hidden)))

    def embed(self, image: Tensor, timestep: Tensor | None) -> Tensor:
        """Return the embedding of the diffusion times of a batch, ``(B, 4 channels[0])``."""
        if timestep is None:
            timestep = torch.zeros(image.shape[0], device=image.device)
        timestep = timestep.reshape(-1).expand(image.shape[0])
        embedding = timestep_embedding(timestep, self.embedding_width).to(self.time1.weight.dtype)
        return self.time2(F.silu(self.time1(embedding)))


def _zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
