"""The priors of spectral CT: structure, what couples the energies, and the pipelines around them."""

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from multirecon.acquisition import SpectralSlices
from multirecon.bundle import Bundle, load, load_network
from multirecon.priors import PixelDomain, SampleNoise, reverse_diffusion
from multirecon.reconstruction import (
    DecomposedSampling,
    HybridSampling,
    ImageDomainDecomposition,
    PosteriorSampling,
    ProjectionDomainDecomposition,
)

ROOT = Path(__file__).parents[3] / "bundles" / "dps_spectralct"
ENERGIES = {"ct_low": [53.0], "ct_high": [72.0], "ct_bins": [44.0, 64.0, 92.0]}


def built(variant=None):
    workflow = load(Bundle(ROOT), variant, device="$torch.device('cpu')")
    return workflow, load_network(workflow)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="module")
def priors():
    """The joint prior and the separate one: denoisers of stacks of five energies in [-1, 1]."""
    found = {}
    for name in (None, "separate"):
        workflow, network = built(name)
        prior = workflow.parser.get_parsed_content("prior")
        found[name or "joint"] = prior, network
    return found


@pytest.fixture(scope="module")
def slices():
    """Two slices of two unseen seeds of the embedded anatomy, in the range of the network."""
    data = SpectralSlices("validation", 2, modalities=list(ENERGIES), energies_kev=ENERGIES, anatomies=["mni152"],
                          slices=1)  # fmt: skip
    return torch.stack([data[0]["image"], data[1]["image"]])


def test_published_configuration_instantiates():
    parser = ConfigParser(json.loads((ROOT / "configs" / "train.json").read_text()))
    parser.update(json.loads((ROOT / "configs" / "train_published.json").read_text()))
    network, prior = (parser.get_parsed_content(key) for key in ("network_def", "prior"))
    assert parameters(network) > 5e6
    assert isinstance(prior.domain, PixelDomain)
    assert (prior.parametrisation.kind, prior.schedule.num_timesteps) == ("epsilon", 1000)
    x0 = torch.zeros(1, 5, 32, 32)
    batch = prior.noisy_batch(x0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert network(batch.image, batch.timestep).shape == batch.target.shape == x0.shape


def test_variants_are_the_methods_they_say():
    kinds = {None: PosteriorSampling, "mds": DecomposedSampling, "odps": HybridSampling,
             "imtdps": ImageDomainDecomposition, "projtdps": ProjectionDomainDecomposition,
             "hybrid": HybridSampling}  # fmt: skip
    for variant, kind in kinds.items():
        workflow, _ = built(variant)
        assert type(workflow.inferer.reconstructor) is kind
    hybrid = built("hybrid")[0].inferer.reconstructor
    assert (hybrid.prior.space.num_channels, hybrid.stack.num_channels) == (2, 3)
    one_step = built("odps")[0].inferer.reconstructor  # no absent material: guided sampling of water and bone alone
    assert (one_step.prior.space.num_channels, one_step.stack.num_channels) == (2, 2)
    for variant, names in (("imtdps", ("ct_low", "ct_high", "ct_bins")), ("projtdps", ("materials",))):
        assert built(variant)[0].inferer.reconstructor.sampler.prior.space.names == names


def test_control_is_of_equal_size_and_uncoupled(priors):
    joint, separate = priors["joint"][1], priors["separate"][1]
    assert parameters(separate) == pytest.approx(parameters(joint), rel=0.05)
    image = torch.zeros(1, 20, 16, 16)
    image[:, :4] = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([300.0])
    with torch.no_grad():
        moved = {
            n: (f(image, time) - f(torch.zeros_like(image), time)).abs() for n, f in (("j", joint), ("s", separate))
        }
    assert float(moved["s"][:, 4:].max()) == 0.0 < float(moved["s"][:, :4].max())
    assert float(moved["j"][:, 4:].max()) > 1e-2


def test_energies_of_another_subject_hurt_the_joint_prior(priors, slices):
    """It has learned that the energies show one head: with 72 keV of another, its denoising gets worse."""
    swapped = slices.clone()
    swapped[:, 1] = slices.flip(0)[:, 1]
    noise = torch.randn(slices.shape, generator=torch.Generator().manual_seed(0))
    worse = {}
    for name, (prior, network) in priors.items():
        denoise = prior.denoiser(network)
        errors = []
        for stack in (slices, swapped):
            x = prior.scaling(stack)
            with torch.no_grad():
                errors.append(float((denoise(x + 0.5 * noise, 0.5) - x)[:, [0, 2, 3, 4]].square().mean()))
        worse[name] = errors[1] / errors[0]
    assert worse["separate"] == pytest.approx(1.0, abs=1e-3)
    assert worse["joint"] > 1.1


def test_the_joint_prior_cleans_a_noisy_energy_by_the_others(priors, slices):
    """Denoising of all energies at once, at the same noise: the coupling is worth something."""
    noise = torch.randn(slices.shape, generator=torch.Generator().manual_seed(1))
    errors = {}
    for name, (prior, network) in priors.items():
        x = prior.scaling(slices)
        with torch.no_grad():
            errors[name] = float((prior.denoiser(network)(x + 0.5 * noise, 0.5) - x).square().mean())
    assert errors["joint"] < errors["separate"]


def test_without_guidance_samples_are_unconditional():
    workflow, network = built()
    batch = workflow.evaluator.data_loader.collate_fn([workflow.dataset[0]])
    measurement, _ = workflow.evaluator.prepare_batch(batch, torch.device("cpu"), False)
    prior = workflow.parser.get_parsed_content("prior")
    sampler = PosteriorSampling(prior, steps=4, zeta=1e-12)
    result = sampler(measurement, network, generator=torch.Generator().manual_seed(0)).as_tensor()
    noise = SampleNoise((1, 5, 128, 128), torch.Generator().manual_seed(0), like=torch.zeros(()))
    free = reverse_diffusion(prior.denoiser(network), prior.schedule, noise, steps=4, eta=1.0)
    torch.testing.assert_close(result, prior.scaling.inverse(free)[:, :2], rtol=0, atol=1e-5)
