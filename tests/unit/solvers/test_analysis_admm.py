"""Alternating directions on the transform: against certified and independent solutions of the same problems."""

from itertools import pairwise

import deepinv
import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.functionals import JointTotalVariation, TotalVariation
from multirecon.likelihoods import BlockLikelihood, Gaussian, Poisson, PolyenergeticPoisson, TransmissionPoisson
from multirecon.operators import BlockDiagonal, Diagonal, Identity, MaskedFourier, ParallelBeam
from multirecon.solvers import DataTerm, pdhg
from multirecon.solvers.analysis_admm import analysis_admm, mean_curvature
from multirecon.space import ImageSpace

N = 32


def blocks_image(n=N):
    """Return a piecewise constant image in [0, 1]."""
    image = torch.zeros(1, 1, n, n)
    image[..., n // 4 : 3 * n // 4, n // 5 : 4 * n // 5] = 0.6
    image[..., n // 3 : n // 2, n // 3 : n // 2] = 1.0
    return image


def coil_problem(generator, sigma=0.02):
    mask = torch.zeros(N, N)
    mask[::3] = 1
    maps = torch.randn(4, N, N, generator=generator, dtype=torch.complex64)
    maps = maps / maps.abs().square().sum(0).sqrt()
    A, likelihood = MaskedFourier(mask, maps), Gaussian(sigma, support=mask)
    return A, likelihood, likelihood.sample(A(blocks_image()), generator)


def emission_problem(generator):
    A = ParallelBeam((N, N), (4.0, 4.0), views=24, bins=46)
    likelihood = Poisson(background=2.0)
    return A, likelihood, likelihood.sample(A(3 * blocks_image()), generator)


def transmission_problem(generator):
    A = ParallelBeam((N, N), (4.0, 4.0), views=24, bins=46)
    likelihood = TransmissionPoisson(I0=300.0, scatter=5.0)
    return A, likelihood, likelihood.sample(A(0.3 * blocks_image()), generator)


PROBLEMS = {
    "coils": (coil_problem, 5.0),
    "emission": (emission_problem, 0.5),
    "transmission": (transmission_problem, 5.0),
}


def objective(A, likelihood, y, penalty, x):
    data = DataTerm(A, likelihood, y)
    return float((data.nll(data.predict(x)) + penalty.value(x)).sum())


def test_denoising_agrees_with_deepinv(generator):
    """deepinv solves the same problem by another algorithm (over-relaxed primal-dual splitting)."""
    y = blocks_image() + 0.1 * torch.randn(1, 1, N, N, generator=generator)
    weight = 0.15
    ours = analysis_admm(Identity((1, N, N)), Gaussian(1.0), y, TotalVariation(weight), nonnegative=False,
                         iterations=500, tolerance=1e-6).x  # fmt: skip
    theirs = deepinv.optim.prior.TVPrior(n_it_max=1500, def_crit=1e-8).prox(y, gamma=weight)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3
    assert float((ours - y).norm() / y.norm()) > 0.05  # and it is no copy of the data


@pytest.mark.parametrize("name", ["coils", "emission"])
def test_reaches_the_certified_minimum(generator, name):
    problem, weight = PROBLEMS[name]
    A, likelihood, y = problem(generator)
    penalty = TotalVariation(weight)
    certified = pdhg(A, likelihood, y, penalty, nonnegative=True, iterations=4000, tolerance=1e-4)
    assert float(certified.gap) < 1e-3
    result = analysis_admm(A, likelihood, y, penalty, iterations=300, tolerance=1e-4)
    lowest = objective(A, likelihood, y, penalty, certified.x)
    assert objective(A, likelihood, y, penalty, result.x) <= lowest * (1 + 1e-3)
    assert bool((result.x >= 0).all())


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_objective_falls_between_checkpoints(generator, name):
    problem, weight = PROBLEMS[name]
    A, likelihood, y = problem(generator)
    penalty, values = TotalVariation(weight), {}
    analysis_admm(A, likelihood, y, penalty, iterations=80, tolerance=0,
                  callback=lambda k, x, _: values.update({k: objective(A, likelihood, y, penalty, x)}))  # fmt: skip
    checkpoints = [values[k] for k in (2, 5, 10, 20, 40, 80)]
    assert all(b <= a * (1 + 1e-3) for a, b in pairwise(checkpoints)), checkpoints
    assert checkpoints[-1] < 0.99 * checkpoints[0]


def test_expansions_end_at_the_exact_likelihood(generator):
    """At the minimum of the exact objective no direction descends: the expansion of the log data alone fails this."""
    A, likelihood, y = transmission_problem(generator)
    penalty = TotalVariation(5.0)
    exact = analysis_admm(A, likelihood, y, penalty, iterations=300, tolerance=1e-5)
    log_data = analysis_admm(A, likelihood, y, penalty, iterations=300, tolerance=1e-5, expand_every=1000)
    lowest = objective(A, likelihood, y, penalty, exact.x)
    assert lowest < objective(A, likelihood, y, penalty, log_data.x)
    for step in (0.99, 1.01):
        assert objective(A, likelihood, y, penalty, step * exact.x) > lowest


def test_complete_data_without_penalty_give_the_image_back(generator):
    truth = blocks_image()
    maps = torch.ones(1, N, N, dtype=torch.complex64)
    A = MaskedFourier(torch.ones(N, N), maps, spatial_dims=2)
    for penalty in (None, TotalVariation(0.0)):
        x = analysis_admm(A, Gaussian(0.01), A(truth), penalty, tolerance=1e-6).x
        assert float((x - truth).abs().max()) < 1e-4


def test_stops_at_the_stated_change(generator):
    A, likelihood, y = coil_problem(generator)
    loose = analysis_admm(A, likelihood, y, TotalVariation(5.0), tolerance=1e-2)
    tight = analysis_admm(A, likelihood, y, TotalVariation(5.0), tolerance=1e-4)
    assert loose.iterations < tight.iterations < 200
    assert float(tight.change) <= 1e-4
    assert float(tight.residual) <= 5e-4


def test_modalities_of_a_stack_are_coupled_by_the_penalty_alone(generator):
    """Two modalities with a separable penalty: each as if it were alone."""
    A, likelihood, y = coil_problem(generator)
    noise, image = Gaussian(0.1), blocks_image() + 0.1 * torch.randn(1, 1, N, N, generator=generator)
    stack = BlockDiagonal(ImageSpace(["t1", "t2"], (N, N), (2.0, 2.0)), {"t1": A, "t2": Identity((1, N, N))})
    both = (stack, BlockLikelihood({"t1": likelihood, "t2": noise}), Blocks({"t1": y, "t2": image}))
    separate = analysis_admm(*both, TotalVariation(4.0), tolerance=1e-5, iterations=400).x
    alone = analysis_admm(A, likelihood, y, TotalVariation(4.0), tolerance=1e-5, iterations=400).x
    torch.testing.assert_close(separate[:, :1], alone, atol=2e-3, rtol=0)
    joint = analysis_admm(*both, JointTotalVariation(4.0), tolerance=1e-5, iterations=400).x
    assert float((joint[:, :1] - alone).abs().max()) > 1e-2


def test_curvature_is_the_mean_of_the_diagonal(generator):
    variances = torch.rand(1, 1, N, N, generator=generator) + 0.5
    A = Diagonal(torch.full((1, N, N), 3.0), shape=(1, N, N))
    y = torch.zeros(1, 1, N, N)
    torch.testing.assert_close(mean_curvature(A, Gaussian(variances.sqrt()), y), (9 / variances).mean().reshape(1, 1))


def test_bad_input():
    y = torch.zeros(1, 1, N, N)
    with pytest.raises(ValueError, match="sigma: expected > 0"):
        analysis_admm(Identity((1, N, N)), Gaussian(0.0), y)
    with pytest.raises(ValueError, match="Gaussian approximation"):
        analysis_admm(Identity((1, N, N)), PolyenergeticPoisson(torch.ones(1, 2), torch.ones(1, 2)), y)
    A = MaskedFourier(torch.ones(N, N), torch.ones(1, N, N, dtype=torch.complex64), real_image=False, spatial_dims=2)
    with pytest.raises(ValueError, match="complex"):
        analysis_admm(A, Gaussian(1.0), torch.zeros(1, 1, N, N, dtype=torch.complex64))
