import math

import pytest
import torch

from multirecon.priors import NoiseSchedule


def test_cosine_anchors():
    abar = NoiseSchedule.cosine(1000).abar
    assert float(abar[0]) == pytest.approx(0.9999587, abs=5e-8)
    assert float(abar[499]) == pytest.approx(0.4938436, abs=5e-8)
    assert float(abar[999]) == pytest.approx(2.43e-9, rel=2e-3)


def test_cosine_definition_below_the_bound():
    schedule = NoiseSchedule.cosine(50)
    f = [math.cos(math.pi / 2 * (t / 50 + 0.008) / 1.008) ** 2 for t in range(51)]
    assert float(schedule.betas[20]) == pytest.approx(1 - f[21] / f[20], rel=1e-12)
    assert float(schedule.betas[-1]) == 0.999


def test_linear_definition():
    schedule = NoiseSchedule.linear(1000)
    assert float(schedule.betas[0]) == pytest.approx(1e-4)
    assert float(schedule.betas[-1]) == pytest.approx(0.02)
    assert float(schedule.abar[-1]) == pytest.approx(4.0358e-5, rel=1e-4)


@pytest.mark.parametrize("schedule", [NoiseSchedule.cosine(), NoiseSchedule.linear()], ids=["cosine", "linear"])
def test_time_and_noise_level_are_inverse(schedule):
    whole = torch.arange(1000)
    sigma = ((1 - schedule.abar) / schedule.abar).sqrt()
    torch.testing.assert_close(schedule.sigma(whole.double()), sigma, rtol=1e-9, atol=0)
    time = torch.linspace(0, 999, 4321, dtype=torch.float64)
    torch.testing.assert_close(schedule.timestep(schedule.sigma(time)), time, rtol=0, atol=1e-8)
    assert (schedule.sigma(time).diff() > 0).all()
    low, high = schedule.sigma_range
    assert schedule.timestep(torch.tensor([low / 10, high * 10])).tolist() == [0.0, 999.0]


def test_exactly_150_kept_steps():
    kept = NoiseSchedule.cosine().kept_steps(150)
    assert kept[:4].tolist() == [0, 7, 13, 20]
    assert kept[-2:].tolist() == [992, 999]
    assert len(kept.unique()) == 150
    assert NoiseSchedule.cosine().kept_steps(1000).tolist() == list(range(1000))
    assert NoiseSchedule.cosine().kept_steps(1).tolist() == [999]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="betas"):
        NoiseSchedule(torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="timestep"):
        NoiseSchedule.cosine(10).sigma(torch.tensor([10.0]))
    with pytest.raises(ValueError, match="count"):
        NoiseSchedule.cosine(10).kept_steps(11)
    with pytest.raises(ValueError, match="spacing"):
        NoiseSchedule.cosine(10).kept_steps(2, "leading")


def test_trailing_steps_leave_out_zero():
    schedule = NoiseSchedule.cosine(1000)
    assert schedule.kept_steps(1, "trailing").tolist() == [999]
    assert schedule.kept_steps(4, "trailing").tolist() == [249, 499, 749, 999]
    assert schedule.kept_steps(1000, "trailing").tolist() == list(range(1000))


def test_even_levels_are_even_in_the_logarithm():
    schedule = NoiseSchedule.cosine(1000)
    times = schedule.even_levels(9, sigma_max=3.0)
    steps = schedule.sigma(times).log().diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-6, atol=0)
    assert float(times[0]) == 0
    assert float(schedule.sigma(times)[-1]) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="sigma_max"):
        schedule.even_levels(9, sigma_max=1e6)
