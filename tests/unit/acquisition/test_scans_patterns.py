"""The single-pixel camera: its patterns, its noise, and what its model does not know."""

import pytest
import torch

from multirecon.acquisition import Acquisition, HadamardCamera, block_mean
from multirecon.operators.hadamard import walsh_hadamard
from multirecon.space import ImageSpace

SPACE = ImageSpace(["t1"], (64, 64), (3.75, 3.75))


def head(size=128):
    """Return two ellipses ``(1, 1, size, size)``."""
    axis = (torch.arange(size) + 0.5) / size - 0.5
    outer = (axis[:, None] / 0.35) ** 2 + (axis / 0.42) ** 2 < 1
    inner = ((axis[:, None] - 0.1) / 0.1) ** 2 + (axis / 0.15) ** 2 < 1
    return (0.6 * outer + 0.4 * inner)[None, None].float()


def measure(scan, space=SPACE, ids=("a",)):
    fine = head(2 * space.shape[0]).expand(len(ids), -1, -1, -1)
    return Acquisition(space, {"t1": scan}, key="t", oversample=2)({"t1": fine}, list(ids))


def test_data_are_the_chosen_coefficients_of_the_image():
    measurement = measure(HadamardCamera(333, sigma=1e-6))
    operator, y = measurement.operator["t1"], measurement.y["t1"]
    assert y.shape == (1, 1, 333)
    coefficients = walsh_hadamard(block_mean(head(), 2), 2).flatten()
    torch.testing.assert_close(y[0, 0], coefficients[operator.rows], atol=1e-4, rtol=0)
    assert int(operator.rows[0]) == 0  # how bright an image is varies most
    assert len(operator.rows.unique()) == 333
    more = measure(HadamardCamera(500)).operator["t1"].rows
    assert torch.equal(more[:333], operator.rows)


def test_few_patterns_hold_most_of_an_image():
    """Better than as many coefficients in the order of their number: the order comes from heads."""
    image = block_mean(head(), 2)
    scan = measure(HadamardCamera(333, sigma=1e-6))
    chosen = (scan.operator["t1"].adjoint(scan.y["t1"]) - image).norm() / image.norm()
    first = walsh_hadamard(image, 2).flatten()
    first[333:] = 0
    plain = (walsh_hadamard(first.reshape(1, 1, 64, 64), 2) - image).norm() / image.norm()
    assert chosen < 0.3
    assert chosen < 0.6 * plain


def test_noise_is_white_and_the_optics_are_unknown_to_the_model():
    noisy = measure(HadamardCamera(1024, sigma=0.05), ids=[f"s{i}" for i in range(8)])
    residual = noisy.y["t1"] - noisy.operator["t1"](block_mean(head(), 2).expand(8, -1, -1, -1))
    assert float(residual.std()) == pytest.approx(0.05, rel=0.03)
    sharp, blurred = (measure(HadamardCamera(333, sigma=1e-6, blur_mm=b)) for b in (0.0, 4.0))
    gap = (sharp.y["t1"] - blurred.y["t1"]).norm() / sharp.y["t1"].norm()
    assert 1e-3 < gap < 0.1
    assert HadamardCamera(333, blur_mm=4.0).mismatch() == ("optics blur of 4 mm",)
    assert HadamardCamera(333).mismatch() == ()


def test_bad_settings_are_named():
    for settings, message in (
        ({"patterns": 0}, "patterns: expected a number from 1 to 1024, got 0"),
        ({"patterns": 2000}, "patterns: expected a number from 1 to 1024, got 2000"),
        ({"patterns": 3, "sigma": 0.0}, "sigma, blur_mm: expected > 0"),
        ({"patterns": 3, "blur_mm": -1.0}, "sigma, blur_mm: expected > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            HadamardCamera(**settings)
    with pytest.raises(ValueError, match=r"grid: expected \(64, 64\), whose patterns are ordered, got \(32, 32\)"):
        measure(HadamardCamera(3), ImageSpace(["t1"], (32, 32), (7.5, 7.5)))
