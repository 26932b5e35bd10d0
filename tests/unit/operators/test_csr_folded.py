"""The symmetry fold: same operator as the full matrix, fewer bytes, found for every geometry that allows it."""

from __future__ import annotations

from math import pi

import pytest
import torch

from multirecon.operators import ParallelBeam
from multirecon.operators.csr import FullMatrix, sparse_product

#: geometry, number of symmetries
CASES = [
    ({"shape": (16, 16), "spacing_mm": (1.0, 1.0), "views": 8, "bins": 23}, 8),
    ({"shape": (15, 15), "spacing_mm": (1.0, 1.0), "views": 6, "bins": 22}, 8),
    ({"shape": (15, 15), "spacing_mm": (1.0, 1.0), "views": 7, "bins": 22}, 4),
    ({"shape": (15, 13), "spacing_mm": (1.0, 2.0), "views": 7, "bins": 22}, 4),
    ({"shape": (14, 14), "spacing_mm": (1.0, 2.0), "views": 8, "bins": 22}, 4),
    ({"shape": (16, 16), "spacing_mm": (1.0, 1.0), "views": 16, "bins": 22, "arc": 2 * pi}, 8),
    ({"shape": (16, 16), "spacing_mm": (1.0, 1.0), "views": 16, "bins": 22, "arc": 2 * pi, "offset_bins": 0.3}, 8),
    ({"shape": (16, 16), "spacing_mm": (1.0, 1.0), "views": 8, "bins": 22, "start": pi / 16}, 8),
    ({"shape": (16, 16), "spacing_mm": (1.0, 1.0), "views": 8, "bins": 22, "start": 0.1}, 4),
    ({"shape": (16, 16), "spacing_mm": (1.0, 1.0), "views": 8, "bins": 22, "offset_bins": 0.3}, 1),
    ({"shape": (16, 16), "spacing_mm": (1.0, 1.0), "views": 3, "bins": 22, "angles": [0.1, 0.5, 0.6]}, 2),
]


@pytest.mark.parametrize(("geometry", "order"), CASES)
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_folded_equals_the_matrix_of_all_lines(geometry: dict, order: int, batch: int) -> None:
    folded, full = ParallelBeam(**geometry), ParallelBeam(**geometry, backend="full")
    assert getattr(folded.matrix(), "order", 1) == order
    direct = FullMatrix.from_scipy(folded.geometry.matrix()).to(torch.device("cpu"), torch.float64)
    g = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 2e-6)):
        x = torch.randn(batch, *folded.domain_shape, generator=g, dtype=dtype)
        y = torch.randn(batch, *folded.range_shape, generator=g, dtype=dtype)
        for transposed in (False, True):
            z = y if transposed else x
            a, b = folded.product(z, transposed=transposed), full.product(z, transposed=transposed)
            c = direct.product(z.double().flatten(1), transposed=transposed).reshape(a.shape)
            same_weights = 1e-14 if dtype == torch.float64 else 2e-6
            assert (a - b).norm() <= same_weights * b.norm()
            assert (a - c).norm() <= tolerance * c.norm()


def test_folding_by_eight_divides_the_bytes_by_nearly_eight() -> None:
    geometry = {"shape": (64, 64), "spacing_mm": (1.0, 1.0), "views": 120, "bins": 92}
    folded, full = ParallelBeam(**geometry), ParallelBeam(**geometry, backend="full")
    assert full.matrix().nbytes >= 7.5 * folded.matrix().nbytes


def test_no_symmetry_no_fold() -> None:
    A = ParallelBeam((8, 8), (1.0, 1.0), views=3, bins=12, angles=[0.1, 0.5, 0.6], offset_bins=0.2, backend="folded")
    with pytest.raises(ValueError, match="backend"):
        A.matrix()


@pytest.mark.parametrize("columns", [1, 8, 16, 40])
def test_both_kernels_give_the_same_product(columns: int) -> None:
    matrix = ParallelBeam((12, 12), (1.0, 1.0), views=8, bins=18, backend="full").matrix().matrix
    x = torch.randn(144, columns, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sparse_product(matrix, x), matrix.to_dense() @ x, rtol=1e-5, atol=1e-5)
