"""EM algorithms against optimality conditions, one another and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from unit.solvers.dense import Dense, nonnegative

from multirecon.blocks import Blocks
from multirecon.functionals import Quadratic, RelativeDifference
from multirecon.likelihoods import BlockLikelihood, Gaussian, Poisson, TransmissionPoisson
from multirecon.operators import BlockDiagonal, Identity
from multirecon.solvers import bsrem, map_em, mlem, one_step_late, osem, separable_surrogate, subset_order
from multirecon.space import ImageSpace

SHAPE, DATA = (1, 3, 4), (1, 6, 5)


def _problem(background: float = 0.5, batch: int = 2) -> tuple[Dense, Poisson, torch.Tensor, torch.Tensor]:
    operator = Dense(nonnegative(30, 12), SHAPE, DATA)
    g = torch.Generator().manual_seed(1)
    truth = 20 * torch.rand(batch, *SHAPE, generator=g, dtype=torch.float64)
    likelihood = Poisson(background * torch.ones(1, *DATA, dtype=torch.float64))
    return operator, likelihood, likelihood.sample(operator(truth), g), truth


def _objective(operator, likelihood, y, x, penalty=None, rho=0.0, anchor=0.0):  # type: ignore[no-untyped-def]
    value = likelihood.nll(operator(x), y) + (rho / 2 * (x - anchor) ** 2 * torch.ones_like(x)).flatten(1).sum(1)
    return value if penalty is None else value + penalty.value(x)


def _constrained_optimum(function, shape: tuple[int, ...]) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Minimise a smooth function of one non-negative image with L-BFGS-B."""

    def evaluate(v: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(v).reshape(1, *shape).requires_grad_()
        value = function(x).sum()
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient.flatten().numpy()

    size = int(np.prod(shape))
    options = {"maxiter": 5000, "maxfun": 50000, "ftol": 1e-15, "gtol": 1e-10}
    result = minimize(evaluate, np.full(size, 5.0), jac=True, method="L-BFGS-B", bounds=[(1e-12, None)] * size,
                      options=options)  # fmt: skip
    return torch.tensor(result.x).reshape(1, *shape)


def test_mlem_never_lowers_the_likelihood_and_keeps_the_counts() -> None:
    operator, likelihood, y, _ = _problem(background=0.0)
    values: list[torch.Tensor] = []
    counts: list[torch.Tensor] = []
    sensitivity = operator.adjoint(torch.ones_like(y))

    def watch(iteration: int, x: torch.Tensor, info: dict[str, object]) -> None:
        values.append(likelihood.nll(operator(x), y))
        counts.append((sensitivity * x).flatten(1).sum(1))

    mlem(operator, likelihood, y, iterations=40, callback=watch)
    assert (torch.stack(values).diff(dim=0) <= 1e-10).all()
    assert len(values) == 40
    for total in counts:
        assert torch.allclose(total, y.flatten(1).sum(1), rtol=1e-12)


@pytest.mark.parametrize("background", [0.0, 3.0])
def test_mlem_satisfies_the_optimality_conditions(background: float) -> None:
    operator, likelihood, y, _ = _problem(background)
    x = mlem(operator, likelihood, y, iterations=6000)
    slope = operator.adjoint(likelihood.grad(operator(x), y))
    assert (slope > -1e-3).all()
    assert (x * slope).abs().max() < 1e-3


def test_osem_with_one_subset_is_mlem_exactly() -> None:
    operator, likelihood, y, _ = _problem()
    assert torch.equal(
        osem(operator, likelihood, y, subsets=1, iterations=7), mlem(operator, likelihood, y, iterations=7)
    )


def test_osem_update_of_each_subset_by_hand() -> None:
    operator, likelihood, y, truth = _problem()
    x = x0 = torch.ones_like(truth)
    for index in subset_order(3):
        part, sub_y = operator.subset(index, 3), y[..., index::3, :]
        ratio = sub_y / (part(x) + 0.5)
        x = x / part.adjoint(torch.ones_like(sub_y)) * part.adjoint(ratio)
    assert torch.allclose(osem(operator, likelihood, y, x0=x0, subsets=3, iterations=1), x, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 6, 12, 21, 30])
def test_subset_order_visits_every_subset_once(count: int) -> None:
    assert sorted(subset_order(count)) == list(range(count))


