"""Realisations and posterior samples against closed forms."""

import math

import pytest
import torch

from multirecon.metrics import (
    crps,
    normalised_bias,
    normalised_std,
    posterior_coverage,
    posterior_ranks,
    rank_deviation,
)

SHAPE = (1, 1, 64, 64)


def normal(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_bias_and_spread_of_two_realisations():
    truth = torch.full(SHAPE, 2.0)
    pair = torch.stack([truth + 1.5, truth - 0.5])
    assert normalised_bias(pair, truth).item() == pytest.approx(0.25)
    assert normalised_std(pair).item() == pytest.approx(math.sqrt(2.0) / 2.5)


def test_unbiased_noise_gives_its_level(generator):
    truth = torch.full(SHAPE, 4.0, dtype=torch.float64)
    noisy = truth + 0.4 * normal(50, *SHAPE, generator=generator)
    assert normalised_std(noisy).item() == pytest.approx(0.1, rel=0.02)
    assert normalised_bias(noisy, truth).item() == pytest.approx(0.1 / math.sqrt(50), rel=0.05)


def test_region_decides():
    truth = torch.ones(SHAPE)
    pair = torch.stack([truth, truth])
    pair[..., :32] *= 1.5
    left = torch.zeros(64, 64, dtype=torch.bool)
    left[:, :32] = True
    assert normalised_bias(pair, truth, mask=left).item() == pytest.approx(0.5)
    assert normalised_bias(pair, truth, mask=~left).item() == 0.0


def test_spread_needs_a_positive_mean():
    with pytest.raises(ValueError, match=r"100\.0% of it"):
        normalised_std(torch.zeros(3, *SHAPE))


@pytest.mark.parametrize("count", [39, 40, 64])
def test_honest_posterior_covers_what_it_says(count, generator):
    x, truth = normal(count, *SHAPE, generator=generator), normal(*SHAPE, generator=generator)
    for level, found in posterior_coverage(x, truth).items():
        tolerance = 4 * math.sqrt(level * (1 - level) / truth.numel())
        assert found.item() == pytest.approx(level, abs=tolerance)


def test_coverage_is_exact_over_all_ranks():
    """With S distinct samples the truth falls into each of the S + 1 gaps equally often."""
    for count in (5, 6, 19):
        samples = torch.arange(1, count + 1).double().reshape(count, 1, 1, 1, 1).expand(count, 1, 1, 1, count + 1)
        truth = (torch.arange(count + 1) + 0.5).reshape(1, 1, 1, count + 1)
        for level, found in posterior_coverage(samples, truth, levels=[0.3, 0.5, 0.6]).items():
            assert found.item() == pytest.approx(level, abs=1e-12)


@pytest.mark.parametrize(("spread", "expected"), [(0.5, 0.672926), (2.0, 0.999911)])
def test_wrong_spread_covers_what_the_normal_distribution_says(spread, expected, generator):
    x, truth = spread * normal(399, *SHAPE, generator=generator), normal(*SHAPE, generator=generator)
    assert posterior_coverage(x, truth, levels=[0.95])[0.95].item() == pytest.approx(expected, abs=0.025)


def test_too_few_samples_for_a_level_are_refused():
    with pytest.raises(ValueError, match="10 samples can support"):
        posterior_coverage(torch.zeros(10, *SHAPE), torch.zeros(SHAPE))


def test_score_of_a_normal_forecast(generator):
    """CRPS of N(0, 1) at y = 0 is (sqrt(2) - 1) / sqrt(pi)."""
    x = normal(200, *SHAPE, generator=generator)
    expected = (math.sqrt(2) - 1) / math.sqrt(math.pi)
    assert crps(x, torch.zeros(SHAPE)).item() == pytest.approx(expected, rel=0.01)


def test_score_of_a_point_mass_is_the_absolute_error():
    truth = torch.ones(SHAPE)
    assert crps((truth + 0.3).expand(5, *SHAPE), truth).item() == pytest.approx(0.3, rel=1e-6)


def test_score_does_not_depend_on_the_number_of_samples(generator):
    truth = normal(*SHAPE, generator=generator)
    few, many = (crps(normal(n, *SHAPE, generator=generator), truth).item() for n in (2, 100))
    assert few == pytest.approx(many, rel=0.05)


@pytest.mark.parametrize("function", [normalised_bias, posterior_coverage, crps])
def test_shapes_are_checked(function):
    with pytest.raises(ValueError, match="expected"):
        function(torch.zeros(3, 1, 2, 8, 8), torch.zeros(1, 1, 8, 8))


def test_ranks_count_the_samples_below():
    samples = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    assert posterior_ranks(samples, torch.tensor([2.5, 0.0])).tolist() == [2, 1]
    assert posterior_ranks(samples, torch.tensor([0.0, 1.0])).tolist() == [0, 3]


def test_ranks_tell_narrow_wide_and_shifted_posteriors(generator):
    truth = torch.randn(4000, generator=generator)
    samples = torch.randn(9, 4000, generator=generator)
    spread, shift, distance = rank_deviation(posterior_ranks(samples, truth), 9)
    assert abs(spread - 1) < 0.03
    assert abs(shift) < 0.015
    assert distance < 1.63 / 4000**0.5
    narrow, _, away = rank_deviation(posterior_ranks(0.5 * samples, truth), 9)
    assert narrow > 1.15
    assert away > 0.08
    assert rank_deviation(posterior_ranks(2 * samples, truth), 9)[0] < 0.8
    assert rank_deviation(posterior_ranks(samples - 0.5, truth), 9)[1] > 0.1


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: posterior_ranks(torch.zeros(3, 2), torch.zeros(3)), "samples"),
        (lambda: rank_deviation(torch.tensor([0, 4]), 3), "ranks"),
        (lambda: rank_deviation(torch.zeros(0, dtype=torch.long), 3), "ranks"),
    ],
)
def test_wrong_ranks_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
