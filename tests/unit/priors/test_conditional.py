"""Conditional diffusion with a learned variance: closed forms of the chain, the bound, and the curriculum."""

import math
from types import SimpleNamespace

import pytest
import torch

from multirecon.priors import NoiseSchedule, Parametrisation, SampleNoise
from multirecon.priors.conditional import CHAINS, ConditionalDiffusion, VarianceRange
from multirecon.priors.conditional_training import CurriculumSampler, PrepareConditional, slice_entropy

LINEAR = NoiseSchedule.linear()
KINDS = {
    "epsilon": Parametrisation("epsilon"),
    "velocity": Parametrisation("velocity"),
    "preconditioned": Parametrisation("preconditioned", mean=[-0.7], std=[0.4]),
}


def diffusion(kind="epsilon", **options):
    return ConditionalDiffusion(LINEAR, parametrisation=KINDS[kind], **options)


def batch(made, generator, count=8):
    x0 = torch.rand(count, 1, 4, 4, generator=generator) * 1.6 - 0.8
    return made.training_batch(x0, torch.zeros(count, 2, 4, 4), generator)


def test_variances_of_the_full_schedule_are_those_of_ddpm():
    full = VarianceRange(LINEAR)
    torch.testing.assert_close(full.beta, LINEAR.betas)
    before = torch.cat([torch.ones(1, dtype=torch.float64), LINEAR.abar[:-1]])
    expected = LINEAR.betas * (1 - before) / (1 - LINEAR.abar)
    torch.testing.assert_close(full.log_smallest[1:].exp(), expected[1:])
    assert full.log_smallest[0] == full.log_smallest[1]  # log 0 otherwise


def test_kept_times_have_a_range_of_their_own():
    kept = VarianceRange(LINEAR, LINEAR.kept_steps(20))
    assert len(kept.times) == 20
    assert (int(kept.times[0]), int(kept.times[-1])) == (0, 999)
    torch.testing.assert_close((1 - kept.beta).cumprod(0), LINEAR.abar[kept.times])
    full = VarianceRange(LINEAR)
    assert (kept.log_largest[1:] > full.log_largest[kept.times[1:]]).all()


def test_variance_interpolates_in_log_space():
    full, k = VarianceRange(LINEAR), torch.tensor([500, 500, 500])
    v = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
    got = full.log_variance(v, k).flatten().double()
    low, high = full.log_smallest[500], full.log_largest[500]
    torch.testing.assert_close(got, torch.stack([low, (low + high) / 2, high]), rtol=1e-5, atol=1e-5)


def test_mean_is_that_of_the_posterior_of_two_gaussians():
    """q(x_{t-1} | x_t, x0) by Bayes' rule from q(x_{t-1} | x0) and q(x_t | x_{t-1}), at kept times too."""
    kept = VarianceRange(LINEAR, LINEAR.kept_steps(20))
    x0, x_t, k = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (0.3, -1.2, 0)), None, 7
    x0, x_t, _ = x0
    alpha, before = 1 - kept.beta[k], kept.before[k]
    precision = 1 / (1 - before) + alpha / kept.beta[k]
    expected = (before.sqrt() * 0.3 / (1 - before) + alpha.sqrt() * -1.2 / kept.beta[k]) / precision
    got = kept.mean(x0, x_t, torch.tensor([k]))
    assert float(got) == pytest.approx(float(expected), rel=1e-10)
    assert float(kept.log_smallest[k].exp()) == pytest.approx(float(1 / precision), rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_estimate_undoes_the_training_pair(kind, generator):
    made = diffusion(kind)
    got = batch(made, generator)
    # single precision at time 999: the noise is 150 times the signal
    torch.testing.assert_close(made.estimate(got.target, got.x_t, got.timestep), got.x0, rtol=0, atol=2e-3)
    assert got.image.shape == (8, 3, 4, 4)
    assert torch.equal(got.timestep, got.timestep.round())


def test_noise_is_the_target_of_epsilon(generator):
    got = batch(diffusion(), generator)
    abar = LINEAR.abar[got.timestep.long()].float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(got.x_t, abar.sqrt() * got.x0 + (1 - abar).sqrt() * got.target, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.image[:, :1], got.x_t, atol=1e-4, rtol=1e-4)


def test_bound_of_the_true_posterior_is_zero(generator):
    """With the right noise and v = -1 the step is the posterior itself; v = 1 costs what two Gaussians differ by."""
    made = diffusion()
    got = batch(made, generator, count=64)
    inner = got.timestep >= 100  # where single precision does not blur the mean
    bound = made.variational_bound(got, got.target, torch.full_like(got.target, -1.0))
    assert float(bound[inner].abs().max()) < 1e-3
    d = made.full.log_smallest - made.full.log_largest
    expected = (0.5 * (d.exp() - 1 - d) / math.log(2))[got.timestep.long()].float()
    wide = made.variational_bound(got, got.target, torch.ones_like(got.target))
    torch.testing.assert_close(wide[inner], expected[inner], rtol=1e-2, atol=1e-4)


def test_bound_teaches_the_variance_alone(generator):
    made = diffusion()
    got = batch(made, generator)
    prediction, v = torch.zeros_like(got.target).requires_grad_(), torch.zeros_like(got.target).requires_grad_()
    made.variational_bound(got, prediction, v).sum().backward()
    assert prediction.grad is None
    assert v.grad.abs().sum() > 0


def test_bins_of_the_decoder_sum_to_one(generator):
    made = diffusion(image_range=(0.0, 1.0))
    x = (torch.arange(256) / 255).reshape(256, 1, 1, 1)
    total = made._log_bin(x, torch.full_like(x, 0.4), torch.full_like(x, math.log(0.02))).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-4)


