"""Batched augmentation of slice stacks and slabs, and the endless stream of batches that trains a prior."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

from .cached_slices import CachedSlices
from .phantoms_render import MR

__all__ = ["Augmentation", "augment", "augment_slabs", "training_batches"]


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; zero switches one off.

    Args:
        flip: probability of a left-right flip.
        rotation_deg: half-range of the rotation in degrees.
        scale: relative half-range of the zoom.
        shear: half-range of the shear.
        shift: half-range of the shift as a share of the field of view.
        warp: standard deviation of the smooth warp as a share of the field of view.
        gamma: half-range of the logarithm of the MR gamma.
        gain: relative half-range of the MR gain.
        pet_gain: relative half-range of the PET gain.
        strip: probability that everything outside the brain is removed.
    """

    flip: float = 0.5
    rotation_deg: float = 12.0
    scale: float = 0.1
    shear: float = 0.05
    shift: float = 0.02
    warp: float = 0.006
    gamma: float = 0.25
    gain: float = 0.1
    pet_gain: float = 0.1
    strip: float = 0.15


def augment(
    image: Tensor,
    brain: Tensor,
    *,
    modalities: Sequence[str],
    generator: torch.Generator,
    settings: Augmentation | None = None,
) -> Tensor:
    """Change a batch at random, all channels of a sample moving together.

    Args:
        image: ``(B, C, H, W)`` stacks on the scale of networks, background 0 in every channel.
        brain: ``(B, 1, H, W)`` brain masks.
        modalities: names of the channels.
        generator: CPU generator.
        settings: ranges; the defaults if None.

    Returns:
        ``(B, C, H, W)`` new stacks.

    Raises:
        ValueError: if the channels and their names differ in number.
    """
    if image.ndim != 4 or image.shape[1] != len(modalities):
        shape = tuple(image.shape)
        raise ValueError(f"image: expected (B, {len(modalities)}, H, W) for {list(modalities)}, got {shape}")
    s = settings or Augmentation()
    batch, device = len(image), image.device
    # one image of all channels and the mask, so that they are sampled at the same places
    joined = _moved(torch.cat([image, brain], dim=1), s, generator)
    image, brain = joined[:, :-1].clone(), joined[:, -1:]

    def draw(*size: int) -> Tensor:
        return _draw(size, generator, device)

    for channel, name in enumerate(modalities):
        plane = image[:, channel]
        if name in MR:
            gamma = torch.exp(s.gamma * draw(batch, 1, 1))
            gain = 1 + s.gain * draw(batch, 1, 1)
            # anchored at 0.5, about the brightness of white matter, so that gamma changes contrast and not the scale
            image[:, channel] = gain * 0.5 * (2 * plane.clamp_min(0)) ** gamma
        elif name.startswith("pet"):
            image[:, channel] = plane * (1 + s.pet_gain * draw(batch, 1, 1))
    strip = torch.rand(batch, generator=generator).to(device) < s.strip
    return torch.where(strip.view(-1, 1, 1, 1), image * (brain > 0.5), image)


def augment_slabs(
    image: Tensor,
    brain: Tensor | None = None,
    *,
    modalities: Sequence[str],
    generator: torch.Generator,
    settings: Augmentation | None = None,
) -> Tensor:
    """Change fine slabs of CT and PET at random and average them to the method's grid, so that little is blurred.

    A slab moves as one: flip, rotation, zoom, shear, shift and warp act in the plane, alike in all slices; positions
    along z are those of the slabs. Only PET changes in intensity.

    Args:
        image: ``(B, C, 2H, 2W, 2D)`` in physical units that are 0 in air.
        brain: not used.
        modalities: names of the channels.
        generator: CPU generator.
        settings: ranges; the defaults if None.

    Returns:
        ``(B, C, H, W, D)``.

    Raises:
        ValueError: if the channels and their names differ in number, or an MR image is among them.
    """
    if image.ndim != 5 or image.shape[1] != len(modalities):
        shape = tuple(image.shape)
        raise ValueError(f"image: expected (B, {len(modalities)}, 2H, 2W, 2D) for {list(modalities)}, got {shape}")
    if set(modalities) & set(MR):
        raise ValueError(f"modalities: expected CT and PET, got {list(modalities)}")
    s = settings or Augmentation()
    # the mean of two neighbours along z commutes with what happens in the plane
    planes = (0.5 * (image[..., 0::2] + image[..., 1::2])).permute(0, 1, 4, 2, 3)
    moved = avg_pool2d(_moved(planes.flatten(1, 2), s, generator), 2).unflatten(1, planes.shape[1:3])
    for channel, name in enumerate(modalities):
        if name.startswith("pet"):
            moved[:, channel] *= 1 + s.pet_gain * _draw((len(image), 1, 1, 1), generator, image.device)
    return moved.permute(0, 1, 3, 4, 2).contiguous()


def _draw(size: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    return (2 * torch.rand(*size, generator=generator) - 1).to(device)


def _moved(image: Tensor, s: Augmentation, generator: torch.Generator) -> Tensor:
    """Return images ``(B, C, H, W)`` moved at random, every sample in its own way."""
    batch, device = len(image), image.device

    def draw(*size: int) -> Tensor:
        return _draw(size, generator, device)

    angle = math.radians(s.rotation_deg) * draw(batch)
    zoom = torch.exp(s.scale * draw(batch, 2))
    flip = torch.where(torch.rand(batch, generator=generator).to(device) < s.flip, -1.0, 1.0)
    c, n = torch.cos(angle), torch.sin(angle)
    linear = torch.stack([torch.stack([c, -n], -1), torch.stack([n, c], -1)], 1) * zoom[:, None, :]
    linear[:, 0, 1] += s.shear * draw(batch)
    # affine_grid's second axis is H, which runs along left-right
    linear[:, :, 1] *= flip[:, None]
    theta = torch.cat([linear, 2 * s.shift * draw(batch, 2, 1)], dim=2)
    grid = affine_grid(theta, list(image.shape), align_corners=False)
    if s.warp:
        coarse = torch.randn(batch, 2, 7, 7, generator=generator).to(device)
        smooth = interpolate(coarse, size=image.shape[2:], mode="bicubic", align_corners=True)
        grid = grid + 2 * s.warp * smooth.permute(0, 2, 3, 1)
    return grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def training_batches(
    data: CachedSlices,
    batch_size: int,
    *,
    generator: torch.Generator,
    settings: Augmentation | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield batches for ever: a new random order each pass, every batch augmented.

    Args:
        data: memory-mapped slices on the scale of networks.
        batch_size: slices per batch.
        generator: CPU generator; its state fixes everything.
        settings: ranges of the augmentation.

    Yields:
        ``image`` ``(B, C, H, W)`` float32 and ``id``, the names of the slices.

    Raises:
        ValueError: if the batch is larger than the set, or the set is not on the scale of networks.
    """
    if not 1 <= batch_size <= len(data):
        raise ValueError(f"batch_size: expected 1 to {len(data)}, got {batch_size}")
    if data.units != "unit":
        raise ValueError(f"data: expected slices with units='unit', got {data.units!r}")
    while True:
        order = torch.randperm(len(data), generator=generator).tolist()
        for start in range(0, len(order) - batch_size + 1, batch_size):
            raw = data.batch(order[start : start + batch_size])
            image = augment(
                raw["image"], raw["brain"], modalities=data.modalities, generator=generator, settings=settings
            )
            yield {"image": image, "id": raw["id"]}
