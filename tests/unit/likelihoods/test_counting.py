"""Counting likelihoods: gradients, curvatures, conventions, storage."""

from __future__ import annotations

import math

import h5py
import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.likelihoods import (
    BlockLikelihood,
    Gaussian,
    Likelihood,
    Poisson,
    PolyenergeticPoisson,
    TransmissionPoisson,
    log_transform,
)
from multirecon.storage import decode, encode

SHAPE = (2, 1, 3, 4)


def _rand(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=g, dtype=torch.float64)


def _spectrum(bins: int = 3, energies: int = 5) -> torch.Tensor:
    return _rand(bins, energies, seed=5, low=5.0, high=60.0)


CASES: dict[str, tuple[Likelihood, torch.Tensor]] = {
    "poisson": (Poisson(), _rand(*SHAPE, low=0.5, high=20.0)),
    "poisson with background": (Poisson(_rand(1, *SHAPE[1:], seed=1, high=3.0)), _rand(*SHAPE, high=20.0)),
    "poisson fisher": (Poisson(2.0, curvature="fisher"), _rand(*SHAPE, high=20.0)),
    "transmission": (TransmissionPoisson(100.0), _rand(*SHAPE, high=3.0)),
    "transmission with scatter": (TransmissionPoisson(100.0, _rand(*SHAPE, seed=2, high=9.0)), _rand(*SHAPE, high=3.0)),
    "transmission observed": (TransmissionPoisson(100.0, 4.0, curvature="observed"), _rand(*SHAPE, high=3.0)),
    "polyenergetic": (
        PolyenergeticPoisson(_spectrum(), _rand(2, 5, seed=6, low=0.05, high=0.6), scatter=2.0),
        _rand(2, 2, 3, 4, high=3.0),
    ),
    "polyenergetic with a flux map": (
        PolyenergeticPoisson(
            _spectrum(), _rand(2, 5, seed=6, low=0.05, high=0.6), I0=_rand(1, 3, 3, 4, seed=7, low=0.5)
        ),
        _rand(2, 2, 3, 4, high=3.0),
    ),
}


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Likelihood, torch.Tensor, torch.Tensor]:
    likelihood, z = CASES[request.param]
    y = likelihood.sample(z, torch.Generator().manual_seed(3))
    y[:, :, 0, 0] = 0  # an empty bin belongs to every test
    return likelihood, z, y


def test_gradient_agrees_with_finite_differences(case: tuple[Likelihood, torch.Tensor, torch.Tensor]) -> None:
    likelihood, z, y = case
    direction = _rand(*z.shape, seed=9, low=-1.0)
    step = 1e-6
    central = (likelihood.nll(z + step * direction, y) - likelihood.nll(z - step * direction, y)) / (2 * step)
    exact = (likelihood.grad(z, y) * direction).flatten(1).sum(1)
    assert torch.allclose(central, exact, rtol=1e-6, atol=1e-6)


def test_gradient_agrees_with_autograd_and_sums_over_the_batch(
    case: tuple[Likelihood, torch.Tensor, torch.Tensor],
) -> None:
    likelihood, z, y = case
    leaf = z.clone().requires_grad_()
    (auto,) = torch.autograd.grad(likelihood.nll(leaf, y).sum(), leaf)
    assert torch.allclose(auto, likelihood.grad(z, y), rtol=1e-9, atol=1e-9)
    assert likelihood.nll(z, y).shape == (2,)


def test_curvature_is_non_negative_and_right_on_average(case: tuple[Likelihood, torch.Tensor, torch.Tensor]) -> None:
    likelihood, z, _ = case
    ybar = likelihood.mean(z)
    if isinstance(likelihood, PolyenergeticPoisson):
        fisher = likelihood.fisher(z)
        matrices = torch.diag_embed(likelihood.curvature(z, ybar).movedim(1, -1)) - fisher.movedim((1, 2), (-2, -1))
        assert (torch.linalg.eigvalsh(matrices) > -1e-9).all()
        return
    # at y = ybar the second derivative is the Fisher information
    curve = likelihood.curvature(z, ybar)
    step = 1e-5
    numeric = (likelihood.grad(z + step, ybar) - likelihood.grad(z - step, ybar)) / (2 * step)
    assert (curve >= 0).all()
    assert torch.allclose(curve, numeric, rtol=1e-6)


