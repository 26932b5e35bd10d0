"""Dictionary reconstruction: monotone objectives, coupling of the channels, measured subsets, clean partners."""

import itertools

import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian, Poisson, TransmissionPoisson
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Identity, ParallelBeam, PETProjector
from multirecon.priors.dictionaries import AnalysisOperator, SynthesisDictionary, nearest_tight_frame
from multirecon.reconstruction import AnalysisReconstruction, SynthesisReconstruction, Tuning
from multirecon.space import ImageSpace, Modality

SHAPE, SPACING = (24, 24), (6.0, 6.0)
SPACE = ImageSpace([Modality("ct", scale=0.2), Modality("pet_fdg"), Modality("t1")], SHAPE, SPACING)


def phantom(batch=2):
    y, x = torch.meshgrid(torch.linspace(-1, 1, SHAPE[0]), torch.linspace(-1, 1, SHAPE[1]), indexing="ij")
    head, spot = (y / 0.8) ** 2 + (x / 0.6) ** 2 < 1, (y - 0.2) ** 2 + x**2 < 0.06
    ct = 0.2 * head + 0.1 * spot
    stack = torch.stack([ct, 1.0 * head + 1.5 * spot, 0.6 * head - 0.4 * spot])
    return torch.stack([stack, stack.flip(1)])[:batch].double()


def measured(names, *, clean=(), counts=20.0, photons=400.0, batch=2):
    truth = phantom(batch)
    generator = torch.Generator().manual_seed(0)
    operators, likelihoods, data = {}, {}, {}
    for name in names:
        x = truth[:, SPACE.channels(name)]
        if name in clean:
            operators[name], likelihoods[name] = Identity((1, *SHAPE)), Gaussian(0.0)
            data[name] = x
            continue
        beam = ParallelBeam(SHAPE, SPACING, views=24, bins=36).double()
        operators[name] = {
            "ct": beam,
            "pet_fdg": PETProjector(SHAPE, SPACING, views=24, bins=36, efficiency=counts).double(),
            "t1": Identity((1, *SHAPE)),
        }[name]
        likelihoods[name] = {"ct": TransmissionPoisson(photons), "pet_fdg": Poisson(3.0), "t1": Gaussian(0.1)}[name]
        data[name] = likelihoods[name].sample(operators[name](x), generator)
    space = SPACE.select(list(names))
    return Measurement(Blocks(data), BlockDiagonal(space, operators), BlockLikelihood(likelihoods)), truth


def frames(seed=0):
    network = AnalysisOperator(3, 25, 5, seed=seed).double()
    network.filters.copy_(nearest_tight_frame(network.filters))
    return network


def method(kind, **options):
    options = {"space": SPACE, "iterations": 8, "inner_iterations": 4, "tolerance": 0.0, **options}
    return (AnalysisReconstruction if kind == "analysis" else SynthesisReconstruction)(**options)


def network(kind):
    return frames() if kind == "analysis" else SynthesisDictionary(8, 5).double()


KINDS = pytest.mark.parametrize("kind", ["analysis", "synthesis"])


@KINDS
@pytest.mark.parametrize("names", [("ct", "pet_fdg"), ("pet_fdg", "t1"), ("ct",), ("ct", "pet_fdg", "t1")])
def test_objective_never_rises_and_images_are_not_negative(kind, names):
    measurement, truth = measured(names, batch=1)
    inferer = method(kind)
    result = inferer(measurement, network(kind)).as_tensor()
    values = inferer.objectives[0]
    assert len(values) == 9
    assert all(b <= a + 1e-10 * abs(a) for a, b in itertools.pairwise(values))
    assert values[-1] < values[0]
    assert float(result.min()) >= 0
    wanted = truth[:, SPACE.channel_index(names)]
    assert float((result - wanted).norm()) < 0.5 * float(wanted.norm())


@KINDS
def test_a_batch_is_the_loop_over_its_samples(kind):
    measurement, _ = measured(("ct", "pet_fdg"))
    inferer = method(kind, iterations=3)
    both = inferer(measurement, network(kind)).as_tensor()
    assert len(inferer.objectives) == 2
    for i in range(2):
        one = inferer(measurement.samples(i, i + 1), network(kind)).as_tensor()
        torch.testing.assert_close(one[0], both[i])


