"""The joint autoencoders: sizes, what training may see, equal capacity of the control, and what the weights do."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from contract.promises import reconstruct, simulate

from multirecon import tasks
from multirecon.bundle import load, load_network, read_weights
from multirecon.networks.vae import MultiBranchVAE, SeparateVAE

BUNDLES = Path(__file__).parents[3] / "bundles"
NAMES = ("jointvae_petct", "jointvae_petmr")
# a task with both modalities measured
TASK = {"jointvae_petct": "petct_lowdose", "jointvae_petmr": "pet_mr_lowdose"}
PUBLISHED = {"train_reduced": 2_640_642, "train_full": 7_872_546}
SIZES = {
    "jointvae_petct": {"train": 605_856, "train_separate": 606_158, "train_poe": 635_191, "train_mmjsd": 635_191,
                       **PUBLISHED},
    "jointvae_petmr": {"train": 606_306, "train_separate": 606_578, "train_poe": 659_050, "train_mmjsd": 659_050,
                       **PUBLISHED},
}  # fmt: skip


def config(bundle, name):
    return json.loads((BUNDLES / bundle / "configs" / f"{name}.json").read_text())


def built(bundle, name):
    arguments = {k: v for k, v in config(bundle, name)["network_def"].items() if k != "_target_"}
    kind = SeparateVAE if name.endswith("separate") else MultiBranchVAE
    with torch.device("meta"):
        return kind(**arguments)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("bundle", NAMES)
def test_sizes(bundle):
    assert {name: count(built(bundle, name)) for name in SIZES[bundle]} == SIZES[bundle]


@pytest.mark.parametrize("bundle", NAMES)
@pytest.mark.parametrize(("name", "draws"), [("train_poe", 3), ("train_mmjsd", 2), ("train", 1)])
def test_draws_fit_the_fusion(bundle, name, draws):
    assert {**config(bundle, "train"), **config(bundle, name)}["draws"] == draws


@pytest.mark.parametrize("bundle", NAMES)
def test_the_control_has_the_capacity_the_steps_and_the_settings_of_the_joint_network(bundle):
    """Checklist 6: what the overlay of the control changes, and nothing else."""
    assert set(config(bundle, "train_separate")) == {"weights", "network_def", "draws"}
    assert set(config(bundle, "inference_separate")) == {"ckpt_path", "network_def", "tuning#path"}
    assert abs(count(built(bundle, "train_separate")) / count(built(bundle, "train")) - 1) < 1e-3
    assert built(bundle, "train_separate").latent == built(bundle, "train").latent


@pytest.mark.parametrize("bundle", NAMES)
def test_training_shows_what_one_modality_has_alone(bundle):
    """Checklist 9: spots are drawn for each modality by itself, for the joint network and its control alike."""
    assert config(bundle, "train")["unshared"]["probability"] > 0
    assert min(config(bundle, "train")["unshared"]["rise"]) > 0
    assert config(bundle, "train")["train"]["handlers"][2]["unshared"] == "@unshared"


@pytest.mark.parametrize("bundle", NAMES)
def test_the_settings_of_joint_and_control_had_the_same_trials_on_the_same_data(bundle):
    """Checklist 6: validation anatomies, task, metric, number and seed of the trials."""
    joint, control = config(bundle, "tuning"), config(bundle, "tuning_separate")
    for key in ("split", "metric", "trials", "seed"):
        assert joint[key] == control[key], key
    assert joint["split"] == "validation"
    assert set(joint["kinds"]) == set(control["kinds"]) == set(joint["settings"])
    for kind, one in joint["kinds"].items():
        other = control["kinds"][kind]
        assert [one[k] for k in ("tasks", "subjects", "trials")] == [other[k] for k in ("tasks", "subjects", "trials")]


@pytest.mark.parametrize("bundle", NAMES)
def test_training_knows_no_dose_and_no_scanner(bundle):
    """Checklist 7: clean patches alone; one file of weights serves every dose."""
    text = (BUNDLES / bundle / "configs" / "train.json").read_text()
    for word in ("acquisition", "photons", "counts", 'sigma"', "acceleration"):
        assert word not in text, word


@pytest.mark.parametrize("bundle", NAMES)
def test_both_bundles_train_and_reconstruct_with_the_same_code(bundle):
    """They differ in modalities, scans and weights: every target is MONAI's, PyTorch's or the library's."""
    assert not list((BUNDLES / bundle).glob("*.py"))
    for kind in ("", "_separate"):
        assert config(bundle, f"train{kind}")["network_def"] == config(bundle, f"inference{kind}")["network_def"]
    assert set(config(bundle, "train")) == set(config("jointvae_petct", "train"))


