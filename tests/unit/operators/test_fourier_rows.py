"""The row form of ``A^H A`` against the transforms."""

import pytest
import torch

from multirecon.operators import MaskedFourier
from multirecon.operators.fourier_rows import RowGram


def random_operator(generator, shape, *, batch=None, coils=3, dtype=torch.complex128):
    lead = () if batch is None else (batch,)
    maps = torch.randn(*lead, coils, *shape, dtype=dtype, generator=generator)
    lines = torch.rand(*lead, 1, shape[-1], generator=generator) < 0.4
    return MaskedFourier(lines.expand(*lead, *shape).double(), maps, spatial_dims=2)


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (4, 9)], ids=str)
@pytest.mark.parametrize("batch", [None, 2])
def test_rows_equal_the_transforms(generator, shape, batch):
    A = random_operator(generator, shape, batch=batch)
    x = torch.randn(2, 3, *shape, dtype=torch.float64, generator=generator)
    expected = torch.stack([A.gram(x[:, i : i + 1])[:, 0] for i in range(3)], dim=1)
    torch.testing.assert_close(RowGram(A)(x), expected, rtol=0, atol=1e-12)


def test_shared_mask_and_maps_of_each_sample(generator):
    single = random_operator(generator, (6, 8))
    maps = torch.randn(2, 3, 6, 8, dtype=torch.complex128, generator=generator)
    A = MaskedFourier(single.mask, maps)
    x = torch.randn(2, 1, 6, 8, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(RowGram(A)(x), A.gram(x), rtol=0, atol=1e-12)


def test_resolvent_inverts(generator):
    A = random_operator(generator, (6, 8), batch=2)
    rows, weight = RowGram(A), torch.tensor([0.1, 3.0])
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64, generator=generator)
    solved = rows.resolvent(weight)(x)
    torch.testing.assert_close(rows(solved) + weight.reshape(2, 1, 1, 1) * solved, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(rows.resolvent(0.1)(x)[0], solved[0])


def test_single_precision(generator):
    A = random_operator(generator, (16, 16), dtype=torch.complex64)
    x = torch.randn(1, 1, 16, 16, generator=generator)
    expected = A.gram(x)
    assert float((RowGram(A)(x) - expected).norm() / expected.norm()) < 1e-5


def test_bfloat16_autocast_does_not_reach_the_physics(generator):
    A = random_operator(generator, (16, 16), dtype=torch.complex64)
    x = torch.randn(1, 2, 16, 16, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(RowGram(A)(x), RowGram(A)(x.clone()))
        inside = RowGram(A)(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, RowGram(A)(x))


def test_refuses_what_mixes_rows(generator):
    mask = (torch.rand(6, 8, generator=generator) < 0.5).float()
    maps = torch.ones(1, 6, 8, dtype=torch.complex64)
    assert not RowGram.applies(MaskedFourier(mask, maps))
    assert not RowGram.applies(MaskedFourier(torch.ones(6, 8), maps, real_image=False))
    with pytest.raises(ValueError, match="operator: expected real 2D images"):
        RowGram(MaskedFourier(mask, maps))
