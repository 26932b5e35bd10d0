"""Total variation and wavelet-sparse SENSE as methods: what guides, joins, stays, falls back and repeats."""

import logging

import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.functionals import JointTotalVariation
from multirecon.likelihoods import BlockLikelihood, Gaussian, Poisson, TransmissionPoisson
from multirecon.measurement import Measurement
from multirecon.networks.classical import RegularisationWeight
from multirecon.operators import BlockDiagonal, Identity, MaskedFourier, ParallelBeam, Wavelet
from multirecon.reconstruction import Tikhonov, TotalVariationReconstruction, Tuning, WaveletSense
from multirecon.reconstruction.variational import CycleSpunWavelets, JointVariationWithKnown
from multirecon.space import ImageSpace

N = 48


@pytest.fixture
def network():
    return RegularisationWeight(1.0).eval()


def anatomy():
    """Return FLAIR-like and T1-like images of one anatomy, other contrasts, same edges."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, N), torch.linspace(-1, 1, N), indexing="ij")
    head, brain = x**2 + y**2 < 0.8, x**2 + (1.2 * y) ** 2 < 0.5
    inside, spot = (x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.05, (x + 0.3) ** 2 + (y - 0.1) ** 2 < 0.02
    flair = 0.3 * head + 0.3 * brain - 0.4 * inside + 0.3 * spot
    t1 = 0.8 * head - 0.3 * brain - 0.2 * inside + 0.1 * spot
    return flair.float()[None, None], t1.float()[None, None]


def coils(generator, every=4, sigma=0.03):
    mask = torch.zeros(N, N)
    mask[::every] = 1
    maps = torch.randn(4, 6, 6, generator=generator, dtype=torch.complex64)
    grow = torch.nn.functional.interpolate
    maps = torch.complex(
        grow(maps.real[None], (N, N), mode="bicubic")[0], grow(maps.imag[None], (N, N), mode="bicubic")[0]
    )
    maps = maps / maps.abs().square().sum(0).sqrt()
    return MaskedFourier(mask, maps), Gaussian(sigma, support=mask)


def scan(images, operators, likelihoods, generator, modalities=None):
    """Return the measurement of a stack of images, one modality each."""
    names = list(images)
    space = ImageSpace(modalities or names, (N, N), (2.0, 2.0))
    y = {n: likelihoods[n].sample(operators[n](images[n]), generator) for n in operators}
    return Measurement(Blocks(y), BlockDiagonal(space, operators), BlockLikelihood(likelihoods))


def flair_scan(generator, *, guide=None, batch=1):
    flair, t1 = (image.expand(batch, 1, N, N).contiguous() for image in anatomy())
    A, noise = coils(generator)
    images = {"flair": flair, "t1": t1 if guide is None else guide}
    return scan(images, {"flair": A, "t1": Identity((1, N, N))}, {"flair": noise, "t1": Gaussian(0.0)}, generator)


def error(x, truth):
    return float((x.as_tensor().detach()[:, :1] - truth).norm() / truth.norm())


def test_a_guide_helps_and_both_beat_least_squares(generator, network):
    measurement, (flair, t1) = flair_scan(generator), anatomy()
    errors = {"tikhonov": error(Tikhonov()(measurement, RegularisationWeight(1e-3)), flair)}
    for penalty in ("separate", "joint", "directional"):
        x = TotalVariationReconstruction(penalty=penalty)(measurement, network)
        assert torch.equal(x.as_tensor()[:, 1:], t1)  # the clean modality comes back as it was
        assert bool((x.as_tensor() >= 0).all())
        errors[penalty] = error(x, flair)
    errors["wavelets"] = error(WaveletSense()(measurement, network), flair)
    assert errors["directional"] < 0.85 * errors["separate"]
    assert errors["joint"] < 0.95 * errors["separate"]
    assert errors["separate"] < 0.8 * errors["tikhonov"]
    assert errors["wavelets"] < 0.8 * errors["tikhonov"]


@pytest.mark.parametrize("penalty", ["joint", "directional"])
def test_what_only_the_guide_shows_is_not_copied(generator, network, penalty):
    """A bright square of the guide alone: its imprint stays below a twentieth of its height."""
    flair, t1 = anatomy()
    marked = t1.clone()
    marked[..., 20:28, 30:38] += 0.5
    state = generator.get_state()
    method = TotalVariationReconstruction(penalty=penalty)
    plain = method(flair_scan(generator), network)
    generator.set_state(state)
    other = method(flair_scan(generator, guide=marked), network)
    imprint = (other - plain).as_tensor()[0, 0, 20:28, 30:38].mean().abs()
    assert float(imprint) < 0.05 * 0.5
    assert error(other, flair) < 1.3 * error(plain, flair)


def test_one_weight_serves_all_scales(generator, network):
    """The same data in other units and with another operator norm: the same image in those units."""
    y = anatomy()[0] + 0.1 * torch.randn(1, 1, N, N, generator=generator)
    images = {}
    for scale in (1.0, 50.0):
        space = ImageSpace([{"name": "t1", "scale": scale}], (N, N), (2.0, 2.0))
        A = BlockDiagonal(space, {"t1": Identity((1, N, N))})
        measurement = Measurement(Blocks({"t1": scale * y}), A, BlockLikelihood({"t1": Gaussian(0.1 * scale)}))
        images[scale] = TotalVariationReconstruction()(measurement, network).as_tensor() / scale
    torch.testing.assert_close(images[1.0], images[50.0], atol=1e-4, rtol=0)


def test_ct_and_pet_of_one_patient(generator, network):
    flair, t1 = anatomy()
    A = ParallelBeam((N, N), (4.0, 4.0), views=30, bins=70)
    modalities = [{"name": "ct", "unit": "1/cm", "scale": 0.2}, {"name": "pet_fdg", "scale": 0.6}]
    measurement = scan({"ct": 0.2 * t1, "pet_fdg": 20 * flair}, {"ct": A, "pet_fdg": A},
                       {"ct": TransmissionPoisson(I0=2000.0, scatter=20.0), "pet_fdg": Poisson(background=2.0)},
                       generator, modalities)  # fmt: skip
    x = TotalVariationReconstruction()(measurement, network).as_tensor()
    assert float((x[:, :1] - 0.2 * t1).norm() / (0.2 * t1).norm()) < 0.15
    assert float((x[:, 1:] / 20 - flair).norm() / flair.norm()) < 0.25


def test_two_measured_contrasts_help_each_other(generator, network):
    flair, t1 = anatomy()
    scans = {name: coils(generator) for name in ("flair", "t1")}
    measurement = scan({"flair": flair, "t1": t1}, {n: a for n, (a, _) in scans.items()},
                       {n: noise for n, (_, noise) in scans.items()}, generator)  # fmt: skip
    stack = torch.cat([flair, t1], dim=1)
    # where edges coincide the joint norm of two equal gradients is 1 / sqrt(2) of their sum
    methods = [TotalVariationReconstruction(penalty=penalty, tuning=Tuning({"weight": weight}))
               for penalty, weight in (("separate", 0.35), ("joint", 0.5))]  # fmt: skip
    alone, joint = ((method(measurement, network).as_tensor() - stack).norm() for method in methods)
    assert float(joint) < 0.95 * float(alone)


def test_without_a_clean_modality_it_says_so_once(generator, network, caplog):
    A, noise = coils(generator)
    measurement = scan({"flair": anatomy()[0]}, {"flair": A}, {"flair": noise}, generator)
    guided = TotalVariationReconstruction(penalty="directional")
    with caplog.at_level(logging.WARNING):
        first, second = guided(measurement, network), guided(measurement, network)
    assert ["no clean modality" in r.message for r in caplog.records] == [True]
    assert torch.equal(first.as_tensor(), second.as_tensor())
    assert torch.equal(first.as_tensor(), TotalVariationReconstruction()(measurement, network).as_tensor())


@pytest.mark.parametrize("method", [TotalVariationReconstruction(iterations=8), WaveletSense(iterations=8)])
def test_a_batch_is_its_samples_and_the_network_can_be_trained(generator, network, method):
    measurement = flair_scan(generator, batch=2)
    batch = method(measurement, network).as_tensor()
    singles = [method(measurement.samples(k, k + 1), network).as_tensor() for k in range(2)]
    assert torch.equal(batch, torch.cat(singles))
    assert not batch.requires_grad
    result = method(measurement.samples(0, 1), network.train())
    (result.as_tensor()[:, :1] - anatomy()[0]).square().mean().backward()
    assert float(network.log_weight.grad.abs()) > 0


def test_settings_come_from_the_tuning(generator, network):
    measurement, flair = flair_scan(generator), anatomy()[0]
    smooth = TotalVariationReconstruction(tuning=Tuning({"weight": 20.0}))(measurement, network)
    usual = TotalVariationReconstruction(tuning=Tuning({"weight": 0.35}))(measurement, network)
    assert error(smooth, flair) > 1.5 * error(usual, flair)


@pytest.mark.parametrize("grid", [(32, 32), (30, 21)])
def test_wavelet_frame(generator, grid):
    """Analysis and synthesis are adjoint, all details of all shifts together weigh 1 / S, constants cost nothing."""
    for shifts in (1, 4):
        penalty = CycleSpunWavelets(transform=Wavelet((1, 32, 32), "db4", levels=3), shifts=shifts, grid=grid)
        x = torch.randn(2, 1, *grid, generator=generator)
        p = torch.randn(penalty.analyse(x).shape, generator=generator)
        torch.testing.assert_close(
            (penalty.analyse(x) * p).sum(), (x * penalty.synthesise(p)).sum(), rtol=1e-4, atol=1e-3
        )
        assert penalty.synthesise(p).shape == x.shape
        assert float(penalty.synthesise(penalty.analyse(x)).norm()) <= float(x.norm()) / shifts
        assert grid != (32, 32) or float(penalty.value(torch.ones(1, 1, *grid))) < 1e-3
        assert len(set(penalty.shifts)) == shifts


def test_known_channels_count_like_channels_that_do_not_change(generator):
    flair, t1 = anatomy()
    known = JointVariationWithKnown(2.0, known=3 * t1, channel_weights=[1.5])
    whole = JointTotalVariation(2.0, channel_weights=[1.5, 3.0])
    torch.testing.assert_close(known.value(flair), whole.value(torch.cat([flair, t1], dim=1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"penalty": "other"}, "penalty: expected one of"), ({"iterations": 0}, "expected >= 1"),
     ({"tolerance": -1.0}, "tolerance: expected >= 0")],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TotalVariationReconstruction(**arguments)


@pytest.mark.slow
def test_guided_beats_unguided_on_the_task():
    from multirecon import tasks
    from multirecon.data.datasets import PhantomSlices

    task = tasks.load("flair_x4_t1")
    data = PhantomSlices("test", 1, modalities=("flair", "t1"), slices=3, fine=True, anatomies=["mni152"])
    for item in (data[k] for k in range(3)):
        measurement, truth = task.measure(item)
        flair = truth[:, :1]
        errors = {p: error(TotalVariationReconstruction(penalty=p)(measurement, RegularisationWeight().eval()), flair)
                  for p in ("separate", "joint", "directional")}  # fmt: skip
        assert errors["directional"] < 0.9 * errors["separate"]
        assert errors["joint"] < errors["separate"]
