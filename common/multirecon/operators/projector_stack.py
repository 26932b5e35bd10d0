"""A 2D operator applied to every slice of a volume."""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import Tensor

from .base import LinearOperator

__all__ = ["SliceStack"]


class _Divisible(Protocol):
    def subset(self, index: int, count: int) -> LinearOperator: ...


class SliceStack(LinearOperator):
    """A volume as a stack of 2D images: ``(C, H, W, D)`` -> ``(C, D, *data)``.

    All slices are the columns of one product, which is how a matrix projector works best.

    Args:
        operator: 2D operator whose channels are ``C * slices`` images, channel by channel and slice by slice.
        slices: number ``D`` of slices.
        axis: spatial axis of the volume along which the slices lie.

    Raises:
        ValueError: if the operator's channels are no multiple of the slices, or there is no such axis.

    Example:
        >>> import torch
        >>> from multirecon.operators import ParallelBeam
        >>> A = SliceStack(ParallelBeam((8, 8), (2.0, 2.0), views=6, bins=12, channels=5), slices=5)
        >>> A(torch.ones(1, 1, 8, 8, 5)).shape
        torch.Size([1, 1, 5, 6, 12])
    """

    kind = "slice_stack"

    def __init__(self, operator: LinearOperator, *, slices: int, axis: int = 2) -> None:
        channels, *grid = operator.domain_shape
        if len(grid) != 2:
            raise ValueError(f"operator: expected images (C, H, W), got the domain {operator.domain_shape}")
        if slices < 1 or channels % slices or operator.range_shape[0] != channels:
            raise ValueError(f"slices: expected a divisor of the operator's {channels} channels (kept in its range "
                             f"{operator.range_shape}), got {slices}")  # fmt: skip
        if axis not in (0, 1, 2):
            raise ValueError(f"axis: expected a spatial axis 0, 1 or 2, got {axis}")
        volume = [*grid[:axis], slices, *grid[axis:]]
        super().__init__(
            (channels // slices, *volume),
            (channels // slices, slices, *operator.range_shape[1:]),
            domain_dtype=operator.domain_dtype,
            range_dtype=operator.range_dtype,
        )
        self.operator = operator
        self.slices = slices
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Return the data ``(B, C, D, *data)`` of volumes ``(B, C, *volume)``."""
        images = self.check_domain(x).movedim(2 + self.axis, 2)
        data: Tensor = self.operator(images.reshape(x.shape[0], *self.operator.domain_shape))
        return data.reshape(data.shape[0], *self.range_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the volumes ``(B, C, *volume)`` of data ``(B, C, D, *data)``."""
        images = self.operator.adjoint(self.check_range(y).reshape(y.shape[0], *self.operator.range_shape))
        channels, grid = self.domain_shape[0], self.operator.domain_shape[1:]
        return images.reshape(images.shape[0], channels, self.slices, *grid).movedim(2, 2 + self.axis)

    def samples(self, start: int, stop: int) -> SliceStack:
        """Return the stack of the samples' operator."""
        return SliceStack(self.operator.samples(start, stop), slices=self.slices, axis=self.axis)

    def subset(self, index: int, count: int) -> SliceStack:
        """Return the stack of the operator's ordered subset."""
        part = cast(_Divisible, self.operator).subset(index, count)
        return SliceStack(part, slices=self.slices, axis=self.axis)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"operator": self.operator, "slices": self.slices, "axis": self.axis}
