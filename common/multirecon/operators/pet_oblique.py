r"""Three-dimensional PET: direct and oblique planes of a cylindrical scanner.

Axial order: the last image axis. Ring ``r`` lies at slice ``q r``, with ``q`` slices per ring distance. A line of view
:math:`\theta`, radial position ``s`` and rings ``(r_1, r_2)`` crosses the detector cylinder of radius ``R`` at
:math:`\mp T n_\theta`, :math:`T = \sqrt{R^2 - s^2}`, at the heights of ring ``r_1`` (behind) and ``r_2`` (in front).

Lines of equal ring difference are copies of each other, shifted along the axis: one matrix of a slab of slices serves
all of them as columns of one product. A reflection of the slab exchanges the sign of the difference, and the symmetries
of the transaxial plane fold the matrix as in 2D, so only ``difference >= 0`` and one line of every orbit are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from .cache import shared, stored_matrix
from .csr import FullMatrix, sparse_product
from .csr_folded import Fold, find_fold
from .geometry import Array, Index, ParallelGeometry
from .joseph import slab_matrix

__all__ = ["ObliqueGeometry", "ObliquePlanes", "SlabMatrix"]


@dataclass(frozen=True)
class ObliqueGeometry:
    """All planes of one absolute ring difference.

    Args:
        lines: transaxial lines and slice grid.
        rings: number of detector rings.
        slices_per_ring: slices ``q`` per ring distance.
        ring_spacing_mm: distance between rings in mm.
        radius_mm: radius ``R`` of the detector cylinder in mm.
        difference: absolute ring difference, at least 1.
    """

    lines: ParallelGeometry
    rings: int
    slices_per_ring: int
    ring_spacing_mm: float
    radius_mm: float
    difference: int

    @property
    def slab(self) -> int:
        """Number of slices that one line may cross."""
        return self.slices_per_ring * self.difference + 1

    @property
    def planes(self) -> int:
        """Number of planes of either sign."""
        return self.rings - self.difference

    def key(self) -> str:
        """Return the hash that names the matrix in a cache."""
        own = (self.slices_per_ring, self.ring_spacing_mm, self.radius_mm, self.difference)
        return self.lines.key() + "-oblique-" + "-".join(f"{v:.9g}" for v in own)

    def matrix(self, rays: Index) -> csr_array:
        """Return the weights of the numbered lines in a slab whose first slice holds ring ``r_1``, in cm."""
        points, directions = self.lines.rays()
        points, directions = points[rays], directions[rays]
        reach = np.sqrt(self.radius_mm**2 - (points**2).sum(1))
        rise = self.slices_per_ring * self.difference

        def height(part: slice, t: Array) -> Array:
            return rise * (t / reach[part, None] + 1) / 2

        secant = np.hypot(2 * reach, self.difference * self.ring_spacing_mm) / (2 * reach)
        shape, spacing_mm = self.lines.shape, self.lines.spacing_mm
        return slab_matrix(points, directions, shape=shape, spacing_mm=spacing_mm, slices=self.slab, height=height,
                           secant=secant)  # fmt: skip

    def turned(self, fold: Fold) -> NDArray[np.bool_]:
        """Return ``(G, n)``, whether ``Q_g`` turns the direction of a representative line round."""
        result = []
        for Q in fold.symmetries:
            found = self.lines.view_permutation(Q)
            assert found is not None
            reflection = round(float(np.linalg.det(Q))) < 0
            result.append(np.repeat(found[1], self.lines.bins)[fold.rays] ^ reflection)
        return np.stack(result)


@dataclass(frozen=True, eq=False)
class SlabMatrix:
    """The folded slab matrix as tensors, with the index maps of its lines.

    Args:
        pair: slab matrix of the representative lines and its transpose.
        pixels: ``(G, P)`` pixel reached from every pixel under ``Q_g``.
        inverse: ``(G, P)`` pixel that reaches it.
        source: ``(L,)`` place ``g * n + row`` of every line.
        turned: ``(G, n, 1, 1)`` whether ``Q_g`` turns the direction of a line round.
    """

    pair: FullMatrix
    pixels: Tensor
    inverse: Tensor
    source: Tensor
    turned: Tensor

    @classmethod
    def build(cls, geometry: ObliqueGeometry) -> SlabMatrix:
        """Return the matrix of a geometry, from the cache where it is there."""
        fold = find_fold(geometry.lines)
        matrix = stored_matrix(f"{geometry.key()}-{fold.order}", lambda: geometry.matrix(fold.rays))
        row, g = np.divmod(fold.source, fold.order)
        to = torch.from_numpy
        source, turned = g * matrix.shape[0] + row, geometry.turned(fold)[:, :, None, None]
        return cls(FullMatrix.from_scipy(matrix), to(fold.pixels), to(fold.inverse), to(source), to(turned))

    @property
    def trivial(self) -> bool:
        """Whether there is no symmetry but the identity."""
        return len(self.pixels) == 1

    @property
    def nbytes(self) -> int:
        """Bytes of the indices and values of the matrix alone."""
        return self.pair.nbytes

    def to(self, device: torch.device, dtype: torch.dtype) -> SlabMatrix:
        """Return the matrix on a device in a real dtype."""
        maps = (t.to(device) for t in (self.pixels, self.inverse, self.source, self.turned))
        return SlabMatrix(self.pair.to(device, dtype), *maps)


class ObliquePlanes:
    """Products with the planes of one absolute ring difference.

    Args:
        geometry: the planes.
    """

    def __init__(self, geometry: ObliqueGeometry) -> None:
        self.geometry = geometry
        self._matrices: dict[tuple[torch.device, torch.dtype], SlabMatrix] = {}

    def __getstate__(self) -> dict[str, ObliqueGeometry]:
        """Leave the matrices out of copies and pickles: they are made again from the geometry."""
        return {"geometry": self.geometry}

    def __setstate__(self, state: dict[str, ObliqueGeometry]) -> None:
        """Start without matrices."""
        self.__init__(state["geometry"])  # type: ignore[misc]

    def matrix(self, device: torch.device, dtype: torch.dtype) -> SlabMatrix:
        """Return the matrix on a device (made at the first call, shared by equal geometries)."""
        place = (device, dtype)
        if place not in self._matrices:
            make = lambda: SlabMatrix.build(self.geometry).to(*place)  # noqa: E731
            self._matrices[place] = shared((self.geometry.key(), *place), make)
        return self._matrices[place]

    def forward(self, x: Tensor) -> Tensor:
        """Return the planes of both signs.

        Args:
            x: ``(P, D, K)`` images: pixels, slices, images.

        Returns:
            ``(L, J, K, 2)`` integrals: lines, planes from the lowest, images, difference ``+`` and ``-``.
        """
        g, m = self.geometry, self.matrix(x.device, x.dtype)
        k, n = x.shape[2], m.pair.matrix.shape[0]
        both = torch.stack([x, x.flip(1)], dim=-1)  # (P, D, K, 2)
        # row (p, s) of the columns holds slice s of every slab: one run of memory for each pixel and slice
        window = (*both.shape[:1], g.slab, g.planes, 2 * k)
        stride = (both.stride(0), 2 * k, g.slices_per_ring * 2 * k, 1)
        columns = x.new_empty(window)  # filled again for every symmetry: fresh memory costs more than the copy
        folded = x.new_empty(len(m.pixels), n, g.planes, k, 2)
        for pixel, turned, y in zip(m.pixels, m.turned, folded, strict=True):
            copies = both if m.trivial else both.index_select(0, pixel)
            columns.copy_(copies.as_strided(window, stride))
            product = sparse_product(m.pair.matrix, columns.view(-1, 2 * k * g.planes))
            _unmirror(product.view_as(y), turned, out=y)
        return folded.flatten(0, 1).index_select(0, m.source)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the images ``(P, D, K)`` of planes ``(L, J, K, 2)``: the transpose of :meth:`forward`."""
        g, m = self.geometry, self.matrix(y.device, y.dtype)
        k, n = y.shape[2], m.pair.matrix.shape[0]
        folded = y.new_zeros(len(m.pixels), n, g.planes, k, 2)  # lines with a symmetry of their own leave zeros
        folded.flatten(0, 1).index_copy_(0, m.source, y)
        total = y.new_zeros(m.pixels.shape[1], g.slab * g.planes * k * 2)
        spare, moved = torch.empty_like(folded[0]), torch.empty_like(total)
        for inverse, turned, z in zip(m.inverse, m.turned, folded, strict=True):
            _mirror(z, turned, out=spare)
            columns = sparse_product(m.pair.transpose, spare.view(n, -1)).view_as(total)
            total += columns if m.trivial else torch.index_select(columns, 0, inverse, out=moved)
        slabs = total.view(-1, g.slab, g.planes, k, 2)
        both = y.new_zeros(len(slabs), g.slices_per_ring * (g.rings - 1) + 1, k, 2)
        span = g.slices_per_ring * (g.planes - 1) + 1
        for s in range(g.slab):
            both[:, s : s + span : g.slices_per_ring] += slabs[:, s]
        return both[..., 0] + both[..., 1].flip(1)


