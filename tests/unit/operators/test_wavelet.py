import numpy as np
import pytest
import pywt
import torch

from multirecon.operators import check_operator
from multirecon.operators.wavelet import Haar, Wavelet

HAAR = [((1, 8, 6), 1), ((3, 8, 12), 2), ((2, 4, 6, 8), 1), ((1, 8, 8, 8), 3)]
WAVELETS = [((2, 16, 24), "db4", 2), ((1, 6, 10), "db8", 1), ((1, 8, 8, 16), "sym4", 2), ((1, 16, 16), "coif1", 3)]
PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-12)]


def _images(shape, batch=2):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("shape", "levels"), HAAR)
@pytest.mark.parametrize("low_scale", [1.0, 3.0])
def test_haar_battery(shape, levels, low_scale, dtype, tolerance):
    operator = Haar(shape, levels=levels, low_scale=low_scale).to(dtype)
    check_operator(operator, tolerance=tolerance)
    x = _images(shape).to(dtype)
    torch.testing.assert_close(operator.pseudo_inverse(operator(x)), x, atol=10 * tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("shape", "name", "levels"), WAVELETS)
def test_wavelet_battery(shape, name, levels, dtype, tolerance):
    operator = Wavelet(shape, name, levels=levels).to(dtype)
    check_operator(operator, tolerance=tolerance)
    x = _images(shape).to(dtype)
    torch.testing.assert_close(operator.pseudo_inverse(operator(x)), x, atol=10 * tolerance, rtol=0)
    energy = torch.linalg.vector_norm(operator(x))
    torch.testing.assert_close(energy, torch.linalg.vector_norm(x), rtol=tolerance, atol=0)


@pytest.mark.parametrize("shape", [(3, 8, 12), (2, 4, 6, 8)])
def test_haar_equals_pywavelets(shape):
    x = _images(shape)
    dims = len(shape) - 1
    bands = Haar(shape).double()(x)
    expected = pywt.dwtn(x.numpy(), "haar", "periodization", axes=range(-dims, 0))
    names = sorted(expected)  # a before d: LL, LH, HL, HH
    assert names == ["aa", "ad", "da", "dd"] or dims == 3
    stacked = np.stack([expected[name] for name in names], axis=2)  # bands of one channel follow each other
    np.testing.assert_allclose(bands.numpy(), stacked.reshape(bands.shape), atol=1e-14)


def test_haar_second_level_transforms_every_band():
    x = _images((1, 8, 8))
    once = Haar((1, 8, 8)).double()(x)
    twice = Haar((1, 8, 8), levels=2).double()(x)
    torch.testing.assert_close(twice, Haar((4, 4, 4)).double()(once))


def test_haar_low_band_of_a_constant():
    assert Haar((1, 4, 4, 4))(torch.ones(1, 1, 4, 4, 4))[0, 0].unique() == pytest.approx(2**1.5)
    scaled = Haar((2, 8, 8), levels=2, low_scale=4.0)(torch.ones(1, 2, 8, 8))
    expected = torch.zeros(1, 2, 16, 2, 2)
    expected[:, :, 0] = 1
    torch.testing.assert_close(scaled, expected.flatten(1, 2))


@pytest.mark.filterwarnings("ignore:Level value of:UserWarning")
@pytest.mark.parametrize("name", ["haar", "db1", "db2", "db3", "db4", "db8", "sym4", "sym7", "coif1", "coif3"])
@pytest.mark.parametrize(("shape", "levels"), [((2, 16, 24), 3), ((1, 8, 16, 12), 2)])
def test_wavelet_equals_pywavelets(name, shape, levels):
    x = _images(shape)
    dims = len(shape) - 1
    coefficients = pywt.wavedecn(x.numpy(), name, "periodization", levels, axes=range(-dims, 0))
    array, _ = pywt.coeffs_to_array(coefficients, axes=range(-dims, 0))
    np.testing.assert_allclose(Wavelet(shape, name, levels=levels).double()(x).numpy(), array, atol=1e-11)


def test_precision_is_recovered_after_float32():
    operator = Wavelet((1, 16, 16), "db4").float().double()
    x = _images((1, 16, 16))
    torch.testing.assert_close(operator.adjoint(operator(x)), x, atol=1e-13, rtol=0)


def test_arguments_rebuild_and_errors():
    for operator in (Haar((2, 8, 8), levels=2, low_scale=2.0), Wavelet((2, 8, 8), "sym3", levels=2)):
        x = _images((2, 8, 8)).float()
        assert torch.equal(type(operator)(**operator.arguments())(x), operator(x))
        assert not operator.state_dict()
    with pytest.raises(ValueError, match="shape, levels"):
        Haar((1, 7, 8))
    with pytest.raises(ValueError, match="shape, levels"):
        Wavelet((1, 8, 12), levels=3)
    with pytest.raises(ValueError, match="name"):
        Wavelet((1, 8, 8), "bior2.2")
    with pytest.raises(ValueError, match="low_scale"):
        Haar((1, 8, 8), low_scale=0.0)