@pytest.mark.parametrize(("kind", "off"), [("analysis", {"joint": False}), ("synthesis", {"share": 0.0})])
def test_without_coupling_each_modality_is_reconstructed_by_itself(kind, off):
    net = network(kind)
    both, _ = measured(("ct", "pet_fdg"), batch=1)
    together = method(kind, **off)(both, net).as_tensor()
    for i, name in enumerate(("ct", "pet_fdg")):
        alone = Measurement(Blocks({name: both.y[name]}),
                            BlockDiagonal(SPACE.select([name]), {name: both.operator[name]}),
                            BlockLikelihood({name: both.likelihood[name]}))  # fmt: skip
        torch.testing.assert_close(method(kind, **off)(alone, net).as_tensor()[:, 0], together[:, i])
    coupled = method(kind)(both, net).as_tensor()
    assert float((coupled - together).abs().max()) > 1e-3


@KINDS
def test_a_clean_partner_comes_back_and_changes_the_other(kind):
    net = network(kind)
    alone, _ = measured(("pet_fdg",), batch=1)
    guided, truth = measured(("ct", "pet_fdg"), clean=("ct",), batch=1)
    guided = Measurement(Blocks({"ct": guided.y["ct"], "pet_fdg": alone.y["pet_fdg"]}), guided.operator,
                         guided.likelihood)  # fmt: skip
    result = method(kind)(guided, net).as_tensor()
    assert torch.equal(result[:, 0], truth[:, 0])
    assert float((result[:, 1] - method(kind)(alone, net).as_tensor()[:, 0]).abs().max()) > 1e-3
    everything, truth = measured(("ct",), clean=("ct",), batch=1)
    assert torch.equal(method(kind)(everything, net).as_tensor(), truth[:, :1])


@KINDS
def test_strong_data_are_followed_and_strong_priors_are_too(kind):
    """The exact likelihoods are there: with little weight of the prior the fit is that of the data alone."""
    measurement, _ = measured(("ct",), batch=1)
    weak, strong = (
        method(kind, tuning=Tuning({"weight": w, "cost" if kind == "analysis" else "sparsity": 30.0}), iterations=20)(
            measurement, network(kind)
        ).as_tensor()
        for w in (1e-3, 30.0)
    )
    fit = [float(measurement.data_fidelity(x)) for x in (weak, strong)]
    expected = 0.5 * measurement.y["ct"].numel()
    assert fit[0] < expected < fit[1]


def test_the_penalty_is_what_the_codes_say():
    """The one image that carries all codes gives the same value as the codes themselves."""
    from multirecon.priors.dictionaries import analyse, keep_jointly
    from multirecon.reconstruction.dictionaries import _TightFrame

    x, rho, cost = phantom(1), torch.tensor([50.0, 2.0, 3.0]).double(), torch.tensor([0.7]).double()
    bank = frames().filters.detach()
    prior = _TightFrame(bank, rho, cost, joint=True)
    prior.update(x)
    z = keep_jointly(analyse(x, bank), rho, cost)
    other = x + 0.01
    residual = (analyse(other, bank) - z).square().sum((0, 2, 3, 4))
    expected = 0.5 * (rho * residual).sum() + 0.7 * (z != 0).any(1).sum()
    torch.testing.assert_close(prior.value(other), expected)


def test_what_it_cannot_do_is_said():
    measurement, _ = measured(("ct",), batch=1)
    with pytest.raises(ValueError, match="network: expected a bank of filters, got Identity"):
        method("analysis")(measurement, torch.nn.Identity())
    with pytest.raises(ValueError, match="share, code_iterations"):
        method("synthesis", share=1.5)
    with pytest.raises(ValueError, match="iterations, inner_iterations"):
        method("analysis", iterations=0)
    other = Measurement(measurement.y.map(lambda t: t), BlockDiagonal(
        ImageSpace(["ct"], SHAPE, SPACING), {"ct": measurement.operator["ct"]}), measurement.likelihood)  # fmt: skip
    inferer = method("analysis", space=SPACE.select(["t1"]))
    with pytest.raises(ValueError, match=r"modalities: expected some of \['t1'\], got \['ct'\]"):
        inferer(other, frames())
