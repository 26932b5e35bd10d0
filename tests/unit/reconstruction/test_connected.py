"""Connected energies: gradients through the networks, a falling objective, limits of the coupling, what is missing."""

import itertools

import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian, TransmissionPoisson, gaussian_approximation
from multirecon.measurement import Measurement
from multirecon.networks.energies import EnergyUNets
from multirecon.operators import BlockDiagonal, Identity, ParallelBeam
from multirecon.reconstruction import ConnectedPenalty, ConnectedReconstruction, Tuning
from multirecon.solvers import bounded_quasi_newton, separable_surrogate
from multirecon.space import ImageSpace, Modality

SHAPE, SPACING = (24, 24), (6.0, 6.0)
SPACE = ImageSpace([Modality("ct_low", scale=0.25), Modality("ct_high", scale=0.2), Modality("ct_bins", channels=3)],
                   SHAPE, SPACING)  # fmt: skip
SCALES = [0.6, 0.4, 0.9, 0.5, 0.3]
REFERENCE = 3


class Powers(torch.nn.Module):
    """``N_k(z) = z + b_k (z - z^2)`` pixel by pixel: a known curve, the identity at the reference."""

    def __init__(self):
        super().__init__()
        self.bend = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.5, 0.0, -0.4], dtype=torch.float64))

    def at(self, image, energies):
        bend = self.bend[list(energies)].reshape(1, -1, 1, 1)
        return image + bend * (image - image**2)


def latent(batch=2):
    y, x = torch.meshgrid(torch.linspace(-1, 1, SHAPE[0]), torch.linspace(-1, 1, SHAPE[1]), indexing="ij")
    head, bone = (y / 0.85) ** 2 + (x / 0.7) ** 2 < 1, ((y / 0.85) ** 2 + (x / 0.7) ** 2 - 0.8).abs() < 0.2
    z = (0.4 * head + 0.4 * bone + 0.05 * ((y - 0.2) ** 2 + x**2 < 0.1))[None, None].double()
    return torch.cat([z, z.flip(2)])[:batch]


def truth(batch=2):
    with torch.no_grad():
        return torch.tensor(SCALES).double().reshape(1, -1, 1, 1) * Powers().at(latent(batch), range(5))


def measured(names=("ct_low", "ct_high"), *, clean=(), photons=1e3, views=20, batch=2):
    generator = torch.Generator().manual_seed(0)
    operators, likelihoods, data = {}, {}, {}
    for name in names:
        x = truth(batch)[:, SPACE.channels(name)]
        if name in clean:
            operators[name], likelihoods[name], data[name] = Identity(tuple(x.shape[1:])), Gaussian(0.0), x
            continue
        assert x.shape[1] == 1
        operators[name] = ParallelBeam(SHAPE, SPACING, views=views, bins=36).double()
        likelihoods[name] = TransmissionPoisson(photons)
        data[name] = likelihoods[name].sample(operators[name](x), generator)
    space = SPACE.select(list(names))
    return Measurement(Blocks(data), BlockDiagonal(space, operators), BlockLikelihood(likelihoods))


def method(*, weight=3.0, smoothness=0.2, **options):
    options = {"iterations": 8, "inner_iterations": 4, "latent_iterations": 5, "tolerance": 0.0, **options}
    return ConnectedReconstruction(space=SPACE, scales=SCALES, reference=REFERENCE,
                                   tuning=Tuning({"weight": weight, "smoothness": smoothness}), **options)  # fmt: skip


def unets(seed=0):
    torch.manual_seed(seed)
    return EnergyUNets(5, channels=[4, 6, 8], strides=[1, 2]).double()


def error(image, names=("ct_low", "ct_high")):
    here = SPACE.channel_index(list(names))
    return float((image - truth(len(image))[:, here]).square().mean().sqrt())


