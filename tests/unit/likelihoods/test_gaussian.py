import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradient_against_finite_differences(dtype):
    g = torch.Generator().manual_seed(0)
    z, y, d = (torch.randn(2, 5, generator=g, dtype=dtype) for _ in range(3))
    likelihood = Gaussian(0.3)
    eps = 1e-6
    numeric = (likelihood.nll(z + eps * d, y) - likelihood.nll(z - eps * d, y)) / (2 * eps)
    analytic = (likelihood.grad(z, y).conj() * d).real.sum(1)
    assert torch.allclose(numeric, analytic, rtol=1e-6)


def test_sample_moments():
    g = torch.Generator().manual_seed(0)
    z = torch.zeros(1, 20000, dtype=torch.complex64)
    y = Gaussian(0.5).sample(z, g)
    assert y.real.std() == pytest.approx(0.5, rel=0.03)
    assert y.imag.std() == pytest.approx(0.5, rel=0.03)
    assert abs(y.mean()) < 0.02


def test_support_keeps_unsampled_entries_noise_free():
    support = torch.tensor([[1.0, 0.0, 1.0]])
    y = Gaussian(1.0, support).sample(torch.zeros(4, 3), torch.Generator().manual_seed(0))
    assert y[:, 1].abs().max() == 0
    assert y[:, 0].abs().min() > 0


def test_exact_data():
    likelihood = Gaussian(0.0)
    y = torch.ones(1, 3)
    assert likelihood.is_exact
    assert torch.equal(likelihood.sample(y, torch.Generator()), y)
    assert likelihood.nll(y, y).item() == 0.0
    assert likelihood.nll(y + 1, y).item() == float("inf")
    with pytest.raises(ValueError, match="clean block"):
        likelihood.weight(y)


def test_per_sample_levels_and_slicing():
    likelihood = Gaussian(torch.tensor([[1.0], [2.0]]))
    z, y = torch.zeros(2, 4), torch.ones(2, 4)
    assert likelihood.nll(z, y).tolist() == [2.0, 0.5]
    assert likelihood.samples(1, 2).nll(z[1:], y[1:]).tolist() == [0.5]
    joined = Gaussian(torch.tensor([[1.0]])).join([Gaussian(torch.tensor([[1.0]])), Gaussian(torch.tensor([[2.0]]))])
    assert joined.nll(z, y).tolist() == [2.0, 0.5]


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
def test_bad_sigma(sigma):
    with pytest.raises(ValueError, match="sigma"):
        Gaussian(sigma)


def test_blocks_add_up():
    likelihood = BlockLikelihood({"a": Gaussian(1.0), "b": Gaussian(2.0)})
    z = Blocks({"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)})
    y = Blocks({"a": torch.ones(1, 2), "b": 2 * torch.ones(1, 2)})
    assert likelihood.nll(z, y).item() == pytest.approx(2.0)
    assert likelihood.grad(z, y)["b"].tolist() == [[-0.5, -0.5]]
    assert likelihood.curvature(z, y)["a"].tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="expected a block"):
        likelihood["c"]
