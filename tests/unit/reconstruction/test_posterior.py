"""MDS and MPS: the checklist of the method, and closed forms with a Gaussian prior."""

import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian, Poisson, TransmissionPoisson
from multirecon.measurement import Measurement
from multirecon.metrics import posterior_coverage, posterior_ranks, rank_deviation, spread_correction
from multirecon.operators import BlockDiagonal, Identity, MaskedFourier, ParallelBeam
from multirecon.priors import (
    DenoiserError,
    DiffusionPrior,
    HaarDomain,
    IntensityScaling,
    NoiseSchedule,
    Parametrisation,
    SampleNoise,
    reverse_diffusion,
)
from multirecon.reconstruction import DecomposedSampling, PosteriorSampler, PosteriorSampling, Tuning
from multirecon.reconstruction.misfit import Misfit
from multirecon.space import ImageSpace

SHAPE = (6, 6)
MEAN, STD = (0.1, -0.2), (0.5, 0.3)


class Zero(torch.nn.Module):
    """With preconditioning the answer 0 is the posterior mean under independent Gaussian pixels."""

    def forward(self, image, timestep=None):
        return torch.zeros_like(image)


class Answers(torch.nn.Module):
    """Estimates one image, whatever it is shown (x0-prediction)."""

    def __init__(self, image):
        super().__init__()
        self.image = image

    def forward(self, image, timestep=None):
        return self.image.expand_as(image)


class Small(torch.nn.Module):
    """A network that mixes modalities and pixels."""

    def __init__(self, channels=2):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = 0.15 * torch.randn(channels, channels, 3, 3, generator=generator)
        self.weight = torch.nn.Parameter(weight)

    def forward(self, image, timestep=None):
        return torch.tanh(torch.nn.functional.conv2d(image, self.weight, padding=1))


def space(*names):
    return ImageSpace(names or ["t1", "flair"], SHAPE, (1.0, 1.0))


def gaussian_prior(stack=None, **options):
    stack = stack or space()
    kind = Parametrisation("preconditioned", mean=MEAN[: stack.num_channels], std=STD[: stack.num_channels])
    return DiffusionPrior(stack, NoiseSchedule.cosine(1000), parametrisation=kind, clamp=None, **options)


def network_prior(clamp=(-1.0, 1.0), stack=None, domain=None):
    return DiffusionPrior(
        stack or space(),
        NoiseSchedule.cosine(1000),
        parametrisation=Parametrisation("velocity"),
        clamp=clamp,
        domain=domain,
    )


def noise_of(seed=0, batch=2, channels=2):
    return SampleNoise((batch, channels, *SHAPE), torch.Generator().manual_seed(seed), like=torch.zeros(()))


