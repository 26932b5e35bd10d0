import pytest
import torch

from multirecon.priors import (
    DiffusionPrior,
    HaarDomain,
    NetworkDenoiser,
    NoiseSchedule,
    Parametrisation,
    PixelDomain,
    predicted_noise,
)
from multirecon.space import ImageSpace

DOMAINS = {"pixels": PixelDomain(), "haar": HaarDomain(), "two levels": HaarDomain(levels=2)}
SCHEDULE = NoiseSchedule.cosine()


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def parametrisation(kind, channels):
    if kind != "preconditioned":
        return Parametrisation(kind)
    return Parametrisation(kind, mean=randn(channels).tolist(), std=(0.1 + randn(channels).abs()).tolist())


def denoiser(network, kind="epsilon", domain=None, channels=2, clamp=None):
    domain = domain or PixelDomain()
    p = parametrisation(kind, channels * len(domain.gain(4)))
    return NetworkDenoiser(network, schedule=SCHEDULE, parametrisation=p, domain=domain, clamp=clamp)


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
@pytest.mark.parametrize("kind", Parametrisation.KINDS)
def test_a_perfect_network_returns_the_clean_image(kind, domain):
    x0, noise, sigma = randn(4, 2, 8, 8), randn(4, 2, 8, 8, seed=1), torch.tensor([0.01, 0.5, 2.0, 30.0])
    made = denoiser(None, kind, domain)
    image, target, time = made.training_pair(x0, noise, sigma)

    def network(given, timestep):
        torch.testing.assert_close(given, image)
        torch.testing.assert_close(timestep, time)
        return target

    made.network = network
    x = x0 + sigma.double().reshape(4, 1, 1, 1) * noise
    torch.testing.assert_close(made(x, sigma), x0, rtol=0, atol=1e-10)
    _, predicted = predicted_noise(made, x, sigma)
    torch.testing.assert_close(predicted, noise, rtol=0, atol=1e-8)


def test_targets_mean_what_they_say():
    x0, n, sigma = randn(1, 2, 4, 4), randn(1, 2, 4, 4, seed=1), torch.tensor([0.7], dtype=torch.float64)
    alpha = 1 / (1 + 0.49) ** 0.5
    targets = {kind: denoiser(None, kind).training_pair(x0, n, sigma) for kind in Parametrisation.KINDS}
    torch.testing.assert_close(targets["epsilon"][1], n)
    torch.testing.assert_close(targets["sample"][1], x0)
    torch.testing.assert_close(targets["velocity"][1], alpha * n - alpha * 0.7 * x0)
    torch.testing.assert_close(targets["epsilon"][0], alpha * (x0 + 0.7 * n))  # the variance-preserving state
    abar = 1 / (1 + 0.49)
    time = float(targets["epsilon"][2])
    assert abar == pytest.approx(float(1 / (1 + SCHEDULE.sigma(torch.tensor(time, dtype=torch.float64)) ** 2)))


def test_preconditioned_input_and_target_have_unit_variance():
    domain, sigma = HaarDomain(), torch.tensor([0.05, 0.5, 5.0]).repeat_interleave(2000)
    p = Parametrisation("preconditioned", mean=[0.4, 0, 0, 0], std=[0.6, 0.1, 0.2, 0.05])
    made = NetworkDenoiser(None, schedule=SCHEDULE, parametrisation=p, domain=domain)
    clean = p.mean.reshape(1, 4, 1, 1) + p.std.reshape(1, 4, 1, 1) * randn(6000, 4, 2, 2).float()
    image, target, _ = made.training_pair(domain.inverse(clean), randn(6000, 1, 4, 4, seed=1).float(), sigma)
    for part in (image, target):
        spread = part.unflatten(0, (3, 2000)).transpose(1, 2).flatten(2).std(-1)
        torch.testing.assert_close(spread, torch.ones(3, 4), rtol=0.05, atol=0)


