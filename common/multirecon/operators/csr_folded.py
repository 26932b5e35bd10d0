r"""The symmetry-folded back end: up to eight times fewer matrix bytes.

A product with a projection matrix takes as long as reading the matrix. Let ``Q`` be one of the eight symmetries of the
square (rotations by quarter turns and reflections) that map the pixel grid onto itself and the measured lines onto each
other. A line ``Q r`` of the image ``x`` is the line ``r`` of the image :math:`x \circ Q`, so only one line of every
orbit needs its weights:

.. math:: y[Q_g r] = (F X)[r, g], \qquad X[:, g] = x \circ Q_g,

with the folded matrix ``F`` of the representatives ``r``. Which symmetries hold is found from the geometry, so that a
rectangular grid (4), an odd number of views (4) or a shifted detector (fewer) fold as far as they can.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from .csr import FullMatrix, sparse_product
from .geometry import DIHEDRAL, Geometry2D

__all__ = ["Fold", "FoldedMatrix", "find_fold"]

_CHUNK = 8  # images handled at once on a CPU: their copies stay in the cache
_CHUNK_GPU = 64

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fold:
    """Index maps of a geometry's symmetries.

    Args:
        symmetries: the ``G`` signed permutations ``Q_g``; the first is the identity.
        rays: ``(n,)`` the representative lines.
        source: ``(L,)`` for every line its place ``row * G + g`` in the folded product.
        pixels: ``(G, P)`` pixel reached from pixel ``p`` under ``Q_g``.
        inverse: ``(G, P)`` pixel that reaches ``p`` under ``Q_g``.
    """

    symmetries: tuple[Index, ...]
    rays: Index
    source: Index
    pixels: Index
    inverse: Index

    @property
    def order(self) -> int:
        """Number ``G`` of symmetries."""
        return len(self.symmetries)

    def unfold(self, folded: csr_array) -> csr_array:
        """Return the full matrix whose folded rows are given, with the same weights to the last bit."""
        row, g = np.divmod(self.source, self.order)
        matrix = folded[row]
        counts = np.diff(matrix.indptr)
        # (F X)[r, g] reads x at Q_g p where the weight stands at p
        matrix.indices = self.pixels[np.repeat(g, counts), matrix.indices].astype(np.int32)
        matrix.has_sorted_indices = False
        matrix.sort_indices()
        return matrix


def find_fold(geometry: Geometry2D) -> Fold:
    """Return the symmetries of a geometry (of order one where there is only the identity)."""
    valid = [(Q, perm) for Q in DIHEDRAL if (perm := geometry.ray_permutation(Q)) is not None]
    images = np.stack([perm for _, perm in valid])  # (G, L): line reached from line r under Q_g
    lines = np.arange(images.shape[1])
    first = images.min(axis=0)  # the smallest line of the orbit stands for it
    back = images.argmin(axis=0)
    inverse_of = [next(h for h, (R, _) in enumerate(valid) if np.array_equal(R @ Q, np.eye(2))) for Q, _ in valid]
    g = np.asarray(inverse_of)[back]
    if not np.array_equal(images[g, first], lines):
        raise RuntimeError("the symmetries of the geometry are not consistent")
    rays, row = np.unique(first, return_inverse=True)
    pixels = np.stack([geometry.pixel_permutation(Q) for Q, _ in valid])
    return Fold(tuple(Q for Q, _ in valid), rays, row * len(valid) + g, pixels, pixels[inverse_of])


@dataclass(frozen=True, eq=False)
class FoldedMatrix:
    """A folded matrix, its transpose and the index maps, as tensors.

    Args:
        matrix: ``(n, P)`` CSR tensor ``F``.
        transpose: ``(P, n)`` CSR tensor ``F^T``.
        gather: ``(P, G)`` int32: pixel of ``x`` that column ``g`` of ``X`` takes at ``p``.
        scatter: ``(P, G)`` int32: place ``p * G + g`` of ``F^T Z`` that belongs to a pixel of the result.
        source: ``(L,)`` int64: place ``row * G + g`` of every line in ``F X``.
    """

    matrix: Tensor
    transpose: Tensor
    gather: Tensor
    scatter: Tensor
    source: Tensor

    @classmethod
    def from_scipy(cls, folded: csr_array, fold: Fold) -> FoldedMatrix:
        """Return the tensors of a scipy matrix of the representative lines."""
        pair = FullMatrix.from_scipy(folded)
        place = fold.inverse.T * fold.order + np.arange(fold.order)
        return cls(
            pair.matrix,
            pair.transpose,
            torch.from_numpy(np.ascontiguousarray(fold.pixels.T, np.int32)),
            torch.from_numpy(np.ascontiguousarray(place, np.int32)),
            torch.from_numpy(fold.source),
        )

    @property
    def order(self) -> int:
        """Number ``G`` of symmetries."""
        return self.gather.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the indices and values of ``F`` alone, which one product reads once."""
        return FullMatrix(self.matrix, self.transpose).nbytes

    def to(self, device: torch.device, dtype: torch.dtype) -> FoldedMatrix:
        """Return the matrix on a device in a real dtype."""
        maps = (m.to(device) for m in (self.gather, self.scatter, self.source))
        return FoldedMatrix(
            self.matrix.to(device=device, dtype=dtype), self.transpose.to(device=device, dtype=dtype), *maps
        )

    def product(self, images: Tensor, *, transposed: bool = False) -> Tensor:
        """Return ``A x`` or ``A^T x`` of every row of a batch, see :meth:`FullMatrix.product`."""
        single = self._adjoint if transposed else self._forward
        chunk = _CHUNK if images.device.type == "cpu" else _CHUNK_GPU
        if len(images) <= chunk:
            return single(images)
        return torch.cat([single(part) for part in images.split(chunk)])

    def _forward(self, images: Tensor) -> Tensor:
        k, (pixels, order) = len(images), self.gather.shape
        if k == 1:
            copies = images.reshape(-1).index_select(0, self.gather.view(-1))
        else:
            copies = images.t().contiguous().index_select(0, self.gather.view(-1))
        folded = sparse_product(self.matrix, copies.view(pixels, order * k))
        if k == 1:
            return folded.view(-1).index_select(0, self.source).view(1, -1)
        return folded.view(-1, k).index_select(0, self.source).t().contiguous()

    def _adjoint(self, data: Tensor) -> Tensor:
        k, (pixels, order) = len(data), self.gather.shape
        folded = data.new_zeros(self.matrix.shape[0] * order, k)  # lines with a symmetry of their own leave zeros
        folded.index_copy_(0, self.source, data.t().contiguous())
        copies = sparse_product(self.transpose, folded.view(-1, order * k))
        if k == 1:
            return copies.view(-1).index_select(0, self.scatter.view(-1)).view(pixels, order).sum(1).view(1, -1)
        if copies.device.type == "cpu" and copies.dtype == torch.float32:
            return F.embedding_bag(self.scatter, copies.view(-1, k), mode="sum").t().contiguous()
        parts = copies.view(-1, k).index_select(0, self.scatter.view(-1)).view(pixels, order, k)
        return parts.sum(1).t().contiguous()
