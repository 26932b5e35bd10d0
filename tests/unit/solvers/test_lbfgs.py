"""Batched L-BFGS: converges, never rises, and treats every sample as if it were alone."""

from itertools import pairwise

import pytest
import torch

from multirecon.solvers.lbfgs import lbfgs


def rosenbrock(z):
    return (1 - z[:, 0]) ** 2 + 100 * (z[:, 1] - z[:, 0] ** 2) ** 2


def test_finds_the_minimum_of_a_curved_valley():
    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
    found = lbfgs(rosenbrock, start, iterations=60)
    torch.testing.assert_close(found.z, torch.ones_like(start), atol=1e-5, rtol=0)


def test_few_iterations_on_a_quadratic(generator):
    n = 12
    basis = torch.linalg.qr(torch.randn(3, n, n, generator=generator, dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.logspace(0, 2, n, dtype=torch.float64)) @ basis.mT
    rhs = torch.randn(3, n, generator=generator, dtype=torch.float64)

    def cost(z):
        return 0.5 * torch.einsum("bi,bij,bj->b", z, matrix, z) - (rhs * z).sum(1)

    found = lbfgs(cost, torch.zeros(3, n, dtype=torch.float64), iterations=60, memory=12)
    torch.testing.assert_close(found.z, torch.linalg.solve(matrix, rhs), atol=1e-6, rtol=0)


def test_no_value_rises():
    start = torch.tensor([[-1.2, 1.0], [3.0, -2.0]])
    values = [rosenbrock(start)]
    for iterations in range(1, 12):
        found = lbfgs(rosenbrock, start, iterations=iterations)
        torch.testing.assert_close(found.value, rosenbrock(found.z))
        values.append(found.value)
    assert all((b <= a).all() for a, b in pairwise(values))


def test_batch_is_the_loop_over_its_samples():
    start = torch.tensor([[-1.2, 1.0], [0.3, -0.5], [4.0, 4.0]], dtype=torch.float64)
    together = lbfgs(rosenbrock, start, iterations=15).z
    alone = torch.cat([lbfgs(rosenbrock, one[None], iterations=15).z for one in start])
    torch.testing.assert_close(together, alone, atol=0, rtol=1e-12)


def test_a_minimum_is_kept():
    found = lbfgs(lambda z: z.square().sum(1), torch.zeros(2, 3), iterations=5)
    assert torch.equal(found.z, torch.zeros(2, 3))


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite values at the start"):
        lbfgs(lambda z: z.sum(1) / 0, torch.ones(1, 2))
    with pytest.raises(ValueError, match="memory"):
        lbfgs(rosenbrock, torch.ones(1, 2), memory=0)