@pytest.mark.parametrize("rho", [0.02, 0.3, 10.0])
def test_map_em_is_monotone_and_reaches_the_exact_proximal_point(rho: float) -> None:
    operator, likelihood, y, truth = _problem(batch=1)
    anchor = truth + 5 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values: list[float] = []
    x = map_em(
        operator, likelihood, y, anchor=anchor, rho=rho, iterations=1500,
        callback=lambda k, v, info: values.append(_objective(operator, likelihood, y, v, rho=rho, anchor=anchor).item())
    )  # fmt: skip
    assert (np.diff(values) <= 1e-10).all()
    slope = operator.adjoint(likelihood.grad(operator(x), y)) + rho * (x - anchor)
    assert (slope > -1e-6).all()
    assert (x * slope).abs().max() < 1e-6
    assert (anchor < 0).any()


def test_map_em_with_a_diagonal_strength_and_its_limits() -> None:
    operator, likelihood, y, truth = _problem()
    strength = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.1
    x = map_em(operator, likelihood, y, anchor=truth, rho=strength, iterations=3000)
    slope = operator.adjoint(likelihood.grad(operator(x), y)) + strength * (x - truth)
    assert (x * slope).abs().max() < 1e-6
    start = torch.ones_like(truth)
    plain = mlem(operator, likelihood, y, x0=start, iterations=3)
    assert torch.allclose(map_em(operator, likelihood, y, anchor=truth, rho=1e-12, x0=start, iterations=3), plain)
    assert torch.allclose(map_em(operator, likelihood, y, anchor=truth, rho=0.0, x0=start, iterations=3), plain)
    assert torch.allclose(map_em(operator, likelihood, y, anchor=truth, rho=1e9, iterations=3), truth, rtol=1e-6)


def test_map_em_root_is_stable_in_single_precision() -> None:
    operator, likelihood, y, truth = _problem()
    single = Dense(operator.matrix.float(), SHAPE, DATA)
    for rho in (1e-6, 1e-3, 1.0, 1e4):
        exact = map_em(operator, likelihood, y, anchor=truth, rho=rho, iterations=20)
        rounded = map_em(single, likelihood, y.float(), anchor=truth.float(), rho=rho, iterations=20)
        assert rounded.dtype is torch.float32
        assert torch.allclose(rounded.double(), exact, rtol=1e-4, atol=1e-5)


def test_voxels_out_of_view() -> None:
    matrix = nonnegative(30, 12)
    matrix[:, 5] = 0
    operator, likelihood = Dense(matrix, SHAPE, DATA), Poisson(0.5)
    y = torch.full((1, *DATA), 3.0, dtype=torch.float64)
    assert mlem(operator, likelihood, y, iterations=3).flatten()[5] == 0
    anchor = torch.full((1, *SHAPE), 2.0, dtype=torch.float64)
    assert map_em(operator, likelihood, y, anchor=anchor, rho=0.3, iterations=500).flatten()[5] == pytest.approx(2.0)
    assert map_em(operator, likelihood, y, anchor=-anchor, rho=0.3, iterations=500).flatten()[5] < 0.02


@pytest.mark.parametrize("kind", ["relative difference", "quadratic"])
def test_bsrem_reaches_the_penalised_optimum(kind: str) -> None:
    operator, likelihood, y, truth = _problem(batch=1)
    penalty = RelativeDifference(2.0, eps=0.1) if kind == "relative difference" else Quadratic(0.05, anchor=truth / 2)
    best = _constrained_optimum(lambda x: _objective(operator, likelihood, y, x, penalty), SHAPE)
    floor = _objective(operator, likelihood, y, best, penalty)
    full = bsrem(operator, likelihood, y, penalty, iterations=400, decay=0.0)
    assert torch.allclose(full, best, rtol=1e-3, atol=1e-2)
    assert _objective(operator, likelihood, y, full, penalty) <= floor + 1e-6
    values: list[torch.Tensor] = []
    bsrem(operator, likelihood, y, penalty, iterations=60, decay=0.0,
          callback=lambda k, x, info: values.append(_objective(operator, likelihood, y, x, penalty)))  # fmt: skip
    assert (torch.stack(values).diff(dim=0) <= 1e-9).all()
    subsets = bsrem(operator, likelihood, y, penalty, subsets=3, iterations=300, decay=0.1)
    assert _objective(operator, likelihood, y, subsets, penalty) <= floor + 0.02