def gaussian_network(made, mean, std, *, v=-1.0):
    """The exact network of targets N(mean, std^2), every pixel by itself: F from the posterior mean."""

    def network(image, timestep):
        sigma = LINEAR.sigma(timestep).reshape(-1, 1, 1, 1)
        x = image[:, :1] * (1 + sigma**2).sqrt()  # epsilon is fed with x_t
        x0 = (mean * sigma**2 + x * std**2) / (sigma**2 + std**2)
        noise = (x - x0) / sigma
        return torch.cat([noise, torch.full_like(noise, v)], dim=1)

    return network


def ancestral_spread(std, steps):
    """Standard deviation that an ancestral chain with the smallest variances ends at, by its own recursion."""
    kept = VarianceRange(LINEAR, LINEAR.kept_steps(steps))
    variance = 1.0
    for k in reversed(range(1, steps)):
        abar, before, beta = kept.abar[k], kept.before[k], kept.beta[k]
        estimate = abar.sqrt() * std**2 / (abar * std**2 + 1 - abar)  # d x0^ / d x_t
        slope = beta * before.sqrt() / (1 - abar) * estimate + (1 - beta).sqrt() * (1 - before) / (1 - abar)
        variance = float(slope**2 * variance + kept.log_smallest[k].exp())
    abar = kept.abar[0]
    return float(abar.sqrt() * std**2 / (abar * std**2 + 1 - abar)) * variance**0.5


@pytest.mark.parametrize(("chain", "steps"), [("ancestral", 1000), ("ancestral", 20), ("ddim", 400), ("multistep", 50)])
def test_chains_draw_from_the_gaussian(chain, steps):
    made = diffusion(clamp=None)
    noise = SampleNoise((4, 1, 32, 32), torch.Generator().manual_seed(1), like=torch.zeros(()))
    network = gaussian_network(made, 0.3, 0.2)
    got = made.sample(network, torch.zeros(4, 2, 32, 32), noise, steps=steps, chain=chain)
    assert float(got.mean()) == pytest.approx(0.3, abs=0.01)
    # few ancestral steps with the variance of a known x0 shrink the spread, by a known amount
    expected = ancestral_spread(0.2, steps) if chain == "ancestral" else 0.2
    assert float(got.std()) == pytest.approx(expected, rel=0.03)


def test_full_chain_has_the_right_spread():
    assert ancestral_spread(0.2, 1000) == pytest.approx(0.2, rel=0.02)
    assert ancestral_spread(0.2, 20) < 0.17


