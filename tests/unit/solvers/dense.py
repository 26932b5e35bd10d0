"""A dense matrix as an operator: the oracle of the solver tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multirecon.operators import LinearOperator


class Dense(LinearOperator):
    """A matrix on flattened images, with data of any shape and subsets along their last axis but one."""

    def __init__(
        self,
        matrix: Tensor,
        domain_shape: Sequence[int],
        range_shape: Sequence[int] | None = None,
        *,
        real: bool = False,
    ) -> None:
        domain = matrix.real.dtype if real else matrix.dtype
        shape = (matrix.shape[0],) if range_shape is None else tuple(range_shape)
        super().__init__(domain_shape, shape, domain_dtype=domain, range_dtype=matrix.dtype)
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).to(self.matrix.dtype) @ self.matrix.T).reshape(-1, *self.range_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        image = (y.flatten(1) @ self.matrix.conj()).reshape(-1, *self.domain_shape)
        return image.real if image.is_complex() and not self.domain_dtype.is_complex else image

    def subset(self, index: int, count: int) -> Dense:
        rows = torch.arange(self.matrix.shape[0]).reshape(self.range_shape)[..., index::count, :]
        return Dense(self.matrix[rows.flatten()], self.domain_shape, rows.shape)


def nonnegative(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a random sparse non-negative matrix without empty columns."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(rows, columns, generator=generator, dtype=dtype)
    matrix = matrix * (torch.rand(rows, columns, generator=generator, dtype=dtype) < 0.4)
    matrix[torch.arange(columns) % rows, torch.arange(columns)] += 0.5
    return matrix
