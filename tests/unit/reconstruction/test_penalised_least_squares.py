"""Penalised weighted least squares: its normal equations for every likelihood, and its whitened weights."""

import pytest
import torch

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage, block_mean
from multirecon.blocks import Blocks
from multirecon.functionals.differences import divergence_adjoint, gradient
from multirecon.likelihoods import (
    BlockLikelihood,
    Gaussian,
    Poisson,
    PolyenergeticPoisson,
    TransmissionPoisson,
    gaussian_approximation,
)
from multirecon.measurement import Measurement
from multirecon.networks.classical import RegularisationWeight
from multirecon.operators import BlockDiagonal, ParallelBeam, SpectralProjector
from multirecon.reconstruction import PenalisedLeastSquares, Tuning
from multirecon.solvers.decomposition import decompose_counts
from multirecon.space import ImageSpace, Modality

SHAPE, SPACING = (24, 24), (6.0, 6.0)
ONE = RegularisationWeight(1.0).eval()


def disc(value=1.0, batch=2):
    y, x = torch.meshgrid(torch.linspace(-1, 1, SHAPE[0]), torch.linspace(-1, 1, SHAPE[1]), indexing="ij")
    one = ((y / 0.8) ** 2 + (x / 0.6) ** 2 < 1).float() * 0.6 + ((y - 0.2) ** 2 + x**2 < 0.06).float() * 0.4
    return value * torch.stack([one, one.flip(0)])[:batch, None]


def beam(views=40):
    return ParallelBeam(SHAPE, SPACING, views=views, bins=36)


def measured(operator, likelihood, x, *, scale=1.0, seed=0, name="image"):
    space = ImageSpace([Modality(name, channels=x.shape[1], scale=scale)], SHAPE, SPACING)
    y = likelihood.sample(operator(x), torch.Generator().manual_seed(seed))
    return Measurement(Blocks({name: y}), BlockDiagonal(space, {name: operator}), BlockLikelihood({name: likelihood}))


def method(weight=1.0, smoothness=3.0, **options):
    tuning = Tuning({"weight": weight, "smoothness": smoothness})
    return PenalisedLeastSquares(tuning=tuning, max_iterations=400, tolerance=1e-7, **options)


def penalty(x, weight=1.0, smoothness=3.0, scale=1.0):
    smooth = divergence_adjoint(gradient(x, [1.0, 1.0]), [1.0, 1.0])
    return (weight * x + smoothness * smooth) / scale**2


def check(gradient_of_data, x, right, scale=1.0):
    residual = gradient_of_data + penalty(x, scale=scale)
    assert residual.abs().max() < 1e-4 * right.abs().max()


def test_transmission_counts_solve_the_weighted_equations():
    m = measured(beam(), TransmissionPoisson(2000.0, 5.0), disc(0.2), scale=0.2)
    a, y = m.operator["image"], m.y["image"]
    d, noise = gaussian_approximation(m.likelihood["image"], y)
    x = method()(m, ONE).as_tensor()
    check(a.adjoint((a(x) - d) / noise.sigma**2), x, a.adjoint(d / noise.sigma**2), scale=0.2)


def test_emission_counts_are_weighted_by_their_expectation():
    m = measured(beam(), Poisson(0.7), disc(3.0))
    a, y = m.operator["image"], m.y["image"]
    # first solution with variances from the counts, second with those it expects
    d, noise = gaussian_approximation(m.likelihood["image"], y)
    first = torch.linalg.solve(*dense(a, noise.sigma[0] ** -2, d[0])).reshape(1, 1, *SHAPE)
    variance = (a(first) + 0.7).clamp_min(0.1 * float(y[:1].mean()))
    wanted = torch.linalg.solve(*dense(a, 1 / variance[0], d[0])).reshape(1, 1, *SHAPE)
    x = method()(m.samples(0, 1), ONE).as_tensor()
    assert (x - wanted).abs().max() < 2e-3 * wanted.abs().max()
    assert (first - wanted).abs().max() > 1e-2 * wanted.abs().max()
    # variances taken from counts favour low ones
    truth = disc(3.0)[:1]
    assert abs(float((x - truth).mean())) < 0.5 * abs(float((first - truth).mean()))


def dense(operator, weights, data):
    """The normal matrix and right-hand side of one sample, written out."""
    pixels = SHAPE[0] * SHAPE[1]
    eye = torch.eye(pixels).reshape(pixels, 1, *SHAPE)
    matrix = operator(eye).reshape(pixels, -1).T
    smooth = divergence_adjoint(gradient(eye, [1.0, 1.0]), [1.0, 1.0]).reshape(pixels, pixels)
    w = weights.flatten()
    return (matrix.T * w) @ matrix + torch.eye(pixels) + 3.0 * smooth, matrix.T @ (w * data.flatten())


