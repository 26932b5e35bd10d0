"""Our operators and measurements under deepinv, and our solvers against deepinv's."""

from __future__ import annotations

import deepinv
import pytest
import torch
from deepinv.optim import ADMM as DeepinvADMM
from deepinv.optim import L2, PGD, TVPrior
from deepinv.optim.linear import conjugate_gradient as deepinv_cg
from deepinv.sampling import DPS, DiffPIR

from multirecon.blocks import Blocks
from multirecon.functionals import RelativeDifference, TotalVariation, bowsher_weights, half_neighbourhood
from multirecon.interop.deepinv import (
    FlatOperator,
    LikelihoodFidelity,
    OperatorPhysics,
    as_data,
    as_fidelity,
    as_physics,
)
from multirecon.likelihoods import BlockLikelihood, Gaussian, Poisson, PolyenergeticPoisson, TransmissionPoisson
from multirecon.measurement import Measurement
from multirecon.operators import (
    BlockDiagonal,
    Identity,
    LinearOperator,
    MaskedFourier,
    ParallelBeam,
    check_operator,
    equispaced_mask,
)
from multirecon.solvers import conjugate_gradient, fista, least_squares, mlem, sirt
from multirecon.space import ImageSpace

N = 16


def _maps() -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(3, N, N, generator=g, dtype=torch.complex64)
    return maps / maps.abs().square().sum(0, keepdim=True).sqrt()


def _operators() -> dict[str, LinearOperator]:
    mask = equispaced_mask((N, N), 2, center_lines=4)
    return {
        "t1": MaskedFourier(mask, _maps()),
        "t2": Identity((1, N, N)),
        "ct": ParallelBeam((N, N), (10.0, 10.0), views=20, bins=23),
        "pet_fdg": ParallelBeam((N, N), (10.0, 10.0), views=12, bins=23),
    }


def _truth(batch: int = 1) -> torch.Tensor:
    x = torch.zeros(batch, 5, N, N)
    x[:, :, 4:12, 3:13] = 0.5
    x[:, :, 6:9, 5:9] = 1.0
    x[:, 3] *= 0.2
    x[:, 4] *= 20.0
    return x


def _measurement(batch: int = 1) -> Measurement:
    space = ImageSpace(["t1", "t2", "flair", "ct", "pet_fdg"], (N, N), (10.0, 10.0))
    operator = BlockDiagonal(space, _operators())
    likelihood = BlockLikelihood({"t1": Gaussian(0.02), "t2": Gaussian(0.0), "ct": TransmissionPoisson(1e5, 10.0),
                                  "pet_fdg": Poisson(3.0)})  # fmt: skip
    y = likelihood.sample(operator(_truth(batch)), torch.Generator().manual_seed(1))
    return Measurement(y, operator, likelihood)


class GaussianPrior(deepinv.models.Denoiser):
    """The exact denoiser of independent normal pixels of mean 1/2 and standard deviation 1/2 (a linear map)."""

    def forward(self, x: torch.Tensor, sigma: float | torch.Tensor, **kwargs: object) -> torch.Tensor:
        variance = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return 0.5 + 0.25 / (0.25 + variance) * (x - 0.5)


@pytest.mark.parametrize("name", _operators())
def test_flat_view_of_an_operator_keeps_the_contract(name: str) -> None:
    operator = FlatOperator(_operators()[name], {"": torch.linspace(0.5, 2, _operators()[name].range_shape[-1])})
    check_operator(operator, tolerance=1e-5)


def test_flat_view_of_a_stack_keeps_the_contract_and_round_trips() -> None:
    measurement = _measurement(2)
    physics = as_physics(measurement)
    check_operator(physics.operator, tolerance=1e-5, batched=False)  # its scales belong to two samples
    assert physics.operator.norm() > 0
    parts = physics.operator.unflatten(physics.operator.flatten(measurement.y))
    assert all(torch.equal(parts[n], measurement.y[n]) for n in measurement.available)
    x = torch.randn(2, 5, N, N, generator=torch.Generator().manual_seed(2))
    assert physics.adjointness_test(x).abs() < 1e-3 * x.norm() ** 2
    assert physics.A(x).shape == as_data(measurement).shape