def test_learned_variance_reaches_the_samples():
    made = diffusion(clamp=None)
    spread = []
    for v in (-1.0, 1.0):
        noise = SampleNoise((2, 1, 32, 32), torch.Generator().manual_seed(1), like=torch.zeros(()))
        network = gaussian_network(made, 0.3, 0.2, v=v)
        spread.append(float(made.sample(network, torch.zeros(2, 2, 32, 32), noise, steps=20).std()))
    assert spread[0] < spread[1]
    for v, name in ((-1.0, "smallest"), (1.0, "largest")):  # the ends may be asked for, whatever the network says
        noise = SampleNoise((2, 1, 32, 32), torch.Generator().manual_seed(1), like=torch.zeros(()))
        network = gaussian_network(made, 0.3, 0.2, v=0.5)
        got = made.sample(network, torch.zeros(2, 2, 32, 32), noise, steps=20, variance=name)
        assert float(got.std()) == pytest.approx(spread[v > 0], rel=1e-6)


def test_times_of_a_chain():
    made, seen = diffusion(), []

    def network(image, timestep):
        seen.append(timestep[0].item())
        return torch.zeros(len(image), 2, 4, 4)

    for chain in CHAINS:
        seen.clear()
        noise = SampleNoise((1, 1, 4, 4), torch.Generator(), like=torch.zeros(()))
        made.sample(network, torch.zeros(1, 2, 4, 4), noise, steps=20, chain=chain)
        assert len(seen) == 20
        torch.testing.assert_close(torch.tensor(seen), LINEAR.kept_steps(20).flip(0).float(), atol=0.5, rtol=0)
        assert seen[0] == pytest.approx(999, abs=1e-2)
        assert seen[-1] == pytest.approx(0, abs=1e-2)


def test_estimates_stay_in_the_clamp():
    made = diffusion(clamp=(-1.0, 1.6))
    noise = SampleNoise((1, 1, 8, 8), torch.Generator(), like=torch.zeros(()))
    found = []
    made.sample(lambda image, t: 3 * torch.ones(1, 2, 8, 8), torch.zeros(1, 2, 8, 8), noise, steps=5,
                callback=lambda k, x0: found.append(x0))  # fmt: skip
    assert len(found) == 5
    assert min(float(x.min()) for x in found) >= -1.0
    assert max(float(x.max()) for x in found) <= 1.6 + 1e-6


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"image_range: expected an increasing pair"):
        diffusion(image_range=(1.0, 0.0))
    noise = SampleNoise((1, 1, 4, 4), torch.Generator(), like=torch.zeros(()))
    with pytest.raises(ValueError, match=r"chain: expected one of"):
        diffusion().sample(lambda *a: None, torch.zeros(1, 2, 4, 4), noise, steps=2, chain="euler")
    with pytest.raises(ValueError, match=r"variance: expected one of"):
        diffusion().sample(lambda *a: None, torch.zeros(1, 2, 4, 4), noise, steps=2, variance="none")
    with pytest.raises(ValueError, match=r"correct: expected none"):
        diffusion().sample(lambda *a: None, torch.zeros(1, 2, 4, 4), noise, steps=2, correct=lambda x, s: x)


def test_entropy_of_known_images():
    flat = torch.zeros(1, 8, 8)
    four = torch.tensor([0.1, 0.4, 0.7, 1.0]).repeat(16).reshape(1, 8, 8)
    assert slice_entropy(torch.cat([flat, four])).tolist() == pytest.approx([0.0, 2.0], abs=1e-6)


