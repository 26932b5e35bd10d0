"""Checkpoints: tensors only, hashed by content, and drawn anew on request."""

import numpy as np
import pytest
import torch
from contract.tiny_bundle import randomise

from multirecon.bundle import fresh_network, load, load_network, read_weights, reinitialise, weights_hash, write_weights


def test_round_trip_is_exact_and_leaves_no_rest(tmp_path):
    state = {"a": torch.randn(3, 2), "b": torch.tensor(1.0), "c": torch.zeros(2, dtype=torch.complex64)}
    path = write_weights(state, tmp_path / "models" / "model.pt")
    again = read_weights(path)
    assert list(again) == list(state)
    assert all(torch.equal(again[k], state[k]) for k in state)
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": np.ones(2)}, "weights_only=True"),
        ({"a": 1.0}, "tensors only"),
        ({"model": {"a": torch.ones(1)}}, "tensors only"),
        ([torch.ones(1)], "expected a state dict"),
        ({"a": torch.tensor([1.0, float("nan")])}, "finite"),
    ],
)
def test_anything_but_finite_tensors_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=words):
        read_weights(tmp_path / "model.pt")


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="expected an existing file"):
        read_weights(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"model\.pt: expected a checkpoint"):
        read_weights(tmp_path / "model.pt")


def test_hash_sees_names_shapes_types_and_bytes_but_not_order():
    state = {"a": torch.arange(4.0), "b": torch.ones(2)}
    same = weights_hash(dict(reversed(state.items())))
    assert weights_hash(state) == same
    others = [
        {"a": torch.arange(4.0), "c": torch.ones(2)},
        {"a": torch.arange(4.0).reshape(2, 2), "b": torch.ones(2)},
        {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.float64)},
        {"a": torch.arange(4.0), "b": torch.tensor([1.0, 1.0000001])},
    ]
    assert same not in {weights_hash(o) for o in others}


def test_fresh_networks_depend_on_the_seed_alone(tiny):
    before = torch.random.get_rng_state()
    config = load(tiny).parser.get()
    one, again, other = (weights_hash(fresh_network(config, seed=s).state_dict()) for s in (1, 1, 2))
    assert one == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_reinitialised_network_is_another_one(copy_of_tiny):
    bundle = copy_of_tiny()
    randomise(bundle)
    workflow = load(bundle)
    network = load_network(workflow)
    trained = weights_hash(network.state_dict())
    assert trained == weights_hash(read_weights(bundle.weights))
    assert reinitialise(workflow, seed=0) is network
    assert weights_hash(network.state_dict()) != trained


def test_a_network_that_was_never_trained_is_found_out(tiny):
    workflow = load(tiny)
    load_network(workflow)
    with pytest.raises(ValueError, match="expected other weights"):
        reinitialise(workflow, seed=1)  # the seed that the bundle's checkpoint was drawn with
