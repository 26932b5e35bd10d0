"""A sparse matrix with its stored transpose: the back end of the 2D projectors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

__all__ = ["SparsePair", "csr_tensor"]


def csr_tensor(matrix: csr_array, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a scipy CSR matrix as a torch CSR tensor with int32 indices."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int32, copy=False)),
            torch.from_numpy(matrix.indices.astype(np.int32, copy=False)),
            torch.from_numpy(matrix.data).to(dtype),
            size=matrix.shape,
            check_invariants=False,
        )


@dataclass(frozen=True)
class SparsePair:
    """``A`` and ``A^T`` as two CSR tensors.

    Both are kept because a product with the transposed view of a CSR tensor is some fifty times slower than with a
    stored transpose.

    Args:
        matrix: ``(rows, columns)`` CSR tensor.
        transpose: ``(columns, rows)`` CSR tensor.
    """

    matrix: Tensor
    transpose: Tensor

    @classmethod
    def from_scipy(cls, matrix: csr_array) -> SparsePair:
        """Return the pair of a scipy CSR matrix."""
        return cls(csr_tensor(matrix), csr_tensor(matrix.T.tocsr()))

    @property
    def nbytes(self) -> int:
        """Bytes of the indices and values of ``matrix`` alone (a forward product reads them once)."""
        m = self.matrix
        return sum(t.numel() * t.element_size() for t in (m.crow_indices(), m.col_indices(), m.values()))

    def to(self, device: torch.device, dtype: torch.dtype) -> SparsePair:
        """Return the pair on a device in a real dtype (itself when nothing changes)."""
        if self.matrix.device == device and self.matrix.dtype == dtype:
            return self
        return SparsePair(self.matrix.to(device=device, dtype=dtype), self.transpose.to(device=device, dtype=dtype))

    def product(self, columns: Tensor, *, transposed: bool = False) -> Tensor:
        """Return ``A X`` or ``A^T X`` for dense columns ``X`` of shape ``(n, k)``."""
        return (self.transpose if transposed else self.matrix) @ columns