def test_gradient_of_the_penalty_through_the_networks():
    """Against finite differences in float64, in the latent image and in the images, and the images of one channel."""
    penalty = ConnectedPenalty(unets(), (0, 3), torch.tensor(SCALES)[[0, 3]].double(),
                               torch.tensor([30.0, 7.0]).double(), smoothness=0.7, threshold=0.02)  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    z = (latent() + 0.05 * torch.randn(latent().shape, generator=generator, dtype=torch.float64)).requires_grad_()
    x = truth()[:, [0, 3]].clone().requires_grad_()
    for point, value in ((z, lambda p: penalty(x.detach(), p)), (x, lambda p: penalty(p, z.detach()))):
        (slope,) = torch.autograd.grad(value(point).sum(), point)
        for _ in range(3):
            direction = torch.randn(point.shape, generator=generator, dtype=torch.float64)
            step = 1e-6 * direction
            with torch.no_grad():
                difference = (value(point + step) - value(point - step)).sum() / 2e-6
            assert float((slope * direction).sum()) == pytest.approx(float(difference), rel=1e-6)


def test_gradient_of_the_huber_term_at_a_constant_image():
    penalty = ConnectedPenalty(Powers(), (3,), torch.tensor([0.5]), torch.tensor([0.0]), smoothness=2.0, threshold=0.1)
    z = torch.full((1, 1, 8, 8), 0.3, requires_grad=True)
    (slope,) = torch.autograd.grad(penalty.huber(z).sum(), z)
    assert torch.equal(slope, torch.zeros_like(slope))
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 0.6
    assert float(penalty.huber(step)) == pytest.approx(2.0 * 8 * (0.6 - 0.05), rel=1e-6)


@pytest.mark.parametrize("network", [Powers(), unets()], ids=["curve", "unets"])
@pytest.mark.parametrize("exact", [True, False])
def test_the_objective_never_rises(network, exact):
    reconstructor = method(exact=exact)
    reconstructor(measured(), network)
    assert len(reconstructor.runs) == 2
    for run in reconstructor.runs:
        assert len(run.objectives) == 1 + 2 * 8
        # float32 counts no better than its last digits in a sum of this size
        assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(run.objectives))
        assert run.objectives[-1] < 0.9 * run.objectives[0]


def test_without_coupling_every_energy_is_that_of_its_data():
    """gamma = 0: the same steps as the likelihood (or PWLS) alone, whatever the networks."""
    for exact in (True, False):
        reconstructor = method(weight=0.0, exact=exact, iterations=3)
        measurement = measured()
        found = reconstructor(measurement, Powers()).as_tensor()
        x, _, blocks = reconstructor.prepare(measurement.samples(0, 1).embed(SPACE), Powers())
        for b in blocks:
            part = x[:, b.channels]
            for _ in range(3):
                part = bounded_quasi_newton(b.operator, b.likelihood, b.y, x0=part, iterations=4)
            assert torch.allclose(found[:1, b.channels], part)
        assert torch.equal(found, reconstructor(measurement, unets()).as_tensor())
        # little coupling is close to none
        near, far = (
            method(weight=w, exact=exact, iterations=3)(measurement, Powers()).as_tensor() for w in (1e-6, 1e-2)
        )
        assert float((near - found).norm()) < 0.01 * float((far - found).norm())


def test_image_step_is_the_anchored_weighted_least_squares():
    """The same minimum as the separable surrogates of PWLS with the anchor f(z)."""
    reconstructor = method(exact=False)
    measurement = measured(batch=1)
    _, penalty, blocks = reconstructor.prepare(measurement.embed(SPACE), Powers())
    b, anchor = blocks[0], penalty.images(latent(1)).detach()[:, blocks[0].channels]
    y, likelihood = gaussian_approximation(TransmissionPoisson(1e3), measurement.y["ct_low"])
    assert torch.equal(b.y, y)
    surrogate = separable_surrogate(b.operator, likelihood, y, anchor=anchor, rho=b.rho, iterations=300)
    newton = bounded_quasi_newton(b.operator, b.likelihood, b.y, anchor=anchor, rho=b.rho, iterations=60)
    assert torch.allclose(surrogate, newton, atol=1e-4)


