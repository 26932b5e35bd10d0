import pytest
import pywt
import torch

from multirecon.priors import HaarDomain, band_names, haar_analysis, haar_synthesis


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (2, 2, 4, 6, 8)])
def test_orthonormal(shape):
    x, w = randn(*shape), haar_analysis(randn(*shape))
    d = len(shape) - 2
    assert w.shape == (shape[0], shape[1] * 2**d, *(n // 2 for n in shape[2:]))
    torch.testing.assert_close(haar_synthesis(w), x, rtol=0, atol=1e-14)
    torch.testing.assert_close(w.norm(), x.norm())
    y = randn(*w.shape).flip(0)
    torch.testing.assert_close((w * y).sum(), (x * haar_synthesis(y)).sum(), rtol=0, atol=1e-12)


def test_bands_agree_with_pywavelets():
    x = randn(1, 1, 8, 8)
    low, (horizontal, vertical, diagonal) = pywt.dwt2(x[0, 0].numpy(), "haar")
    expected = dict(zip(("LL", "LH", "HL", "HH"), (low, vertical, horizontal, diagonal), strict=True))
    for name, band in zip(band_names(2), haar_analysis(x)[0], strict=True):
        torch.testing.assert_close(band, torch.from_numpy(expected[name]))


@pytest.mark.parametrize(("levels", "ndim"), [(1, 4), (2, 4), (1, 5)])
def test_domain_inverts_and_knows_its_noise(levels, ndim):
    domain = HaarDomain(levels=levels)
    x = randn(1, 2, *[16] * (ndim - 2))
    torch.testing.assert_close(domain.inverse(domain.forward(x)), x, rtol=0, atol=1e-13)
    constant = domain.forward(torch.full_like(x, 0.7))
    bands = len(domain.gain(ndim))
    torch.testing.assert_close(constant[:, ::bands], torch.full_like(constant[:, ::bands], 0.7))
    assert constant.unflatten(1, (-1, bands))[:, :, 1:].abs().max() < 1e-14
    # rows of g W have norm g: white noise of variance 1 becomes white noise of standard deviation g in each band
    noise = domain.forward(randn(256, 1, *[8] * (ndim - 2))).unflatten(1, (-1, bands))
    torch.testing.assert_close(noise.std(dim=[0, 1, *range(3, noise.ndim)]), domain.gain(ndim), rtol=0.15, atol=0)


def test_modalities_are_the_slow_channels():
    x = torch.zeros(1, 2, 4, 4)
    x[:, 1] = 1.0
    w = HaarDomain().forward(x)
    assert w[0, :4].abs().max() == 0
    assert w[0, 4].min() == 1


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="even"):
        haar_analysis(torch.zeros(1, 1, 3, 4))
    with pytest.raises(ValueError, match="multiple of 4"):
        haar_synthesis(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="levels"):
        HaarDomain(levels=0)
    with pytest.raises(ValueError, match="scale_low"):
        HaarDomain(scale_low=0.0)


def test_a_volume_as_a_stack_of_slices():
    x = randn(2, 2, 8, 6, 3)
    slices, stack = HaarDomain(), HaarDomain(axes=2)
    w = stack.forward(x)
    assert w.shape == (2, 8, 4, 3, 3)
    assert torch.equal(stack.gain(5), slices.gain(4))
    for k in range(3):
        torch.testing.assert_close(w[..., k], slices.forward(x[..., k]), rtol=0, atol=1e-15)
    torch.testing.assert_close(stack.inverse(w), x, rtol=0, atol=1e-14)


def test_lowest_band_divided_by_a_number():
    x = randn(1, 1, 4, 4, 4)
    plain, divided = HaarDomain(scale_low=False).forward(x), HaarDomain(scale_low=3.0).forward(x)
    torch.testing.assert_close(divided[:, 0], plain[:, 0] / 3)
    assert torch.equal(divided[:, 1:], plain[:, 1:])
    torch.testing.assert_close(HaarDomain(scale_low=3.0).inverse(divided), x, rtol=0, atol=1e-14)
    assert HaarDomain(scale_low=3.0).gain(5)[0] == 1 / 3
