"""3D PET: the common battery, a line-by-line reference, closed forms, order of the planes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from multirecon.operators import ParallelBeam, PETProjector3D, check_operator

BASE = {"shape": (8, 8, 5), "spacing_mm": (4.0, 4.0, 5.0), "views": 8, "bins": 12, "rings": 5, "ring_spacing_mm": 5.0,
        "radius_mm": 60.0}  # fmt: skip


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


CASES = {
    "cubic": {},
    "two slices a ring": {"shape": (8, 8, 9), "spacing_mm": (4.0, 4.0, 2.5), "max_difference": 3},
    "odd": {"shape": (7, 9, 5), "spacing_mm": (4.0, 3.5, 5.0), "views": 5, "bins": 11, "max_difference": 2},
    "no symmetry": {"angles": [0.1, 0.5, 1.3], "views": 3},
    "everything": {"attenuation": 0.1 * _random(8, 8, 5), "efficiency": _random(25, 8, 12), "psf_fwhm_mm": 5.0},
    "direct only": {"max_difference": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_battery(case: str) -> None:
    check_operator(PETProjector3D(**{**BASE, **CASES[case]}), tolerance=1e-5)
    check_operator(PETProjector3D(**{**BASE, **CASES[case]}).to(torch.float64), tolerance=1e-12)


def _line(x: np.ndarray, A: PETProjector3D, view: int, b: int, pair: tuple[int, int]) -> float:
    """One line by plain loops: planes along the faster transaxial axis, bilinear in the other axis and the slice."""
    a = A.arguments()
    shape, spacing, R = a["shape"], a["spacing_mm"], a["radius_mm"]
    theta, s = A.angles[view], (b - (a["bins"] - 1) / 2) * a["bin_spacing_mm"]
    T = math.sqrt(R * R - s * s)
    heights = [(r - (a["rings"] - 1) / 2) * a["ring_spacing_mm"] for r in pair]
    n = np.array([-math.sin(theta), math.cos(theta)])
    start = np.array([*(s * np.array([math.cos(theta), math.sin(theta)]) - T * n), heights[0]])
    step = np.array([*(2 * T * n), heights[1] - heights[0]])
    axis = int(np.argmax(np.abs(step[:2]) / spacing[:2]))
    total = 0.0
    for k in range(shape[axis]):
        u = (k - (shape[axis] - 1) / 2) * spacing[axis]
        point = start + (u - start[axis]) / step[axis] * step
        index = point / spacing + (np.array(shape) - 1) / 2
        other = 1 - axis
        for di in (0, 1):
            for dz in (0, 1):
                i, z = math.floor(index[other]) + di, math.floor(index[2]) + dz
                if 0 <= i < shape[other] and 0 <= z < shape[2]:
                    at = (k, i, z) if axis == 0 else (i, k, z)
                    total += x[at] * (1 - abs(index[other] - i)) * (1 - abs(index[2] - z))
    return total * np.linalg.norm(step) * spacing[axis] / abs(step[axis]) / 10


@pytest.mark.parametrize("case", ["cubic", "two slices a ring", "odd", "no symmetry"])
def test_every_plane_against_a_line_by_line_reference(case: str) -> None:
    A = PETProjector3D(**{**BASE, **CASES[case]})
    x = _random(*A.domain_shape)
    y = A(x[None])[0, 0]
    for plane, pair in enumerate(A.planes):
        for view, b in [(0, 4), (1, 7), (A.range_shape[2] - 1, 3)]:
            expected = _line(x[0].double().numpy(), A, view, b, pair)
            assert abs(float(y[plane, view, b]) - expected) < 1e-5, (pair, view, b)


def test_direct_planes_are_the_parallel_beam_of_the_ring_slices() -> None:
    A = PETProjector3D(**{**BASE, **CASES["two slices a ring"]})
    x = _random(2, 1, 8, 8, 9)
    P = ParallelBeam((8, 8), (4.0, 4.0), views=8, bins=12, channels=5)
    torch.testing.assert_close(A(x)[:, 0, :5], P(x[:, 0, :, :, ::2].permute(0, 3, 1, 2)))


def test_tilted_lines_through_a_long_cylinder_are_longer_by_the_secant() -> None:
    A = PETProjector3D((8, 8, 9), (4.0, 4.0, 10.0), views=8, bins=12, rings=9, ring_spacing_mm=10.0, radius_mm=40.0)
    y = A(torch.ones(1, 1, 8, 8, 9))[0, 0]
    flat = y[0]
    s = (torch.arange(12) - 5.5) * 4.0
    for plane, (first, second) in enumerate(A.planes):
        chord = 2 * torch.sqrt(40.0**2 - s**2)
        secant = torch.sqrt(chord**2 + (10.0 * (second - first)) ** 2) / chord
        torch.testing.assert_close(y[plane], flat * secant, rtol=1e-5, atol=1e-5)


def test_subsets_arguments_and_attenuation() -> None:
    A = PETProjector3D(**{**BASE, **CASES["everything"]})
    x = _random(2, *A.domain_shape)
    torch.testing.assert_close(A.subset(1, 3)(x), A(x)[..., 1::3, :])
    torch.testing.assert_close(PETProjector3D(**A.arguments())(x), A(x), rtol=0, atol=0)
    plain = PETProjector3D(**BASE)
    mu = _random(2, 1, 8, 8, 5, seed=2) * 0.1
    torch.testing.assert_close(PETProjector3D(**BASE, attenuation=mu)(x), torch.exp(-plain(mu)) * plain(x))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rings": 4}, "shape"),
        ({"ring_spacing_mm": 6.0}, "ring_spacing_mm"),
        ({"radius_mm": 10.0}, "radius_mm"),
        ({"max_difference": 5}, "max_difference"),
        ({"attenuation": torch.zeros(8, 8, 4)}, "attenuation"),
        ({"shape": (8, 8)}, "shape"),
    ],
)
def test_errors_name_the_argument(change: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        PETProjector3D(**{**BASE, **change})


@pytest.mark.gpu
def test_cuda_gives_the_same() -> None:
    A, B = PETProjector3D(**{**BASE, **CASES["everything"]}), PETProjector3D(**{**BASE, **CASES["everything"]}).cuda()
    x = torch.rand(2, *A.domain_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(B(x.cuda()).cpu(), A(x), rtol=1e-5, atol=1e-5)
    check_operator(B, tolerance=1e-5)
