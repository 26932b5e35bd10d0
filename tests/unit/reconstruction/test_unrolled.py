"""The unrolled reconstructor: its data consistency, its gradients, what it takes and gives back."""

import pytest
import torch
from torch import nn

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage
from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Identity, MaskedFourier
from multirecon.operators.fourier import centred_fft, centred_ifft
from multirecon.operators.masks import equispaced_mask
from multirecon.reconstruction import UnrolledReconstructor
from multirecon.reconstruction.unrolled import feature_gram, feature_resolvent
from multirecon.space import ImageSpace

SPACE = ImageSpace(["flair", "t1"], (16, 16), (2.0, 2.0))


class Keep(nn.Module):
    """A network that learns nothing: the result is the data consistency of its start, iteration by iteration."""

    def __init__(self, start, iterations=1):
        super().__init__()
        self.iterations = iterations
        self.data_step = torch.ones(iterations)
        self.first = nn.Parameter(start)

    def start(self, target, reference):
        self.seen = target, reference
        return [self.first.expand(len(target), -1, -1, -1)]

    def step(self, k, state, consistent):
        return [consistent]

    def finish(self, state):
        return state[0].mean(1, keepdim=True)


def measure(image, mask, maps, sigma=0.0):
    A = BlockDiagonal(SPACE, {"flair": MaskedFourier(mask, maps), "t1": Identity((1, 16, 16))})
    y = Blocks({"flair": A["flair"](image[:, :1]), "t1": image[:, 1:]})
    return Measurement(y, A, BlockLikelihood({"flair": Gaussian(sigma), "t1": Gaussian(0.0)}))


@pytest.fixture
def image(generator):
    return torch.rand(2, 2, 16, 16, generator=generator)


@pytest.fixture
def start(generator):
    return torch.randn(1, 3, 16, 16, generator=generator)


def one_coil():
    return torch.ones(1, 16, 16, dtype=torch.complex64)


def test_full_sampling_returns_the_image_whatever_the_start(image, start):
    result = UnrolledReconstructor(space=SPACE)(measure(image, torch.ones(16, 16), one_coil()), Keep(start))
    torch.testing.assert_close(result.as_tensor(), image, rtol=0, atol=1e-5)


