"""Gaussian blur: the common battery, unit sum, width, rotation of axes."""

from __future__ import annotations

import pytest
import torch

from multirecon.operators import GaussianBlur, check_operator
from multirecon.operators.pet_blur import gaussian_kernel


@pytest.mark.parametrize(
    ("shape", "spacing", "fwhm"),
    [((2, 9, 12), (2.0, 3.0), 6.0), ((1, 6, 7, 5), (2.0, 2.0, 3.0), (4.0, 0.0, 6.0)), ((1, 8, 8), (2.0, 2.0), 0.0)],
)
def test_battery(shape: tuple, spacing: tuple, fwhm: float | tuple) -> None:
    check_operator(GaussianBlur(shape, spacing, fwhm_mm=fwhm), tolerance=1e-5)
    check_operator(GaussianBlur(shape, spacing, fwhm_mm=fwhm).to(torch.float64), tolerance=1e-12)


@pytest.mark.parametrize("fwhm", [2.0, 6.0, 12.0])
def test_width_and_sum_of_the_kernel(fwhm: float) -> None:
    kernel = gaussian_kernel(fwhm, 1.5)
    position = 1.5 * (torch.arange(len(kernel)) - (len(kernel) - 1) / 2)
    assert abs(float(kernel.sum()) - 1) < 1e-12
    variance = float((kernel * position**2).sum())
    assert variance == pytest.approx((fwhm / 2.35482) ** 2 + 1.5**2 / 12, rel=1e-2)  # a pixel adds its own width


def test_constant_image_is_kept_inside_and_arguments_rebuild() -> None:
    G = GaussianBlur((1, 21, 31), (1.0, 1.0), fwhm_mm=(3.0, 5.0))
    y = G(torch.ones(1, 1, 21, 31))
    torch.testing.assert_close(y[0, 0, 8:13, 12:19], torch.ones(5, 7))
    x = torch.rand(1, 1, 21, 31, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(GaussianBlur(**G.arguments())(x), G(x), rtol=0, atol=0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="fwhm_mm"):
        GaussianBlur((1, 8, 8), (1.0, 1.0), fwhm_mm=-1.0)
    with pytest.raises(ValueError, match="spacing_mm"):
        GaussianBlur((1, 8, 8), (1.0,), fwhm_mm=1.0)
