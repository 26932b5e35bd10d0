"""Statistics of the simulated counts: moments, deviance at the truth, information."""

from __future__ import annotations

import pytest
import torch

from multirecon.likelihoods import Gaussian, Likelihood, Poisson, PolyenergeticPoisson, TransmissionPoisson

DRAWS = 10_000


def _cases() -> dict[str, tuple[Likelihood, torch.Tensor]]:
    counts = torch.tensor([0.5, 3.0, 30.0, 1e4], dtype=torch.float64)
    integrals = torch.tensor([0.0, 1.0, 4.0, 7.0], dtype=torch.float64)
    spectrum = torch.tensor([[300.0, 500.0, 100.0], [50.0, 400.0, 600.0]], dtype=torch.float64)
    kappa = torch.tensor([[0.27, 0.21, 0.17], [0.67, 0.32, 0.19]], dtype=torch.float64)
    densities = torch.tensor([[0.0, 5.0], [20.0, 1.0]], dtype=torch.float64)
    return {
        "poisson": (Poisson(2.0), counts.reshape(1, 1, 4)),
        "transmission": (TransmissionPoisson(2e4, 10.0), integrals.reshape(1, 1, 4)),
        "polyenergetic": (PolyenergeticPoisson(spectrum, kappa, scatter=5.0), densities.reshape(1, 2, 2)),
        "gaussian": (Gaussian(0.7), counts.reshape(1, 1, 4)),
    }


@pytest.mark.parametrize("name", _cases())
def test_mean_and_variance_of_ten_thousand_draws(name: str) -> None:
    likelihood, z = _cases()[name]
    y = likelihood.sample(z.expand(DRAWS, *z.shape[1:]), torch.Generator().manual_seed(0))
    mean = likelihood.mean(z)[0]
    variance = torch.full_like(mean, 0.49) if name == "gaussian" else mean
    # five standard errors; the fourth central moment of a Poisson variable is m + 3 m^2
    assert ((y.mean(0) - mean).abs() < 5 * (variance / DRAWS).sqrt()).all()
    fourth = 3 * variance**2 + (0 if name == "gaussian" else variance)
    assert ((y.var(0) - variance).abs() < 5 * ((fourth - variance**2) / DRAWS).sqrt()).all()


@pytest.mark.parametrize("counts", [50.0, 500.0, 1e5])
def test_poisson_deviance_at_the_truth_is_one(counts: float) -> None:
    z = torch.full((1, 40_000), counts)
    y = Poisson(10.0).sample(z, torch.Generator().manual_seed(1))
    deviance = 2 * Poisson(10.0).nll(z, y).item() / z.numel()
    assert abs(deviance - 1) < 0.02


def test_transmission_deviance_at_the_truth_is_one() -> None:
    z = torch.linspace(0, 5, 40_000).reshape(1, -1)
    likelihood = TransmissionPoisson(1e5, 100.0)
    y = likelihood.sample(z, torch.Generator().manual_seed(2))
    assert abs(2 * likelihood.nll(z, y).item() / z.numel() - 1) < 0.02


@pytest.mark.parametrize("name", ["poisson", "transmission", "polyenergetic"])
def test_fisher_information_is_the_covariance_of_the_score(name: str) -> None:
    likelihood, z = _cases()[name]
    wide = z.expand(40_000, *z.shape[1:])
    y = likelihood.sample(wide, torch.Generator().manual_seed(3))
    score = likelihood.grad(wide, y)
    if isinstance(likelihood, PolyenergeticPoisson):
        information = likelihood.fisher(z)[0]
        measured = torch.einsum("bmi,bni->mni", score, score) / len(wide)
        assert torch.allclose(measured, information, rtol=0.05, atol=0.02 * information.max().item())
    else:
        fisher = Poisson(2.0, curvature="fisher") if name == "poisson" else likelihood
        assert torch.allclose(score.var(0), fisher.curvature(z, z)[0], rtol=0.05)
    assert (score.mean(0).abs() < 5 * score.std(0) / len(wide) ** 0.5).all()