def test_latent_is_optimised_and_depends_on_the_data():
    """No one-shot output: its steps go on lowering the penalty, and end where its gradient is small."""
    reconstructor = method(iterations=40, latent_iterations=20)
    measurement = measured(batch=1)
    x = reconstructor(measurement, Powers()).as_tensor()
    z = reconstructor.runs[0].latent
    first, penalty, _ = reconstructor.prepare(measurement.embed(SPACE), Powers())
    start = reconstructor._start(first, penalty)

    def slope(point, image):
        point = point.clone().requires_grad_()
        return torch.autograd.grad(penalty(image, point).sum(), point)[0].norm()

    assert float(slope(z, x)) < 1e-2 * float(slope(start, first))
    assert float((z - latent(1)).norm()) < 0.9 * float((start - latent(1)).norm())
    moved = method(iterations=5)
    moved(measured(batch=1, photons=200.0), Powers())
    assert not torch.allclose(moved.runs[0].latent, z)


def test_coupling_helps_and_wrong_networks_hurt():
    measurement = measured()
    alone = error(method(weight=0.0)(measurement, Powers()).as_tensor())
    together = error(method(iterations=20)(measurement, Powers()).as_tensor())
    swapped = Powers()
    swapped.bend.data = swapped.bend.data[[2, 4, 0, 3, 1]]
    wrong = error(method(iterations=20)(measurement, swapped).as_tensor())
    assert together < 0.8 * alone
    assert together < wrong


def test_one_energy_of_another_subject_hurts():
    """The latent is shared: data of two subjects in the two energies have no common one."""
    good = measured()
    mixed = Measurement(
        Blocks({"ct_low": good.y["ct_low"], "ct_high": good.y["ct_high"].flip(0)}), good.operator, good.likelihood
    )
    reconstructor = method(iterations=20)
    reconstructor(good, Powers())
    right = reconstructor.runs[0].objectives[-1]
    reconstructor(mixed, Powers())
    assert reconstructor.runs[0].objectives[-1] > right + 50  # nats: the subjects differ by a small spot


def test_clean_energies_stay_and_missing_ones_come_from_the_latent():
    reconstructor = method(iterations=20)
    alone = reconstructor(measured(["ct_high"]), Powers()).as_tensor()
    assert alone.shape[1] == 1
    guided = reconstructor(measured(["ct_high", "ct_bins"], clean=["ct_bins"]), Powers()).as_tensor()
    assert torch.equal(guided[:, 1:], truth()[:, 2:])
    assert error(guided[:, :1], ["ct_high"]) < 0.7 * error(alone, ["ct_high"])
    # what has no measurement is what the networks make of the latent
    measurement = measured(["ct_high"], views=40, photons=1e5).embed(SPACE)
    full = reconstructor(measurement, Powers()).as_tensor()
    made = torch.tensor(SCALES).double().reshape(1, -1, 1, 1) * Powers().at(reconstructor.runs[0].latent, range(5))
    assert torch.allclose(full[:1, 2:], made[:, 2:].clamp_min(0))
    assert error(full[:, [0]], ["ct_low"]) < 0.05
    only_clean = reconstructor(measured(["ct_bins"], clean=["ct_bins"]).embed(SPACE), Powers()).as_tensor()
    assert error(only_clean[:, [0]], ["ct_low"]) < 0.01


def test_a_batch_is_the_loop_over_its_samples():
    measurement = measured()
    both = method()(measurement, unets()).as_tensor()
    for k in range(2):
        assert torch.equal(both[k : k + 1], method()(measurement.samples(k, k + 1), unets()).as_tensor())


def test_refusals():
    with pytest.raises(ValueError, match="scales: expected 5 numbers > 0"):
        ConnectedReconstruction(space=SPACE, scales=[1.0], reference=0)
    with pytest.raises(ValueError, match="reference: expected a channel below 5, got 5"):
        ConnectedReconstruction(space=SPACE, scales=SCALES, reference=5)
    with pytest.raises(ValueError, match="threshold"):
        method(threshold=0.0)
    with pytest.raises(ValueError, match="networks of the energies, got Linear"):
        method()(measured(), torch.nn.Linear(1, 1))
