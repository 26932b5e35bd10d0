"""Line integrals along any list of lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .geometry import LineGeometry, check_grid
from .projector import MatrixProjector

__all__ = ["LineProjector"]


class LineProjector(MatrixProjector):
    """Line integrals along a list of lines (events of a scanner, an unusual trajectory), with Joseph weights.

    The frame is that of :mod:`multirecon.operators.joseph`; a line has no ends: it crosses the whole image.

    Args:
        shape: image size ``(H, W)``.
        spacing_mm: pixel size ``(d0, d1)`` in mm.
        starts: ``(L, 2)`` one point of every line in mm from the image centre (a detector, say).
        ends: ``(L, 2)`` another point of every line in mm.
        channels: number of images projected alike.

    Raises:
        ValueError: if the points are not two lists ``(L, 2)``, or the two points of a line coincide.

    Example:
        >>> import torch
        >>> A = LineProjector((4, 4), (10.0, 10.0), starts=[[5.0, -90.0]], ends=[[5.0, 90.0]])
        >>> A(torch.ones(1, 1, 4, 4)).tolist()
        [[[4.0]]]
    """

    kind = "lines"
    geometry: LineGeometry

    def __init__(
        self,
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        *,
        starts: Tensor | Sequence[Sequence[float]],
        ends: Tensor | Sequence[Sequence[float]],
        channels: int = 1,
    ) -> None:
        grid, spacing = check_grid(shape, spacing_mm)
        first = torch.as_tensor(starts, dtype=torch.float64).cpu()
        second = torch.as_tensor(ends, dtype=torch.float64).cpu()
        if first.ndim != 2 or first.shape[1] != 2 or first.shape != second.shape or not len(first):
            raise ValueError(
                f"starts, ends: expected shape (L, 2) twice, got {tuple(first.shape)} and {tuple(second.shape)}"
            )
        if not bool((torch.linalg.vector_norm(second - first, dim=1) > 0).all()):
            raise ValueError("starts, ends: expected two different points for every line")
        points = [tuple(map(tuple, p.tolist())) for p in (first, second)]
        super().__init__(LineGeometry(grid, spacing, *points), channels=channels)

    def subset(self, index: int, count: int) -> LineProjector:
        """Return the operator of the lines ``index, index + count, ...`` (an ordered subset).

        Raises:
            ValueError: unless ``0 <= index < count <= lines``.
        """
        starts, ends = self.geometry.starts, self.geometry.ends
        if not 0 <= index < count <= len(starts):
            raise ValueError(f"index, count: expected 0 <= index < count <= {len(starts)}, got {index}, {count}")
        part = slice(index, None, count)
        return type(self)(**{**self.arguments(), "starts": starts[part], "ends": ends[part]}).to(self._where)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments (points as float64 tensors)."""
        g = self.geometry
        return {
            "shape": list(g.shape),
            "spacing_mm": list(g.spacing_mm),
            "starts": torch.tensor(g.starts, dtype=torch.float64),
            "ends": torch.tensor(g.ends, dtype=torch.float64),
            "channels": self.channels,
        }
