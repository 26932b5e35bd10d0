"""MINet: two branches, for the target and for a clean reference, joined at every stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multirecon.measurement import Measurement
from multirecon.reconstruction import Capability, ImageSource, Reconstructor
from multirecon.space import ImageSpace

__all__ = ["ChannelSpatialAttention", "LayerAttention", "MINet", "MINetReconstructor", "ResidualGroup"]

_EPS, _BOUND = 1e-11, 6.0


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class _ChannelAttentionBlock(nn.Module):
    """``z + a(conv relu conv z) * conv relu conv z`` with one attention weight a channel, from the global mean."""

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(features, features), nn.ReLU(), _conv(features, features))
        inner = features // reduction
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(features, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, features, 1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return features shaped like ``z``."""
        change = self.body(z)
        return z + self.attention(change) * change


class ResidualGroup(nn.Module):
    """Channel-attention blocks, a 3x3 convolution, and the identity.

    Args:
        features: channels F.
        blocks: number of blocks R.
        reduction: F over the hidden channels of the attention.
    """

    def __init__(self, features: int, blocks: int, *, reduction: int = 16) -> None:
        super().__init__()
        attention = [_ChannelAttentionBlock(features, reduction) for _ in range(blocks)]
        self.body = nn.Sequential(*attention, _conv(features, features))

    def forward(self, z: Tensor) -> Tensor:
        """Return features shaped like ``z``."""
        return z + self.body(z)


class LayerAttention(nn.Module):
    r"""Mixes the stages of a memory: ``gamma B X + X``, ``B = softmax(rowmax(E) - E)``, ``E = X X^T``.

    The weight is largest for the least similar stage. The products are not scaled and grow with the image, so that the
    weights are close to 0 and 1; they are computed in float32. ``gamma`` starts at 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, memory: Tensor) -> Tensor:
        """Return the memory ``(B, N, F, H, W)`` mixed, as ``(B, N F, H, W)``."""
        flat = memory.flatten(2).float()
        energy = flat @ flat.transpose(1, 2)
        weights = torch.softmax(energy.amax(dim=2, keepdim=True) - energy, dim=2)
        mixed = self.gamma * (weights @ flat) + flat
        return mixed.reshape(memory.shape).flatten(1, 2)


class ChannelSpatialAttention(nn.Module):
    """``z + gamma sigmoid(K z) z``, one 3x3x3 kernel K over (channel, row, column); ``gamma`` starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        """Return features shaped like ``z``, ``(B, F, H, W)``."""
        return z + self.gamma * torch.sigmoid(self.conv(z.unsqueeze(1)).squeeze(1)) * z