def test_whitened_data_have_unit_noise() -> None:
    measurement = _measurement()
    sampled = as_physics(measurement.restrict(["t1", "ct", "pet_fdg"]))
    data = as_data(measurement.restrict(["t1", "ct", "pet_fdg"]))
    residual = data - sampled.A(_truth())
    drawn = residual[residual != 0]  # k-space outside the mask is zero on both sides
    assert drawn.std().item() == pytest.approx(1.0, abs=0.07)


def test_plain_operator_under_deepinv_keeps_the_shape_of_its_data() -> None:
    beam = _operators()["ct"]
    physics = as_physics(beam, view="stacked")
    x = _truth()[:, 3:4]
    y = physics(x)
    assert y.shape == (1, 1, 20, 23)
    ours = least_squares(beam, y, damping=0.1, max_iterations=200).x
    theirs = physics.prox_l2(torch.zeros_like(x), y, 10.0, solver="CG", max_iter=300, tol=1e-6)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_conjugate_gradients_agree_with_deepinv() -> None:
    beam = _operators()["ct"].double()
    b = beam.adjoint(beam(_truth(2)[:, 3:4].double()))
    b[1] *= 3
    ours = conjugate_gradient(beam.gram, b, damping=0.5, tolerance=1e-10, max_iterations=400)
    theirs = deepinv_cg(lambda v: beam.gram(v) + 0.5 * v, b, max_iter=400, tol=1e-10)
    assert (ours.x - theirs).norm() < 1e-3 * theirs.norm()


def test_deepinv_pgd_and_admm_on_the_flat_view_reach_our_objective() -> None:
    measurement = _measurement().restrict(["t1", "t2"]).embed(_measurement().space)
    physics, data = as_physics(measurement, clean_sigma=0.02), as_data(measurement, clean_sigma=0.02)
    weight, norm = 5.0, physics.operator.norm() ** 2
    functional = TotalVariation(weight, tolerance=1e-7)
    ours = fista(physics.operator, Gaussian(1.0), data, functional, iterations=120)

    def objective(x: torch.Tensor) -> float:
        return float(Gaussian(1.0).nll(physics.A(x), data) + functional.value(x))

    prior = TVPrior(def_crit=1e-6, n_it_max=50)
    shared = {"data_fidelity": L2(), "prior": prior, "early_stop": False}
    gradient = PGD(**shared, lambda_reg=weight, stepsize=0.9 / norm, max_iter=100)(data, physics)
    split = DeepinvADMM(**shared, lambda_reg=weight, stepsize=30.0 / norm, max_iter=40)(data, physics)
    best = objective(ours)
    for guest in (gradient, split):
        assert best <= objective(guest) <= best * 1.01
        assert (guest[:, :2] - ours[:, :2]).norm() < 0.02 * ours.norm()


def test_deepinv_pgd_on_the_stacked_view_uses_the_exact_likelihoods() -> None:
    measurement = _measurement().restrict(["pet_fdg"])
    physics, data = as_physics(measurement, view="stacked"), as_data(measurement, view="stacked")
    fidelity = as_fidelity(measurement)
    x = torch.rand(1, 5, N, N, generator=torch.Generator().manual_seed(0)) + 1
    assert torch.allclose(fidelity.fn(x, data, physics), measurement.data_fidelity(x))
    assert torch.allclose(fidelity.grad(x, data, physics), measurement.data_gradient(x), rtol=1e-4, atol=1e-4)
    ours = fista(measurement.operator, measurement.likelihood, measurement.y, iterations=300)
    one = torch.ones(1, 5, N, N)
    theirs = PGD(data_fidelity=fidelity, prior=deepinv.optim.ZeroPrior(), stepsize=2e-2, max_iter=300,
                 custom_init=lambda y, p: {"est": (one, one)})(data, physics)  # fmt: skip
    start = measurement.data_fidelity(one).item()
    best = measurement.data_fidelity(ours).item()
    assert best - 1e-3 <= measurement.data_fidelity(theirs).item() < best + 0.05 * (start - best)


def test_deepinv_dps_runs_on_the_flat_view_and_is_guided_by_the_data() -> None:
    measurement = _measurement().restrict(["t1", "t2", "ct"])
    physics, data = as_physics(measurement, clean_sigma=0.05), as_data(measurement, clean_sigma=0.05)
    draws = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        sampler = DPS(GaussianPrior(), num_steps=60, weight=weight, dtype=torch.float32,
                      rng=torch.Generator().manual_seed(0))  # fmt: skip
        draws[weight] = sampler(data, physics, x_init=(1, 5, N, N))
    misfit = {w: float((physics.A(x) - data).norm()) for w, x in draws.items()}
    assert torch.isfinite(draws[1.0]).all()
    assert misfit[1.0] < 0.5 * misfit[0.0]


