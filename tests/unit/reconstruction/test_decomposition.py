"""Two-step decomposition and the likelihood behind several materials: closed forms and the checklist of the method."""

import pytest
import torch

from multirecon.acquisition import Acquisition, PolyenergeticCT
from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, PolyenergeticPoisson, TransmissionPoisson
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, ParallelBeam, SpectralProjector, mass_attenuation
from multirecon.priors import DiffusionPrior, IntensityScaling, NoiseSchedule, Parametrisation
from multirecon.reconstruction import (
    Capability,
    ImageDomainDecomposition,
    PosteriorSampling,
    ProjectionDomainDecomposition,
    Reconstructor,
    Tuning,
)
from multirecon.reconstruction.decomposition import material_integrals, single_energies
from multirecon.reconstruction.misfit import Misfit
from multirecon.reconstruction.tuning import block_kind
from multirecon.solvers import least_squares
from multirecon.space import ImageSpace

SHAPE = (16, 16)
ENERGIES = [44.0, 64.0, 92.0]


def stack(name, channels):
    return ImageSpace([{"name": name, "channels": channels, "scale": 1.0}], SHAPE, (4.0, 4.0))


def beam(channels):
    return SpectralProjector(ParallelBeam(SHAPE, (4.0, 4.0), views=40, bins=24, bin_spacing_mm=4.0), channels)


def densities(batch=1):
    """A disc of water with a ring of bone."""
    axis = torch.arange(16.0) - 7.5
    radius = (axis[:, None] ** 2 + axis**2).sqrt()
    water = (radius < 6).float() - 0.7 * ((radius > 4) & (radius < 5.5)).float()
    bone = 1.2 * ((radius > 4) & (radius < 5.5)).float()
    return torch.stack([water, bone])[None].repeat(batch, 1, 1, 1)


def single_energy_likelihood(counts, energies=ENERGIES):
    """Bins that each hold one energy: the Beer-Lambert law holds in every one of them."""
    return PolyenergeticPoisson(counts * torch.eye(len(energies)), mass_attenuation(["water", "bone"], energies))


def scan(likelihood, rho, noise=False):
    operator = beam(2)
    z = operator(rho)
    y = likelihood.sample(z, torch.Generator().manual_seed(0)) if noise else likelihood.mean(z)
    space = stack("materials", 2)
    return Measurement(
        Blocks({"materials": y}),
        BlockDiagonal(space, {"materials": operator}),
        BlockLikelihood({"materials": likelihood}),
    )


class LeastSquares(Reconstructor):
    """A stand-in for the sampler that has no prior: what remains is the decomposition."""

    capability = Capability(ndim=frozenset({2}), shape=SHAPE)

    def reconstruct(self, measurement, network, *, generator, callback):
        (name,) = measurement.available
        likelihood, y = measurement.likelihood[name], measurement.y[name]
        if isinstance(likelihood, TransmissionPoisson):
            y = torch.log(likelihood.I0 / (y - likelihood.scatter))
        return least_squares(measurement.operator[name], y, max_iterations=200, tolerance=1e-8).x


def test_two_steps_recover_densities_from_noiseless_data_to_one_per_cent():
    rho = densities()
    measurement = scan(single_energy_likelihood(1e5), rho)
    by_image = ImageDomainDecomposition(LeastSquares(), bins=stack("ct_bins", 3), energies_kev=ENERGIES)
    by_projection = ProjectionDomainDecomposition(LeastSquares())
    for method in (by_image, by_projection):
        found = method(measurement, None).as_tensor()
        assert float((found - rho).abs().max()) < 0.01, type(method).__name__


def test_a_polyenergetic_scan_leaves_the_projection_domain_exact_and_hardens_the_image_domain():
    rho = densities()
    spectrum = PolyenergeticCT(40, kvp=120.0, thresholds_kev=[20.0, 50.0, 80.0], model="polyenergetic", photons=1e6)
    measurement = scan(PolyenergeticPoisson(spectrum.model_spectrum, spectrum.model_attenuation), rho)
    by_image = ImageDomainDecomposition(LeastSquares(), bins=stack("ct_bins", 3), energies_kev=ENERGIES)
    by_projection = ProjectionDomainDecomposition(LeastSquares())
    errors = [float((m(measurement, None).as_tensor() - rho).abs().max()) for m in (by_image, by_projection)]
    assert errors[1] < 0.01 < 0.03 < errors[0] < 0.5


