import itertools

import pytest
import torch

from multirecon.operators import MaskedFourier, check_operator
from multirecon.operators.fourier import _regular_runs, centred_fft, centred_ifft

SHAPES = [(8, 8), (7, 9), (6, 10), (4, 5, 6)]


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _random_operator(shape, *, mask_batch=None, maps_batch=None, real_image=True, coils=3):
    g = _generator()
    mask = (torch.rand(*([mask_batch] if mask_batch else []), *shape, generator=g) < 0.5).float()
    maps = torch.randn(*([maps_batch] if maps_batch else []), coils, *shape, generator=g, dtype=torch.complex64)
    return MaskedFourier(mask, maps, real_image=real_image, spatial_dims=len(shape))


@pytest.mark.parametrize(("shape", "real_image"), list(itertools.product(SHAPES, [True, False])))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("mask_batch", "maps_batch"), [(None, None), (2, None), (None, 2), (2, 2)])
def test_battery(shape, real_image, dtype, tolerance, mask_batch, maps_batch):
    operator = _random_operator(shape, mask_batch=mask_batch, maps_batch=maps_batch, real_image=real_image)
    check_operator(operator.to(dtype), tolerance=tolerance, batched=mask_batch is None and maps_batch is None)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_equals_shifted_transform(shape, dtype, tolerance):
    operator = _random_operator(shape).to(dtype)
    x = torch.randn(2, 1, *shape, generator=_generator(1), dtype=dtype)
    expected = operator.mask * centred_fft(operator.maps * x, len(shape))
    error = torch.linalg.vector_norm(operator(x) - expected) / torch.linalg.vector_norm(expected)
    assert error < tolerance
    y = torch.randn(2, *operator.range_shape, generator=_generator(2), dtype=dtype.to_complex())
    back = (operator.maps.conj() * centred_ifft(operator.mask * y, len(shape))).sum(1, keepdim=True).real
    assert torch.linalg.vector_norm(operator.adjoint(y) - back) < tolerance * torch.linalg.vector_norm(back)


@pytest.mark.parametrize("shape", SHAPES)
def test_per_sample_tensors_equal_a_loop(shape):
    operator = _random_operator(shape, mask_batch=2, maps_batch=2)
    x = torch.randn(2, 1, *shape, generator=_generator(1))
    for i in range(2):
        single = MaskedFourier(operator.mask[i], operator.maps[i], spatial_dims=len(shape))
        torch.testing.assert_close(single(x[i : i + 1]), operator(x)[i : i + 1])
        torch.testing.assert_close(single.gram(x[i : i + 1]), operator.gram(x)[i : i + 1])


def test_zero_frequency_lies_in_the_middle():
    for shape in [(8, 8), (7, 9), (6, 10)]:
        operator = MaskedFourier(torch.ones(shape), torch.ones(1, *shape, dtype=torch.complex64))
        y = operator(torch.ones(1, 1, *shape))
        expected = torch.zeros_like(y)
        expected[0, 0, shape[0] // 2, shape[1] // 2] = (shape[0] * shape[1]) ** 0.5
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)


def test_arguments_rebuild():
    operator = _random_operator((4, 5, 6), mask_batch=2, real_image=False)
    again = MaskedFourier(**operator.arguments())
    x = torch.randn(2, *operator.domain_shape, generator=_generator(1), dtype=torch.complex64)
    assert torch.equal(operator(x), again(x))
    assert set(operator.state_dict()) == {"mask", "maps"}


def test_full_mask_and_unit_maps_give_an_isometry():
    maps = torch.randn(4, 6, 6, generator=_generator(), dtype=torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    operator = MaskedFourier(torch.ones(6, 6), maps)
    x = torch.randn(2, 1, 6, 6, generator=_generator(1))
    torch.testing.assert_close(operator.gram(x), x)
    torch.testing.assert_close(operator.adjoint(operator(x)), x)
    assert operator.norm() == pytest.approx(1.0, abs=1e-5)


def test_spatial_dims_are_found():
    def dims(mask_shape, maps_shape):
        return MaskedFourier(torch.ones(mask_shape), torch.ones(maps_shape, dtype=torch.complex64)).spatial_dims

    assert dims((4, 5), (2, 4, 5)) == dims((4, 5), (7, 2, 4, 5)) == dims((7, 4, 5), (2, 4, 5)) == 2
    assert dims((7, 4, 5), (1, 2, 4, 5)) == dims((1, 4, 5), (7, 2, 4, 5)) == dims((1, 4, 5), (1, 1, 4, 5)) == 2
    assert dims((3, 4, 5), (2, 3, 4, 5)) == dims((7, 3, 4, 5), (2, 3, 4, 5)) == dims((3, 4, 5), (7, 2, 3, 4, 5)) == 3


def test_errors_name_the_argument():
    maps = torch.ones(2, 4, 4, dtype=torch.complex64)
    with pytest.raises(ValueError, match="mask: expected values 0 and 1"):
        MaskedFourier(torch.full((4, 4), 0.5), maps)
    with pytest.raises(ValueError, match="maps: expected a complex dtype"):
        MaskedFourier(torch.ones(4, 4), torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match="mask: expected"):
        MaskedFourier(torch.ones(4, 5), maps)
    with pytest.raises(ValueError, match="spatial_dims"):
        MaskedFourier(torch.ones(8, 4, 4), torch.ones(8, 8, 4, 4, dtype=torch.complex64))
    with pytest.raises(ValueError, match="expected shape"):
        MaskedFourier(torch.ones(4, 4), maps)(torch.ones(1, 1, 5, 4))


@pytest.mark.parametrize("columns", [slice(1, None, 3), slice(4, 5), [2, 5, 6, 7, 8, 11], [0, 1, 5, 7, 8, 13]])
@pytest.mark.parametrize(("mask_batch", "lead"), [(None, (6,)), (2, (7,)), (None, (3, 4))])
def test_skipping_unsampled_lines_changes_nothing(columns, mask_batch, lead):
    mask = torch.zeros(*([mask_batch] if mask_batch else []), *lead, 16)
    mask[..., columns] = (torch.rand(mask[..., columns].shape, generator=_generator(3)) < 0.8).float()
    maps = torch.randn(3, *lead, 16, generator=_generator(4), dtype=torch.complex64)
    operator = MaskedFourier(mask, maps, spatial_dims=len(lead) + 1).double()
    x = torch.randn(2, 1, *lead, 16, generator=_generator(5), dtype=torch.float64, requires_grad=True)
    y = operator(x)
    kspace = operator.mask.unsqueeze(1) if mask_batch else operator.mask
    torch.testing.assert_close(y, kspace * centred_fft(operator.maps * x, len(lead) + 1))
    check_operator(operator, tolerance=1e-12, batched=mask_batch is None)
    (gradient,) = torch.autograd.grad(y.abs().square().sum() / 2, x)
    torch.testing.assert_close(gradient, operator.gram(x))


def test_regular_patterns_are_runs():
    sampled = torch.zeros(256, dtype=torch.bool)
    sampled[::4] = True
    assert _regular_runs(sampled) == (slice(0, 253, 4),)
    sampled[116:140] = True
    assert _regular_runs(sampled) == (slice(0, 117, 4), slice(117, 141, 1), slice(144, 253, 4))
    assert _regular_runs(torch.ones(8, dtype=torch.bool)) == ()  # nothing to leave out
    assert _regular_runs(torch.zeros(8, dtype=torch.bool)) == ()
    assert _regular_runs(torch.rand(256, generator=_generator()) < 0.25) == ()  # an index would be slower
