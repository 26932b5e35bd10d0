"""The networks that connect the energies: training pairs, structure, and what the shipped weights have to do."""

import itertools
import json
from functools import cache
from pathlib import Path

import pytest
import torch

from multirecon.bundle import Bundle, load, load_network
from multirecon.metrics.image import psnr
from multirecon.networks.energies import EnergyUNets

ROOT = Path(__file__).parents[3] / "bundles" / "uconnect_spectralct"


def network_def(name):
    values = json.loads((ROOT / "configs" / name).read_text())["network_def"]
    assert values.pop("_target_").endswith(".EnergyUNets")
    return values


def test_published_and_shipped_structure():
    counts = {
        name: sum(p.numel() for p in EnergyUNets(**network_def(name)).parameters())
        for name in ("inference.json", "train.json", "train_published.json")
    }
    assert counts == {"inference.json": 182_695, "train.json": 182_695, "train_published.json": 32_472_235}
    assert (ROOT / "models" / "model.pt").stat().st_size < 450_000


def test_pairs_are_clean_targets_and_a_noisy_reference(uconnect):
    PreparePairs = uconnect.PreparePairs
    image = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    maker = PreparePairs([0.5, 2.0, 1.0], reference=1, sigma=0.2, patch=16, patches=3)
    noisy, clean = maker({"image": image, "brain": torch.ones(2, 1, 40, 40)})
    assert noisy.shape == (6, 1, 16, 16)
    assert clean.shape == (6, 3, 16, 16)
    assert float(clean[:, 0].max()) > 1.5 > 0.51 > float(clean[:, 1].max())
    spread = (noisy - clean[:, 1:2]).std(dim=(1, 2, 3))
    assert bool((spread < 0.25).all())
    assert float(spread.max()) > 2 * float(spread.min())  # another level for every patch
    assert torch.equal(maker({"image": image})[0], noisy)
    maker.step = 1
    assert not torch.equal(maker({"image": image})[0], noisy)
    silent, clean = PreparePairs([0.5, 2.0, 1.0], reference=1, sigma=0.0, patch=16)({"image": image})
    assert torch.equal(silent, clean[:, 1:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": [0.0], "reference": 0}, "scales: expected numbers > 0"),
        ({"scales": [1.0], "reference": 0, "sigma": -1.0}, "sigma: expected a number >= 0"),
        ({"scales": [1.0], "reference": 1}, "reference: expected a channel below 1, got 1"),
    ],
)
def test_refusals(arguments, message, uconnect):
    with pytest.raises(ValueError, match=message):
        uconnect.PreparePairs(**arguments)
    with pytest.raises(ValueError, match="expected 1 channels, got 2"):
        uconnect.PreparePairs([1.0], reference=0)({"image": torch.ones(1, 2, 8, 8)})


# the shipped weights


@cache
def scan():
    """Measurement and truth of a slice of the embedded anatomy, network, reconstructor and the result."""
    workflow = load(Bundle(ROOT), device="$torch.device('cpu')", **{"inferer#reconstructor#iterations": 8})
    network = load_network(workflow, bundle=Bundle(ROOT)).eval()
    batch = workflow.evaluator.data_loader.collate_fn([workflow.dataset[3]])
    measurement, truth = workflow.evaluator.prepare_batch(batch, torch.device("cpu"), False)
    reconstructor = workflow.inferer.reconstructor
    with torch.no_grad():
        result = reconstructor(measurement, network).as_tensor()
    return measurement, truth, network, reconstructor, result


def decibels(result, truth):
    return [float(psnr(result[:, k : k + 1], truth[:, k : k + 1], data_range=s)) for k, s in ((0, 0.25), (1, 0.2))]


def test_shipped_networks_connect_the_energies():
    """From the true image of one energy to that of another; the reference is near the identity."""
    measurement, truth, network, reconstructor, _ = scan()
    workflow = load(Bundle(ROOT), device="$torch.device('cpu')")
    batch = workflow.evaluator.data_loader.collate_fn([workflow.dataset[3]])
    assert batch["image"].shape[1] == 2
    # a reference image whose networks' images fit both true images
    embedded = measurement.embed(reconstructor.space)
    _, penalty, _ = reconstructor.prepare(embedded, network)
    with torch.no_grad():
        start = truth.mean(1, keepdim=True) / reconstructor.scales[reconstructor.reference]
    z = penalty.latent(truth, start, iterations=30)
    with torch.no_grad():
        assert min(decibels(penalty.images(z), truth)) > 30.0
        identity = network.at(z, [reconstructor.reference])
        assert float((identity - z).square().mean().sqrt()) < 0.05
        # the energies are different images: the reference's network in their place is far off
        same = reconstructor.scales[:2].reshape(1, -1, 1, 1) * identity
    assert max(decibels(same, truth)) < 30.0


def test_objective_falls_and_the_latent_is_optimised():
    """Checklist: no one-shot output. Images made of the last latent fit the counts better than those of the first."""
    measurement, truth, network, reconstructor, result = scan()
    objectives = reconstructor.runs[0].objectives
    # single precision: the sum of counts has about seven digits
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(objectives))
    assert objectives[-1] < objectives[0]
    x, penalty, blocks = reconstructor.prepare(measurement.embed(reconstructor.space), network)

    def misfit(z):
        with torch.no_grad():
            images = penalty.images(z)
            return sum(float(b.likelihood.nll(b.operator(images[:, b.channels]), b.y)) for b in blocks)

    assert misfit(reconstructor.runs[0].latent) < 0.9 * misfit(reconstructor._start(x, penalty))
    # better than total variation, from which it starts, in the mean of the energies
    assert sum(decibels(result, truth)) > sum(decibels(x, truth))
