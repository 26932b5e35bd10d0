"""Ramp filter and filtered back-projection as functions (absolute values: tests/physics/test_projectors.py)."""

from __future__ import annotations

import math

import pytest
import torch

from multirecon.operators import ParallelBeam
from multirecon.reconstruction.analytic import WINDOWS, fbp, ramp_filter


def test_ramp_is_the_transform_of_the_band_limited_kernel() -> None:
    d, bins = 0.3, 50
    response = ramp_filter(bins, d)
    length = 2 * (len(response) - 1)
    assert length >= 2 * bins
    kernel = torch.fft.irfft(response, n=length) / d
    expected = torch.zeros(length, dtype=torch.float64)
    for n in range(-length // 2, length // 2):
        expected[n] = 1 / (4 * d * d) if n == 0 else (-1 / (math.pi * n * d) ** 2 if n % 2 else 0.0)
    torch.testing.assert_close(kernel, expected, rtol=1e-9, atol=1e-12)
    # near |xi| in the middle of the band, but not zero at the origin: that is what keeps the mean
    frequency = torch.linspace(0, 0.5 / d, len(response), dtype=torch.float64)
    torch.testing.assert_close(response[10:], frequency[10:], rtol=2e-2, atol=0)
    assert 0 < float(response[0]) < 0.02 * float(response[-1])


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_only_lower_the_ramp_and_end_at_the_cutoff(window: str) -> None:
    ramp, windowed = ramp_filter(64, 1.0), ramp_filter(64, 1.0, window=window, cutoff=0.5)
    assert bool((windowed <= ramp + 1e-12).all())
    assert bool((windowed[1:30] > 0).all())
    half = (len(ramp) - 1) // 2
    assert float(windowed[half + 1 :].abs().max()) == 0.0
    torch.testing.assert_close(windowed[1], ramp[1], rtol=2e-2, atol=0)


@pytest.mark.parametrize(
    ("change", "name"), [({"window": "box"}, "window"), ({"cutoff": 0.0}, "cutoff"), ({"cutoff": 1.2}, "cutoff")]
)
def test_errors(change: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ramp_filter(16, 1.0, **change)


def test_fbp_is_linear_differentiable_and_batched() -> None:
    A = ParallelBeam((6, 5), (2.0, 3.0), views=6, bins=9, channels=2).to(torch.float64)
    y = torch.rand(3, 2, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fbp(A, y)[1:2], fbp(A, y[1:2]))
    assert torch.autograd.gradcheck(lambda v: fbp(A, v, window="hann"), y[:1].requires_grad_())


def test_full_turn_is_the_half_turn_twice() -> None:
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    half = ParallelBeam((16, 16), (2.0, 2.0), views=20, bins=24)
    full = ParallelBeam((16, 16), (2.0, 2.0), views=40, bins=24, arc=2 * math.pi)
    torch.testing.assert_close(fbp(full, full(x)), fbp(half, half(x)), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="operator"):
        fbp(ParallelBeam((16, 16), (2.0, 2.0), views=3, bins=24, angles=[0.0, 1.0, 1.1]), torch.zeros(1, 1, 3, 24))
