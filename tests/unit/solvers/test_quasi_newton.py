"""Projected quasi-Newton steps: optimality conditions, monotone descent, independent samples."""

import itertools

import pytest
import torch

from multirecon.likelihoods import Gaussian, Poisson, TransmissionPoisson
from multirecon.operators import ParallelBeam
from multirecon.solvers import bounded_quasi_newton


def problem(likelihood, level, batch=2):
    A = ParallelBeam((16, 16), (8.0, 8.0), views=20, bins=24).double()
    generator = torch.Generator().manual_seed(0)
    x = level * torch.rand(batch, 1, 16, 16, generator=generator, dtype=torch.float64).round()
    y = likelihood.sample(A(x), torch.Generator().manual_seed(1))
    anchor = level * torch.randn(batch, 1, 16, 16, generator=generator, dtype=torch.float64)
    return A, y, anchor


CASES = [(TransmissionPoisson(200.0, 5.0), 0.15, 40.0), (Poisson(2.0), 1.0, 2.0), (Gaussian(0.5), 1.0, 3.0)]


@pytest.mark.parametrize(("likelihood", "level", "rho"), CASES, ids=["transmission", "poisson", "gaussian"])
def test_ends_at_the_minimum(likelihood, level, rho):
    A, y, anchor = problem(likelihood, level)
    x = bounded_quasi_newton(A, likelihood, y, anchor=anchor, rho=rho, iterations=200)
    slope = A.adjoint(likelihood.grad(A(x), y)) + rho * (x - anchor)
    scale = float((rho * anchor).abs().max())
    assert float(x.min()) == 0.0  # the bound is active somewhere
    assert float((slope * (x > 0)).abs().max()) < 1e-5 * scale
    assert float(slope[x == 0].min()) > -1e-5 * scale


@pytest.mark.parametrize(("likelihood", "level", "rho"), CASES, ids=["transmission", "poisson", "gaussian"])
def test_slope_of_the_image_step_against_finite_differences(likelihood, level, rho):
    A, y, anchor = problem(likelihood, level, batch=1)
    x = (anchor.abs() + 0.1 * level).requires_grad_(False)

    def objective(x):
        return float(likelihood.nll(A(x), y) + rho / 2 * (x - anchor).square().sum())

    slope = A.adjoint(likelihood.grad(A(x), y)) + rho * (x - anchor)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    step = 1e-5 * level
    numeric = (objective(x + step * direction) - objective(x - step * direction)) / (2 * step)
    assert abs(numeric - float((slope * direction).sum())) < 1e-6 * abs(numeric)


def test_never_rises_and_samples_are_independent():
    likelihood, level, rho = CASES[0]
    A, y, anchor = problem(likelihood, level)
    values = []
    both = bounded_quasi_newton(A, likelihood, y, anchor=anchor, rho=rho, iterations=15,
                                callback=lambda k, x, info: values.append(info["objective"]))  # fmt: skip
    assert all(bool((b <= a).all()) for a, b in itertools.pairwise(values))
    for i in range(2):
        one = bounded_quasi_newton(A, likelihood, y[i : i + 1], anchor=anchor[i : i + 1], rho=rho, iterations=15)
        torch.testing.assert_close(one, both[i : i + 1], rtol=0, atol=1e-9)