def test_spectral_counts_solve_for_materials():
    spectrum = torch.tensor([[3000.0, 2000.0, 0.0], [0.0, 2000.0, 4000.0]])
    attenuation = torch.tensor([[0.27, 0.21, 0.18], [1.0, 0.5, 0.3]])
    x = torch.cat([disc(1.0), 0.3 * disc(1.0).flip(3)], dim=1)
    m = measured(SpectralProjector(beam(), 2), PolyenergeticPoisson(spectrum, attenuation), x, name="materials")
    a, y = m.operator["materials"], m.y["materials"]
    z, information = decompose_counts(m.likelihood["materials"], y)
    apply = lambda v: torch.einsum("bmnuv,bnuv->bmuv", information, v)  # noqa: E731
    estimate = method()(m, ONE).as_tensor()
    check(a.adjoint(apply(a(estimate) - z)), estimate, a.adjoint(apply(z)))
    assert float((estimate - x).square().mean()) < 0.4 * float(x.square().mean())


def test_white_noise_solves_the_same_equations_as_a_tensor_of_equal_sigma():
    uniform = measured(beam(), Gaussian(0.1), disc())
    sigma = torch.full((1, *uniform.operator["image"].range_shape), 0.1)
    spread = Measurement(uniform.y, uniform.operator, BlockLikelihood({"image": Gaussian(sigma)}))
    a, b = method()(uniform, ONE).as_tensor(), method()(spread, ONE).as_tensor()
    assert torch.allclose(a, b, atol=1e-4)
    operator, y = uniform.operator["image"], uniform.y["image"]
    check(operator.adjoint(operator(a) - y) / 0.01, a, operator.adjoint(y) / 0.01)


def test_weights_follow_the_noise_and_not_the_unit():
    x = disc()
    scaled = measured(0.01 * beam(), Gaussian(0.1), 100 * x, scale=100.0)
    plain = measured(beam(), Gaussian(0.1), x)
    assert torch.allclose(method()(scaled, ONE).as_tensor() / 100, method()(plain, ONE).as_tensor(), atol=1e-3)
    # noise-free data need no prior: the weight vanishes
    exact = measured(beam(60), Gaussian(0.0), x)
    assert (method(1e3, 1e3)(exact, ONE).as_tensor() - x).abs().mean() < 0.05
    # the best weight is the same at a tenfold noise, within a factor
    weights = [0.3, 3.0, 30.0, 300.0]
    best = {}
    for sigma in (0.05, 0.5):
        m = measured(beam(), Gaussian(sigma), x)
        errors = [float((method(0.1, w)(m, ONE).as_tensor() - x).square().mean()) for w in weights]
        best[sigma] = errors.index(min(errors))
    assert 0 < best[0.05] < len(weights) - 1
    assert abs(best[0.05] - best[0.5]) <= 1


def test_batch_is_what_its_samples_are_one_by_one():
    unlike = disc(3.0) * torch.tensor([1.0, 0.2]).reshape(2, 1, 1, 1)
    for likelihood, x in ((TransmissionPoisson(500.0), disc(0.2)), (Poisson(0.7), unlike), (Gaussian(0.1), disc())):
        m = measured(beam(), likelihood, x, scale=float(x.max()))
        together = method()(m, ONE).as_tensor()
        alone = torch.cat([method()(m.samples(i, i + 1), ONE).as_tensor() for i in range(2)])
        assert (together - alone).abs().max() < 1e-4 * x.max()


def test_settings_by_kind_are_used():
    m = measured(beam(), TransmissionPoisson(500.0), disc(0.2))
    tuning = Tuning({"weight": 1.0, "smoothness": 3.0})
    reconstructor = PenalisedLeastSquares(tuning=tuning)
    default = reconstructor(m, ONE).as_tensor()
    with tuning.override({"parallel_beam/transmission_poisson": {"smoothness": 3e3}}):
        smooth = reconstructor(m, ONE).as_tensor()
    with tuning.override({"pet/poisson": {"smoothness": 3e3}}):
        assert torch.equal(reconstructor(m, ONE).as_tensor(), default)
    total = lambda x: gradient(x, [1.0, 1.0]).square().sum()  # noqa: E731
    assert total(smooth) < 0.1 * total(default)


def test_clean_and_missing_modalities_and_gradients():
    space = ImageSpace(["flair", "t1", Modality("ct", scale=0.2)], (32, 32), (4.0, 4.0))
    fine = torch.nn.functional.interpolate(disc(), size=(64, 64))
    maps = {"flair": fine, "t1": 0.5 * fine, "ct": 0.2 * fine}
    scans = {"flair": CartesianMR(4), "t1": CleanImage()}
    m = Acquisition(space, scans, key="test", oversample=2)(maps, ["a", "b"])
    network = RegularisationWeight(1.0)
    result = PenalisedLeastSquares()(m, network.eval()).as_tensor()
    assert torch.equal(result[:, 1:2], m.y["t1"])
    assert result[:, 2].abs().max() == 0
    truth = block_mean(fine, 2)
    assert (result[:, :1] - truth).square().mean() < (m.back_projection()[:, :1] - truth).square().mean()
    PenalisedLeastSquares()(m, network.train()).as_tensor().square().mean().backward()
    assert network.log_weight.grad is not None
    assert network.log_weight.grad != 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="max_iterations: expected >= 1, got 0"):
        PenalisedLeastSquares(max_iterations=0)
    m = measured(beam(), Gaussian(0.1), disc())
    with pytest.raises(ValueError, match="network: expected the penalty of the bundle, got None"):
        PenalisedLeastSquares()(m, None)