def sensing(stack=None, sigma=0.05, batch=2, name="flair", seed=5):
    """Undersampled multi-coil k-space of one modality."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(SHAPE)
    mask[:, ::2] = 1
    maps = torch.randn(3, *SHAPE, generator=generator, dtype=torch.complex64)
    maps = maps / maps.abs().square().sum(0).sqrt()
    operator = MaskedFourier(mask, maps)
    truth = torch.rand(batch, 1, *SHAPE, generator=generator)
    likelihood = Gaussian(sigma)
    y = likelihood.sample(operator(truth), generator) * mask
    return Measurement(
        Blocks({name: y}),
        BlockDiagonal(stack or space(), {name: operator}),
        BlockLikelihood({name: likelihood}),
    )


def with_clean(measurement, name="t1", seed=9):
    stack, y = measurement.space, measurement.y
    image = torch.rand(measurement.batch_size, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    blocks = {name: Identity((1, *SHAPE)), **dict(measurement.operator.items())}
    return Measurement(
        Blocks({name: image, **dict(y)}),
        BlockDiagonal(stack, blocks),
        BlockLikelihood({name: Gaussian(0.0), **{n: measurement.likelihood[n] for n in y}}),
    )


def plain_ddim(network, noise, steps, eta):
    """DDIM as in its paper, in terms of x_t, written without the code under test."""
    schedule = NoiseSchedule.cosine(1000)
    abar = torch.cat([torch.ones(1, dtype=torch.float64), schedule.abar])  # abar[0]: no noise
    times = (schedule.kept_steps(steps) + 1).flip(0).tolist()
    x = noise()
    for t, s in zip(times, [*times[1:], 0], strict=True):
        a, b = float(abar[t]), float(abar[s])
        with torch.no_grad():
            velocity = network(x, torch.full((len(x),), t - 1.0))
        clean = (a**0.5 * x - (1 - a) ** 0.5 * velocity).clamp(-1, 1)
        if s == 0:
            return clean
        epsilon = (x - a**0.5 * clean) / (1 - a) ** 0.5
        spread = eta * ((1 - b) / (1 - a)) ** 0.5 * (1 - a / b) ** 0.5
        x = b**0.5 * clean + (1 - b - spread**2) ** 0.5 * epsilon
        x = x + spread * noise() if spread > 0 else x
    raise AssertionError


@pytest.mark.parametrize(("steps", "eta"), [(150, 0.85), (150, 0.0), (1000, 1.0)])
def test_without_data_it_is_ddim_and_ddpm(steps, eta):
    denoiser = network_prior().denoiser(Small())
    ours = reverse_diffusion(denoiser, NoiseSchedule.cosine(1000), noise_of(), steps=steps, eta=eta)
    # at the first times a signal of 1 sits beside a noise of 20 000 in float32
    torch.testing.assert_close(ours, plain_ddim(Small(), noise_of(), steps, eta), atol=5e-3, rtol=0)


def test_published_numbers_of_steps():
    prior = network_prior()
    assert DecomposedSampling(prior).steps == 150
    assert PosteriorSampling(prior).steps == 1000
    calls = []
    reverse_diffusion(
        prior.denoiser(Small()), prior.schedule, noise_of(), steps=150, callback=lambda k, x: calls.append(k)
    )
    assert calls == list(range(150))


@pytest.mark.parametrize("method", [DecomposedSampling, PosteriorSampling])
def test_clean_modality_comes_back_bit_for_bit(method):
    measurement = with_clean(sensing())
    result = method(network_prior(), steps=12)(measurement, Small())
    assert torch.equal(result[:, :1].as_tensor(), measurement.y["t1"])


@pytest.mark.parametrize("method", [DecomposedSampling, PosteriorSampling])
def test_batch_of_two_is_two_runs_of_one(method):
    measurement = with_clean(sensing())
    sampler = method(network_prior(), steps=15)
    both = sampler(measurement, Small(), generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    single = [sampler(measurement.samples(i, i + 1), Small(), generator=generator) for i in range(2)]
    torch.testing.assert_close(both.as_tensor(), torch.cat([s.as_tensor() for s in single]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", [DecomposedSampling, PosteriorSampling])
def test_seeded(method):
    measurement, sampler = sensing(), method(network_prior(), steps=5)
    first, again = (sampler(measurement, Small(), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    other = sampler(measurement, Small(), generator=torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_correction_solves_the_dense_problem():
    measurement = sensing(sigma=0.2)
    prior = gaussian_prior()
    trust = 3.0
    sampler = DecomposedSampling(prior, steps=1, error=lambda sigma: 1 / trust, iterations=60)
    result = sampler(measurement, Zero())  # one step from pure noise: the prior's estimate is its mean
    operator = measurement.operator["flair"]
    columns = [operator(e.reshape(1, 1, *SHAPE)).flatten() for e in torch.eye(36)]
    dense = torch.stack(columns, 1).to(torch.complex128)
    weight, rho = 0.2**-2, trust * 4  # dx/du = 2
    prediction = torch.full((36,), (1 + MEAN[1]) / 2, dtype=torch.float64)
    for i in range(2):
        y = measurement.y["flair"][i].flatten().to(torch.complex128)
        left = weight * (dense.mH @ dense).real + rho * torch.eye(36, dtype=torch.float64)
        right = weight * (dense.mH @ y).real + rho * prediction
        expected = torch.linalg.solve(left, right).float()
        torch.testing.assert_close(result[i, 1].as_tensor().flatten(), expected, atol=1e-3, rtol=0)
    # nothing is known of t1 but the prior
    torch.testing.assert_close(result[:, 0].as_tensor(), torch.full((2, *SHAPE), (1 + MEAN[0]) / 2), atol=1e-3, rtol=0)


def test_a_table_of_errors_weighs_every_pixel_by_its_value():
    measurement, prior = sensing(), network_prior()
    flat = DenoiserError([0.01, 100.0], [-1.0, 1.0], torch.full((2, 2, 2), 0.04))
    plain, table = (DecomposedSampling(prior, steps=4, error=e) for e in (lambda sigma: 0.04, flat))
    seeded = [sampler(measurement, Small(), generator=torch.Generator().manual_seed(1)) for sampler in (plain, table)]
    torch.testing.assert_close(*seeded)
    steep = DenoiserError([0.01, 100.0], [-1.0, 1.0], torch.tensor([0.001, 0.3]).expand(2, 2, 2))
    rule, none = (DecomposedSampling(prior, steps=4, **o) for o in ({}, {"error": steep, "calibration": 0.0}))
    seeded = [sampler(measurement, Small(), generator=torch.Generator().manual_seed(1)) for sampler in (rule, none)]
    torch.testing.assert_close(*seeded)
    # bundles without a table need not know the setting
    few = DecomposedSampling(prior, steps=4, tuning=Tuning({"strength": 1.0}))
    torch.testing.assert_close(few(measurement, Small(), generator=torch.Generator().manual_seed(1)), seeded[0])
    # where the estimate is trusted it stays, where it is not the data decide
    anchor, y = torch.full((1, 1, *SHAPE), 0.5), torch.ones(1, 1, *SHAPE)
    anchor[..., :3] = 0.0
    operator = BlockDiagonal(space("t1"), {"t1": Identity((1, *SHAPE))})
    clean = Measurement(Blocks({"t1": y}), operator, BlockLikelihood({"t1": Gaussian(0.1)}))
    sure = DenoiserError([0.01, 100.0], [-1.0, 0.0], torch.tensor([1e-8, 1e2]).expand(2, 1, 2))
    one = DiffusionPrior(space("t1"), prior.schedule, parametrisation=Parametrisation("sample"))
    step = DecomposedSampling(one, steps=1, error=sure)
    result = step(clean, Answers(2 * anchor - 1), generator=torch.Generator())
    torch.testing.assert_close(result.as_tensor()[..., :3], anchor[..., :3], atol=1e-3, rtol=0)
    torch.testing.assert_close(result.as_tensor()[..., 3:], y[..., 3:], atol=1e-3, rtol=0)


def test_air_is_exact_where_asked_and_attenuation_has_no_negative_values():
    stack = ImageSpace([{"name": "ct", "unit": "1/cm", "scale": 0.2}], (12, 12), (4.0, 4.0))
    beam = ParallelBeam((12, 12), (4.0, 4.0), views=40, bins=20)
    truth = torch.zeros(1, 1, 12, 12)
    truth[..., 3:9, 3:9] = 0.2
    noisy = TransmissionPoisson(torch.tensor(2e4))
    y = noisy.sample(beam(truth), torch.Generator().manual_seed(1))
    scan = Measurement(Blocks({"ct": y}), BlockDiagonal(stack, {"ct": beam}), BlockLikelihood({"ct": noisy}))
    prior = DiffusionPrior(stack, NoiseSchedule.cosine(), clamp=[[-1.0, 1.2]],
                           parametrisation=Parametrisation("preconditioned", mean=[-0.5], std=[0.5]))  # fmt: skip
    run = lambda **o: DecomposedSampling(prior, steps=12, error=lambda s: min(s**2, 0.25), iterations=20, **o)(  # noqa: E731
        scan, Zero()
    ).as_tensor()
    free, cut, exact = run(), run(exact_air=0.0), run(exact_air=3.0, precondition=True)
    assert float(free.min()) < -1e-4
    assert float(cut.min()) > -1e-6
    outside = exact[..., 0, :].abs()
    assert (outside < 1e-6).float().mean() > (cut[..., 0, :].abs() < 1e-6).float().mean()
    error = lambda x: float((x - truth).square().mean())  # noqa: E731
    assert error(exact) < error(free)


def test_limits_of_the_weight():
    image = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    measurement = Measurement(
        Blocks({"flair": image}),
        BlockDiagonal(space(), {"flair": Identity((1, *SHAPE))}),
        BlockLikelihood({"flair": Gaussian(0.05)}),
    )
    run = {
        strength: DecomposedSampling(network_prior(), steps=8, strength=strength)(measurement, Small()).as_tensor()
        for strength in (1e-9, 1e9)
    }
    torch.testing.assert_close(run[1e-9][:, 1:], image, atol=1e-4, rtol=0)
    free = reverse_diffusion(
        network_prior().denoiser(Small()), NoiseSchedule.cosine(1000), noise_of(0), steps=8, eta=0.85
    )
    torch.testing.assert_close(run[1e9], IntensityScaling(space()).inverse(free), atol=1e-4, rtol=0)


def test_published_weight_is_lambda_against_the_residual():
    """One step with the constant rule: (A^H A + lambda) u = A^H y + lambda u0."""
    measurement = sensing(sigma=0.2)
    result = DecomposedSampling(gaussian_prior(), steps=1, strength=0.3, weight="constant", iterations=60)(
        measurement, Zero()
    )
    operator = measurement.operator["flair"]
    u = result[:, 1:].as_tensor()
    right = operator.adjoint(measurement.y["flair"]) + 0.3 * (1 + MEAN[1]) / 2
    torch.testing.assert_close(operator.gram(u) + 0.3 * u, right, atol=2e-3, rtol=0)


def test_samples_follow_the_posterior_of_a_linear_gaussian_problem():
    """Perturbed corrections keep the marginal posterior of every noise level: mean and covariance in closed form."""
    stack = space("t1")
    one = sensing(stack, sigma=0.15, batch=1, name="t1")
    draws = 1000
    operator = one.operator["t1"]
    many = Measurement(
        Blocks({"t1": one.y["t1"].expand(draws, -1, -1, -1).contiguous()}),
        BlockDiagonal(stack, {"t1": operator}),
        BlockLikelihood({"t1": Gaussian(0.15)}),
    )
    m, d = MEAN[0], STD[0]
    sampler = DecomposedSampling(
        gaussian_prior(stack),
        steps=40,
        eta=1.0,
        noise_split="dds",
        perturb=True,
        error=lambda s: s**2 * d**2 / (s**2 + d**2),
        iterations=15,
    )
    x = sampler(many, Zero(), generator=torch.Generator().manual_seed(0)).as_tensor().flatten(1).double()
    columns = [operator(e.reshape(1, 1, *SHAPE)).flatten() for e in torch.eye(36)]
    dense = torch.stack(columns, 1).to(torch.complex128)
    precision = (dense.mH @ dense).real / 0.15**2 + torch.eye(36, dtype=torch.float64) / (d / 2) ** 2
    covariance = torch.linalg.inv(precision)
    right = (dense.mH @ one.y["t1"].flatten().to(torch.complex128)).real / 0.15**2 + (1 + m) / 2 / (d / 2) ** 2
    mean = covariance @ right
    standard_error = (covariance.diagonal() / draws).sqrt()
    assert ((x.mean(0) - mean).abs() < 5 * standard_error + 2e-3).all()
    empirical = torch.cov(x.T)
    scale = (covariance.diagonal()[:, None] * covariance.diagonal()[None]).sqrt()
    assert ((empirical - covariance).abs() < 0.16 * scale).all()
    # and the modes alone are too narrow: the test can fail
    narrow = (
        DecomposedSampling(
            gaussian_prior(stack), steps=40, eta=1.0, noise_split="dds", error=sampler.error, iterations=15
        )(many.samples(0, 300), Zero())
        .as_tensor()
        .flatten(1)
        .double()
    )
    assert (narrow.var(0) / covariance.diagonal()).mean() < 0.7


@pytest.mark.parametrize("perturb", [True, False])
def test_simulation_based_calibration_with_a_gaussian_prior(perturb):
    """Truths from the prior, data from the truths: perturbed corrections give uniform ranks, modes too narrow ones."""
    stack, truths, draws = space("t1"), 150, 9
    generator = torch.Generator().manual_seed(2)
    operator, m, d = sensing(stack, sigma=0.15, batch=1, name="t1").operator["t1"], MEAN[0], STD[0]
    u = (1 + m + d * torch.randn(truths, 1, *SHAPE, generator=generator)) / 2
    y = Gaussian(0.15).sample(operator(u), generator) * operator.mask
    many = Measurement(
        Blocks({"t1": y}), BlockDiagonal(stack, {"t1": operator}), BlockLikelihood({"t1": Gaussian(0.15)})
    )
    sampler = DecomposedSampling(gaussian_prior(stack), steps=30, eta=1.0, noise_split="dds", perturb=perturb,
                                 error=lambda s: s**2 * d**2 / (s**2 + d**2), iterations=12)  # fmt: skip
    samples = sampler.draw(many, Zero(), draws, generator=torch.Generator().manual_seed(0))
    spread, shift, distance = rank_deviation(posterior_ranks(samples, u), draws)
    assert abs(shift) < 0.03
    if perturb:
        assert abs(spread - 1) < 0.05
        assert distance < 0.04
    else:
        assert spread > 1.1


@pytest.mark.parametrize("domain", [None, HaarDomain()], ids=["pixels", "wavelet"])
def test_gradient_of_the_misfit_matches_finite_differences(domain):
    """Through network, clamp and, in the wavelet domain, the inverse transform with its scaled lowest band."""
    measurement = with_clean(sensing())
    prior = network_prior(clamp=None, domain=domain)
    misfit, network = Misfit(measurement.embed(prior.space), prior), Small(2 if domain is None else 8)
    denoiser = prior.denoiser(network)
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 2, *SHAPE, generator=generator).requires_grad_()
    (gradient,) = torch.autograd.grad(misfit(denoiser(z, 0.7)).sum(), z)
    direction = torch.randn(z.shape, generator=generator)
    step = 1e-2
    with torch.no_grad():
        ahead, behind = (misfit(denoiser(z + s * direction, 0.7)) for s in (step, -step))
    slope = (ahead - behind) / (2 * step)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), slope, rtol=5e-3, atol=1e-3)


def test_spread_is_larger_where_data_say_less():
    """T1 is not measured, FLAIR on half of its k-space with little or much noise."""
    draws, d = 200, 0.4
    kind = Parametrisation("preconditioned", mean=MEAN, std=(d, d))
    prior = DiffusionPrior(space(), NoiseSchedule.cosine(1000), parametrisation=kind, clamp=None)
    sampler = DecomposedSampling(prior, steps=20, eta=1.0, noise_split="dds", perturb=True, iterations=12,
                                 error=lambda s: s**2 * d**2 / (s**2 + d**2))  # fmt: skip
    spread = {}
    for sigma in (0.05, 0.5):
        one = sensing(sigma=sigma, batch=1)
        y = Blocks({"flair": one.y["flair"].expand(draws, -1, -1, -1).contiguous()})
        samples = sampler(Measurement(y, one.operator, one.likelihood), Zero()).as_tensor()
        missing, spread[sigma] = (float(samples[:, c].std(0).mean()) / (d / 2) for c in (0, 1))
        assert abs(missing - 1) < 0.05  # as wide as the prior
    assert spread[0.05] < 0.9 * spread[0.5]
    assert spread[0.5] < 1.0


def test_the_measured_modality_is_a_matter_of_the_measurement_alone():
    network, before = Small(), {k: v.clone() for k, v in Small().state_dict().items()}
    sampler = DecomposedSampling(network_prior(), steps=8)
    scans = {name: sensing(name=name) for name in ("flair", "t1")}
    results = {name: sampler(scan, network).as_tensor() for name, scan in scans.items()}
    for name, other in (("flair", "t1"), ("t1", "flair")):
        own, without = (scans[name].data_fidelity(results[n]).sum() for n in (name, other))
        assert own < 0.5 * without
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_misfit_is_the_plain_residual_norm_over_all_blocks():
    measurement = with_clean(sensing(sigma=0.3))
    prior = network_prior()
    u = torch.rand(2, 2, *SHAPE, generator=torch.Generator().manual_seed(1))
    residual = measurement.operator(u) - measurement.y
    scale = 1 / measurement.operator["flair"].norm()
    expected = (
        residual["t1"].abs().square().flatten(1).sum(1) + (scale * residual["flair"].abs()).square().flatten(1).sum(1)
    ).sqrt()
    torch.testing.assert_close(Misfit(measurement, prior)(2 * u - 1), expected)


def test_guidance_reaches_missing_modalities_through_the_network():
    prior, measurement = network_prior(), sensing()
    with_data = PosteriorSampling(prior, steps=20)(measurement, Small(), generator=torch.Generator().manual_seed(0))
    free = reverse_diffusion(prior.denoiser(Small()), prior.schedule, noise_of(0), steps=20, eta=1.0)
    assert (with_data[:, 0].as_tensor() - prior.scaling.inverse(free)[:, 0]).abs().max() > 1e-3


def test_data_fidelity_improves_with_either_sampler():
    measurement, prior = sensing(), network_prior()
    free = prior.scaling.inverse(
        reverse_diffusion(prior.denoiser(Small()), prior.schedule, noise_of(0), steps=50, eta=0.85)
    )
    for sampler in (DecomposedSampling(prior, steps=50), PosteriorSampling(prior, steps=200)):
        fitted = sampler(measurement, Small()).as_tensor()
        assert (measurement.data_fidelity(fitted) < 0.5 * measurement.data_fidelity(free)).all()


def counts(likelihood_of, unit):
    stack = ImageSpace([unit], (8, 8), (4.0, 4.0))
    operator = (50.0 if unit == "pet_fdg" else 1.0) * ParallelBeam((8, 8), (4.0, 4.0), views=12, bins=12)
    generator = torch.Generator().manual_seed(0)
    truth = 0.2 + 0.3 * torch.rand(2, 1, 8, 8, generator=generator)
    z = operator(truth)
    likelihood = likelihood_of(z)
    return (
        stack,
        truth,
        Measurement(
            Blocks({stack.names[0]: likelihood.sample(z, generator)}),
            BlockDiagonal(stack, {stack.names[0]: operator}),
            BlockLikelihood({stack.names[0]: likelihood}),
        ),
    )


@pytest.mark.parametrize("perturb", [False, True])
@pytest.mark.parametrize(
    ("likelihood_of", "name"),
    [
        (lambda z: Poisson(0.1), "pet_fdg"),
        (lambda z: TransmissionPoisson(1e5), "ct"),
        (lambda z: TransmissionPoisson(500.0), "ct"),
    ],
    ids=["emission", "line integrals", "exact transmission"],
)
def test_counts_are_fitted(likelihood_of, name, perturb):
    stack, truth, measurement = counts(likelihood_of, name)
    scaling = IntensityScaling(stack, knots={name: ((0.0, -1.0), (1.0, 1.0))})
    prior = DiffusionPrior(
        stack,
        NoiseSchedule.cosine(1000),
        parametrisation=Parametrisation("preconditioned", mean=[-0.3], std=[0.3]),
        scaling=scaling,
    )
    result = DecomposedSampling(prior, steps=30, iterations=8, perturb=perturb)(measurement, Zero()).as_tensor()
    free = torch.full_like(truth, 0.35)
    assert torch.isfinite(result).all()
    assert (measurement.data_fidelity(result) < measurement.data_fidelity(free)).all()
    guided = PosteriorSampling(prior, steps=60, zeta=0.3)(measurement, Zero()).as_tensor()
    assert torch.isfinite(guided).all()


def test_warm_start_and_the_multistep_solver():
    measurement, prior = sensing(), network_prior()
    image = torch.full((2, 2, *SHAPE), 0.4)
    sampler = DecomposedSampling(
        prior, steps=10, start=0.3, initial=lambda measurement, network: image, eta=0.0, order=2
    )
    seen = []
    result = sampler(measurement, Small(), callback=lambda k, x: seen.append(k))
    assert seen == list(range(10))
    assert torch.isfinite(result.as_tensor()).all()
    # without data and for a Gaussian prior the path is known; the second order follows it better with few steps
    prior, d = gaussian_prior(space("t1")), STD[0]
    errors = {}
    for order in (1, 2):
        noise = noise_of(3, channels=1)
        times = prior.schedule.even_levels(12, sigma_max=2.0)
        start = torch.full((2, 1, *SHAPE), MEAN[0])
        end = reverse_diffusion(prior.denoiser(Zero()), prior.schedule, noise, steps=times, order=order, start=start)
        sigma = 2.0
        z = start + sigma * noise_of(3, channels=1)()
        low = prior.schedule.sigma_range[0]
        exact = MEAN[0] + (z - MEAN[0]) * ((low**2 + d**2) / (sigma**2 + d**2)) ** 0.5  # probability flow
        errors[order] = float((end - exact).abs().mean())
    assert errors[2] < 0.5 * errors[1], errors


def test_trailing_steps_spend_none_where_nothing_is_left_to_denoise():
    measurement, prior = sensing(), network_prior()
    seen = []

    class Watching(Small):
        def forward(self, image, timestep=None):
            seen.append(float(timestep[0]))
            return super().forward(image, timestep)

    for spacing in ("linspace", "trailing"):
        DecomposedSampling(prior, steps=4, spacing=spacing)(measurement, Watching())
    assert seen == pytest.approx([999, 666, 333, 0, 999, 749, 499, 249], abs=1e-3)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"num_samples": 0}, "num_samples"),
        ({"strength": 0.0}, "strength"),
        ({"error": -1.0}, "error"),
        ({"iterations": 0}, "iterations"),
        ({"calibration": 1.5}, "calibration"),
        ({"weight": "none"}, "weight"),
        ({"spacing": "leading"}, "spacing"),
        ({"exact_air": -1.0}, "exact_air"),
        ({"start": 0.5}, "initial"),
        ({"autocast": "int8"}, "autocast"),
    ],
)
def test_bad_settings(options, named):
    with pytest.raises(ValueError, match=named):
        DecomposedSampling(network_prior(), **options)


def test_mean_of_samples_and_draw():
    measurement, prior = sensing(), network_prior()
    mean = DecomposedSampling(prior, steps=6, num_samples=3)(
        measurement, Small(), generator=torch.Generator().manual_seed(0)
    )
    drawn = DecomposedSampling(prior, steps=6).draw(measurement, Small(), 3, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 2, 2, *SHAPE)
    torch.testing.assert_close(mean.as_tensor(), drawn.mean(0), atol=1e-5, rtol=1e-5)


def test_a_warm_correction_needs_fewer_iterations_for_the_same_image():
    measurement = with_clean(sensing(space("t1", "flair"), name="flair"))
    run = lambda warm, iterations: DecomposedSampling(  # noqa: E731
        network_prior(), steps=12, strength=0.3, warm=warm, iterations=iterations
    )(measurement, Small(), generator=torch.Generator().manual_seed(0)).as_tensor()  # fmt: skip
    limit = run(False, 60)
    torch.testing.assert_close(run(True, 60), limit, rtol=1e-3, atol=1e-3)
    assert (run(True, 1) - limit).norm() < 0.7 * (run(False, 1) - limit).norm()


class TooNarrow(PosteriorSampler):
    """Samples of the right mean, a third of the right spread."""

    def __init__(self, mean, factor=1.0):
        super().__init__()
        self.mean, self.factor = mean, factor

    def reconstruct(self, measurement, network, *, generator, callback):
        return self.mean + torch.randn(self.mean.shape, generator=generator) / 3

    def spread(self, measurement):
        return {"t1": self.factor}


def test_a_spread_found_on_other_data_makes_intervals_honest():
    def case(seed):
        generator = torch.Generator().manual_seed(seed)
        mean = 9 + torch.rand(1, 1, 32, 32, generator=generator)
        truth = mean + torch.randn(mean.shape, generator=generator)
        own = ImageSpace(["t1"], (32, 32), (1.0, 1.0))
        data = Measurement(Blocks({"t1": truth}), BlockDiagonal(own, {"t1": Identity((1, 32, 32))}),
                           BlockLikelihood({"t1": Gaussian(1.0)}))  # fmt: skip
        return data, mean, truth

    data, mean, truth = case(1)
    drawn = TooNarrow(mean).draw(data, None, 39)
    assert float(posterior_coverage(drawn, truth)[0.8]) < 0.4
    factor = spread_correction([(drawn, truth, None)])
    assert factor == pytest.approx(3.0, rel=0.1)
    data, mean, truth = case(2)
    honest = posterior_coverage(TooNarrow(mean, factor).draw(data, None, 39), truth)
    assert {level: float(v) for level, v in honest.items()} == pytest.approx({0.5: 0.5, 0.8: 0.8, 0.95: 0.95}, abs=0.05)


def test_widened_samples_keep_their_mean_and_the_bound_of_zero():
    data = Measurement(Blocks({"t1": torch.zeros(1, 1, 4, 4)}),
                       BlockDiagonal(ImageSpace(["t1"], (4, 4), (1.0, 1.0)), {"t1": Identity((1, 4, 4))}),
                       BlockLikelihood({"t1": Gaussian(1.0)}))  # fmt: skip
    high, low = torch.full((1, 1, 4, 4), 50.0), torch.full((1, 1, 4, 4), 1.2)
    plain, wide = (TooNarrow(high, f).draw(data, None, 8) for f in (1.0, 4.0))
    assert torch.allclose(wide.mean(0), plain.mean(0), atol=1e-4)
    assert torch.allclose(wide.std(0), 4 * plain.std(0), rtol=1e-3)
    assert float(TooNarrow(low, 1.0).draw(data, None, 8).min()) > 0
    assert float(TooNarrow(low, 8.0).draw(data, None, 8).min()) == 0


def test_the_tuned_spread_is_that_of_the_kind_of_data(tmp_path):
    path = tmp_path / "tuning.json"
    path.write_text('{"format": 1, "settings": {"identity/gaussian": {"spread": 2.5}}}')
    prior = gaussian_prior()
    data = Measurement(Blocks({"t1": torch.ones(1, 1, 6, 6)}),
                       BlockDiagonal(space("t1"), {"t1": Identity((1, 6, 6))}),
                       BlockLikelihood({"t1": Gaussian(1.0)}))  # fmt: skip
    tuned = DecomposedSampling(prior, tuning=Tuning({"spread": 1.0}, path=path))
    assert tuned.spread(data) == {"t1": 2.5}
    assert DecomposedSampling(prior).spread(data) == {"t1": 1.0}


def test_a_spread_that_no_factor_mends_is_refused():
    samples = torch.ones(39, 1, 1, 4, 4) + 1e-6 * torch.randn(
        39, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0)
    )
    with pytest.raises(ValueError, match=r"for a factor between 0\.125 and 8\.0, got 0\.000 to 0\.000"):
        spread_correction([(samples, torch.zeros(1, 1, 4, 4), None)])
    with pytest.raises(ValueError, match="at least one, got none"):
        spread_correction([])
