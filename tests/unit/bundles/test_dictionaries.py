"""What the dictionary bundles ship: frames that are tight, atoms in the unit ball, published sizes that instantiate."""

import json
import math
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from multirecon import tasks
from multirecon.bundle import Bundle, load, load_network, read_weights
from multirecon.metrics.image import psnr
from multirecon.priors.dictionaries import dct_bank, frame_error

BUNDLES = Path(__file__).resolve().parents[3] / "bundles"


def filters(name, file="model"):
    return read_weights(BUNDLES / name / "models" / f"{file}.pt")["filters"]


@pytest.mark.parametrize(
    ("name", "file", "channels"),
    [("mcaol_spectralct", "model", 5), ("cdl_petct", "mcaol", 2), ("cdl_petmr", "mcaol", 2)],
)
def test_the_shipped_operators_are_learned_tight_frames(name, file, channels):
    """Checklist 1, 3 and 8: as many filters as pixels, and none of the banks is the cosine transform."""
    bank = filters(name, file)
    assert tuple(bank.shape) == (channels, 49, 7, 7)
    assert frame_error(bank) < 1e-6
    # learned, not analytic: no filter set that is the cosine transform up to order and sign
    overlap = 49 * (bank[0].flatten(1) @ dct_bank(7)[0].float().flatten(1).T).abs().amax(1)
    assert float(overlap.mean()) < 0.95


def test_the_control_is_the_cosine_transform():
    control = filters("mcaol_spectralct", "dct")
    torch.testing.assert_close(control, dct_bank(7).float().expand(5, -1, -1, -1))


@pytest.mark.parametrize("name", ["cdl_petct", "cdl_petmr"])
def test_the_shipped_atoms_lie_in_the_unit_ball(name):
    bank = filters(name)
    assert tuple(bank.shape) == (1, 32, 8, 8)
    assert float(bank.flatten(2).norm(dim=2).max()) < 1 + 1e-6


@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        ("cdl_petct", (1, 64, 8, 8), {"sparsity": 0.2, "coupling": 0.1}),
        ("cdl_petmr", (1, 64, 8, 8), {"sparsity": 0.2, "coupling": 0.1}),
        ("mcaol_spectralct", (5, 49, 7, 7), {}),
    ],
)
def test_published_configurations_instantiate(name, shape, settings):
    configs = BUNDLES / name / "configs"
    parser = ConfigParser(json.loads((configs / "train.json").read_text()))
    parser.update(json.loads((configs / "train_published.json").read_text()))
    network, learner = parser.get_parsed_content("network_def"), parser.get_parsed_content("learner")
    assert tuple(network.filters.shape) == shape
    for key, value in settings.items():
        assert getattr(network, key) == getattr(learner, key) == value
    if name == "mcaol_spectralct":
        assert (parser["slices"], parser["iterations"]) == (24, 1000)
        assert learner.precision.tolist() == [1000.0] * 5
        first = network.filters[:, 0]
        assert torch.equal(first, first[:, :1, :1].expand_as(first))  # a constant filter to begin with


@pytest.mark.parametrize("name", ["cdl_petct", "cdl_petmr"])
def test_the_analysis_form_learns_as_published_and_without_coupling_each_modality_is_alone(name):
    """Checklist 2 and 8: the overlays differ in the coupling alone; a constant filter to begin with."""
    configs = BUNDLES / name / "configs"
    read = {p.stem: json.loads(p.read_text()) for p in configs.glob("*.json")}
    parser = ConfigParser({**read["train"], **read["train_mcaol"]})
    network, learner = parser.get_parsed_content("network_def"), parser.get_parsed_content("learner")
    assert learner.precision.tolist() == [1000.0] * 2
    first = network.filters[:, 0]
    assert torch.equal(first, first[:, :1, :1].expand_as(first))
    assert parser["weights"] == "mcaol"
    reconstructors = [read[f"inference_{v}"].pop("inferer#reconstructor") for v in ("mcaol", "caol")]
    assert [r.pop("joint") for r in reconstructors] == [True, False]
    assert reconstructors[0] == reconstructors[1]
    assert read["inference_mcaol"]["network_def"] == read["inference_caol"]["network_def"]


@pytest.mark.parametrize("name", ["cdl_petct", "cdl_petmr"])
def test_the_settings_of_the_frames_with_and_without_coupling_had_the_same_trials(name):
    """Checklist 6: validation anatomies, task, metric, number and seed of the trials, of PET, the degraded modality."""
    read = {v: json.loads((BUNDLES / name / "configs" / f"tuning_{v}.json").read_text()) for v in ("mcaol", "caol")}
    for key in ("split", "metric", "trials", "seed"):
        assert read["mcaol"][key] == read["caol"][key], key
    joint, alone = (r["kinds"]["pet/poisson"] for r in read.values())
    assert [joint[k] for k in ("tasks", "subjects", "trials")] == [alone[k] for k in ("tasks", "subjects", "trials")]


@pytest.mark.parametrize(("views", "photons", "task"), [(63, 1e5, "dect_views63"), (126, 5e3, "dect_counts_5e3")])
def test_published_scans_and_iterations_of_the_operators(views, photons, task):
    """63 views of 1e5 photons, 126 of 5e3, over a full turn; 300 alternations of 150 steps: configuration and task."""
    parser = ConfigParser()
    configs = BUNDLES / "mcaol_spectralct" / "configs"
    parser.read_config([str(configs / name) for name in ("inference.json", "published.json")])
    parser.update({"bundle_root": str(configs.parent), "views": views, "photons": photons})
    method = parser.get_parsed_content("inferer").reconstructor
    assert (method.iterations, method.inner_iterations, method.start_iterations) == (300, 150, 150)
    assert method.joint
    for scans in (parser.get_parsed_content("acquisition").scans, tasks.load(task).acquisition.scans):
        assert list(scans) == ["ct_low", "ct_high"]
        assert {(s.views, s.photons, s.geometry.arc) for s in scans.values()} == {(views, photons, 2 * math.pi)}
    # an odd number of views over a full turn measures every ray once, an even one twice
    angles = {round(k * 2 * math.pi / views % math.pi, 9) for k in range(views)}
    assert len(angles) == 63


def test_the_energy_of_lower_dose_gains_most_from_the_shared_support():
    """Synergy: 53 keV with 1e4 photons beside 72 keV with 1e5, at equal settings with and without the coupling."""
    root = BUNDLES / "mcaol_spectralct"
    dose = {"acquisition#scans#ct_low#photons": 1e4, "acquisition#scans#ct_high#photons": 1e5}
    fast = {"inferer#reconstructor#iterations": 12, "inferer#reconstructor#inner_iterations": 5}
    equal = {"tuning#path": "$None", "tuning#parameters#weight": 1.0, "tuning#parameters#cost": 3.0}
    found = {}
    for variant in (None, "separate"):
        workflow = load(Bundle(root), variant, device="$torch.device('cpu')", **dose, **fast, **equal)
        batch = workflow.evaluator.data_loader.collate_fn([workflow.dataset[3]])
        measurement, truth = workflow.evaluator.prepare_batch(batch, torch.device("cpu"), False)
        network = load_network(workflow, bundle=Bundle(root))
        image = workflow.inferer.reconstructor(measurement, network).as_tensor()
        found[variant] = [float(psnr(image[:, k : k + 1], truth[:, k : k + 1], data_range=0.25)) for k in (0, 1)]
    low, high = (joint - single for joint, single in zip(found[None], found["separate"], strict=True))
    assert low > 0.4
    assert low > high + 0.3
