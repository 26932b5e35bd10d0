import pytest
import torch

from multirecon.blocks import Blocks


def blocks(seed):
    g = torch.Generator().manual_seed(seed)
    return Blocks(
        {
            "ct": torch.randn(2, 3, 4, generator=g, dtype=torch.float64),
            "mr": torch.randn(2, 5, generator=g, dtype=torch.complex128),
        }
    )


def test_arithmetic_is_that_of_one_vector():
    a, b = blocks(0), blocks(1)
    flat = lambda x: torch.cat([torch.view_as_real(t.to(torch.complex128)).flatten(1) for t in x.values()], 1)  # noqa: E731
    c = 2.0 * a - b / 3.0 + (-a)
    assert torch.allclose(flat(c), 2 * flat(a) - flat(b) / 3 - flat(a))
    assert torch.allclose(a.inner(b), (flat(a) * flat(b)).sum(1))
    assert torch.allclose(a.norm(), flat(a).norm(dim=1))


def test_per_sample_scale():
    a = blocks(0)
    scaled = a * torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert torch.allclose(scaled["mr"][1], 3 * a["mr"][1])
    assert torch.allclose(scaled["ct"][0], a["ct"][0])


def test_to_keeps_complex_blocks_complex():
    single = blocks(0).to(torch.float32)
    assert single["ct"].dtype == torch.float32
    assert single["mr"].dtype == torch.complex64


def test_names_must_match():
    with pytest.raises(ValueError, match="expected names"):
        blocks(0) + blocks(1).select(["ct"])


def test_batch_sizes_must_match():
    with pytest.raises(ValueError, match="common batch size"):
        Blocks({"a": torch.zeros(1, 2), "b": torch.zeros(2, 2)})


def test_sample_and_select():
    a = blocks(0)
    assert a.sample(1)["ct"].shape == (1, 3, 4)
    assert list(a.select(["mr"])) == ["mr"]
    assert a.batch_size == 2
    assert Blocks().batch_size == 0
