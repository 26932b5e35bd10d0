import pytest
import torch

from multirecon.data.morphology import close, dilate
from multirecon.data.random_fields import gaussian_smooth, random_field


@pytest.mark.parametrize("sigma_mm", [0.8, 3.0, 12.0])
def test_field_has_unit_variance_and_the_stated_correlation(sigma_mm):
    field = random_field((96, 96, 96), (1.0, 1.0, 1.0), sigma_mm=sigma_mm, generator=torch.Generator().manual_seed(1))
    assert float(field.mean()) == pytest.approx(0, abs=1e-4)
    assert float(field.std()) == pytest.approx(1, abs=1e-3)
    shift = max(1, round(sigma_mm))
    found = float((field[shift:] * field[:-shift]).mean())
    expected = 2.718281828 ** (-(shift**2) / (4 * sigma_mm**2))
    assert found == pytest.approx(expected, abs=0.15)


def test_field_is_fixed_by_its_generator():
    draws = [
        random_field((8, 9, 10), (1, 1, 1), sigma_mm=2, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_smoothing_equals_scipy():
    from scipy.ndimage import gaussian_filter

    x = torch.randn(20, 21, 22, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = gaussian_filter(x.numpy(), (1.0, 2.0, 0.7), mode="constant", truncate=3.0)
    assert torch.allclose(gaussian_smooth(x, (1.0, 2.0, 0.7)), torch.from_numpy(expected), atol=1e-12)


def test_dilation_and_closing():
    mask = torch.zeros(11, 11, 11, dtype=torch.bool)
    mask[3, 5, 5] = mask[7, 5, 5] = True
    assert int(dilate(mask, 1).sum()) == 54
    closed = close(mask, 2)
    assert closed[5, 5, 5]
    assert not closed[5, 8, 5]