class Slices:
    """Slices of 1, 2, 4, ... grey values: entropies 0, 1, 2, ... bits."""

    def __init__(self, count=40, kinds=5):
        self.items = [{"image": (torch.arange(256) % 2 ** (i % kinds)).reshape(1, 16, 16) * 0.02} for i in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_curriculum_rises_linearly_and_ends():
    sampler = CurriculumSampler(Slices(), 4, curriculum=1000)
    assert [len(m) for m in sampler.members] == [8] * 5
    means = [sampler.bin_mean(4 * step) for step in (0, 250, 500, 1000)]
    assert means == pytest.approx([0.0, 1.0, 2.0, 4.0])
    bins = torch.tensor([[i % 5 for step in range(s, s + 100) for i in map(sampler.index, sampler.positions(step))]
                         for s in (0, 450, 900)], dtype=torch.float64)  # fmt: skip
    # around 0.2, 2 and 3.8 where the truncation does not bend it
    assert bins.mean(1).tolist() == pytest.approx([0.33, 2.0, 3.67], abs=0.15)
    assert float(bins[1].std()) == pytest.approx(0.6, abs=0.15)  # 0.5, rounded, and the mean's own rise
    later = [sampler.index(p) for step in range(1000, 1010) for p in sampler.positions(step)]
    assert sorted(later) == list(range(40))  # one pass, no slice twice


def test_without_curriculum_positions_before_the_first_are_a_pass_too():
    sampler = CurriculumSampler(Slices(), 4, fresh=1, spacing=10)
    assert sorted(sampler.index(p) for p in range(-40, 0)) == list(range(40))


def test_slices_come_back_after_their_spacing():
    sampler = CurriculumSampler(Slices(), 4, fresh=2, spacing=3)
    assert sampler.positions(10) == [20, 21, 14, 15]
    assert sampler.positions(13)[2:] == sampler.positions(10)[:2]
    assert sampler.positions(0) == [0, 1, -6, -5]


def test_batches_are_a_function_of_the_step():
    def first(start, rank=0, world_size=1):
        sampler = CurriculumSampler(Slices(), 4, fresh=2, spacing=3, curriculum=6, rank=rank, world_size=world_size)
        sampler.start = start
        batches = iter(sampler)
        return [next(batches) for _ in range(8)]

    assert first(0)[5:] == first(5)[:3]
    assert first(0, 0, 2) != first(0, 1, 2)


def test_ranks_share_a_pass():
    samplers = [CurriculumSampler(Slices(), 4, rank=rank, world_size=2) for rank in (0, 1)]
    seen = [s.index(p) for step in range(5) for s in samplers for p in s.positions(step)]
    assert sorted(seen) == list(range(40))


def test_wrong_samplers_are_named():
    with pytest.raises(ValueError, match=r"a divisor of it"):
        CurriculumSampler(Slices(), 4, fresh=3)
    with pytest.raises(ValueError, match=r"rank: expected"):
        CurriculumSampler(Slices(), 4, rank=2)


class Scans:
    """Stands in for the simulation: a truth that tells its position, and a count of calls."""

    step = 0
    calls = 0

    def __call__(self, batch):
        self.calls += 1
        truth = torch.full((1, 2, 8, 4), float(self.step)) + torch.arange(8).reshape(8, 1) / 10
        measured = {"flair": truth[:, :1] / 2}
        return SimpleNamespace(space=SimpleNamespace(names=["flair", "t1"]), operator=measured, y=measured), truth


def test_scans_are_simulated_once_and_noise_is_new():
    sampler, scans = CurriculumSampler(Slices(), 4, fresh=2, spacing=3), Scans()
    prepare = PrepareConditional(scans, degrade=lambda operator, y: y, diffusion=diffusion(image_range=(0.0, 1.0)),
                                 sampler=sampler, rows=4)  # fmt: skip
    seen = {}
    for step in range(1, 9):
        prepare.step = step
        _, got, (timestep,), _ = prepare({"image": torch.zeros(4, 1, 8, 8), "id": ["a"] * 4})
        assert got.image.shape == (4, 3, 4, 4)
        assert torch.equal(timestep, got.timestep)
        rows = (got.x0[:, 0, 0, 0] - torch.tensor(sampler.positions(step - 1))) * 10
        assert ((rows > -0.01) & (rows < 4.01)).all()  # the slice of its position, some rows of it
        degraded, reference = got.image[:, 1:2], got.image[:, 2:]
        torch.testing.assert_close(degraded, got.x0 / 2)
        torch.testing.assert_close(reference, got.x0)
        seen[step] = got
    assert scans.calls == 8 * 2 + 3 * 2  # two new ones a step, and those before the first
    assert not torch.equal(seen[1].target[:2], seen[4].target[2:])
    prepare.step = 5  # a resumed run sees what it would have seen
    fresh = PrepareConditional(Scans(), degrade=lambda operator, y: y, diffusion=prepare.diffusion, sampler=sampler,
                               rows=4)  # fmt: skip
    fresh.step = 5
    _, got, _, _ = fresh({"image": torch.zeros(4, 1, 8, 8), "id": ["a"] * 4})
    assert torch.equal(got.image, seen[5].image)
