"""Operators of this folder survive a measurement file: plain arguments and tensors only."""

import h5py
import pytest
import torch

from multirecon.operators import (
    Haar,
    Hadamard,
    MaskedFourier,
    Resample,
    Wavelet,
    birdcage_maps,
    equispaced_mask,
    sequency_order,
)
from multirecon.operators.checks import random_image
from multirecon.storage import decode, encode


def _operators():
    shift = torch.eye(4, dtype=torch.float64)
    shift[0, 3], shift[1, 1] = 0.3, 2.0
    maps = birdcage_maps(3, (8, 8))
    turned = torch.tensor([[0.8, -0.6, 0, 1], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    return {
        "masked_fourier": MaskedFourier(equispaced_mask((8, 8), 4), maps),
        "masked_fourier per sample": MaskedFourier(
            torch.stack([equispaced_mask((8, 8), 4), equispaced_mask((8, 8), 2)]), maps[None], real_image=False
        ),
        "masked_fourier 3d": MaskedFourier(equispaced_mask((4, 8, 8), 4), birdcage_maps(3, (4, 8, 8))),
        "haar": Haar((2, 8, 8), levels=2, low_scale=4.0),
        "wavelet": Wavelet((2, 8, 8), "sym4", levels=2),
        "hadamard": Hadamard((2, 8, 8), sequency_order((8, 8))[:11]),
        "resample": Resample((2, 8, 8), (8, 4), source_affine=torch.eye(4), target_affine=shift, profile="gaussian"),
        "resample turned": Resample((1, 8, 8), (6, 6), source_affine=torch.eye(4), target_affine=turned),
    }


@pytest.mark.parametrize("name", list(_operators()))
def test_round_trip(name, tmp_path):
    operator = _operators()[name]
    with h5py.File(tmp_path / "operator.h5", "w") as file:
        encode(file.create_group("operator"), operator)
    with h5py.File(tmp_path / "operator.h5", "r") as file:
        again = decode(file["operator"])
    assert type(again) is type(operator)
    assert name.split()[0] == again.kind
    x = random_image(operator)
    assert torch.equal(again(x), operator(x))
    y = operator(x)
    assert torch.equal(again.adjoint(y), operator.adjoint(y))


@pytest.mark.parametrize("name", list(_operators()))
def test_precision_and_devices_follow_the_module(name):
    operator = _operators()[name].double()
    assert operator.domain_dtype in (torch.float64, torch.complex128)
    x = random_image(operator)
    assert operator(x).dtype == operator.range_dtype
    single = operator.float()
    assert single(x.to(single.domain_dtype)).dtype in (torch.float32, torch.complex64)


def test_samples_and_join_of_masked_fourier():
    operator = _operators()["masked_fourier per sample"]
    x = random_image(operator)
    parts = [operator.samples(i, i + 1) for i in range(2)]
    torch.testing.assert_close(torch.cat([p(x[i : i + 1]) for i, p in enumerate(parts)]), operator(x))
    joined = parts[0].join(parts)
    torch.testing.assert_close(joined(x), operator(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", list(_operators()))
def test_cuda_equals_cpu(name):
    operator = _operators()[name].double()
    x = random_image(operator)
    y = operator(x)
    back, twice = operator.adjoint(y), operator.gram(x)
    operator = operator.to("cuda")
    torch.testing.assert_close(operator(x.cuda()).cpu(), y)
    torch.testing.assert_close(operator.adjoint(y.cuda()).cpu(), back)
    torch.testing.assert_close(operator.gram(x.cuda()).cpu(), twice)
