"""Materials with and without a prior: one likelihood, two ways to follow its gradient."""

import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, PolyenergeticPoisson
from multirecon.measurement import Measurement
from multirecon.operators import (
    BlockDiagonal,
    ParallelBeam,
    SpectralProjector,
    energy_bins,
    mass_attenuation,
    tube_spectrum,
)
from multirecon.priors import DiffusionPrior, IntensityScaling, NoiseSchedule, Parametrisation
from multirecon.reconstruction import HybridSampling, PosteriorSampling, Tuning
from multirecon.reconstruction.misfit import Misfit, _joint_inverse
from multirecon.space import ImageSpace, Modality

THREE = ("water", "bone", "iodine")
SIZE = 16


class Seen(torch.nn.Module):
    """A network of two channels that keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(0.15 * torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0)))
        self.shown = []

    def forward(self, image, timestep=None):
        self.shown.append(image.detach().clone())
        return torch.tanh(torch.nn.functional.conv2d(image, self.weight, padding=1))


def space(count):
    return ImageSpace([Modality("materials", channels=count, unit="g/cm^3")], (SIZE, SIZE), (10.0, 10.0))


def prior():
    knots = {"materials": [[[0.0, -1.0], [1.1, 1.0]], [[0.0, -1.0], [1.45, 1.0]]]}
    return DiffusionPrior(space(2), NoiseSchedule.cosine(1000), parametrisation=Parametrisation("velocity"),
                          scaling=IntensityScaling(space(2), knots=knots))  # fmt: skip


def densities(count):
    x = torch.zeros(1, 3, SIZE, SIZE)
    x[:, 0, 3:13, 3:13] = 1.0
    x[:, 1, 3:13, 3:5] = 0.6
    x[:, 2, 8:11, 8:11] = 0.03
    return x[:, :count]


def measured(count, *, noise=True, dtype=torch.float32, photons=1e5):
    energies = torch.arange(20.0, 121.0, 5.0)
    spectrum = energy_bins(energies, [20.0, 34.0, 60.0]) * tube_spectrum(energies, 120.0)
    spectrum = (spectrum * (photons / spectrum.sum())).to(dtype)
    likelihood = PolyenergeticPoisson(spectrum, mass_attenuation(THREE[:count], energies).to(dtype))
    beam = ParallelBeam((SIZE, SIZE), (10.0, 10.0), views=24, bins=24, bin_spacing_mm=10.0)
    operator = SpectralProjector(beam, count).to(dtype)
    z = operator(densities(count).to(dtype))
    y = likelihood.sample(z, torch.Generator().manual_seed(0)) if noise else likelihood.mean(z)
    return Measurement(Blocks({"materials": y}), BlockDiagonal(space(count), {"materials": operator}),
                       BlockLikelihood({"materials": likelihood}))  # fmt: skip


def run(sampler, measurement, network, seed=3):
    return sampler(measurement, network, generator=torch.Generator().manual_seed(seed)).as_tensor()


def test_without_an_absent_material_it_is_posterior_sampling():
    network = Seen()
    ours = HybridSampling(prior(), absent={}, steps=12, tuning=Tuning({"zeta": 3.0}))
    theirs = PosteriorSampling(prior(), steps=12, zeta=3.0, exact=True, precondition=True)
    results = [run(sampler, measured(2), network) for sampler in (ours, theirs)]
    assert torch.equal(*results)
    assert float((results[0] - run(theirs, measured(2), network, seed=4)).abs().max()) > 1e-3


def test_the_prior_is_never_shown_the_absent_material():
    network, sampler = Seen(), HybridSampling(prior(), absent={"iodine": 0.05}, steps=12)
    result = run(sampler, measured(3), network)
    assert result.shape == (1, 3, SIZE, SIZE)
    assert float(result[:, 2].max()) > 1e-4  # there is iodine, and it has moved
    assert float(result[:, 2].min()) >= 0
    assert {shown.shape[1] for shown in network.shown} == {2}
    # before iodine may move, what the network is shown does not depend on its settings
    other = Seen()
    settings = {"zeta": 4.0, "absent_step": 5.0, "absent_weight": 0.5, "absent_from": 1.0}
    run(HybridSampling(prior(), absent={"iodine": 0.05}, steps=12, tuning=Tuning(settings)), measured(3), other)
    assert torch.equal(network.shown[0], other.shown[0])
    assert not torch.equal(network.shown[-1], other.shown[-1])


def test_gradient_of_three_materials_against_finite_differences():
    measurement = measured(3, dtype=torch.float64)
    knots = {"materials": [[[0.0, -1.0], [1.1, 1.0]], [[0.0, -1.0], [1.45, 1.0]], [[0.0, -1.0], [0.01, 1.0]]]}
    misfit = Misfit(measurement, space(3), scaling=IntensityScaling(space(3), knots=knots))
    generator = torch.Generator().manual_seed(1)
    x = misfit.scaling(densities(3).double()) + 0.1 * torch.randn(1, 3, SIZE, SIZE, generator=generator).double()
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(misfit.squares(x).sum(), x)
    for channel in range(3):
        step = torch.zeros_like(x)
        step[:, channel] = torch.randn(SIZE, SIZE, generator=generator).double()
        with torch.no_grad():
            numeric = float(misfit.squares(x + 1e-5 * step) - misfit.squares(x - 1e-5 * step)) / 2e-5
        assert float((gradient * step).sum()) == pytest.approx(numeric, rel=1e-6)
    # and the likelihood's own, by which the gradient goes back through the projector
    likelihood, operator = measurement.likelihood["materials"], measurement.operator["materials"]
    z = operator(densities(3).double())
    step = torch.randn(z.shape, generator=generator).double() * torch.tensor([1.0, 1.0, 0.01]).reshape(1, 3, 1, 1)
    y = measurement.y["materials"]
    numeric = float(likelihood.nll(z + 1e-5 * step, y) - likelihood.nll(z - 1e-5 * step, y)) / 2e-5
    assert float((likelihood.grad(z, y) * step).sum()) == pytest.approx(numeric, rel=1e-6)


def test_a_jump_start_begins_where_the_data_have_the_object():
    """The first image that the network is shown, less its noise, is the head; from pure noise it is not."""
    shown = {}
    for start in (0.1, 1.0):
        network = Seen()
        run(HybridSampling(prior(), absent={"iodine": 0.05}, steps=3, start=start, ridge=1.0), measured(3), network)
        shown[start] = torch.corrcoef(torch.stack([network.shown[0][0, 0].flatten(), densities(2)[0, 0].flatten()]))
    assert float(shown[0.1][0, 1]) > 0.8 > 0.4 > float(shown[1.0][0, 1])


def test_joint_preconditioner_evens_out_what_the_data_see_of_the_materials():
    """The slowest direction of a gradient step gains on the fastest one, the more the smaller the ridge."""
    data = measured(3, noise=False)
    spread = []
    for ridge in (0.03, 0.3, 1e3):  # the last: channel by channel
        inverse, weight = _joint_inverse(data.likelihood["materials"], data.y["materials"], ridge)
        damped = torch.linalg.inv(inverse[0].double())
        mean = damped - ridge / (1 + ridge) * torch.diag(torch.diagonal(damped))
        rates = torch.linalg.eigvals(inverse[0].double() @ mean).real
        spread.append(float(rates.max() / rates.min()))
        assert 0 < float(weight.min()) < float(weight.max()) == 1.0  # rays in air weigh less than they could
    assert spread[0] < 0.5 * spread[1] < 0.25 * spread[2]
    with pytest.raises(ValueError, match="ridge: expected > 0 or None"):
        Misfit(data, space(3), scaling=IntensityScaling(space(3)), precondition=True, ridge=0.0)


def test_known_materials_move_as_far_as_without_the_absent_one():
    """The range of iodine is a hundredth of that of water: the length of the others' step must not depend on it."""
    gradients = []
    for count in (2, 3):
        knots = [[[0.0, -1.0], [1.1, 1.0]], [[0.0, -1.0], [1.45, 1.0]], [[0.0, -1.0], [0.01, 1.0]]][:count]
        scaling = IntensityScaling(space(count), knots={"materials": knots})
        data = measured(count, noise=False)
        misfit = Misfit(data, space(count), scaling=scaling, precondition=True)
        x = scaling(0.9 * densities(count))
        gradients.append(
            misfit.direction(x)[:, :1] * float(misfit.length("materials", 2) / misfit.length("materials", count))
        )
    ratio = float(gradients[1].norm() / gradients[0].norm())
    assert 0.5 < ratio < 2


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="modality 'materials': expected 3 channels, got 2"):
        run(HybridSampling(prior(), absent={"iodine": 0.01}, steps=2), measured(2), Seen())
    with pytest.raises(ValueError, match="modality 'materials': expected 2 channels, got 3"):
        run(PosteriorSampling(prior(), steps=2), measured(3), Seen())
    with pytest.raises(ValueError, match="prior: expected one modality of the 1 materials"):
        HybridSampling(prior(), materials=["water"], absent={"iodine": 0.01})
    with pytest.raises(ValueError, match="absent: expected positive densities"):
        HybridSampling(prior(), absent={"iodine": 0.0})