def test_one_step_late_stops_where_the_gradient_vanishes() -> None:
    operator, likelihood, y, _ = _problem(batch=1)
    penalty = RelativeDifference(0.1, eps=0.1)
    best = _constrained_optimum(lambda x: _objective(operator, likelihood, y, x, penalty), SHAPE)
    got = one_step_late(operator, likelihood, y, penalty, iterations=600)
    assert torch.allclose(got, best, rtol=1e-3, atol=1e-2)


def test_a_stack_of_two_tracers_is_two_problems() -> None:
    operator, likelihood, y, _ = _problem()
    space = ImageSpace(["pet_fdg", "t1", "pet_amyloid"], (3, 4), (1.0, 1.0))
    other = Dense(nonnegative(30, 12, seed=5), SHAPE, DATA)
    stack = BlockDiagonal(space, {"pet_fdg": operator, "pet_amyloid": other})
    noise = BlockLikelihood({"pet_fdg": likelihood, "pet_amyloid": Poisson(1.0)})
    data = Blocks({"pet_fdg": y, "pet_amyloid": 2 * y})
    x = osem(stack, noise, data, subsets=3, iterations=4)
    assert torch.allclose(x[:, :1], osem(operator, likelihood, y, subsets=3, iterations=4))
    assert torch.allclose(x[:, 2:], osem(other, Poisson(1.0), 2 * y, subsets=3, iterations=4))
    assert (x[:, 1] == 0).all()
    anchor = torch.ones(2, 3, 3, 4, dtype=torch.float64)
    joint = map_em(stack, noise, data, anchor=anchor, rho=0.2, iterations=300)
    assert torch.allclose(joint[:, :1], map_em(operator, likelihood, y, anchor=anchor[:, :1], rho=0.2, iterations=300))
    assert torch.allclose(joint[:, 1], anchor[:, 1])


def test_surrogates_descend_the_transmission_likelihood_to_its_optimum() -> None:
    operator = Dense(nonnegative(30, 12) / 3, SHAPE, DATA)
    g = torch.Generator().manual_seed(2)
    truth = torch.rand(1, *SHAPE, generator=g, dtype=torch.float64)
    likelihood = TransmissionPoisson(500.0, 5.0, curvature="paraboloid")
    y = likelihood.sample(operator(truth), g)
    anchor, rho = truth.flip(-1), 3.0
    values: list[float] = []
    x = separable_surrogate(
        operator, likelihood, y, anchor=anchor, rho=rho, iterations=1000,
        callback=lambda k, v, info: values.append(_objective(operator, likelihood, y, v, rho=rho, anchor=anchor).item())
    )  # fmt: skip
    assert (np.diff(values) <= 1e-9).all()
    best = _constrained_optimum(lambda v: _objective(operator, likelihood, y, v, rho=rho, anchor=anchor), SHAPE)
    assert torch.allclose(x, best, atol=1e-4)


def test_surrogates_with_a_penalty_solve_weighted_least_squares() -> None:
    operator, _, y, _ = _problem(batch=1)
    likelihood, penalty = Gaussian(torch.full((1, *DATA), 2.0, dtype=torch.float64)), RelativeDifference(0.5, eps=0.1)
    x = separable_surrogate(operator, likelihood, y, penalty, iterations=600,
                            x0=torch.ones(1, *SHAPE, dtype=torch.float64))  # fmt: skip
    best = _constrained_optimum(lambda v: _objective(operator, likelihood, y, v, penalty), SHAPE)
    assert _objective(operator, likelihood, y, x, penalty) <= _objective(operator, likelihood, y, best, penalty) + 1e-6


def test_bad_arguments_are_named() -> None:
    operator, likelihood, y, truth = _problem()
    with pytest.raises(ValueError, match="Poisson"):
        mlem(operator, Gaussian(1.0), y)
    with pytest.raises(ValueError, match="subsets"):
        osem(Identity(SHAPE), Poisson(), truth, subsets=2)
    with pytest.raises(ValueError, match="rho"):
        map_em(operator, likelihood, y, anchor=truth, rho=-1.0)
    with pytest.raises(ValueError, match="x0"):
        mlem(operator, likelihood, y, x0=truth[:1])
    with pytest.raises(ValueError, match="likelihood and y"):
        mlem(operator, BlockLikelihood({}), y)
    with pytest.raises(ValueError, match="penalty"):
        separable_surrogate(operator, likelihood, y, Quadratic())
