"""Iterative reconstruction of simulated scans: absolute values, semi-convergence, bias of what not to do."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from multirecon.functionals import RelativeDifference, TotalVariation
from multirecon.likelihoods import Poisson, PolyenergeticPoisson, TransmissionPoisson, gaussian_approximation
from multirecon.operators import ParallelBeam, PETProjector, SpectralProjector, effective_attenuation
from multirecon.operators.materials import energy_bins, mass_attenuation, tube_spectrum
from multirecon.solvers import (
    bsrem,
    decompose_counts,
    decompose_images,
    least_squares,
    mlem,
    osem,
    pdhg,
    separable_surrogate,
    sirt,
)
from multirecon.units import attenuation_to_hu, hu_to_attenuation

N, PIXEL = 32, 6.0  # mm


def _disc(row: float, column: float, radius: float) -> torch.Tensor:
    """Return a disc in units of the half width, softened over one pixel."""
    axis = (torch.arange(N) - (N - 1) / 2) / (N / 2)
    distance = ((axis[:, None] - row) ** 2 + (axis[None] - column) ** 2).sqrt()
    return ((radius - distance) * N / 2 + 0.5).clamp(0, 1).reshape(1, 1, N, N)


def _activity() -> torch.Tensor:
    """Return a head of 5 kBq/mL with a hot (20) and a cold (0) spot."""
    return 5 * _disc(0, 0, 0.8) + 15 * _disc(-0.2, 0.3, 0.2) - 5 * _disc(0.3, -0.25, 0.2)


def _pet(scale: float = 50.0) -> tuple[PETProjector, Poisson]:
    mu = 0.096 * _disc(0, 0, 0.85)[0, 0]
    projector = PETProjector((N, N), (PIXEL, PIXEL), views=60, bins=47, attenuation=mu, efficiency=scale)
    trues = projector(_activity())
    return projector, Poisson(trues.mean() * torch.ones(1, *projector.range_shape))  # half the prompts are background


def _error(x: torch.Tensor, truth: torch.Tensor) -> float:
    return float((x - truth).norm() / truth.norm())


def test_noiseless_activity_is_recovered_in_absolute_units() -> None:
    projector, likelihood = _pet()
    y = likelihood.mean(projector(_activity()))
    x = osem(projector, likelihood, y, subsets=6, iterations=40)
    inside = _disc(0, 0, 0.6) == 1
    assert _error(x, _activity()) < 0.06
    assert (x[inside].mean() / _activity()[inside].mean()).item() == pytest.approx(1.0, abs=3e-3)
    assert x[_disc(-0.2, 0.3, 0.1) == 1].mean().item() == pytest.approx(20.0, rel=0.02)
    assert x[_disc(0.3, -0.25, 0.1) == 1].mean().item() < 0.5


def test_counts_are_kept_without_background() -> None:
    projector, _ = _pet()
    y = Poisson().sample(projector(_activity()), torch.Generator().manual_seed(0))
    sensitivity = projector.adjoint(torch.ones_like(y))
    totals: list[float] = []
    mlem(projector, Poisson(), y, iterations=5,
         callback=lambda k, x, info: totals.append(float((sensitivity * x).sum(dtype=torch.float64))))  # fmt: skip
    assert totals == pytest.approx([float(y.sum(dtype=torch.float64))] * 5, rel=1e-5)


def test_mlem_semi_converges_and_osem_is_about_as_many_times_faster_as_it_has_subsets() -> None:
    projector, likelihood = _pet(scale=1.0)
    y = likelihood.sample(projector(_activity()), torch.Generator().manual_seed(0))
    errors: list[float] = []
    fits: list[float] = []

    def watch(iteration: int, x: torch.Tensor, info: dict[str, object]) -> None:
        errors.append(_error(x, _activity()))
        fits.append(likelihood.nll(projector(x), y).item())

    mlem(projector, likelihood, y, iterations=150, callback=watch)
    best = errors.index(min(errors))
    assert 3 < best < 100
    assert errors[-1] > 1.1 * errors[best]  # it rises again while the likelihood still improves
    assert errors[0] > 1.1 * errors[best]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(fits))
    fast = osem(projector, likelihood, y, subsets=6, iterations=4)
    assert fits[15] > likelihood.nll(projector(fast), y).item() * (1 - 0.02)


def test_a_penalty_beats_the_unpenalised_likelihood_and_ignoring_the_background_biases() -> None:
    projector, likelihood = _pet(scale=1.0)
    y = likelihood.sample(projector(_activity()), torch.Generator().manual_seed(0))
    plain = mlem(projector, likelihood, y, iterations=150)
    penalised = bsrem(projector, likelihood, y, RelativeDifference(0.3, eps=1e-2), subsets=6, iterations=15)
    variational = pdhg(
        projector, likelihood, y, TotalVariation(0.6), nonnegative=True, iterations=400, tolerance=1e-3
    ).x
    assert _error(penalised, _activity()) < 0.8 * _error(plain, _activity())
    assert _error(variational, _activity()) < 0.8 * _error(plain, _activity())
    inside = _disc(0, 0, 0.6) == 1
    ratio = [float(x[inside].mean() / _activity()[inside].mean()) for x in (penalised, mlem(projector, Poisson(), y))]
    assert ratio[0] == pytest.approx(1.0, abs=0.05)
    assert ratio[1] > 1.3  # a forgotten background is not a detail


def test_noiseless_attenuation_is_recovered_in_hounsfield_units() -> None:
    hu = -1000 * (1 - _disc(0, 0, 0.8)) + 300 * _disc(0.2, 0.2, 0.25) - 100 * _disc(-0.3, 0, 0.2)
    beam = ParallelBeam((N, N), (PIXEL, PIXEL), views=60, bins=47)
    likelihood = TransmissionPoisson(1e5, 20.0)
    y = likelihood.mean(beam(hu_to_attenuation(hu)))
    integrals, noise = gaussian_approximation(likelihood, y)
    weighted = least_squares(beam, integrals, weight=noise.weight(integrals), max_iterations=300, tolerance=1e-7).x
    simultaneous = sirt(beam, integrals, iterations=400, relaxation=1.8)
    for x, bound in ((weighted, 3.0), (simultaneous, 25.0)):
        values = attenuation_to_hu(x)
        for region, value in ((_disc(0.2, 0.2, 0.1), 300.0), (_disc(-0.3, 0, 0.08), -100.0)):
            assert values[region == 1].mean().item() == pytest.approx(value, abs=bound)


def test_statistical_weights_help_at_low_dose() -> None:
    mu = 0.19 * _disc(0, 0, 0.8) + 0.25 * (_disc(0, 0.45, 0.15) + _disc(0, -0.45, 0.15))
    beam = ParallelBeam((N, N), (PIXEL, PIXEL), views=60, bins=47)
    likelihood = TransmissionPoisson(500.0, 1.0, curvature="paraboloid")
    y = likelihood.sample(beam(mu), torch.Generator().manual_seed(0))
    integrals, noise = gaussian_approximation(likelihood, y)
    flat = least_squares(beam, integrals, damping=1.0, max_iterations=60).x
    weight = noise.weight(integrals)
    weighted = least_squares(beam, integrals, weight=weight, damping=weight.mean().item(), max_iterations=100).x
    exact = separable_surrogate(
        beam, likelihood, y, anchor=weighted.clamp_min(0), rho=weight.mean().item(), iterations=60
    )
    assert _error(weighted, mu) < 0.9 * _error(flat, mu)
    assert _error(exact, mu) < 0.9 * _error(flat, mu)


def test_both_material_decompositions_recover_densities() -> None:
    """Photon-counting scan of water with bone and iodine-free inserts: projection and image domain, in g/cm^3."""
    rho = torch.cat([_disc(0, 0, 0.8) * (1 - 0.3 * _disc(0.2, 0.2, 0.25)), 0.8 * _disc(0.2, 0.2, 0.25)], dim=1)
    energies = torch.arange(25.0, 121.0, 5.0)
    spectrum = 1e6 * energy_bins(energies, [25.0, 50.0, 80.0], resolution_kev=3.0) * tube_spectrum(energies, 120.0)
    kappa = mass_attenuation(["water", "bone"], energies)
    likelihood = PolyenergeticPoisson(spectrum, kappa)
    beam = ParallelBeam((N, N), (PIXEL, PIXEL), views=60, bins=47)
    y = likelihood.mean(SpectralProjector(beam, 2)(rho))
    integrals, _ = decompose_counts(likelihood.double(), y.double())
    by_ray = least_squares(SpectralProjector(beam, 2), integrals.float(), max_iterations=200).x
    air = likelihood.mean(torch.zeros(1, 2, 1, 1, dtype=torch.float64)).float()
    bins = least_squares(SpectralProjector(beam, 3), torch.log(air / y), max_iterations=200).x
    typical = torch.tensor([0.8 * N * PIXEL / 10 * 0.8, 1.0])
    by_voxel = decompose_images(bins, effective_attenuation(spectrum, kappa, path=typical))
    for material, region, value in ((0, _disc(-0.3, -0.3, 0.15), 1.0), (0, _disc(0.2, 0.2, 0.1), 0.7),
                                    (1, _disc(0.2, 0.2, 0.1), 0.8)):  # fmt: skip
        inside = region[0, 0] == 1
        assert by_ray[0, material][inside].mean().item() == pytest.approx(value, abs=0.01)
        # beam hardening within a bin is what the image domain cannot undo
        assert by_voxel[0, material][inside].mean().item() == pytest.approx(value, abs=0.1)