@pytest.mark.parametrize("bundle", NAMES)
def test_weights_are_small(bundle):
    for path in BUNDLES.glob(f"{bundle}/models/*.pt"):
        assert path.stat().st_size < 2.1 * count(built(bundle, "train"))
        assert all(v.dtype == torch.float16 for v in read_weights(path).values())


@pytest.fixture(scope="module", params=NAMES)
def trained(request):
    workflow = load(BUNDLES / request.param, device="$torch.device('cpu')")
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


@pytest.fixture(scope="module")
def control():
    path = BUNDLES.parent / "ci" / "joint_control.py"
    spec = importlib.util.spec_from_file_location("joint_control_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def guide_of(workflow):
    return next(n for n in workflow.inferer.space.names if n != "pet_fdg")


@pytest.mark.slow
def test_the_image_of_another_subject_takes_the_gain_away(trained, control):
    """Checklist 1: PET beside the data of its own subject and beside those of another one, by the same weights."""
    network = trained.parser.get_parsed_content("network")
    guide = guide_of(trained)
    task = tasks.load({"ct": "petct_lowdose", "t1": "pet_mr_lowdose"}[guide])
    data = task.samples("small")
    pairs = [task.measure(data[i]) for i in (2, len(data) - 3)]
    lost = []
    for (mine, truth), (other, _) in zip(pairs, pairs[::-1], strict=True):
        errors = [
            float((trained.inferer(m, network) - truth)[:, 1].square().mean())
            for m in (mine, control.swapped(mine, other, guide))
        ]
        lost.append(10 * math.log10(errors[1] / errors[0]))
    assert sum(lost) / 2 > 0.05, lost


# least share of a spot that comes back in its own modality
BOUNDS = {"jointvae_petct": {"pet_fdg": 0.2, "ct": 0.4}, "jointvae_petmr": {"pet_fdg": 0.1, "t1": 0.8}}


# how far a spot of the other modality moves PET at most, in its relative size
MOVED = {"jointvae_petct": 0.3, "jointvae_petmr": 1.3}


@pytest.mark.slow
@pytest.mark.parametrize("bundle", NAMES)
def test_lesions_of_one_modality_are_kept_there_and_pet_lesions_are_not_copied(bundle, control):
    """Checklist 9, stated bounds: a tenth to a fifth of a PET spot comes back, 40 % of a CT and 80 % of a T1 spot."""
    task = tasks.load(TASK[bundle])
    guide = next(n for n in BOUNDS[bundle] if n != "pet_fdg")
    items = [task.samples("small")[4]]
    measured = [task.measure(items[0])]
    found = control.spots(control.method(bundle), items, measured, task, guide)
    assert found["PET-only spot, recovered in PET"][0] > BOUNDS[bundle]["pet_fdg"], found
    assert found[f"{guide}-only spot, recovered in {guide}"][0] > BOUNDS[bundle][guide], found
    assert abs(found[f"PET-only spot, copied into {guide}"][0]) < 0.05, found
    assert abs(found[f"{guide}-only spot, copied into PET"][0]) < MOVED[bundle], found
