"""Overlapping patches of an image: a grid of them with exact counts for aggregation, and random ones for training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["PatchGrid", "patches_around", "random_patches"]


class PatchGrid:
    r"""Overlapping square patches that cover an image: ``P_p``, its adjoint, and the counts ``D = sum_p P_p^T P_p``.

    Patches start at ``origin``, ``origin + stride``, ... along each axis, and at both ends, so that every pixel is
    covered; ``counts`` says how often.

    Args:
        shape: ``(H, W)`` of the images.
        patch: side of the patches in pixels.
        stride: distance of neighbouring patches in pixels, at most the patch.
        origin: first position along each axis, 0 to ``stride - 1``.

    Raises:
        ValueError: if a patch is larger than the image or a number is out of range.

    Example:
        >>> grid = PatchGrid((4, 4), patch=2, stride=1)
        >>> grid.counts.tolist()[1], len(grid)
        ([2.0, 4.0, 4.0, 2.0], 9)
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> torch.equal(grid.aggregate(grid.extract(x)), x)
        True
    """

    def __init__(self, shape: Sequence[int], *, patch: int, stride: int, origin: Sequence[int] = (0, 0)) -> None:
        self.shape = (int(shape[0]), int(shape[1]))
        if not 1 <= patch <= min(self.shape):
            raise ValueError(f"patch: expected 1 to {min(self.shape)}, got {patch}")
        if not 1 <= stride <= patch:
            raise ValueError(f"stride: expected 1 to the patch of {patch}, got {stride}")
        if len(origin) != 2 or not all(0 <= o < stride for o in origin):
            raise ValueError(f"origin: expected two numbers from 0 to {stride - 1}, got {tuple(origin)}")
        self.patch, self.stride = patch, stride
        rows, columns = (
            sorted({0, *range(first, length - patch + 1, stride), length - patch})
            for first, length in zip(origin, self.shape, strict=True)
        )
        self.corners = [(r, c) for r in rows for c in columns]
        inside = torch.arange(patch)[:, None] * self.shape[1] + torch.arange(patch)
        starts = torch.tensor([r * self.shape[1] + c for r, c in self.corners])
        self.index = starts[:, None] + inside.flatten()
        ones = torch.ones(1, len(self.corners), 1, patch, patch, dtype=torch.float64)
        self.counts = self.accumulate(ones)[0, 0].to(torch.get_default_dtype())

    def __len__(self) -> int:
        """Return the number of patches of an image."""
        return len(self.corners)

    @property
    def overlap(self) -> float:
        """Patches that cover a pixel well inside the image, ``(patch / stride)^2``."""
        return (self.patch / self.stride) ** 2

    def extract(self, image: Tensor) -> Tensor:
        """Return ``P_p x`` for all patches, ``(B, N, C, P, P)``, of images ``(B, C, H, W)``."""
        if tuple(image.shape[2:]) != self.shape:
            raise ValueError(f"image: expected (B, C, {self.shape[0]}, {self.shape[1]}), got {tuple(image.shape)}")
        parts = image.flatten(2)[:, :, self.index.to(image.device)]
        return parts.movedim(2, 1).unflatten(3, (self.patch, self.patch))

    def accumulate(self, patches: Tensor) -> Tensor:
        """Return ``sum_p P_p^T v_p``, ``(B, C, H, W)``, of patches ``(B, N, C, P, P)``: adjoint to :meth:`extract`."""
        parts = patches.flatten(3).movedim(1, 2).flatten(2)
        image = torch.zeros(*parts.shape[:2], self.shape[0] * self.shape[1], dtype=parts.dtype, device=parts.device)
        return image.index_add(2, self.index.flatten().to(parts.device), parts).unflatten(2, self.shape)

    def aggregate(self, patches: Tensor) -> Tensor:
        """Return ``D^{-1} sum_p P_p^T v_p``: at every pixel the mean of the patches ``(B, N, C, P, P)`` over it."""
        return self.accumulate(patches) / self.counts.to(patches)


def random_patches(
    image: Tensor,
    *,
    patch: int,
    count: int,
    generator: torch.Generator,
    background: float = -0.95,
    share: float = 0.1,
    keep: float = 0.05,
) -> Tensor:
    """Return ``count`` patches of every image at random places, most places without anything in them left out.

    Args:
        image: ``(B, C, H, W)`` stacks in a range whose background is -1.
        patch: side of the patches in pixels.
        count: patches an image.
        generator: CPU generator.
        background: a pixel belongs to the object if any of its channels is above this.
        share: share of such pixels from which on a place counts in full.
        keep: probability of the other places relative to these.

    Returns:
        ``(B * count, C, patch, patch)``.
    """
    inside = (image.amax(1) > background).to(torch.float32)
    # sums over all places by an integral image: exact, for they are counts
    total = pad(inside, (1, 0, 1, 0)).cumsum(1).cumsum(2)
    sums = total[:, patch:, patch:] - total[:, :-patch, patch:] - total[:, patch:, :-patch] + total[:, :-patch, :-patch]
    covered = sums / patch**2
    weights = torch.where(covered >= share, 1.0, keep).flatten(1).cpu()
    places = torch.multinomial(weights, count, replacement=True, generator=generator)
    width = covered.shape[2]
    return torch.stack(
        [
            one[:, r : r + patch, c : c + patch]
            for one, chosen in zip(image, places.tolist(), strict=True)
            for r, c in (divmod(place, width) for place in chosen)
        ]
    )


def patches_around(image: Tensor, inside: Tensor, *, patch: int, count: int, generator: torch.Generator) -> Tensor:
    """Return patches of one image around random pixels of an object, moved where they would leave the image.

    Args:
        image: ``(C, H, W)``.
        inside: the object's pixels ``(H, W)``; without any the patches lie in the middle.
        patch: side of the patches in pixels.
        count: number of patches.
        generator: CPU generator.

    Returns:
        ``(count, C, patch, patch)``; the whole image, once, where a patch is as large.
    """
    height, width = image.shape[1:]
    if patch >= min(height, width):
        return image[None]
    places, parts = torch.nonzero(inside), []
    for _ in range(count):
        centre = torch.tensor([height // 2, width // 2])
        if len(places):
            centre = places[int(torch.randint(len(places), (), generator=generator))]
        top, left = ((centre - patch // 2).clamp_min(0)).tolist()
        top, left = min(top, height - patch), min(left, width - patch)
        parts.append(image[:, top : top + patch, left : left + patch])
    return torch.stack(parts)