def _unmirror(y: Tensor, turned: Tensor, *, out: Tensor) -> None:
    """Sort the products with a slab and its mirror image ``(n, J, K, 2)`` by the sign of the difference."""
    mirrored = y[..., 1].flip(1)
    torch.where(turned, mirrored, y[..., 0], out=out[..., 0])
    torch.where(turned, y[..., 0], mirrored, out=out[..., 1])


def _mirror(z: Tensor, turned: Tensor, *, out: Tensor) -> None:
    """Undo :func:`_unmirror`."""
    torch.where(turned, z[..., 1], z[..., 0], out=out[..., 0])
    out[..., 1] = torch.where(turned, z[..., 0], z[..., 1]).flip(1)


def check_rings(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], rings: int, ring_spacing_mm: float
) -> int:
    """Return the number of slices per ring distance.

    Raises:
        ValueError: unless it is a whole number and the slices reach from the first ring to the last.
    """
    if rings < 1 or not ring_spacing_mm > 0:
        raise ValueError(f"rings, ring_spacing_mm: expected >= 1 and > 0, got {rings} and {ring_spacing_mm}")
    ratio = ring_spacing_mm / spacing_mm[2]
    q = round(ratio)
    if q < 1 or abs(ratio - q) > 1e-6:
        raise ValueError(f"ring_spacing_mm: expected a multiple of the slice thickness {spacing_mm[2]} mm, "
                         f"got {ring_spacing_mm}")  # fmt: skip
    if shape[2] != q * (rings - 1) + 1:
        raise ValueError(f"shape: expected {q * (rings - 1) + 1} slices for {rings} rings at {ring_spacing_mm} mm, "
                         f"got {shape[2]}")  # fmt: skip
    return q


def check_cylinder(lines: ParallelGeometry, radius_mm: float) -> None:
    """Raise ValueError unless the detector cylinder encloses the image and the radial bins."""
    corner = hypot(*(n * d / 2 for n, d in zip(lines.shape, lines.spacing_mm, strict=True)))
    needed = max(corner, float(np.abs(lines.positions).max()))
    if not radius_mm > needed:
        raise ValueError(f"radius_mm: expected more than {needed:.4g} mm, the corner of the image or the last bin, "
                         f"got {radius_mm}")  # fmt: skip
