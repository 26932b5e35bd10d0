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
from math import hypot, prod

import numpy as np
import torch
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

    def orientation(self, fold: Fold) -> Index:
        """Return ``(L,)``, +1 where the symmetry that makes a line keeps its direction, -1 where it turns it round."""
        row, g = np.divmod(fold.source, fold.order)
        turned = np.zeros(len(row), bool)
        for index, Q in enumerate(fold.symmetries):
            found = self.lines.view_permutation(Q)
            assert found is not None
            flip = np.repeat(found[1], self.lines.bins) ^ (round(float(np.linalg.det(Q))) < 0)
            made = g == index
            turned[made] = flip[fold.rays[row[made]]]
        return np.where(turned, -1, 1)


@dataclass(frozen=True, eq=False)
class SlabMatrix:
    """The folded slab matrix as tensors, with the index maps of its lines.

    Args:
        pair: slab matrix of the representative lines and its transpose.
        pixels: ``(G, P)`` pixel reached from every pixel under ``Q_g``.
        inverse: ``(G, P)`` pixel that reaches it.
        lines: per ``g`` the lines made by ``Q_g``.
        rows: per ``g`` their rows.
        turned: per ``g`` 1 where the direction is turned round, else 0.
    """

    pair: FullMatrix
    pixels: Tensor
    inverse: Tensor
    lines: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]
    turned: tuple[Tensor, ...]

    @classmethod
    def build(cls, geometry: ObliqueGeometry) -> SlabMatrix:
        """Return the matrix of a geometry, from the cache where it is there."""
        fold = find_fold(geometry.lines)
        matrix = stored_matrix(f"{geometry.key()}-{fold.order}", lambda: geometry.matrix(fold.rays))
        row, g = np.divmod(fold.source, fold.order)
        turned = (geometry.orientation(fold) < 0).astype(np.int64)
        lines = [np.flatnonzero(g == k) for k in range(fold.order)]
        to = torch.from_numpy
        return cls(
            FullMatrix.from_scipy(matrix),
            to(fold.pixels),
            to(fold.inverse),
            tuple(to(part) for part in lines),
            tuple(to(row[part]) for part in lines),
            tuple(to(turned[part]) for part in lines),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the indices and values of the matrix alone."""
        return self.pair.nbytes

    def to(self, device: torch.device, dtype: torch.dtype) -> SlabMatrix:
        """Return the matrix on a device in a real dtype."""
        move = lambda parts: tuple(p.to(device) for p in parts)  # noqa: E731
        maps = (self.pixels.to(device), self.inverse.to(device))
        return SlabMatrix(self.pair.to(device, dtype), *maps, move(self.lines), move(self.rows), move(self.turned))


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
            x: ``(P, K, D)`` images, pixels first and slices last.

        Returns:
            ``(2, L, K, J)`` integrals: difference ``+`` and ``-``, lines, images, planes from the lowest.
        """
        g, m = self.geometry, self.matrix(x.device, x.dtype)
        k, n = x.shape[1], m.pair.matrix.shape[0]
        out = x.new_empty(2, prod(g.lines.size), k, g.planes)
        both = torch.stack([x, x.flip(-1)], dim=1)  # (P, 2, K, D)
        for pixel, line, row, turned in zip(m.pixels, m.lines, m.rows, m.turned, strict=True):
            windows = both[pixel].unfold(-1, g.slab, g.slices_per_ring)  # (P, 2, K, J, S)
            columns = windows.permute(0, 4, 1, 2, 3).reshape(-1, 2 * k * g.planes)
            y = sparse_product(m.pair.matrix, columns).view(n, 2, k, g.planes)
            y = torch.stack([y[:, 0], y[:, 1].flip(-1)], dim=1)
            out[0, line] = y[row, turned]
            out[1, line] = y[row, 1 - turned]
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the images ``(P, K, D)`` of planes ``(2, L, K, J)``: the transpose of :meth:`forward`."""
        g, m = self.geometry, self.matrix(y.device, y.dtype)
        k, n = y.shape[2], m.pair.matrix.shape[0]
        depth = g.slices_per_ring * (g.rings - 1) + 1
        span = g.slices_per_ring * (g.planes - 1) + 1
        result = y.new_zeros(m.pixels.shape[1], k, depth)
        for inverse, line, row, turned in zip(m.inverse, m.lines, m.rows, m.turned, strict=True):
            folded = y.new_zeros(n, 2, k, g.planes)
            folded[row, turned] = y[0, line]
            folded[row, 1 - turned] = y[1, line]
            folded = torch.stack([folded[:, 0], folded[:, 1].flip(-1)], dim=1)
            columns = sparse_product(m.pair.transpose, folded.view(n, -1)).view(-1, g.slab, 2, k, g.planes)
            both = y.new_zeros(len(inverse), 2, k, depth)
            for s in range(g.slab):
                both[..., s : s + span : g.slices_per_ring] += columns[:, s]
            result += (both[:, 0] + both[:, 1].flip(-1))[inverse]
        return result


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
