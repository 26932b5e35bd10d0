"""Checkpoints that take little room, and that PyTorch reads as its own."""

import zipfile

import pytest
import torch

from multirecon.bundle import read_weights, weights_hash, write_weights
from multirecon.files import save_tensors, shortened


def state():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(64, 64, 3, 3, generator=generator) * 0.05
    return {
        "a.weight": weights.half(),
        "a.bias": weights[:, 0, 0, 0].clone(),
        "count": torch.tensor(7),
        "part": weights[:2].half()[:, ::2],
    }


def test_a_compressed_checkpoint_is_read_by_plain_torch_and_smaller(tmp_path):
    path, plain = write_weights(state(), tmp_path / "model.pt"), tmp_path / "plain.pt"
    torch.save(state(), plain)
    found = torch.load(path, weights_only=True)
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {k: (v.dtype, v.shape) for k, v in state().items()}
    assert all(torch.equal(found[k], v) for k, v in state().items())
    assert weights_hash(read_weights(path)) == weights_hash(read_weights(plain))
    assert path.stat().st_size < 0.96 * plain.stat().st_size
    with zipfile.ZipFile(path) as archive:
        assert {m.compress_type for m in archive.infolist()} == {zipfile.ZIP_DEFLATED}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".part")] == []


def test_the_same_weights_give_the_same_file(tmp_path):
    first = save_tensors(state(), tmp_path / "one" / "model.pt").read_bytes()
    assert save_tensors(state(), tmp_path / "two" / "model.pt").read_bytes() == first


@pytest.mark.parametrize("bits", [1, 4, 8, 9, 10])
def test_shortened_weights_are_the_nearest_of_their_bits(bits):
    values = torch.randn(4000, generator=torch.Generator().manual_seed(1)).half()
    rounded = shortened(values, bits)
    assert rounded.dtype == torch.float16
    mantissa, exponent = torch.frexp(values.double())
    exact = (
        torch.ldexp((mantissa * 2 ** (bits + 1)).abs().add(0.5).floor(), exponent - bits - 1) * values.double().sign()
    )
    normal = values.abs() > 2.0**-14
    assert torch.equal(rounded.double()[normal], exact[normal])
    assert float(((rounded.double() - values.double()).abs() / values.double().abs())[normal].max()) <= 2.0 ** -(
        bits + 1
    )


def test_shortening_keeps_signs_infinities_and_other_types():
    ends = torch.tensor([65504.0, -65504.0, 0.0, -0.0, float("inf")], dtype=torch.float16)
    assert torch.equal(shortened(ends, 5), ends)
    assert torch.signbit(shortened(ends, 5)).tolist() == [False, True, False, True, False]
    single = torch.tensor([0.1])
    assert shortened(single, 3) is single
    with pytest.raises(ValueError, match="bits: expected 1 to 10, got 0"):
        shortened(single.half(), 0)


def test_shortened_weights_compress_further(tmp_path):
    full = save_tensors(state(), tmp_path / "full.pt").stat().st_size
    short = save_tensors({k: shortened(v, 8) for k, v in state().items()}, tmp_path / "short.pt").stat().st_size
    assert short < 0.93 * full
