"""A sparse matrix with its stored transpose: the full back end of the 2D projectors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

__all__ = ["FullMatrix", "csr_tensor", "sparse_product"]

_BAG_COLUMNS = 16  # from this many columns on, the bag kernel beats the general sparse product on a CPU


def csr_tensor(matrix: csr_array) -> Tensor:
    """Return a scipy CSR matrix as a torch CSR tensor with int32 indices."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int32, copy=False)),
            torch.from_numpy(matrix.indices.astype(np.int32, copy=False)),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
            check_invariants=False,
        )


def sparse_product(matrix: Tensor, columns: Tensor) -> Tensor:
    """Return ``M X`` for a CSR tensor and dense row-major columns ``(n, k)``.

    A row of the product is a weighted sum of rows of ``X``, which is also what an embedding bag computes: its
    vectorised kernel is about twice as fast as the general sparse product once a row of ``X`` fills some registers.
    """
    if columns.device.type == "cpu" and columns.dtype == torch.float32 and columns.shape[1] >= _BAG_COLUMNS:
        return F.embedding_bag(
            matrix.col_indices(),
            columns,
            matrix.crow_indices(),
            mode="sum",
            per_sample_weights=matrix.values(),
            include_last_offset=True,
        )
    return matrix @ columns


@dataclass(frozen=True, eq=False)
class FullMatrix:
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
    def from_scipy(cls, matrix: csr_array) -> FullMatrix:
        """Return the pair of a scipy CSR matrix."""
        return cls(csr_tensor(matrix), csr_tensor(matrix.T.tocsr()))

    @property
    def nbytes(self) -> int:
        """Bytes of the indices and values of ``A`` alone, which one product reads once."""
        m = self.matrix
        return sum(t.numel() * t.element_size() for t in (m.crow_indices(), m.col_indices(), m.values()))

    def to(self, device: torch.device, dtype: torch.dtype) -> FullMatrix:
        """Return the pair on a device in a real dtype."""
        return FullMatrix(self.matrix.to(device=device, dtype=dtype), self.transpose.to(device=device, dtype=dtype))

    def product(self, images: Tensor, *, transposed: bool = False) -> Tensor:
        """Return ``A x`` or ``A^T x`` of every row of a batch.

        Args:
            images: ``(K, columns)``, or ``(K, rows)`` when transposed.
            transposed: whether to apply ``A^T``.

        Returns:
            ``(K, rows)``, or ``(K, columns)`` when transposed.
        """
        matrix = self.transpose if transposed else self.matrix
        return sparse_product(matrix, images.t().contiguous()).t().contiguous()
