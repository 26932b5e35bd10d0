"""Random changes of whole batches of image stacks, on the device they are trained on."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..space import ImageSpace

__all__ = ["StackAugmentation"]


class StackAugmentation:
    r"""Random mirror, affine map, smooth warp and intensity changes of 2D stacks in the network's range.

    Geometry is common to all modalities of a sample; what comes from outside is background (-1). Intensities
    ``u = (x + 1) / 2`` of each MR channel become ``gain u^gamma``, those of PET channels ``gain u``; CT keeps its
    numbers.

    Args:
        space: image space of the stack (two axes, left-right first).
        probability: share of the samples whose geometry is changed (mirroring always happens to half of them).
        rotation_deg: half-range of the rotation in degrees.
        scale: half-range of the relative scale.
        shear: half-range of the shear.
        shift: half-range of the shift relative to the field of view.
        warp_px: standard deviation of the smooth displacement in pixels.
        gamma: half-range of ``log gamma`` of MR channels.
        gain: half-range of ``log gain`` of MR channels.
        pet_gain: half-range of ``log gain`` of PET channels.

    Raises:
        ValueError: if the space is not two-dimensional.
    """

    def __init__(
        self,
        space: ImageSpace,
        *,
        probability: float = 0.9,
        rotation_deg: float = 12.0,
        scale: float = 0.1,
        shear: float = 0.05,
        shift: float = 0.03,
        warp_px: float = 1.0,
        gamma: float = 0.25,
        gain: float = 0.1,
        pet_gain: float = 0.2,
    ) -> None:
        if len(space.shape) != 2:
            raise ValueError(f"space: expected two axes, got shape {space.shape}")
        self.probability = probability
        self.rotation = math.radians(rotation_deg)
        self.scale, self.shear, self.shift, self.warp_px = scale, shear, shift, warp_px
        families = [m.name.split("_")[0] for m in space.modalities for _ in range(m.channels)]
        self.gamma = torch.tensor([0.0 if f in ("ct", "pet") else gamma for f in families])
        self.gain = torch.tensor([{"ct": 0.0, "pet": pet_gain}.get(f, gain) for f in families])

    def __call__(self, stack: Tensor, generator: torch.Generator) -> Tensor:
        """Return the changed stack.

        Args:
            stack: ``(B, C, H, W)`` in the network's range.
            generator: random numbers, on the CPU.
        """
        batch, channels = stack.shape[:2]
        grid = self._grid(batch, stack.shape[2:], generator).to(stack)
        moved = F.grid_sample(stack + 1, grid, padding_mode="zeros", align_corners=False) / 2

        def exponent(width: Tensor) -> Tensor:
            draw = 2 * torch.rand(batch, channels, generator=generator) - 1
            return torch.exp(draw * width).to(stack).reshape(batch, channels, 1, 1)

        gamma, gain = exponent(self.gamma), exponent(self.gain)
        power = torch.where(moved > 0, moved.clamp(min=1e-6) ** gamma, moved)
        return 2 * gain * torch.where(gamma == 1, moved, power) - 1

    def _grid(self, batch: int, shape: torch.Size, generator: torch.Generator) -> Tensor:
        def uniform(*size: int) -> Tensor:
            return 2 * torch.rand(*size, generator=generator) - 1

        active = (torch.rand(batch, generator=generator) < self.probability).float()
        angle, shear = active * self.rotation * uniform(batch), active * self.shear * uniform(batch)
        stretch = torch.exp(active[:, None] * self.scale * uniform(batch, 2))
        mirror = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
        cos, sin = torch.cos(angle), torch.sin(angle)
        zero, one = torch.zeros(batch), torch.ones(batch)
        # grid_sample's coordinates: first the last axis (back-front), then the first (left-right)
        rotation = torch.stack([cos, -sin, sin, cos], 1).reshape(batch, 2, 2)
        shape_change = torch.stack([stretch[:, 0], shear, zero, stretch[:, 1]], 1).reshape(batch, 2, 2)
        flip = torch.stack([one, zero, zero, mirror], 1).reshape(batch, 2, 2)
        shift = active[:, None, None] * 2 * self.shift * uniform(batch, 2, 1)
        theta = torch.cat([rotation @ shape_change @ flip, shift], dim=2)
        grid = F.affine_grid(theta, [batch, 1, *shape], align_corners=False)
        knots = torch.randn(batch, 2, 8, 8, generator=generator) * active[:, None, None, None]
        smooth = F.interpolate(knots, size=tuple(shape), mode="bicubic", align_corners=False)
        pixels = torch.tensor([2 / shape[1], 2 / shape[0]])
        return grid + self.warp_px * smooth.permute(0, 2, 3, 1) * pixels