def test_one_coil_replaces_the_measured_entries(image, start):
    """The published step, for a mask symmetric about the zero frequency: entries 0 and 1 are 8 and 9, 4 and 12 ..."""
    mask = torch.zeros(16, 16)
    mask[:, [0, 5, 8, 11]] = 1  # index 0 is the highest frequency, its own mirror image
    measurement = measure(image, mask, one_coil())
    features = start.expand(2, -1, -1, -1)
    spectrum = centred_fft(features)
    replaced = torch.where(mask.bool(), measurement.y["flair"], spectrum)
    expected = centred_ifft(replaced).real.mean(1, keepdim=True)
    result = UnrolledReconstructor(space=SPACE)(measurement, Keep(start))
    torch.testing.assert_close(result.as_tensor()[:, :1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("whole_lines", [True, False])
def test_multi_coil_step_is_the_gradient_of_the_data_term(image, start, generator, whole_lines):
    mask = equispaced_mask((16, 16), 3, center_lines=4)
    if not whole_lines:
        mask = (torch.rand(2, 16, 16, generator=generator) < 0.5).float()
    maps = torch.randn(2, 4, 16, 16, dtype=torch.complex64, generator=generator) / 4
    measurement = measure(image, mask, maps)
    A, y = measurement.operator["flair"], measurement.y["flair"]
    net = Keep(start, iterations=2)
    net.data_step = torch.tensor([0.5, 1.5])
    x = start.expand(2, -1, -1, -1)
    for step in net.data_step:
        x = torch.stack([v - step * A.adjoint(A(v[:, None]) - y)[:, 0] for v in x.unbind(1)], dim=1)
    result = UnrolledReconstructor(space=SPACE)(measurement, net)
    torch.testing.assert_close(result.as_tensor()[:, :1], x.mean(1, keepdim=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(net.seen[0], A.adjoint(y))


@pytest.mark.parametrize("whole_lines", [True, False])
def test_gradient_through_the_data_consistency(generator, whole_lines):
    mask = equispaced_mask((4, 6), 2) if whole_lines else (torch.rand(4, 6, generator=generator) < 0.5).double()
    maps = torch.randn(2, 3, 4, 6, dtype=torch.complex128, generator=generator)
    gram = feature_gram(MaskedFourier(mask, maps).double(), 2)
    x = torch.randn(2, 2, 4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(gram, (x,))
    assert torch.autograd.gradgradcheck(gram, (x,))


@pytest.mark.parametrize("whole_lines", [True, False])
def test_proximal_step_is_the_minimiser(image, start, generator, whole_lines):
    """Its optimality: the gradient of both terms vanishes at the result, for the noise level of each sample."""
    mask = equispaced_mask((16, 16), 3, center_lines=4)
    if not whole_lines:
        mask = (torch.rand(2, 16, 16, generator=generator) < 0.5).float()
    maps = torch.randn(2, 4, 16, 16, dtype=torch.complex64, generator=generator) / 4
    sigma = torch.tensor([0.01, 0.05]).reshape(2, 1, 1, 1)
    measurement = measure(image, mask, maps, sigma)
    net = Keep(start[:, :1])
    x = UnrolledReconstructor(space=SPACE, prior_std=0.1)(measurement, net).as_tensor()[:, :1]
    A, y = measurement.operator["flair"], measurement.y["flair"]
    gradient = A.adjoint(A(x) - y) / sigma**2 + (x - start[:, :1]) / 0.1**2
    assert (gradient * sigma**2).abs().max().item() < 1e-4
    net.data_step = torch.tensor([0.5])
    half = UnrolledReconstructor(space=SPACE, prior_std=0.1)(measurement, net).as_tensor()[:, :1]
    torch.testing.assert_close(half, (x + start[:, :1]) / 2, rtol=0, atol=1e-4)


def test_proximal_step_without_noise_replaces_the_measured_entries(image, start):
    mask = torch.zeros(16, 16)
    mask[:, [0, 5, 8, 11]] = 1
    measurement = measure(image, mask, one_coil())
    results = [UnrolledReconstructor(space=SPACE, prior_std=s)(measurement, Keep(start)) for s in (None, 1.0)]
    torch.testing.assert_close(results[0].as_tensor(), results[1].as_tensor(), rtol=0, atol=3e-3)
    with pytest.raises(ValueError, match="prior_std"):
        UnrolledReconstructor(space=SPACE, prior_std=0.0)


def test_one_prior_std_an_iteration(image, start):
    """Equal ones are one; different ones are proximal steps with a width each, in their order."""
    start = start[:, :1]
    measurement = measure(image, equispaced_mask((16, 16), 3, center_lines=4), one_coil(), torch.tensor(0.05))
    run = {
        str(std): UnrolledReconstructor(space=SPACE, prior_std=std)(measurement, Keep(start, 2)).as_tensor()
        for std in (0.1, [0.1, 0.1], [0.3, 0.02], [0.02, 0.3])
    }
    assert torch.equal(run["0.1"], run["[0.1, 0.1]"])
    assert not torch.allclose(run["[0.3, 0.02]"], run["0.1"], atol=1e-4)
    first = UnrolledReconstructor(space=SPACE, prior_std=0.3)(measurement, Keep(start)).as_tensor()
    second = UnrolledReconstructor(space=SPACE, prior_std=0.02)(measurement, Keep(first[:, :1])).as_tensor()
    torch.testing.assert_close(run["[0.3, 0.02]"][:, :1], second[:, :1], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="prior_std: expected one or 2 numbers, got 3"):
        UnrolledReconstructor(space=SPACE, prior_std=[0.1] * 3)(measurement, Keep(start, 2))
    with pytest.raises(ValueError, match="prior_std"):
        UnrolledReconstructor(space=SPACE, prior_std=[0.1, 0.0])


@pytest.mark.parametrize("whole_lines", [True, False])
def test_gradient_through_the_proximal_step(generator, whole_lines):
    mask = equispaced_mask((4, 6), 2) if whole_lines else (torch.rand(4, 6, generator=generator) < 0.5).double()
    maps = torch.randn(2, 3, 4, 6, dtype=torch.complex128, generator=generator)
    weight = torch.tensor([0.3, 2.0], dtype=torch.float64)
    solve = feature_resolvent(MaskedFourier(mask, maps).double(), weight)
    x = torch.randn(2, 2, 4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(solve, (x,), atol=1e-4)


def test_training_keeps_the_graph_and_evaluation_does_not(image, start):
    measurement = measure(image, equispaced_mask((16, 16), 2), one_coil())
    net, reconstructor = Keep(start), UnrolledReconstructor(space=SPACE)
    loss = reconstructor(measurement, net.train()).square().mean()
    loss.backward()
    assert float(net.first.grad.abs().max()) > 0
    assert not reconstructor(measurement, net.eval()).requires_grad


def test_ablation_leaves_the_data_out(image, start):
    measurement = measure(image, torch.ones(16, 16), one_coil())
    result = UnrolledReconstructor(space=SPACE, data_consistency=False)(measurement, Keep(start))
    torch.testing.assert_close(result.as_tensor()[:1, :1], start.mean(1, keepdim=True))


def test_reference_comes_back_as_it_is_and_iterations_are_shown(image, start):
    measurement = measure(image, equispaced_mask((16, 16), 2), one_coil())
    shown = []
    net = Keep(start, iterations=3)
    result = UnrolledReconstructor(space=SPACE)(measurement, net, callback=lambda k, x: shown.append((k, x)))
    assert torch.equal(result.as_tensor()[:, 1:], image[:, 1:])
    assert [k for k, _ in shown] == [0, 1, 2]
    torch.testing.assert_close(shown[-1][1], result.as_tensor()[:, :1])


def test_says_what_it_cannot_take(image, start):
    reconstructor, net = UnrolledReconstructor(space=SPACE), Keep(start)
    fine = {"flair": image[:, :1], "t1": image[:, 1:]}
    scans = {"flair": CartesianMR(2), "t1": CleanImage()}
    with pytest.raises(ValueError, match="'t1': expected an operator of kind 'identity', got no measurement"):
        reconstructor(Acquisition(SPACE, {"flair": scans["flair"]})(fine, ["a", "b"]), net)
    with pytest.raises(ValueError, match="'flair': expected an operator of kind 'masked_fourier', got 'identity'"):
        reconstructor(Acquisition(SPACE, {"flair": CleanImage(), "t1": CleanImage()})(fine, ["a", "b"]), net)
    with pytest.raises(ValueError, match="network: expected"):
        reconstructor(Acquisition(SPACE, scans)(fine, ["a", "b"]), None)
    with pytest.raises(ValueError, match="grid: expected sides divisible by 32"):
        UnrolledReconstructor(space=SPACE, multiple=32)(Acquisition(SPACE, scans)(fine, ["a", "b"]), net)
    with pytest.raises(ValueError, match="ct"):
        UnrolledReconstructor(space=SPACE, references=["ct"])