def test_water_is_corrected_exactly():
    spectrum = PolyenergeticCT(8, kvp=120.0, thresholds_kev=[20.0, 50.0, 80.0], model="polyenergetic")
    likelihood = PolyenergeticPoisson(spectrum.model_spectrum, spectrum.model_attenuation, scatter=3.0)
    depth = torch.linspace(0, 25, 30).reshape(1, 1, 1, -1)
    y = likelihood.mean(torch.cat([depth, torch.zeros_like(depth)], dim=1))
    water = mass_attenuation(["water"], ENERGIES)[0]
    single = single_energies(likelihood, y, water)
    expected = single.mean(water.reshape(1, -1, 1, 1) * depth)
    torch.testing.assert_close(expected, y, rtol=2e-3, atol=1e-2)


def test_standard_deviations_of_line_integrals_are_those_of_repeated_scans():
    likelihood = single_energy_likelihood(1e4)
    z = torch.tensor([8.0, 1.5]).reshape(1, 2, 1, 1).expand(1, 2, 1, 2000)
    y = likelihood.sample(z, torch.Generator().manual_seed(1))
    integrals, sigma = material_integrals(likelihood, y)
    torch.testing.assert_close(integrals.std(-1), sigma.mean(-1), rtol=0.1, atol=0)
    torch.testing.assert_close(integrals.mean(-1), z.mean(-1), rtol=0.02, atol=0.02)


def test_a_ray_without_photons_says_little_and_stays_finite():
    likelihood = single_energy_likelihood(50.0)
    y = torch.zeros(1, 3, 1, 4)
    y[..., 2:] = 20.0
    integrals, sigma = material_integrals(likelihood, y)
    assert torch.isfinite(integrals).all()
    assert torch.isfinite(sigma).all()
    assert float(sigma[..., :2].min()) > 10 * float(sigma[..., 2:].max())


@pytest.mark.parametrize("steps", ["image", "projection"])
def test_the_sampler_has_the_settings_of_the_counts(steps):
    """Tuned for the kind of the counts, used on the data that they are turned into, whose kind is another one."""
    seen = []

    class Asking(LeastSquares):
        def reconstruct(self, measurement, network, *, generator, callback):
            (name,) = measurement.available
            seen.append((block_kind(measurement, name), self.tuning.of(measurement, name)))
            return super().reconstruct(measurement, network, generator=generator, callback=callback)

    sampler = Asking()
    sampler.tuning = Tuning({"zeta": 4.0})
    method = (
        ImageDomainDecomposition(sampler, bins=stack("ct_bins", 3), energies_kev=ENERGIES)
        if steps == "image"
        else ProjectionDomainDecomposition(sampler)
    )
    measurement = scan(single_energy_likelihood(1e5), densities())
    counts = block_kind(measurement, "materials")
    with sampler.tuning.override({counts: {"zeta": 0.5}}):
        method(measurement, None)
    method(measurement, None)
    turned = {"image": "transmission_poisson", "projection": "gaussian"}[steps]
    assert seen == [(f"spectral_projector/{turned}", {"zeta": 0.5}), (f"spectral_projector/{turned}", {"zeta": 4.0})]
    assert counts.endswith("polyenergetic_poisson")
    assert sampler.tuning.settings == {}


def test_refusals_name_what_was_expected():
    with pytest.raises(ValueError, match="water first"):
        ImageDomainDecomposition(
            LeastSquares(), bins=stack("ct_bins", 3), energies_kev=ENERGIES, materials=["bone", "water"]
        )
    with pytest.raises(ValueError, match="at least 2"):
        ImageDomainDecomposition(LeastSquares(), bins=stack("ct_bins", 1), energies_kev=[60.0])
    method = ImageDomainDecomposition(LeastSquares(), bins=stack("ct_bins", 3), energies_kev=ENERGIES)
    with pytest.raises(ValueError, match="expected counts in 3 bins, got 2"):
        method(scan(single_energy_likelihood(1e5, ENERGIES[:2]), densities()), None)


