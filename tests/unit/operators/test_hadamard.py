import numpy as np
import pytest
import scipy.linalg
import torch

from multirecon.operators import check_operator
from multirecon.operators.hadamard import Hadamard, sequency_order, variance_order, walsh_hadamard


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    ("shape", "count"), [((1, 16, 16), 40), ((2, 8, 32), 256), ((1, 4, 128), 77), ((1, 4, 2, 8), 9)]
)
def test_battery(shape, count, dtype, tolerance):
    rows = torch.randperm(int(np.prod(shape[1:])), generator=_generator())[:count]
    operator = Hadamard(shape, rows).to(dtype)
    check_operator(operator, tolerance=tolerance)
    y = torch.randn(2, *operator.range_shape, generator=_generator(1), dtype=dtype)
    torch.testing.assert_close(operator(operator.pseudo_inverse(y)), y, atol=10 * tolerance, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 16, 64, 128, 1024])
def test_transform_equals_the_dense_matrix(size):
    x = torch.randn(2, size, generator=_generator(), dtype=torch.float64)
    expected = x.numpy() @ scipy.linalg.hadamard(size) / size**0.5
    np.testing.assert_allclose(walsh_hadamard(x).numpy(), expected, atol=1e-12)


def test_two_dimensional_rows_are_kronecker_products():
    dense = np.kron(scipy.linalg.hadamard(8), scipy.linalg.hadamard(16)) / 128**0.5
    rows = [5, 100, 0, 37]
    x = torch.randn(3, 1, 8, 16, generator=_generator(), dtype=torch.float64)
    measured = Hadamard((1, 8, 16), rows).double()(x)
    np.testing.assert_allclose(measured[:, 0].numpy(), x.flatten(1).numpy() @ dense[rows].T, atol=1e-12)


def test_sequency_counts_sign_changes():
    order = sequency_order((8,))
    signs = scipy.linalg.hadamard(8)[order.numpy()]
    assert (np.diff(signs, axis=1) != 0).sum(1).tolist() == list(range(8))
    first = sequency_order((64, 64))[:3].tolist()
    assert first[0] == 0
    # one sign change along one axis
    assert set(first[1:]) == {32, 32 * 64}


def test_variance_order_finds_the_varying_patterns():
    g = _generator()
    spread = torch.zeros(8, 8, dtype=torch.float64)
    spread[0, 3], spread[5, 1], spread[2, 2] = 9.0, 4.0, 2.0
    images = walsh_hadamard(5 + spread * torch.randn(400, 8, 8, generator=g, dtype=torch.float64), 2)
    assert variance_order(images)[:3].tolist() == [3, 41, 18]
    with pytest.raises(ValueError, match="images"):
        variance_order(images[:1])


def test_variance_order_keeps_more_energy_than_sequency_order():
    g = _generator()
    smooth = torch.randn(300, 16, 16, generator=g).cumsum(1).cumsum(2)
    smooth = smooth - smooth.mean((1, 2), keepdim=True)
    test = torch.randn(50, 1, 16, 16, generator=g).cumsum(2).cumsum(3)
    test = test - test.mean((2, 3), keepdim=True)
    orders = (variance_order(smooth), sequency_order((16, 16)), torch.randperm(256, generator=g))
    kept = [Hadamard((1, 16, 16), order[:21])(test).square().sum() for order in orders]
    assert kept[0] >= kept[1] > kept[2]


def test_arguments_rebuild_and_errors():
    operator = Hadamard((2, 8, 8), [3, 1, 60])
    x = torch.randn(2, 2, 8, 8, generator=_generator())
    assert torch.equal(Hadamard(**operator.arguments())(x), operator(x))
    with pytest.raises(ValueError, match="shape: expected sizes"):
        Hadamard((1, 6, 8), [0])
    with pytest.raises(ValueError, match="rows: expected a vector"):
        Hadamard((1, 8, 8), [0, 0])
    with pytest.raises(ValueError, match=r"rows: expected indices in \[0, 64\)"):
        Hadamard((1, 8, 8), [64])
    with pytest.raises(ValueError, match="x: expected sizes"):
        walsh_hadamard(torch.ones(3))
