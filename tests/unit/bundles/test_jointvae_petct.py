"""jointvae_petct: sizes, what training may see, equal capacity of the control, and what the trained weights do."""

import json
from pathlib import Path

import pytest
import torch
from contract.promises import reconstruct, simulate

from multirecon.bundle import load, load_network, read_weights
from multirecon.networks.vae import MultiBranchVAE, SeparateVAE

BUNDLE = Path(__file__).parents[3] / "bundles" / "jointvae_petct"


def config(name):
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


def built(name):
    arguments = {k: v for k, v in config(name)["network_def"].items() if k != "_target_"}
    kind = SeparateVAE if name.endswith("separate") else MultiBranchVAE
    with torch.device("meta"):
        return kind(**arguments)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "size"),
    [("train", 1_491_282), ("train_reduced", 2_640_642), ("train_full", 7_872_546), ("train_poe", 1_503_826),
     ("train_mmjsd", 1_503_826), ("train_separate", 1_491_142)],
)  # fmt: skip
def test_sizes(name, size):
    assert count(built(name)) == size


@pytest.mark.parametrize(("name", "draws"), [("train_poe", 3), ("train_mmjsd", 2), ("train", 1)])
def test_draws_fit_the_fusion(name, draws):
    assert {**config("train"), **config(name)}["draws"] == draws


def test_the_control_has_the_capacity_the_steps_and_the_settings_of_the_joint_network():
    """Checklist 6: what the overlay of the control changes, and nothing else."""
    assert set(config("train_separate")) == {"weights", "network_def", "draws"}
    assert set(config("inference_separate")) == {"ckpt_path", "network_def", "tuning#path"}
    assert abs(count(built("train_separate")) / count(built("train")) - 1) < 1e-3
    assert built("train_separate").single == built("train").latent


def test_training_knows_no_dose_and_no_scanner():
    """Checklist 7: clean patches alone; one file of weights serves every dose."""
    text = (BUNDLE / "configs" / "train.json").read_text()
    assert "acquisition" not in text
    assert "photons" not in text
    assert "counts" not in text


def test_weights_are_small():
    for path in BUNDLE.glob("models/*.pt"):
        assert path.stat().st_size < 3.1e6
        assert all(v.dtype == torch.float16 for v in read_weights(path).values())


@pytest.fixture(scope="module")
def trained():
    workflow = load(BUNDLE, device="$torch.device('cpu')")
    load_network(workflow)
    return workflow


@pytest.mark.slow
def test_start_of_the_latents_hardly_matters(trained):
    """Encoder mean against random numbers: the same PET to 0.2 dB."""
    measurement, truth = simulate(trained, [3])
    reconstructor = trained.inferer.reconstructor
    results = {}
    for start in ("encoder", "random"):
        reconstructor.latent_start = start
        error = (reconstruct(trained, measurement) - truth)[:, 1].square().mean()
        results[start] = -10 * float(torch.log10(error))
    reconstructor.latent_start = "encoder"
    assert abs(results["encoder"] - results["random"]) < 0.2


@pytest.mark.slow
def test_the_joint_prior_lowers_the_error_of_pet_at_three_doses(trained):
    """The same weights at 2.5, 5 and 10 trues a pixel, against MLEM of as many iterations (weight 0)."""
    from multirecon import tasks

    network = trained.parser.get_parsed_content("network")
    for name in ("pet_counts_2p5", "pet_counts_5", "pet_counts_10"):
        task = tasks.load(name)
        measurement, truth = task.measure(task.samples("small")[3])
        errors = []
        for settings in ({}, {"pet/poisson": {"weight": 0.0}}):
            tuning = trained.parser.get_parsed_content("tuning")
            with tuning.override(settings or tuning.settings):
                errors.append(float((trained.inferer(measurement, network) - truth).square().mean()))
        assert errors[0] < errors[1], name
