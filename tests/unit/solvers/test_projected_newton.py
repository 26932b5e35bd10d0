"""Projected Newton steps: optimality conditions, few projections, independent samples, hostile starts."""

import pytest
import torch

from multirecon.likelihoods import Gaussian, Poisson
from multirecon.operators import PETProjector
from multirecon.solvers import DataTerm, TorchEM, anchored_em, projected_newton

N = 16


def problem(likelihood=None, batch=2, dtype=torch.float64):
    A = PETProjector((N, N), (8.0, 8.0), views=20, bins=24, psf_fwhm_mm=10.0, efficiency=0.5).to(dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 1, N, N, generator=generator, dtype=torch.float64).round().to(dtype)
    likelihood = likelihood or Poisson(0.3)
    y = likelihood.sample(A(x), torch.Generator().manual_seed(1))
    anchor = x + 0.5 * torch.randn(batch, 1, N, N, generator=generator, dtype=torch.float64).to(dtype)
    return A, likelihood, y, anchor


def residual_of(A, likelihood, y, anchor, rho, x):
    gradient = A.adjoint(likelihood.grad(A(x), y)) + rho * (x - anchor)
    moved = (x - (x - gradient / rho).clamp_min(0)).flatten(1)
    return torch.linalg.vector_norm(moved, dim=1) / torch.linalg.vector_norm(x.flatten(1), dim=1)


@pytest.mark.parametrize("likelihood", [Poisson(0.3), Gaussian(0.5)], ids=["poisson", "gaussian"])
@pytest.mark.parametrize("rho", [0.05, 5.0])
def test_optimality_conditions_to_the_stated_tolerance(likelihood, rho):
    A, _, y, anchor = problem(likelihood)
    strength = torch.full((2, 1, 1, 1), rho, dtype=torch.float64)
    for tolerance in (1e-3, 1e-9):
        x, count, residual = projected_newton(
            DataTerm(A, likelihood, y),
            anchor=anchor,
            rho=strength,
            x0=torch.ones_like(anchor),
            iterations=1000,
            tolerance=tolerance,
        )
        assert float(residual.max()) <= tolerance
        torch.testing.assert_close(residual_of(A, likelihood, y, anchor, strength, x), residual, rtol=1e-6, atol=1e-14)
        assert count < 1000
    assert float(x.min()) == 0.0  # the bound is active, exactly


def test_the_minimum_of_expectation_maximisation_in_fewer_projections():
    A, likelihood, y, anchor = problem()
    rho = torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64)
    options = {"anchor": anchor, "rho": rho, "x0": torch.ones_like(anchor)}
    x, count, _ = projected_newton(DataTerm(A, likelihood, y), **options, iterations=1000, tolerance=1e-9)
    other, em, _ = anchored_em(TorchEM(A, likelihood, y), **options, iterations=30 * count)
    assert em == 30 * count
    objective = [likelihood.nll(A(i), y) + 0.15 * (i - anchor).square().flatten(1).sum(1) for i in (x, other)]
    assert bool((objective[0] <= objective[1]).all())
    assert float((x - other).abs().max()) < 1e-2


def test_single_precision_reaches_the_tolerance_of_reconstructions():
    A, likelihood, y, anchor = problem(dtype=torch.float32)
    _, count, residual = projected_newton(DataTerm(A, likelihood, y), anchor=anchor, rho=torch.full((2, 1, 1, 1), 0.3),
                                          x0=torch.ones_like(anchor), iterations=300, tolerance=1e-5)  # fmt: skip
    assert float(residual.max()) <= 1e-5
    # what rounding forbids is given up, not tried until the bound
    _, count, residual = projected_newton(DataTerm(A, likelihood, y), anchor=anchor, rho=torch.full((2, 1, 1, 1), 0.3),
                                          x0=torch.ones_like(anchor), iterations=5000, tolerance=1e-12)  # fmt: skip
    assert count < 500
    assert float(residual.max()) < 1e-5


@pytest.mark.parametrize("start", [0.0, 1e3])
def test_no_start_is_too_bad(start):
    """Zero, and a thousand times too bright: the objective is far from quadratic there."""
    A, likelihood, y, anchor = problem()
    rho = torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64)
    data = DataTerm(A, likelihood, y)
    _, _, residual = projected_newton(data, anchor=anchor, rho=rho, x0=torch.full_like(anchor, start), iterations=2000,
                                      tolerance=1e-8)  # fmt: skip
    assert float(residual.max()) <= 1e-8


@pytest.mark.parametrize("iterations", [5, 12, 1000])
def test_samples_do_not_wait_for_one_another(iterations):
    """Neither for the accuracy nor for the bound: each has projections of its own."""
    A, likelihood, y, anchor = problem()
    rho = torch.tensor([0.05, 5.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    options = {"iterations": iterations, "tolerance": 1e-10}
    both, _, _ = projected_newton(DataTerm(A, likelihood, y), anchor=anchor, rho=rho, x0=torch.ones_like(anchor),
                                  **options)  # fmt: skip
    for i in range(2):
        one, _, _ = projected_newton(DataTerm(A, likelihood, y[i : i + 1]), anchor=anchor[i : i + 1],
                                     rho=rho[i : i + 1], x0=torch.ones_like(anchor[:1]), **options)  # fmt: skip
        torch.testing.assert_close(both[i : i + 1], one, rtol=1e-7, atol=1e-8)


def test_bound_on_the_projections_holds():
    A, likelihood, y, anchor = problem()
    rho = torch.full((2, 1, 1, 1), 0.05, dtype=torch.float64)
    _, count, residual = projected_newton(DataTerm(A, likelihood, y), anchor=anchor, rho=rho,
                                          x0=torch.ones_like(anchor), iterations=12, tolerance=1e-12)  # fmt: skip
    assert 12 <= count <= 14
    assert float(residual.max()) > 1e-12
