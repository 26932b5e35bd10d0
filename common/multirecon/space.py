"""The image side: named modalities that share one grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ImageSpace", "Modality"]

_LAST_ROW = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)


@dataclass(frozen=True)
class Modality:
    """One named group of channels of an image stack.

    Args:
        name: lower-case key, for example ``"t1"``, ``"ct"``, ``"pet_fdg"``.
        channels: number of channels the modality occupies (energy bins, for example).
        unit: physical unit of the values, as fixed in ``docs/notation.md``.
        scale: typical magnitude in that unit; weights become dimensionless after division by it.
    """

    name: str
    channels: int = 1
    unit: str = "1"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.lower() or not self.name.isidentifier():
            raise ValueError(f"name: expected a lower-case identifier such as 't1', got {self.name!r}")
        if self.channels < 1:
            raise ValueError(f"channels of modality {self.name!r}: expected >= 1, got {self.channels}")
        if not self.scale > 0:
            raise ValueError(f"scale of modality {self.name!r}: expected > 0, got {self.scale}")


@dataclass(frozen=True, eq=False)
class ImageSpace:
    r"""The grid on which one image stack ``x`` lives.

    ``x`` has the shape ``(B, C, *shape)``; modality ``m`` owns the channels ``channels(m)``. Voxel index ``i`` (in the
    order of ``shape``, then a zero for every missing third axis) lies at ``affine @ (i, 1)`` mm in the RAS+ frame.

    Args:
        modalities: the modalities in channel order, or their names (one dimensionless channel each).
        shape: spatial shape, two or three axes.
        spacing_mm: voxel size along each spatial axis in mm.
        affine: ``(4, 4)`` or ``(B, 4, 4)`` voxel-to-RAS matrix in mm; the default is the centred scaling matrix.

    Raises:
        ValueError: if names repeat, or shapes disagree.

    Example:
        >>> space = ImageSpace(["t1", "ct"], (8, 8), (2.0, 2.0))
        >>> space.num_channels, space.channels("ct")
        (2, slice(1, 2, None))
    """

    modalities: tuple[Modality, ...]
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    affine: Tensor

    def __init__(
        self,
        modalities: Sequence[Modality | str | Mapping[str, Any]],
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        affine: Tensor | Sequence[Sequence[float]] | None = None,
    ) -> None:
        items = tuple(_as_modality(m) for m in modalities)
        names = [m.name for m in items]
        if not items or len(set(names)) != len(names):
            raise ValueError(f"modalities: expected at least one and no repeated name, got {names}")
        try:
            shape = tuple(int(n) for n in shape)
            spacing = tuple(float(s) for s in spacing_mm)
        except (TypeError, ValueError):
            raise ValueError(f"shape, spacing_mm: expected lists of numbers, got {shape!r}, {spacing_mm!r}") from None
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(f"shape: expected two or three positive sizes, got {shape}")
        if len(spacing) != len(shape) or min(spacing) <= 0:
            raise ValueError(f"spacing_mm: expected {len(shape)} positive numbers, got {spacing}")
        matrix = (
            _centred_affine(shape, spacing) if affine is None else torch.as_tensor(affine, dtype=torch.float64).cpu()
        )
        if matrix.shape[-2:] != (4, 4) or matrix.ndim not in (2, 3):
            raise ValueError(f"affine: expected shape (4, 4) or (B, 4, 4), got {tuple(matrix.shape)}")
        if not torch.equal(matrix[..., 3, :], _LAST_ROW.expand(matrix[..., 3, :].shape)):
            raise ValueError(f"affine: expected the last row (0, 0, 0, 1), got {matrix[..., 3, :].tolist()}")
        if not torch.isfinite(matrix).all() or (torch.linalg.det(matrix[..., :3, :3]).abs() < 1e-12).any():
            raise ValueError(f"affine: expected a finite, invertible matrix, got {matrix.tolist()}")
        object.__setattr__(self, "modalities", items)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "spacing_mm", spacing)
        object.__setattr__(self, "affine", matrix)

    @property
    def names(self) -> tuple[str, ...]:
        """The modality names in channel order."""
        return tuple(m.name for m in self.modalities)

    @property
    def num_channels(self) -> int:
        """Total number of channels of the stack."""
        return sum(m.channels for m in self.modalities)

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """``(C, *shape)``: the shape of one stack without its batch axis."""
        return (self.num_channels, *self.shape)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Modality:
        """Return the modality called ``name``."""
        if name not in self.names:
            raise ValueError(f"modality: expected one of {list(self.names)}, got {name!r}")
        return self.modalities[self.names.index(name)]

    def channels(self, name: str) -> slice:
        """Return the channel slice owned by modality ``name``."""
        self[name]  # raises on an unknown name
        start = 0
        for modality in self.modalities:
            if modality.name == name:
                break
            start += modality.channels
        return slice(start, start + self[name].channels)

    def channel_index(self, names: Iterable[str]) -> list[int]:
        """Return the channel numbers of ``names``, in their order."""
        return [c for name in names for c in range(self.channels(name).start, self.channels(name).stop)]

    def select(self, names: Sequence[str]) -> ImageSpace:
        """Return the space of the sub-stack made of ``names`` (same grid)."""
        return ImageSpace([self[n] for n in names], self.shape, self.spacing_mm, self.affine)

    def with_affine(self, affine: Tensor) -> ImageSpace:
        """Return the same space with another ``(4, 4)`` or ``(B, 4, 4)`` affine."""
        return ImageSpace(self.modalities, self.shape, self.spacing_mm, affine)

    def same_grid(self, other: ImageSpace) -> bool:
        """Whether both spaces have the same shape and the same spacing (to 1e-4 mm)."""
        return self.shape == other.shape and all(
            abs(a - b) < 1e-4 for a, b in zip(self.spacing_mm, other.spacing_mm, strict=True)
        )

    def check(self, stack: Tensor, name: str = "image") -> Tensor:
        """Return ``stack`` if it is a ``(B, C, *shape)`` tensor of this space, else raise ValueError naming it."""
        if stack.ndim != len(self.shape) + 2 or tuple(stack.shape[1:]) != self.stack_shape:
            raise ValueError(f"{name}: expected shape (B, {', '.join(map(str, self.stack_shape))}) "
                             f"for modalities {list(self.names)}, got {tuple(stack.shape)}")  # fmt: skip
        return stack

    def to_dict(self) -> dict[str, Any]:
        """Return plain values from which ``ImageSpace(**d)`` rebuilds the space."""
        return {
            "modalities": [vars(m).copy() for m in self.modalities],
            "shape": list(self.shape),
            "spacing_mm": list(self.spacing_mm),
            "affine": self.affine.tolist(),
        }


def _as_modality(item: Modality | str | Mapping[str, Any]) -> Modality:
    if isinstance(item, Modality):
        return item
    return Modality(item) if isinstance(item, str) else Modality(**item)


def _centred_affine(shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    for axis, (n, step) in enumerate(zip(shape, spacing, strict=True)):
        matrix[axis, axis] = step
        matrix[axis, 3] = -step * (n - 1) / 2
    return matrix
