"""The pixel-domain prior: sizes of its configurations, and what its overlays change."""

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from multirecon.networks.unet import UNet

BUNDLE = Path(__file__).parents[3] / "bundles" / "any2all_petmrct"
PARAMETERS = {"train": 3_706_725, "train_gpu": 105_199_749, "train_published": 138_291_077}


def parser(*names):
    made = ConfigParser()
    made.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in names])
    made["bundle_root"] = str(BUNDLE)
    return made


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name, count):
    arguments = json.loads((BUNDLE / "configs" / f"{name}.json").read_text())["network_def"]
    assert arguments.pop("_target_") == "multirecon.networks.unet.UNet"
    with torch.device("meta"):
        network = UNet(**arguments)
    assert sum(p.numel() for p in network.parameters()) == count


def test_published_overlay_predicts_noise_on_the_published_grid():
    made = parser("train", "train_published")
    prior = made.get_parsed_content("prior")
    assert prior.parametrisation.kind == "epsilon"
    assert prior.space.shape == (256, 256)
    assert prior.schedule.num_timesteps == 1000
    assert float(prior.schedule.abar[499]) == pytest.approx(0.4938436, abs=1e-7)  # cosine
    assert made["batch_size"] == 24


def test_one_training_step_of_the_small_network_and_both_samplers():
    made = parser("train")
    prior, network = made.get_parsed_content("prior"), made.get_parsed_content("network_def")
    generator = torch.Generator().manual_seed(0)
    batch = prior.noisy_batch(torch.rand(2, 5, 128, 128, generator=generator) * 2 - 1, generator)
    prediction = network(batch.image, batch.timestep)
    assert torch.count_nonzero(prediction) == 0  # zero-started head
    loss = made.get_parsed_content("loss")(prediction, batch.target)
    loss.backward()
    assert sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None) > 0
    samplers = {name: parser("inference", *more) for name, more in (("mds", []), ("mps", ["inference_mps"]))}
    steps = {name: made.get_parsed_content("inferer").reconstructor.steps for name, made in samplers.items()}
    assert steps == {"mds": 150, "mps": 1000}


@pytest.mark.parametrize("bundle", ["any2all_petmrct", "wavelet_diffusion_petmrct"])
def test_nothing_in_training_sees_a_mask_or_a_measurement(bundle):
    text = (BUNDLE.parent / bundle / "configs" / "train.json").read_text()
    for word in ("acquisition", "operator", "measure", "CartesianMR", "PETScan", "likelihood"):
        assert word not in text, word


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["train_gpu", "train_published"])
def test_a_training_step_of_the_large_networks(name):
    made = parser("train", name)
    prior, network = made.get_parsed_content("prior"), made.get_parsed_content("network_def").cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    batch = prior.noisy_batch(torch.zeros(1, 5, *prior.space.shape, device="cuda"), generator)
    torch.nn.functional.mse_loss(network(batch.image, batch.timestep), batch.target).backward()