def test_nll_vanishes_at_a_perfect_fit(case: tuple[Likelihood, torch.Tensor, torch.Tensor]) -> None:
    likelihood, z, y = case
    assert (likelihood.nll(z, likelihood.mean(z)).abs() < 1e-9).all()
    assert (likelihood.nll(z, y) > 0).all()


def test_storage_round_trip(case: tuple[Likelihood, torch.Tensor, torch.Tensor], tmp_path: object) -> None:
    likelihood, z, y = case
    with h5py.File(f"{tmp_path}/likelihood.h5", "w") as file:
        encode(file.create_group("l"), likelihood)
        again = decode(file["l"])
    assert isinstance(again, type(likelihood))
    assert torch.equal(again.nll(z, y), likelihood.nll(z, y))
    assert torch.equal(again.curvature(z, y), likelihood.curvature(z, y))


def test_samples_and_join_are_inverse(case: tuple[Likelihood, torch.Tensor, torch.Tensor]) -> None:
    likelihood, z, y = case
    parts = [likelihood.samples(i, i + 1) for i in range(2)]
    for i, part in enumerate(parts):
        assert torch.allclose(part.nll(z[i : i + 1], y[i : i + 1]), likelihood.nll(z, y)[i : i + 1])
    assert torch.allclose(parts[0].join(parts).grad(z, y), likelihood.grad(z, y))


def test_subset_takes_interleaved_views(case: tuple[Likelihood, torch.Tensor, torch.Tensor]) -> None:
    likelihood, z, y = case
    parts = [likelihood.subset(i, 3) for i in range(3)]  # type: ignore[attr-defined]
    total = sum(p.nll(z[..., i::3, :], y[..., i::3, :]) for i, p in enumerate(parts))
    assert torch.allclose(total, likelihood.nll(z, y))


def test_sampling_is_seeded_and_independent_of_the_batch(case: tuple[Likelihood, torch.Tensor, torch.Tensor]) -> None:
    likelihood, z, _ = case
    first = likelihood.sample(z, torch.Generator().manual_seed(1))
    assert torch.equal(first, likelihood.sample(z, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, likelihood.sample(z, torch.Generator().manual_seed(2)))
    alone = likelihood.samples(0, 1).sample(z[:1], torch.Generator().manual_seed(1))
    assert torch.equal(first[:1], alone)


def test_empty_bins_follow_zero_log_zero() -> None:
    z = torch.zeros(1, 2, requires_grad=True)
    y = torch.zeros(1, 2)
    likelihood = Poisson()
    value = likelihood.nll(z, y)
    (auto,) = torch.autograd.grad(value.sum(), z)
    assert value.item() == 0
    assert torch.equal(auto, torch.ones(1, 2))
    assert torch.equal(likelihood.grad(z, y), torch.ones(1, 2))
    assert torch.isfinite(likelihood.curvature(z, y)).all()
    # counts where none can be: infinitely unlikely, and the slope points to larger means
    assert likelihood.nll(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 1.0]])).item() == math.inf
    assert likelihood.grad(torch.tensor([[-1.0]]), torch.tensor([[2.0]])).item() == -math.inf


def test_float32_deviance_is_accurate_at_high_counts() -> None:
    y = _rand(1, 1000, low=0.9e6, high=1.1e6).round()
    z = y + y.sqrt() * torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    exact = Poisson().nll(z, y).item()
    single = Poisson().nll(z.float(), y.float()).item()
    assert abs(single - exact) < 2e-3 * exact


def test_paraboloid_lies_above_the_transmission_likelihood() -> None:
    likelihood = TransmissionPoisson(50.0, 5.0, curvature="paraboloid")
    z = torch.linspace(0, 6, 40, dtype=torch.float64).reshape(-1, 1)
    other = torch.linspace(0, 8, 60, dtype=torch.float64)
    for count in (0.0, 3.0, 20.0, 80.0):
        y = torch.full_like(z, count)
        base, slope, curve = likelihood.nll(z, y), likelihood.grad(z, y), likelihood.curvature(z, y)
        values = likelihood.nll(other.reshape(-1, 1), torch.full((60, 1), count, dtype=torch.float64))
        move = other - z
        surrogate = base[:, None] + slope * move + curve / 2 * move**2
        assert (surrogate - values >= -1e-9).all()
    one_sided = likelihood.curvature(torch.tensor([[1e-6, 2e-4]], dtype=torch.float64), torch.full((1, 2), 20.0))
    assert torch.allclose(one_sided[0, 0], one_sided[0, 1], rtol=1e-3)