def test_a_zero_network_is_the_best_linear_denoiser_of_gaussian_data():
    """With F = 0 the preconditioned form is the posterior mean of N(m, d^2), whatever the noise level."""
    made = denoiser(lambda image, timestep: torch.zeros_like(image), "preconditioned", channels=2)
    m, d = (v.double().reshape(1, 2, 1, 1) for v in (made.parametrisation.mean, made.parametrisation.std))
    x = randn(3, 2, 4, 4)
    for sigma in (0.03, 1.0, 40.0):
        torch.testing.assert_close(made(x, sigma), (d**2 * x + sigma**2 * m) / (d**2 + sigma**2))


def test_the_process_is_the_same_in_both_domains():
    """One optimal denoiser, written for pixels and for Haar coefficients, gives the same estimates."""
    s0 = 0.3  # white Gaussian images

    def optimal(image, timestep):
        sigma = SCHEDULE.sigma(timestep).reshape(-1, 1, 1, 1)
        return image * (1 + sigma**2) ** 0.5 * s0**2 / (s0**2 + sigma**2)

    x = randn(2, 2, 8, 8)
    pixel, haar = denoiser(optimal, "sample"), denoiser(optimal, "sample", HaarDomain())
    for sigma in (0.1, 1.0, 10.0):
        torch.testing.assert_close(pixel(x, sigma), haar(x, sigma))
        torch.testing.assert_close(pixel(x, sigma), x * s0**2 / (s0**2 + sigma**2), rtol=1e-6, atol=1e-9)


def test_clamp_in_the_image_domain_and_per_channel():
    made = denoiser(lambda image, timestep: torch.full_like(image, 3.0), "sample", HaarDomain())
    x = randn(1, 2, 8, 8)
    assert made(x, 1.0).abs().max() > 3
    clamped = NetworkDenoiser(
        made.network,
        schedule=SCHEDULE,
        parametrisation=made.parametrisation,
        domain=HaarDomain(),
        clamp=[[-1, 1], [0, 2]],
    )
    torch.testing.assert_close(clamped(x, 1.0)[:, :1], made(x, 1.0)[:, :1].clamp(-1, 1))
    torch.testing.assert_close(clamped(x, 1.0)[:, 1:], made(x, 1.0)[:, 1:].clamp(0, 2))


def test_gradient_flows_to_the_noisy_image():
    layer = torch.nn.Conv2d(8, 8, 3, padding=1).double()
    made = denoiser(lambda image, timestep: layer(image), "velocity", HaarDomain())
    assert torch.autograd.gradcheck(lambda x: made(x, 0.7), randn(1, 2, 4, 4).requires_grad_())


def test_levels_cover_the_schedule_evenly_and_are_seeded():
    prior = DiffusionPrior(ImageSpace(["t1"], (8, 8), (1, 1)), SCHEDULE, parametrisation=Parametrisation("epsilon"))
    first = prior.draw_levels(16, torch.Generator().manual_seed(3))
    assert torch.equal(first, prior.draw_levels(16, torch.Generator().manual_seed(3)))
    time = SCHEDULE.timestep(first).sort().values / 999
    assert ((time * 16).floor() == torch.arange(16)).all()
    x0 = torch.zeros(16, 1, 8, 8)
    batch = prior.noisy_batch(x0, torch.Generator().manual_seed(3))
    alpha = (1 + batch.sigma**2) ** -0.5
    torch.testing.assert_close(
        batch.image, (alpha * batch.sigma).reshape(-1, 1, 1, 1) * batch.target, rtol=1e-3, atol=1e-5
    )


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="kind"):
        Parametrisation("score")
    with pytest.raises(ValueError, match="mean, std"):
        Parametrisation("preconditioned")
    with pytest.raises(ValueError, match="mean, std"):
        Parametrisation("epsilon", mean=[0.0], std=[1.0])
    made = denoiser(lambda image, timestep: image, "preconditioned", channels=3)
    with pytest.raises(ValueError, match="3 coefficient channels"):
        made(randn(1, 2, 4, 4), 1.0)
    for wrong in (0.0, -1.0, [1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="sigma"):
            denoiser(None)(randn(2, 2, 4, 4), torch.tensor(wrong))
    with pytest.raises(ValueError, match="clamp"):
        denoiser(None, clamp=(1, -1))
