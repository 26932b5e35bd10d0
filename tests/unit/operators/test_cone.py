"""Cone beam: the common battery, a ray-by-ray reference, its limits as fan and parallel beam."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from multirecon.operators import ConeBeam, FanBeam, ParallelBeam, SliceStack, check_operator

BASE = {"shape": (8, 8, 6), "spacing_mm": (2.0, 2.0, 2.5), "views": 6, "rows": 7, "bins": 11, "source_mm": 50.0,
        "detector_mm": 30.0}  # fmt: skip
CASES = {
    "cubic": {},
    "rectangular": {"shape": (7, 9, 5), "spacing_mm": (2.0, 1.5, 3.0), "channels": 2},
    "offset": {"offset_bins": 0.3, "offset_rows": -1.2, "start": 0.2, "arc": 4.0},
    "steep": {"row_spacing_mm": 40.0, "spacing_mm": (2.0, 2.0, 2.0)},
    "one slice": {"shape": (8, 8, 1)},
}


@pytest.mark.parametrize("case", CASES)
def test_battery(case: str) -> None:
    check_operator(ConeBeam(**{**BASE, **CASES[case]}), tolerance=1e-5)
    check_operator(ConeBeam(**{**BASE, **CASES[case]}).to(torch.float64), tolerance=1e-12)


def test_derivatives_against_finite_differences() -> None:
    A = ConeBeam((3, 4, 3), (2.0, 2.0, 2.0), views=3, rows=2, bins=4, source_mm=30.0, detector_mm=10.0).to(
        torch.float64
    )
    x = torch.rand(2, 1, 3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(A, x)
    assert torch.autograd.gradgradcheck(A, x)


def _ray(x: np.ndarray, source: np.ndarray, target: np.ndarray, spacing: np.ndarray) -> float:
    """One ray by plain loops: planes along the fastest axis, bilinear in the other two."""
    step = target - source
    axis = int(np.argmax(np.abs(step) / spacing))
    others = [b for b in range(3) if b != axis]
    total = 0.0
    for k in range(x.shape[axis]):
        t = ((k - (x.shape[axis] - 1) / 2) * spacing[axis] - source[axis]) / step[axis]
        index = (source + t * step) / spacing + (np.array(x.shape) - 1) / 2
        for d0 in (0, 1):
            for d1 in (0, 1):
                at = [0, 0, 0]
                at[axis] = k
                at[others[0]] = math.floor(index[others[0]]) + d0
                at[others[1]] = math.floor(index[others[1]]) + d1
                if all(0 <= a < n for a, n in zip(at, x.shape, strict=True)):
                    weight = np.prod([1 - abs(index[b] - at[b]) for b in others])
                    total += float(x[tuple(at)]) * weight
    return total * float(np.linalg.norm(step)) * spacing[axis] / abs(step[axis]) / 10


@pytest.mark.parametrize("case", CASES)
def test_every_ray_against_a_reference(case: str) -> None:
    A = ConeBeam(**{**BASE, **CASES[case]})
    a = A.arguments()
    x = torch.rand(A.domain_shape, generator=torch.Generator().manual_seed(0))
    y = A(x[None])[0, 0]
    for view in (0, 1, 5):
        b = A.angles[view]
        e, n, z = (
            np.array([math.cos(b), math.sin(b), 0]),
            np.array([-math.sin(b), math.cos(b), 0]),
            np.array([0, 0, 1.0]),
        )
        for row, column in [(0, 0), (3, 5), (2, 8), (6, 4)]:
            s = (column - (a["bins"] - 1) / 2 + a["offset_bins"]) * a["bin_spacing_mm"]
            h = (row - (a["rows"] - 1) / 2 + a["offset_rows"]) * a["row_spacing_mm"]
            value = _ray(x[0].double().numpy(), -a["source_mm"] * n, a["detector_mm"] * n + s * e + h * z,
                         np.array(a["spacing_mm"]))  # fmt: skip
            assert abs(float(y[view, row, column]) - value) < 1e-5


def test_central_row_is_the_fan_beam_of_the_central_slice() -> None:
    cone = ConeBeam(**{**BASE, "shape": (8, 8, 5)})
    fan = FanBeam((8, 8), (2.0, 2.0), views=6, bins=11, source_mm=50.0, detector_mm=30.0)
    x = torch.rand(1, 1, 8, 8, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cone(x)[:, :, :, 3], fan(x[..., 2]), rtol=1e-4, atol=1e-5)


def test_far_source_gives_parallel_beams() -> None:
    cone = ConeBeam((8, 8, 6), (2.0, 2.0, 2.5), views=5, rows=6, bins=11, source_mm=1e6, detector_mm=0.0)
    flat = ParallelBeam((8, 8), (2.0, 2.0), views=5, bins=11, arc=2 * math.pi, channels=6)
    x = torch.rand(1, 1, 8, 8, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cone(x), SliceStack(flat, slices=6)(x).transpose(2, 3), rtol=1e-3, atol=1e-3)


def test_subsets_arguments_copies_and_errors() -> None:
    A = ConeBeam(**{**BASE, **CASES["offset"]})
    x = torch.rand(1, *A.domain_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(A.subset(1, 4)(x), A(x)[:, :, 1::4])
    torch.testing.assert_close(ConeBeam(**A.arguments())(x), A(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(A)(x), A(x), rtol=0, atol=0)
    assert not A.state_dict()
    with pytest.raises(ValueError, match="source_mm"):
        ConeBeam(**{**BASE, "source_mm": 5.0})
    with pytest.raises(ValueError, match="rows"):
        ConeBeam(**{**BASE, "rows": 0})
    with pytest.raises(ValueError, match="shape"):
        ConeBeam(**{**BASE, "shape": (8, 8)})


@pytest.mark.gpu
def test_cuda_gives_the_same() -> None:
    A, B = ConeBeam(**BASE), ConeBeam(**BASE).cuda()
    x = torch.rand(2, *A.domain_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(B(x.cuda()).cpu(), A(x), rtol=1e-5, atol=1e-5)
    check_operator(B, tolerance=1e-5)
