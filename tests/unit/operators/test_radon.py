"""Parallel beam: the common battery, the convention, arguments, subsets."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from multirecon.operators import ParallelBeam, check_operator

CASES = {
    "square": {"shape": (16, 16), "spacing_mm": (2.0, 2.0), "views": 8, "bins": 24},
    "odd": {"shape": (15, 15), "spacing_mm": (2.0, 2.0), "views": 8, "bins": 23},
    "rectangular": {"shape": (9, 14), "spacing_mm": (2.0, 3.0), "views": 5, "bins": 21, "channels": 3},
    "offset": {"shape": (12, 12), "spacing_mm": (2.0, 2.0), "views": 7, "bins": 18, "offset_bins": 0.25},
    "full turn": {"shape": (12, 12), "spacing_mm": (2.0, 2.0), "views": 16, "bins": 18, "arc": 2 * math.pi},
    "explicit": {"shape": (10, 12), "spacing_mm": (1.0, 1.0), "views": 3, "bins": 15, "angles": [0.1, 1.3, 2.9]},
}


@pytest.mark.parametrize("case", CASES)
def test_battery(case: str) -> None:
    check_operator(ParallelBeam(**CASES[case]), tolerance=1e-5)
    check_operator(ParallelBeam(**CASES[case]).to(torch.float64), tolerance=1e-12)


def test_derivatives_against_finite_differences() -> None:
    A = ParallelBeam((5, 4), (2.0, 3.0), views=3, bins=6).to(torch.float64)
    x = torch.randn(2, 1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(A, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(A, x)


def test_function_transforms() -> None:
    A = ParallelBeam((5, 4), (2.0, 3.0), views=3, bins=6).to(torch.float64)
    x = torch.rand(2, 1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian = torch.func.jacrev(A)(x[:1]).reshape(18, 20)
    torch.testing.assert_close(jacobian @ x[1].flatten(), A(x[1:]).flatten())
    torch.testing.assert_close(torch.func.jacfwd(A)(x[:1]).reshape(18, 20), jacobian)
    torch.testing.assert_close(torch.func.vmap(A)(x[:, None]), A(x)[:, None])


def test_angle_zero_sums_along_axis_one_and_ninety_degrees_along_axis_zero() -> None:
    x = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    p = ParallelBeam((6, 6), (10.0, 10.0), views=2, bins=6)(x)[0, 0]
    torch.testing.assert_close(p[0], x[0, 0].sum(1))
    # at ninety degrees the detector axis is e = (0, 1), that is axis 1
    torch.testing.assert_close(p[1], x[0, 0].sum(0))


def test_offset_of_one_bin_shifts_the_sinogram_by_one_bin() -> None:
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    centred = ParallelBeam((8, 8), (1.0, 1.0), views=5, bins=16)(x)
    shifted = ParallelBeam((8, 8), (1.0, 1.0), views=5, bins=16, offset_bins=1.0)(x)
    torch.testing.assert_close(shifted[..., :-1], centred[..., 1:])


def test_complex_and_half_images() -> None:
    A = ParallelBeam((8, 8), (1.0, 1.0), views=5, bins=12)
    x = torch.randn(1, 1, 8, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(A(x), torch.complex(A(x.real), A(x.imag)))
    assert A(x.real.half()).dtype == torch.float32


def test_arguments_rebuild_the_operator() -> None:
    for case in CASES.values():
        A = ParallelBeam(**case)
        x = torch.rand(1, *A.domain_shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(ParallelBeam(**A.arguments())(x), A(x), rtol=0, atol=0)


def test_subsets_are_the_interleaved_views() -> None:
    A = ParallelBeam((12, 12), (1.0, 1.0), views=10, bins=18)
    x = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    for index in range(3):
        torch.testing.assert_close(A.subset(index, 3)(x), A(x)[:, :, index::3])
    with pytest.raises(ValueError, match="index"):
        A.subset(3, 3)


def test_state_is_empty_and_copies_work() -> None:
    A = ParallelBeam((8, 8), (1.0, 1.0), views=4, bins=12)
    x = torch.ones(1, 1, 8, 8)
    y = A(x)
    assert not A.state_dict()
    assert not copy.deepcopy(A)._matrices
    torch.testing.assert_close(copy.deepcopy(A)(x), y)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"views": 0}, "views"),
        ({"shape": (8,)}, "shape"),
        ({"spacing_mm": (1.0, -1.0)}, "spacing_mm"),
        ({"angles": [0.0]}, "angles"),
        ({"backend": "fast"}, "backend"),
        ({"channels": 0}, "channels"),
        ({"bin_spacing_mm": 0.0}, "bin_spacing_mm"),
    ],
)
def test_errors_name_the_argument(change: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ParallelBeam(**{**CASES["square"], **change})
    with pytest.raises(ValueError, match="x of ParallelBeam"):
        ParallelBeam(**CASES["square"])(torch.zeros(1, 1, 3, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_cuda_gives_the_same(case: str) -> None:
    A = ParallelBeam(**CASES[case])
    x = torch.rand(5, *A.domain_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(A(x.cuda()).cpu(), A(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(A.adjoint(A(x).cuda()).cpu(), A.adjoint(A(x)), rtol=1e-5, atol=1e-5)
    check_operator(ParallelBeam(**CASES[case]).cuda(), tolerance=1e-5)