def test_polyenergetic_with_one_energy_is_transmission() -> None:
    z = _rand(2, 1, 3, 4, high=3.0)
    kappa = 0.3
    poly = PolyenergeticPoisson(torch.tensor([[500.0]]), torch.tensor([[kappa]]), scatter=1.0).double()
    mono = TransmissionPoisson(500.0, 1.0).double()
    y = mono.sample(kappa * z, torch.Generator().manual_seed(0))
    kappa = poly.attenuation.item()
    assert torch.allclose(poly.nll(z, y), mono.nll(kappa * z, y))
    assert torch.allclose(poly.grad(z, y), kappa * mono.grad(kappa * z, y))
    assert torch.allclose(poly.curvature(z, y), kappa**2 * mono.curvature(kappa * z, y))


def test_polyenergetic_jacobian() -> None:
    likelihood, z = CASES["polyenergetic with a flux map"]
    assert isinstance(likelihood, PolyenergeticPoisson)
    jacobian = likelihood.jacobian(z)
    step = 1e-6
    for m in range(2):
        shift = torch.zeros_like(z)
        shift[:, m] = step
        numeric = (likelihood.mean(z + shift) - likelihood.mean(z - shift)) / (2 * step)
        assert torch.allclose(jacobian[:, :, m], numeric, rtol=1e-6)


def test_log_transform_inverts_the_mean_and_predicts_the_variance() -> None:
    z = torch.full((1, 20000), 2.0, dtype=torch.float64)
    likelihood = TransmissionPoisson(1e5, 300.0)
    b, w = log_transform(likelihood.mean(z), 1e5, 300.0)
    assert torch.allclose(b, z)
    y = likelihood.sample(z, torch.Generator().manual_seed(0))
    noisy, _ = log_transform(y, 1e5, 300.0)
    assert abs(noisy.var().item() * w[0, 0].item() - 1) < 0.03
    assert torch.allclose(likelihood.weight(y), log_transform(y, 1e5, 300.0)[1])
    starved = log_transform(torch.tensor([[0.0, 299.0]]), 1e5, 300.0)
    assert torch.isfinite(starved[0]).all()
    assert starved[1].tolist() == [[0.0, 0.0]]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="background"):
        Poisson(-1.0)
    with pytest.raises(ValueError, match="background"):
        Poisson(torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="I0"):
        TransmissionPoisson(0.0)
    with pytest.raises(ValueError, match="scatter"):
        TransmissionPoisson(1.0, -1.0)
    with pytest.raises(ValueError, match="curvature"):
        Poisson(curvature="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="spectrum and attenuation"):
        PolyenergeticPoisson(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="materials"):
        PolyenergeticPoisson(torch.ones(2, 3), torch.ones(2, 3)).mean(torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="mean counts"):
        Poisson().sample(torch.tensor([[-1.0]]), torch.Generator())
    one, two = (PolyenergeticPoisson(v * torch.ones(1, 3), torch.ones(2, 3)) for v in (1.0, 2.0))
    with pytest.raises(ValueError, match="spectrum"):
        one.join([one, two])


def test_blocks_add_up() -> None:
    likelihood = BlockLikelihood({"pet_fdg": Poisson(1.0), "t1": Gaussian(0.5)})
    z = Blocks({"pet_fdg": torch.ones(2, 3), "t1": torch.zeros(2, 4)})
    y = likelihood.sample(z, torch.Generator().manual_seed(0))
    expected = likelihood["pet_fdg"].nll(z["pet_fdg"], y["pet_fdg"]) + likelihood["t1"].nll(z["t1"], y["t1"])
    assert torch.allclose(likelihood.nll(z, y), expected)
