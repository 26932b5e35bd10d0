"""`multirecon new`: complete or not at all, and nothing of the old bundle is claimed."""

import json
import sys

import pytest
from contract.tiny_bundle import edit

from multirecon.bundle import Bundle, load, read_weights, verify, weights_hash
from multirecon.bundle.scaffold import new


def test_new_bundle_is_complete_and_its_own(copy_of_tiny, tmp_path):
    like = copy_of_tiny()
    (like.configs / "tuning.json").write_text("{}")
    (like.configs / "tuning_fast.json").write_text("{}")
    path = new("other_mr", like="tiny_mr", root=like.root.parent, authors="Ada")
    bundle = Bundle(path)
    assert path == like.root.parent / "other_mr"
    assert {name: found for name, found in verify(bundle).items() if found} == {}
    metadata = bundle.metadata
    assert (metadata["name"], metadata["version"], metadata["authors"]) == ("other_mr", "0.1.0", "Ada")
    assert metadata["changelog"] == {"0.1.0": "started from tiny_mr 0.1.0"}
    assert metadata["multirecon"]["weights"]["source"] == "initialised"
    assert (path / "other_mr.py").is_file()
    assert not list((path / "configs").glob("tuning*"))
    texts = [p.read_text() for p in path.rglob("*") if p.suffix in (".json", ".py")]
    assert [t for t in texts if "tiny_mr" in t.replace("started from tiny_mr", "")] == []
    assert weights_hash(read_weights(bundle.weights)) != weights_hash(read_weights(like.weights))
    load(bundle, output_dir=str(tmp_path / "out")).run()
    assert list((tmp_path / "out").glob("*.nii.gz"))


def test_trained_bundle_starts_untrained(copy_of_tiny):
    like = copy_of_tiny()
    weights = {"source": "trained", "data": "blocks", "command": "a command"}
    own = {"learned": True, "family": "mr", "weights": weights, "controls": {"free": "a control"}}
    edit(like.configs / "metadata.json", multirecon=own)
    (like.configs / "multi_gpu_train.json").write_text("{}")
    bundle = Bundle(new("another_mr", like=str(like.root)))
    assert not bundle.learned
    assert bundle.controls == ()
    assert sorted(p.name for p in bundle.weights.parent.iterdir()) == ["model.pt"]


@pytest.mark.parametrize("name", ["joint_vae", "Bad_name", "tiny_mr", "tumour_detection", "../up_mr", "sched_x/y"])
def test_bad_names_leave_nothing(copy_of_tiny, name):
    like = copy_of_tiny()
    with pytest.raises(ValueError, match="name: expected"):
        new(name, like="tiny_mr", root=like.root.parent)
    assert [p.name for p in like.root.parent.iterdir()] == ["tiny_mr"]


def test_unknown_source_is_named(copy_of_tiny):
    like = copy_of_tiny()
    with pytest.raises(ValueError, match=r"expected one of \['tiny_mr'\]"):
        new("other_mr", like="tiny_ct", root=like.root.parent)


def test_a_source_that_breaks_the_contract_leaves_nothing(copy_of_tiny):
    like = copy_of_tiny()
    edit(like.configs / "inference.json", run=["$@evaluator.run()"])
    path, modules = list(sys.path), set(sys.modules)
    with pytest.raises(ValueError, match="passes the contract"):
        new("broken_mr", like="tiny_mr", root=like.root.parent)
    assert [p.name for p in like.root.parent.iterdir()] == ["tiny_mr"]
    assert sys.path == path
    assert "broken_mr" not in set(sys.modules) - modules


def test_metadata_are_plain_json_with_a_final_newline(copy_of_tiny):
    like = copy_of_tiny()
    path = new("third_mr", like="tiny_mr", root=like.root.parent) / "configs" / "metadata.json"
    text = path.read_text()
    assert text.endswith("}\n")
    assert json.loads(text)["name"] == "third_mr"
