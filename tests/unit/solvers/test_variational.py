"""FISTA, PDHG, ADMM, SIRT and the data step against exact solutions and one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear, nnls
from unit.solvers.dense import Dense, nonnegative

from multirecon.blocks import Blocks
from multirecon.functionals import L1, JointTotalVariation, NonNegativity, Quadratic, TotalVariation
from multirecon.likelihoods import (
    BlockLikelihood,
    Gaussian,
    Poisson,
    PolyenergeticPoisson,
    TransmissionPoisson,
    gaussian_approximation,
)
from multirecon.operators import BlockDiagonal, Diagonal, Identity, SpectralProjector
from multirecon.solvers import (
    admm,
    data_proximal,
    decompose_counts,
    decompose_images,
    fista,
    least_squares,
    map_em,
    mean_curvature,
    mlem,
    pdhg,
    separable_surrogate,
    sirt,
)
from multirecon.space import ImageSpace

SHAPE, DATA = (1, 4, 5), (1, 6, 5)


def _gaussian(batch: int = 2) -> tuple[Dense, Gaussian, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(30, 20, generator=g, dtype=torch.float64)
    sigma = 0.2 + torch.rand(1, *DATA, generator=g, dtype=torch.float64)
    operator, likelihood = Dense(matrix, SHAPE, DATA), Gaussian(sigma)
    truth = torch.zeros(batch, *SHAPE, dtype=torch.float64)
    truth[..., 1:3, 2:] = 2.0
    truth[1:, :, 2:] -= 1.0
    return operator, likelihood, likelihood.sample(operator(truth), g)


def _poisson(background: float = 2.0) -> tuple[Dense, Poisson, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    operator = Dense(nonnegative(30, 20, seed=3), SHAPE, DATA)
    truth = 10 * torch.rand(2, *SHAPE, generator=g, dtype=torch.float64)
    likelihood = Poisson(background)
    return operator, likelihood, likelihood.sample(operator(truth), g)


def _objective(operator, likelihood, y, x, functional):  # type: ignore[no-untyped-def]
    return likelihood.nll(operator(x), y) + functional.value(x)


def test_fista_solves_least_squares_with_and_without_constraint() -> None:
    operator, likelihood, y = _gaussian()
    weight = likelihood.weight(y).expand(y.shape)
    free = fista(operator, likelihood, y, iterations=600)
    assert torch.allclose(free, least_squares(operator, y, weight=weight, tolerance=1e-12).x, atol=1e-6)
    bounded = fista(operator, likelihood, y, NonNegativity(), iterations=600)
    for i in range(2):
        root = weight[i].flatten().sqrt()
        expected, _ = nnls((root[:, None] * operator.matrix).numpy(), (root * y[i].flatten()).numpy())
        assert np.allclose(bounded[i].flatten().numpy(), expected, atol=1e-6)
    assert (free < -0.01).any()


def test_fista_lasso_satisfies_the_optimality_conditions() -> None:
    operator, likelihood, y = _gaussian()
    weight = 40.0
    x = fista(operator, likelihood, y, L1(weight), iterations=600)
    slope = operator.adjoint(likelihood.grad(operator(x), y))
    assert (slope.abs() <= weight + 1e-5).all()
    assert torch.allclose(slope[x != 0], -weight * x[x != 0].sign(), atol=1e-4)
    assert 0 < (x == 0).float().mean() < 1


def test_fista_batch_equals_loop_and_stops_by_tolerance() -> None:
    operator, likelihood, y = _gaussian()
    steps: list[int] = []
    both = fista(operator, likelihood, y, TotalVariation(2.0, tolerance=1e-7), iterations=300,
                 tolerance=1e-6, callback=lambda k, x, info: steps.append(k))  # fmt: skip
    assert len(steps) < 300
    for i in range(2):
        alone = fista(operator, likelihood, y[i : i + 1], TotalVariation(2.0, tolerance=1e-7),
                      iterations=300, tolerance=1e-6)  # fmt: skip
        assert torch.allclose(alone[0], both[i], atol=1e-5)


@pytest.mark.parametrize("background", [0.0, 2.0])
def test_fista_maximises_a_poisson_likelihood_like_mlem(background: float) -> None:
    operator, likelihood, y = _poisson(background)
    x = fista(operator, likelihood, y, NonNegativity(), iterations=800)
    em = mlem(operator, likelihood, y, iterations=1500)
    assert (likelihood.nll(operator(x), y) <= likelihood.nll(operator(em), y) * (1 + 1e-3)).all()
    if background == 0:
        with pytest.raises(ValueError, match="x0"):
            fista(operator, likelihood, y, x0=torch.zeros_like(x))


@pytest.mark.parametrize("nonnegative_image", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_pdhg_fista_and_admm_agree_on_total_variation(nonnegative_image: bool, smoothing: float) -> None:
    operator, likelihood, y = _gaussian()
    functional = TotalVariation(3.0, nonnegative=nonnegative_image, smoothing=smoothing, tolerance=1e-7,
                                max_iterations=1000)  # fmt: skip
    result = pdhg(operator, likelihood, y, functional, iterations=2000, tolerance=1e-7)
    assert (result.gap <= 1e-7).all()
    proximal = fista(operator, likelihood, y, functional, iterations=200)
    split = admm(operator, likelihood, y, functional, rho=20.0, iterations=100, inner_iterations=60, tolerance=1e-6)
    assert torch.allclose(result.x, proximal, atol=2e-3)
    assert torch.allclose(split.x, proximal, atol=2e-3)
    best = _objective(operator, likelihood, y, proximal, functional)
    got = _objective(operator, likelihood, y, result.x, functional)
    assert (got <= best * (1 + 2e-7)).all()
    assert (best <= got * (1 + 1e-5)).all()


def test_pdhg_gap_bounds_the_suboptimality_all_along() -> None:
    operator, likelihood, y = _gaussian()
    functional = TotalVariation(3.0, isotropic=False)
    best = _objective(operator, likelihood, y, pdhg(operator, likelihood, y, functional, iterations=2000,
                                                    tolerance=1e-9).x, functional)  # fmt: skip
    checked = 0

    def watch(iteration: int, x: torch.Tensor, info: dict[str, torch.Tensor]) -> None:
        nonlocal checked
        if iteration % 20 == 0:
            value = _objective(operator, likelihood, y, x, functional)
            assert ((value - best) / value <= info["gap"] + 1e-9).all()
            checked += 1

    pdhg(operator, likelihood, y, functional, iterations=400, tolerance=0.0, callback=watch)
    assert checked == 20


@pytest.mark.parametrize("background", [0.0, 2.0])
def test_pdhg_maximises_a_penalised_poisson_likelihood(background: float) -> None:
    operator, likelihood, y = _poisson(background)
    functional = TotalVariation(0.3)
    result = pdhg(operator, likelihood, y, functional, nonnegative=True, iterations=4000, tolerance=1e-6)
    assert (result.gap <= 1e-6).all()
    reference = fista(operator, likelihood, y, TotalVariation(0.3, nonnegative=True, tolerance=1e-5), iterations=60)
    best = _objective(operator, likelihood, y, reference, functional)
    assert (_objective(operator, likelihood, y, result.x, functional) <= best * (1 + 2e-6)).all()
    unpenalised = pdhg(operator, likelihood, y, nonnegative=True, iterations=1000, tolerance=1e-5)
    em = mlem(operator, likelihood, y, iterations=1500)
    assert (likelihood.nll(operator(unpenalised.x), y) <= likelihood.nll(operator(em), y) * (1 + 1e-4)).all()


def test_pdhg_batch_equals_loop() -> None:
    operator, likelihood, y = _poisson()
    both = pdhg(operator, likelihood, y, TotalVariation(0.3), nonnegative=True, tolerance=1e-4)
    for i in range(2):
        alone = pdhg(operator, likelihood, y[i : i + 1], TotalVariation(0.3), nonnegative=True, tolerance=1e-4)
        assert torch.allclose(alone.x[0], both.x[i], atol=1e-9)
        assert torch.allclose(alone.gap[0], both.gap[i], rtol=1e-5)


def test_pdhg_fits_exact_data_by_the_least_total_variation() -> None:
    g = torch.Generator().manual_seed(2)
    operator = Dense(torch.randn(14, 20, generator=g, dtype=torch.float64), SHAPE)
    truth = torch.zeros(1, *SHAPE, dtype=torch.float64)
    truth[..., 2:] = 1.0
    x = pdhg(operator, Gaussian(0.0), operator(truth), TotalVariation(1.0), iterations=1500).x
    assert torch.allclose(x, truth, atol=1e-3)
    assert not torch.allclose(least_squares(operator, operator(truth)).x, truth, atol=0.05)


def test_pdhg_and_fista_on_a_stack_with_joint_total_variation() -> None:
    space = ImageSpace(["t1", "ct", "pet_fdg"], (4, 5), (1.0, 1.0))
    dense, gaussian, y = _gaussian()
    counting, poisson, counts = _poisson()
    operator = BlockDiagonal(space, {"t1": dense, "pet_fdg": counting})
    likelihood = BlockLikelihood({"t1": gaussian, "pet_fdg": poisson})
    data = Blocks({"t1": y, "pet_fdg": counts})
    functional = JointTotalVariation(0.5, channel_weights=[3.0, 1.0, 0.5], nonnegative=True, tolerance=1e-5)
    result = pdhg(operator, likelihood, data, functional, iterations=1000, tolerance=1e-5)
    assert (result.gap <= 1e-5).all()
    got = _objective(operator, likelihood, data, result.x, functional)
    split = admm(operator, likelihood, data, functional, rho=5.0, iterations=100, inner_iterations=20, tolerance=1e-6)
    proximal = fista(operator, likelihood, data, functional, iterations=200)
    for other, slack in ((split.x, 2e-3), (proximal, 1e-2)):
        value = _objective(operator, likelihood, data, other, functional)
        assert (got <= value * (1 + 1.1e-5)).all()
        assert (value <= got * (1 + slack)).all()


def test_admm_with_a_quadratic_penalty_is_tikhonov_and_resumes() -> None:
    operator, likelihood, y = _gaussian()
    penalty = Quadratic(5.0)
    expected = least_squares(operator, y, weight=likelihood.weight(y), damping=5.0, tolerance=1e-12).x
    whole = admm(operator, likelihood, y, penalty, rho=torch.tensor([5.0, 20.0]), iterations=200, inner_iterations=60,
                 inner_tolerance=1e-12,                 tolerance=1e-9)  # fmt: skip
    assert torch.allclose(whole.x, expected, atol=1e-6)
    half = admm(operator, likelihood, y, penalty, rho=20.0, iterations=10, tolerance=0.0)
    resumed = admm(operator, likelihood, y, penalty, rho=20.0, iterations=10, tolerance=0.0, start=half)
    straight = admm(operator, likelihood, y, penalty, rho=20.0, iterations=20, tolerance=0.0)
    assert torch.allclose(resumed.x, straight.x, atol=1e-6)
    plugged = admm(operator, likelihood, y, lambda v, step: v / (1 + 5 * step.reshape(-1, 1, 1, 1)), rho=20.0,
                   iterations=20, tolerance=0.0)  # fmt: skip
    assert torch.allclose(plugged.x, straight.x)


def test_data_proximal_block_by_block() -> None:
    space = ImageSpace(["t1", "t2", "flair", "ct", "pet_fdg", "pet_amyloid"], (4, 5), (1.0, 1.0))
    dense, gaussian, y = _gaussian()
    counting, poisson, counts = _poisson()
    ray = Dense(counting.matrix / 10, SHAPE, DATA)
    transmission = TransmissionPoisson(1e3, curvature="paraboloid")
    clean = torch.full((2, *SHAPE), 3.0, dtype=torch.float64)
    operator = BlockDiagonal(space, {"t1": dense, "t2": Identity(SHAPE), "flair": Identity(SHAPE), "ct": ray,
                                     "pet_fdg": counting})  # fmt: skip
    likelihood = BlockLikelihood({"t1": gaussian, "t2": Gaussian(0.0), "flair": Gaussian(0.5), "ct": transmission,
                                  "pet_fdg": poisson})  # fmt: skip
    photons = transmission.sample(ray(clean / 3), torch.Generator().manual_seed(0))
    data = Blocks({"t1": y, "t2": clean, "flair": clean, "ct": photons, "pet_fdg": counts})
    anchor = torch.ones(2, 6, 4, 5, dtype=torch.float64)
    rho = 2.0
    x = data_proximal(operator, likelihood, data, anchor, rho=rho, iterations=1000, tolerance=1e-12)
    assert torch.equal(x[:, 1:2], clean)
    assert torch.allclose(x[:, 2:3], (4 * clean + rho * 1) / (4 + rho))
    assert torch.equal(x[:, 5], anchor[:, 5])
    slope = operator.adjoint(_grads(likelihood, operator(x), data))
    for index in (0, 3, 4):
        kkt = slope[:, index] + rho * (x[:, index] - anchor[:, index])
        assert (kkt * x[:, index]).abs().max() < 1e-4
    varying = data_proximal(operator, likelihood, data, anchor, rho=torch.tensor([1.0, 5.0]), iterations=500)
    assert torch.allclose(varying[1, 2:3], (4 * clean[1] + 5) / 9)
    alone = map_em(counting, poisson, counts[1:], anchor=anchor[1:, 4:5], rho=5.0, iterations=500)
    assert torch.allclose(varying[1:, 4:5], alone)
    with pytest.raises(ValueError, match="rho"):
        data_proximal(operator, likelihood, data, anchor, rho=0.0)
    with pytest.raises(ValueError, match="expected noise"):
        data_proximal(dense, Gaussian(0.0), y, anchor[:, :1], rho=1.0)


def test_a_preconditioned_proximal_map_needs_fewer_iterations_where_pixels_are_trusted_differently() -> None:
    dense, gaussian, y = _gaussian()
    space = ImageSpace(["t1"], (4, 5), (1.0, 1.0))
    problem = BlockDiagonal(space, {"t1": dense}), BlockLikelihood({"t1": gaussian}), Blocks({"t1": y})
    curvature = mean_curvature(*problem)
    exact = float((gaussian.weight(y).flatten()[:, None] * dense.matrix.square()).sum(0).mean())
    assert curvature["t1"].shape == (2,)
    assert 0.3 * exact < float(curvature["t1"].mean()) < 3 * exact  # random signs, few pixels
    generator = torch.Generator().manual_seed(3)
    rho = exact * 10 ** (4 * torch.rand(1, 1, 4, 5, generator=generator, dtype=torch.float64) - 2)
    anchor = torch.rand(2, 1, 4, 5, generator=generator, dtype=torch.float64)

    def solve(iterations: int, **options: object) -> torch.Tensor:
        return data_proximal(*problem, anchor, rho=rho, iterations=iterations, tolerance=1e-12, **options)

    limit = solve(300)
    assert torch.allclose(solve(300, curvature=curvature), limit, atol=1e-8)
    plain, conditioned = ((solve(5, **o) - limit).norm() for o in ({}, {"curvature": curvature}))
    assert conditioned < 0.5 * plain


def _grads(likelihood: BlockLikelihood, z: Blocks, y: Blocks) -> Blocks:
    """Return gradients, leaving out the noiseless block, which has none."""
    return Blocks({n: torch.zeros_like(y[n]) if n == "t2" else likelihood[n].grad(z[n], y[n]) for n in y})


def test_sirt_reaches_the_weighted_least_squares_solution() -> None:
    operator, _, y = _poisson()
    rows = operator(torch.ones(1, *SHAPE, dtype=torch.float64))
    expected = least_squares(operator, y, weight=1 / rows, tolerance=1e-12, max_iterations=500).x
    sizes: list[float] = []
    x = sirt(operator, y, iterations=6000, relaxation=1.5,
             callback=lambda k, x, info: sizes.append(info["residual"].max().item()))  # fmt: skip
    assert torch.allclose(x, expected, atol=1e-3)
    assert sizes[-1] < sizes[0]
    assert (sirt(operator, y, iterations=20, nonnegative=True) >= 0).all()
    space = ImageSpace(["ct_low", "ct_high"], (4, 5), (1.0, 1.0))
    stack = BlockDiagonal(space, {"ct_low": operator})
    assert torch.allclose(sirt(stack, Blocks({"ct_low": y}), iterations=9)[:, :1], sirt(operator, y, iterations=9))
    with pytest.raises(ValueError, match="relaxation"):
        sirt(operator, y, relaxation=2.0)


def test_complex_images() -> None:
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 20, generator=g, dtype=torch.complex128)
    operator, likelihood = Dense(matrix, SHAPE), Gaussian(0.3)
    truth = torch.zeros(1, *SHAPE, dtype=torch.complex128)
    truth[..., 2:] = 1 + 2j
    y = likelihood.sample(operator(truth), g)
    free = fista(operator, likelihood, y, iterations=150)
    assert torch.allclose(free, least_squares(operator, y, tolerance=1e-12).x, atol=1e-5)
    functional = TotalVariation(20.0, tolerance=1e-5)
    result = pdhg(operator, likelihood, y, functional, ratio=100.0, iterations=1000, tolerance=1e-5)
    assert (result.gap <= 1e-5).all()
    assert torch.allclose(result.x, fista(operator, likelihood, y, functional, iterations=80), atol=5e-3)


def test_images_are_decomposed_into_non_negative_materials() -> None:
    mixing = torch.tensor([[0.25, 0.6, 20.0], [0.2, 0.3, 7.0], [0.18, 0.22, 3.0], [0.17, 0.19, 2.0]]).double()
    g = torch.Generator().manual_seed(0)
    noisy = torch.rand(2, 4, 3, 3, generator=g, dtype=torch.float64) - 0.2
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0]).double()
    rho = decompose_images(noisy, mixing, weight=weight)
    root = weight.sqrt()
    for i, j, k in np.ndindex(2, 3, 3):
        expected, _ = nnls((root[:, None] * mixing).numpy(), (root * noisy[i, :, j, k]).numpy())
        assert np.allclose(rho[i, :, j, k].numpy(), expected, atol=1e-9)
    free = decompose_images(noisy, mixing, weight=weight, nonnegative=False)
    plain = lsq_linear((root[:, None] * mixing).numpy(), (root * noisy[0, :, 0, 0]).numpy()).x
    assert np.allclose(free[0, :, 0, 0].numpy(), plain, atol=1e-9)
    with pytest.raises(ValueError, match="mixing"):
        decompose_images(noisy, mixing.T)


def test_counts_are_decomposed_ray_by_ray() -> None:
    energies = torch.linspace(20, 120, 21)
    spectrum = 1e5 * torch.stack([torch.exp(-((energies - c) ** 2) / 300) for c in (40.0, 70.0, 100.0)])
    kappa = torch.stack([0.2 + 60 / energies**1.7, 0.15 + 900 / energies**2.2])
    likelihood = PolyenergeticPoisson(spectrum, kappa, scatter=10.0).double()
    g = torch.Generator().manual_seed(0)
    truth = torch.rand(1, 2, 20, 50, generator=g, dtype=torch.float64) * torch.tensor([20.0, 2.0]).reshape(1, 2, 1, 1)
    exact, _ = decompose_counts(likelihood, likelihood.mean(truth))
    assert torch.allclose(exact, truth, atol=1e-5)
    noisy, information = decompose_counts(likelihood, likelihood.sample(truth, g))
    # standardised errors: an efficient estimator with the information as inverse covariance
    errors = torch.einsum("bmvs,bmnvs,bnvs->bvs", noisy - truth, information, noisy - truth)
    assert errors.mean().item() == pytest.approx(2.0, rel=0.1)
    assert decompose_counts(likelihood.float(), likelihood.mean(truth.float()))[0].dtype is torch.float32


def test_materials_are_reconstructed_in_one_step_from_more_bins_than_materials() -> None:
    energies = torch.linspace(30, 110, 9)
    spectrum = 1e4 * torch.stack([torch.exp(-((energies - c) ** 2) / 300) for c in (40.0, 70.0, 100.0)])
    kappa = torch.stack([0.2 + 60 / energies**1.7, 0.15 + 900 / energies**2.2])
    likelihood = PolyenergeticPoisson(spectrum, kappa).double()
    ray = Dense(nonnegative(30, 20) / 2, SHAPE, DATA)
    operator = SpectralProjector(ray, 2)
    truth = torch.rand(2, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = likelihood.mean(operator(truth))
    values: list[float] = []
    x = separable_surrogate(
        operator, likelihood, y, iterations=300,
        callback=lambda k, v, info: values.append(likelihood.nll(operator(v), y).sum().item()),
    )  # fmt: skip
    assert values[-1] < 1e-3 * values[0]
    fast = fista(operator, likelihood, y, NonNegativity(), iterations=400)
    assert (likelihood.nll(operator(fast), y) < 0.2).all()
    assert (fast - truth).norm() < 0.05 * truth.norm()
    assert (x - truth).norm() < 0.3 * truth.norm()
    with pytest.raises(ValueError, match="y"):
        fista(operator, likelihood, y[:, :2])


def test_gaussian_approximations() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.full((1, 20000), 3.0, dtype=torch.float64)
    for likelihood in (TransmissionPoisson(1e5, 50.0), Poisson(20.0), Gaussian(0.5)):
        predictor = z * 100 if isinstance(likelihood, Poisson) else z
        y = likelihood.sample(predictor, g)
        data, noise = gaussian_approximation(likelihood, y)
        standardised = (data - predictor) / noise.sigma
        assert abs(standardised.mean().item()) < 0.1
        assert standardised.std().item() == pytest.approx(1.0, abs=0.03)
    starved, noise = gaussian_approximation(TransmissionPoisson(1e3), torch.zeros(1, 2))
    assert torch.isfinite(starved).all()
    assert (noise.weight(starved) <= 1e-11).all()
    with pytest.raises(ValueError, match="likelihood"):
        gaussian_approximation(PolyenergeticPoisson(torch.ones(1, 2), torch.ones(1, 2)), torch.ones(1, 1, 2))


def test_solvers_name_bad_arguments() -> None:
    operator, likelihood, y = _gaussian()
    with pytest.raises(ValueError, match="gaussian_approximation"):
        pdhg(operator, TransmissionPoisson(1.0), y)
    with pytest.raises(ValueError, match="x0"):
        fista(operator, likelihood, y, x0=torch.zeros(1, 1, 2, 2))
    scaled = Diagonal(torch.zeros(1, 4, 5, dtype=torch.float64))
    nothing = fista(scaled, Gaussian(1.0), torch.ones(1, 1, 4, 5, dtype=torch.float64), iterations=3)
    assert torch.equal(nothing, torch.zeros_like(nothing))
