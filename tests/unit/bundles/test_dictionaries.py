"""What the dictionary bundles ship: frames that are tight, atoms in the unit ball, published sizes that instantiate."""

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from multirecon.bundle import read_weights
from multirecon.priors.dictionaries import dct_bank, frame_error

BUNDLES = Path(__file__).resolve().parents[3] / "bundles"


def filters(name, file="model"):
    return read_weights(BUNDLES / name / "models" / f"{file}.pt")["filters"]


def test_the_shipped_operators_are_tight_frames():
    bank = filters("mcaol_spectralct")
    assert tuple(bank.shape) == (5, 49, 7, 7)
    assert frame_error(bank) < 1e-6
    control = filters("mcaol_spectralct", "dct")
    torch.testing.assert_close(control, dct_bank(7).float().expand(5, -1, -1, -1))
    # learned, not analytic: no filter set that is the cosine transform up to order and sign
    overlap = 49 * (bank[0].flatten(1) @ control[0].flatten(1).T).abs().amax(1)
    assert float(overlap.mean()) < 0.95


def test_the_shipped_atoms_lie_in_the_unit_ball():
    bank = filters("cdl_petct")
    assert tuple(bank.shape) == (1, 32, 8, 8)
    assert float(bank.flatten(2).norm(dim=2).max()) < 1 + 1e-6


@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        ("cdl_petct", (1, 64, 8, 8), {"sparsity": 0.2, "coupling": 0.1}),
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
