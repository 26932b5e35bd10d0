"""Spectral metrics against single waves."""

import math

import pytest
import torch

from multirecon.metrics import evaluate_image, high_frequency_ratio, radial_power
from multirecon.space import ImageSpace, Modality


def wave(frequency, size=64, axis=1):
    line = torch.cos(2 * math.pi * frequency * torch.arange(size, dtype=torch.float64))
    plane = line[None].expand(size, size)
    return (plane if axis == 1 else plane.T)[None, None].clone()


def test_ratio_counts_what_lies_above_half_nyquist_only():
    slow, fast = wave(4 / 64), wave(20 / 64, axis=0)
    truth = 1 + slow + fast
    assert high_frequency_ratio(1 + slow + 0.5 * fast, truth).item() == pytest.approx(0.25)
    assert high_frequency_ratio(5 - 3 * slow + fast, truth).item() == pytest.approx(1.0)
    assert high_frequency_ratio(1 + slow, truth).item() == pytest.approx(0.0, abs=1e-20)


def test_cutoff_itself_counts_as_high():
    edge, below = wave(16 / 64), wave(15 / 64)
    assert high_frequency_ratio(edge + 2 * below, edge).item() == pytest.approx(1.0)


def test_added_white_noise_adds_its_share_of_the_plane(generator):
    truth = wave(20 / 64)
    noise = 0.3 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    share = 1 - math.pi * 0.25**2  # the disc below the cutoff is left out
    expected = 1 + share * 0.09 / 0.5
    assert high_frequency_ratio(truth + noise, truth).item() == pytest.approx(expected, rel=0.03)


def test_mask_sees_its_own_half():
    fast = wave(20 / 64)
    left = torch.zeros(64, 64, dtype=torch.bool)
    left[:, 8:24] = True
    right = left.flip(1)
    scale = torch.where(torch.arange(64) < 32, 1.0, 2.0)
    pred = fast * scale
    assert high_frequency_ratio(pred, fast, mask=left).item() == pytest.approx(1.0, rel=0.05)
    assert high_frequency_ratio(pred, fast, mask=right).item() == pytest.approx(4.0, rel=0.05)


def test_truth_without_high_frequencies_is_refused():
    with pytest.raises(ValueError, match="energy at or above"):
        high_frequency_ratio(wave(20 / 64), 1 + wave(4 / 64))
    with pytest.raises(ValueError, match="cutoff"):
        high_frequency_ratio(wave(0.1), wave(0.1), cutoff=0.6)


def test_radial_power_puts_a_wave_into_its_ring():
    centres, power = radial_power(wave(10 / 64), bins=16)
    peak = int(power[0, 0].argmax())
    assert abs(centres[peak].item() - 10 / 64) <= 0.5 / 32
    assert power[0, 0].sum() == power[0, 0, peak] + power[0, 0, torch.arange(16) != peak].sum()
    assert power[0, 0, torch.arange(16) != peak].max() < 1e-18


def test_radial_power_of_white_noise_is_flat(generator):
    _, power = radial_power(torch.randn(8, 1, 64, 64, generator=generator), bins=8)
    assert power.mean((0, 1)).tolist() == pytest.approx([1.0] * 8, rel=0.12)


def test_ratio_is_a_metric_of_tasks():
    truth = 1 + wave(20 / 64)
    space = ImageSpace([Modality("t1")], (64, 64), (2.0, 2.0))
    assert evaluate_image(2 * truth, truth, space, targets=["t1"], metrics=["hfer"])["t1"]["hfer"] == pytest.approx(4.0)