def test_deepinv_diffpir_runs_on_the_flat_view() -> None:
    measurement = _measurement().restrict(["t1", "t2"])
    physics = as_physics(measurement, clean_sigma=0.02, solver="CG", max_iter=50)
    data = as_data(measurement, clean_sigma=0.02)
    torch.manual_seed(0)
    x = DiffPIR(GaussianPrior(), L2(), sigma=1.0, max_iter=20)(data, physics, x_init=torch.rand(1, 5, N, N))
    truth = _truth()
    for channel, bound in ((0, 0.15), (1, 0.1)):
        assert (x[:, channel] - truth[:, channel]).norm() < bound * truth[:, channel].norm()


def test_total_variation_and_relative_difference_agree_with_deepinv() -> None:
    x = torch.rand(2, 1, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = TVPrior(def_crit=1e-9, n_it_max=1000)
    assert torch.allclose(TotalVariation().value(x), theirs.fn(x).flatten())
    ours = TotalVariation(tolerance=1e-9, max_iterations=3000).prox(x, 0.2)
    assert torch.allclose(ours, theirs.prox(x, gamma=0.2), atol=1e-4)
    sides = torch.stack([torch.ones_like(x[:1]) * (sum(map(abs, o)) == 1) / 2 for o in half_neighbourhood(2)])
    mine = RelativeDifference(gamma=2.0, eps=1e-12, pair_weights=sides)
    assert torch.allclose(mine.value(x), deepinv.optim.prior.RDP(gamma=2.0).fn(x))
    assert torch.allclose(mine.grad(x), deepinv.optim.prior.RDP(gamma=2.0).grad(x))
    assert bowsher_weights(x[:1]).shape == sides.shape


def test_mlem_and_sirt_agree_with_deepinv_where_its_model_is_right() -> None:
    beam = _operators()["pet_fdg"]
    y = torch.poisson(beam(_truth()[:, 4:]), generator=torch.Generator().manual_seed(0))
    physics = as_physics(beam, view="stacked")
    start = torch.ones(1, 1, N, N)
    theirs = deepinv.optim.MLEM(data_fidelity=deepinv.optim.PoissonLikelihood(gain=1.0, bkg=0.0, denormalize=False),
                                max_iter=20, custom_init=lambda y, p: {"est": (start, start)})(y, physics)  # fmt: skip
    ours = mlem(beam, Poisson(), y, x0=start, iterations=20)
    seen = beam.adjoint(torch.ones_like(y)) > 0
    assert torch.allclose(theirs[seen], ours[seen], rtol=2e-3, atol=2e-2)
    theirs = deepinv.optim.SIRT(data_fidelity=L2(), max_iter=20, custom_init=lambda y, p: {
        "est": (torch.zeros_like(start), torch.zeros_like(start))})(y, physics)  # fmt: skip
    assert torch.allclose(theirs, sirt(beam, y, iterations=20), rtol=1e-3, atol=1e-3)


def test_likelihood_fidelity_of_a_polyenergetic_scan() -> None:
    likelihood = PolyenergeticPoisson(
        100 * torch.ones(2, 3), torch.rand(1, 3, generator=torch.Generator().manual_seed(0))
    )
    beam = _operators()["ct"]
    physics, fidelity = OperatorPhysics(beam), LikelihoodFidelity(likelihood)
    x = _truth()[:, 3:4]
    y = likelihood.mean(beam(x))
    assert fidelity.fn(x, y, physics).abs().max() < 1e-2
    assert torch.allclose(fidelity.grad(x / 2, y, physics), beam.adjoint(likelihood.grad(beam(x / 2), y)))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="view"):
        as_physics(Identity((1, 2, 2)), view="diagonal")  # type: ignore[arg-type]
    space = ImageSpace(["ct"], (N, N), (10.0, 10.0))
    beam = _operators()["ct"]
    likelihood = PolyenergeticPoisson(torch.ones(1, 3), torch.ones(1, 3))
    measurement = Measurement(Blocks({"ct": torch.ones(1, 1, 20, 23)}), BlockDiagonal(space, {"ct": beam}),
                              BlockLikelihood({"ct": likelihood}))  # fmt: skip
    with pytest.raises(ValueError, match="Gaussian approximation"):
        as_physics(measurement)