class MINet(nn.Module):
    r"""Multi-stage integration network.

    Each branch is a 3x3 convolution, ``G`` residual groups and one more convolution: ``S = G + 1`` stages. With stage
    outputs ``a_s`` of the reference and ``t'_s`` of the target, ``t_s = t'_s + W_s [a_s; t'_s]`` enters the next stage:
    information flows from the reference to the target alone. The memory of all ``a_s`` and all ``t'_s`` goes through
    layer attention, the last outputs through channel-spatial attention.

    Args:
        features: channels F, a multiple of ``reduction``.
        groups: residual groups G.
        blocks: blocks R of a group.
        reduction: of the channel attention.
        scale: 2 for the published super-resolution form, whose target has half the size of the reference.

    References:
        feng2021minet

    Example:
        >>> MINet(16, groups=1, blocks=1)(torch.zeros(1, 2, 8, 8)).shape
        torch.Size([1, 2, 8, 8])
    """

    def __init__(
        self, features: int = 64, *, groups: int = 6, blocks: int = 6, reduction: int = 16, scale: int = 1
    ) -> None:
        super().__init__()
        if features < reduction or features % reduction or groups < 1 or blocks < 1:
            raise ValueError(f"features, groups, blocks: expected a multiple of {reduction} and >= 1, "
                             f"got {features}, {groups}, {blocks}")  # fmt: skip
        if scale not in (1, 2):
            raise ValueError(f"scale: expected 1 or 2, got {scale}")
        self.scale = scale
        stages = groups + 1

        def body() -> nn.ModuleList:
            parts: list[nn.Module] = [ResidualGroup(features, blocks, reduction=reduction) for _ in range(groups)]
            return nn.ModuleList([*parts, _conv(features, features)])

        self.target_head, self.reference_head = _conv(1, features), _conv(1, features)
        self.upsampler = (
            nn.Sequential(_conv(features, 4 * features), nn.PixelShuffle(2), _conv(features, features))
            if scale == 2
            else nn.Identity()
        )
        self.target_body, self.reference_body = body(), body()
        self.fusion = nn.ModuleList(nn.Conv2d(2 * features, features, 1) for _ in range(stages))
        self.layer_attention = LayerAttention()
        self.memory = _conv(2 * stages * features, features)
        self.target_attention, self.reference_attention = ChannelSpatialAttention(), ChannelSpatialAttention()
        self.target_merge = _conv(2 * features, features)
        self.reference_merge = _conv(features, features)
        self.target_tail, self.reference_tail = _conv(features, 1), _conv(features, 1)

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return ``[target, reference]`` of the same two images, normalised, ``(B, 2, H, W)``.

        With ``scale`` 2 the target is averaged over 2 x 2 pixels first.
        """
        target = image[:, :1]
        if self.scale == 2:
            target = nn.functional.avg_pool2d(target, 2)
        restored, reference = self.pair(target, image[:, 1:2])
        return torch.cat([restored, reference], dim=1)

    @torch.jit.export
    def pair(self, target: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Return the restored target and reference of ``(B, 1, H / scale, W / scale)`` and ``(B, 1, H, W)``."""
        t_head = self.upsampler(self.target_head(target))
        a_head = self.reference_head(reference)
        t, a = t_head, a_head
        references: list[Tensor] = []
        targets: list[Tensor] = []
        for target_stage, reference_stage, fusion in zip(self.target_body, self.reference_body, self.fusion):  # noqa: B905 (scripted)
            a, before = reference_stage(a), target_stage(t)
            t = before + fusion(torch.cat([a, before], dim=1))
            references.append(a)
            targets.append(before)
        memory = self.memory(self.layer_attention(torch.stack(references + targets, dim=1)))
        joined = torch.cat([self.target_attention(t), memory], dim=1)
        restored = self.target_tail(t_head + self.target_merge(joined))
        return restored, self.reference_tail(a_head + self.reference_merge(self.reference_attention(a)))


class MINetReconstructor(Reconstructor):
    """Runs the network once on the zero-filled target and the clean reference; no data consistency.

    Each slice of each image has its mean subtracted and is divided by its standard deviation, both of the image handed
    in, and is clamped to [-6, 6]; the outputs are scaled back. In training mode the stack holds both outputs, so that
    the loss sees both; otherwise the clean reference comes back as it is.

    Args:
        space: stack of the method: target, then reference.
        autocast: ``"bfloat16"`` or None.
        source: how an image stack becomes a Measurement.
    """

    def __init__(self, *, space: ImageSpace, autocast: str | None = None, source: ImageSource | None = None) -> None:
        super().__init__(space=space, source=source)
        if space.num_channels != 2 or len(space.names) != 2:
            raise ValueError(f"space: expected two modalities of one channel, got {space.names}")
        self.target, self.reference = space.names
        self.autocast = None if autocast is None else getattr(torch, autocast)
        self.capability = Capability(
            operators=frozenset({"masked_fourier", "identity"}),
            likelihoods=frozenset({"gaussian"}),
            modalities=frozenset(space.names),
            requires={self.target: "masked_fourier", self.reference: "identity"},
            ndim=frozenset({2}),
        )

    def reconstruct(
        self,
        measurement: Measurement,
        network: nn.Module | None,
        *,
        generator: torch.Generator,
        callback: object,
    ) -> Tensor:
        """Return the stack ``(B, 2, H, W)``; see the class."""
        if network is None:
            raise ValueError("network: expected MINet, got None")
        clean = measurement.y[self.reference]
        zero_filled = measurement.operator[self.target].adjoint(measurement.y[self.target])
        images = torch.cat([zero_filled, clean], dim=1)
        mean, std = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
        with torch.set_grad_enabled(network.training):
            inputs = ((images - mean) / (std + _EPS)).clamp(-_BOUND, _BOUND)
            with torch.autocast(images.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                outputs = network(inputs.contiguous(memory_format=torch.channels_last))
            result = outputs.float() * std + mean
        result = result if network.training else torch.cat([result[:, :1], clean], dim=1)
        if callable(callback):
            callback(0, result)
        return result