# the likelihood behind several materials in the guidance of a sampler


class Small(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        weight = 0.1 * torch.randn(channels, channels, 3, 3, generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter(weight)

    def forward(self, image, timestep=None):
        return torch.tanh(torch.nn.functional.conv2d(image, self.weight.to(image), padding=1))


def prior_of(space, top):
    knots = {space.names[0]: [[[0.0, -1.0], [value, 1.0]] for value in top]}
    return DiffusionPrior(
        space,
        NoiseSchedule.cosine(1000),
        parametrisation=Parametrisation("velocity"),
        scaling=IntensityScaling(space, knots=knots),
    )


def test_gradient_of_the_polyenergetic_misfit_matches_finite_differences_in_double_precision():
    spectrum = PolyenergeticCT(40, kvp=120.0, thresholds_kev=[20.0, 50.0, 80.0], model="polyenergetic", photons=1e4)
    likelihood = PolyenergeticPoisson(spectrum.model_spectrum, spectrum.model_attenuation)
    prior = prior_of(stack("materials", 2), [1.1, 1.45])
    misfit = Misfit(scan(likelihood, densities(), noise=True), prior)
    misfit.operator["materials"].double()
    misfit.data = {name: y.double() for name, y in misfit.data.items()}
    generator = torch.Generator().manual_seed(2)
    x = (0.3 * torch.randn(1, 2, *SHAPE, generator=generator).double()).requires_grad_()
    direction = torch.randn(x.shape, generator=generator).double()
    (gradient,) = torch.autograd.grad(misfit(x).sum(), x)
    step = 1e-6
    with torch.no_grad():
        slope = float(misfit(x + step * direction) - misfit(x - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6)


def test_one_step_with_one_material_and_one_energy_is_sampling_of_that_bin():
    """Densities behind one energy are an attenuation image over a constant: both samplers walk the same way."""
    kappa = mass_attenuation(["water"], [60.0])
    rho, factor = densities()[:, :1], float(kappa)
    space_m, space_k = stack("materials", 1), stack("ct", 1)
    poly = PolyenergeticPoisson(torch.full((1, 1), 500.0), kappa)
    y = poly.sample(beam(1)(rho), torch.Generator().manual_seed(0))
    results = []
    for space, likelihood, top in ((space_m, poly, 1.1), (space_k, TransmissionPoisson(500.0), 1.1 * factor)):
        name = space.names[0]
        data = Measurement(
            Blocks({name: y}), BlockDiagonal(space, {name: beam(1)}), BlockLikelihood({name: likelihood})
        )
        sampler = PosteriorSampling(prior_of(space, [top]), steps=10, zeta=3.0, exact=True)
        misfit = Misfit(data, sampler.prior, exact=True)
        assert set(misfit.likelihood) == {name}
        results.append(sampler(data, Small(1), generator=torch.Generator().manual_seed(1)).as_tensor() / top)
    # the factor before the deviance comes from the information at the maximum-likelihood integrals here, from the
    # counts there: the same to the accuracy of the ray-by-ray solution
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=2e-3)


def one_bin(photons):
    """Attenuation of a single energy, its counts, and a prior for it."""
    space, truth, likelihood = stack("ct", 1), 0.2 * densities()[:, :1], TransmissionPoisson(photons)
    y = likelihood.sample(beam(1)(truth), torch.Generator().manual_seed(0))
    data = Measurement(Blocks({"ct": y}), BlockDiagonal(space, {"ct": beam(1)}), BlockLikelihood({"ct": likelihood}))
    return truth, data, prior_of(space, [0.3])


def test_exact_and_approximate_misfit_agree_at_high_counts():
    truth, data, prior = one_bin(1e7)
    x = prior.scaling(truth + 1e-4)
    torch.testing.assert_close(Misfit(data, prior)(x), Misfit(data, prior, exact=True)(x), rtol=2e-2, atol=0)


def test_the_misfit_falls_to_the_expected_deviance_as_guidance_grows():
    _, data, prior = one_bin(1e4)
    deviances = []
    for zeta in (1e-9, 0.1, 0.4):
        image = PosteriorSampling(prior, steps=100, zeta=zeta)(data, Small(1)).as_tensor()
        deviances.append(2 * float(data.data_fidelity(image)) / data.y["ct"].numel())
    assert deviances[0] > deviances[1] > deviances[2]


def test_preconditioning_sharpens_the_gradient_and_keeps_its_zeros():
    space = stack("ct", 1)
    truth = 0.2 * densities()[:, :1]
    likelihood = TransmissionPoisson(1e4)
    y = likelihood.sample(beam(1)(truth), torch.Generator().manual_seed(0))
    data = Measurement(Blocks({"ct": y}), BlockDiagonal(space, {"ct": beam(1)}), BlockLikelihood({"ct": likelihood}))
    prior = prior_of(space, [0.3])
    plain, sharp = (Misfit(data, prior, exact=True, precondition=p) for p in (False, True))
    x = prior.scaling(truth * 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * plain.squares(x).sum(), x)
    (found,) = torch.autograd.grad(sharp(x).sum(), x)
    index = torch.fft.fftfreq(16, 1 / 16)
    radius = (index[:, None] ** 2 + index**2).sqrt().clamp_min(1)
    expected = torch.fft.fft2(gradient) * radius
    torch.testing.assert_close(torch.fft.fft2(found), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert float((found * gradient).sum()) > 0  # downhill still
    fits = []
    for zeta in (0.02, 0.3):
        sampler = PosteriorSampling(prior, steps=50, zeta=zeta, precondition=True)
        fits.append(float(data.data_fidelity(sampler(data, Small(1)).as_tensor())) * 2 / y.numel())
    assert fits[1] < 0.5 * fits[0]


def test_preconditioning_evens_out_bins_of_different_counts():
    """The first step towards equal errors is of equal size in a bin of many counts and in one of few."""
    space = stack("ct_bins", 2)
    truth = 0.2 * densities()[:, :1].repeat(1, 2, 1, 1)
    likelihood = TransmissionPoisson(torch.tensor([1e6, 1e3]).reshape(1, 2, 1, 1))
    y = likelihood.mean(beam(2)(truth))
    data = Measurement(
        Blocks({"ct_bins": y}), BlockDiagonal(space, {"ct_bins": beam(2)}), BlockLikelihood({"ct_bins": likelihood})
    )
    prior = prior_of(space, [0.3, 0.3])
    ratios = []
    for precondition in (False, True):
        x = prior.scaling(truth + 0.01).requires_grad_()
        (step,) = torch.autograd.grad(Misfit(data, prior, precondition=precondition)(x).sum(), x)
        ratios.append(float(step[:, 0].norm() / step[:, 1].norm()))
    assert ratios[0] > 100
    assert ratios[1] == pytest.approx(1.0, rel=0.05)


def test_materials_are_measured_as_the_tasks_measure_them():
    """The two-step methods take what a simulated scan hands over, and say why they take nothing else."""
    space = stack("materials", 2)
    scans = {"materials": PolyenergeticCT(40, kvp=120.0, thresholds_kev=[20.0, 50.0, 80.0], model="polyenergetic")}
    fine = torch.nn.functional.interpolate(densities(), scale_factor=2.0)
    measurement = Acquisition(space, scans, key="test", oversample=2)({"materials": fine}, ["a"])
    method = ProjectionDomainDecomposition(LeastSquares())
    assert method(measurement, None).shape == (1, 2, *SHAPE)
    effective = {"ct": PolyenergeticCT(40, kvp=120.0, energies_kev=[60.0])}
    other = Acquisition(stack("ct", 1), effective, key="test", oversample=2)(
        {"ct": 0.2 * fine[:, :1], "materials": fine}, ["a"]
    )
    with pytest.raises(ValueError, match="polyenergetic_poisson"):
        method(other, None)
