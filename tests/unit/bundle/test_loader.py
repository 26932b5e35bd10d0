"""A bundle from Python: any directory, overlays, overrides that must mean something."""

import json

import nibabel as nib
import pytest
import torch
from contract.tiny_bundle import edit

from multirecon.bundle import load, load_network
from multirecon.bundle.contract import Inspection, run_check


def test_runs_from_anywhere_and_writes_where_it_is_told(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workflow = load(tiny, output_dir=str(tmp_path / "out"))
    workflow.run()
    written = [path.name for path in (tmp_path / "out").glob("*.nii.gz")]
    assert sum("_trust" not in name for name in written) == 3
    assert sum("_trust" in name for name in written) == 3
    image = nib.load(tmp_path / "out" / "blocks-2_flair.nii.gz")
    assert image.shape == (16, 16, 1)
    assert image.affine[2, 3] == 10.0


def test_relative_paths_and_names_are_resolved(tiny, monkeypatch):
    monkeypatch.chdir(tiny.root.parent)
    monkeypatch.setenv("MULTIRECON_BUNDLES", str(tiny.root.parent))
    for given in ("tiny_mr", "./tiny_mr", tiny.root):
        assert load(given).parser.get_parsed_content("bundle_root") == str(tiny.root)


def test_overrides_and_overlays_reach_the_components(copy_of_tiny, tmp_path):
    bundle = copy_of_tiny()
    (bundle.configs / "inference_more.json").write_text(json.dumps({"dataset#default#count": 5}))
    overlay = tmp_path / "task.json"
    overlay.write_text(json.dumps({"name": "a_task", "targets": ["flair"], "dataset#default#count": 7}))
    assert len(load(bundle).dataset) == 3
    assert len(load(bundle, "more").dataset) == 5
    assert len(load(bundle, "more", overlays=[overlay]).dataset) == 7
    assert len(load(bundle, "more", overlays=[overlay], **{"dataset#default#count": 9}).dataset) == 9


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"datasetdir": "x"}, r"unknown key 'datasetdir' \(did you mean 'dataset_dir'\?\)"),
        ({"evaluater": {}}, "unknown key 'evaluater'"),
        ({"datset#default": 1}, "expected an existing key, got query key: datset"),
    ],
)
def test_overrides_that_change_nothing_are_refused(tiny, overrides, words):
    with pytest.raises(ValueError, match=words):
        load(tiny, **overrides)


def test_nested_keys_of_plain_sections_are_checked_too(tiny):
    with pytest.raises(ValueError, match=r"unknown key 'train::inferrer' \(did you mean 'train::inferer'\?\)"):
        load(tiny, workflow="train", **{"train#inferrer": {}})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variant": "fast"}, r"variant of 'tiny_mr': expected one of \[\], got 'fast'"),
        ({"workflow": "training"}, "workflow: expected one of"),
    ],
)
def test_unknown_variants_and_workflows_are_named(tiny, arguments, words):
    with pytest.raises(ValueError, match=words):
        load(tiny, **arguments)


def test_missing_config_is_named(copy_of_tiny):
    bundle = copy_of_tiny()
    (bundle.configs / "train.json").unlink()
    with pytest.raises(ValueError, match=r"expected the file configs/train\.json"):
        load(bundle, workflow="train")


def test_packed_for_another_multirecon(copy_of_tiny):
    bundle = copy_of_tiny()
    stamp = {"version": "9.9.9", "sha256": "0" * 64}
    edit(bundle.configs / "metadata.json", multirecon={"learned": False, "family": "mr", "package": stamp})
    with pytest.raises(ValueError, match=r"packed with version 9\.9\.9"):
        load(bundle)


def test_network_carries_the_checkpoint_strictly(copy_of_tiny):
    bundle = copy_of_tiny()
    workflow = load(bundle)
    network = load_network(workflow)
    state = torch.load(bundle.weights, weights_only=True)
    assert not network.training
    assert all(torch.equal(network.state_dict()[k], v) for k, v in state.items())
    torch.save({**state, "extra": torch.ones(1)}, bundle.weights)
    with pytest.raises(ValueError, match="expected the names and shapes of network_def"):
        load_network(workflow)
    with pytest.raises(ValueError, match="control of 'tiny_mr': expected one of"):
        load_network(workflow, control="other")


def test_train_and_evaluate_take_real_steps(copy_of_tiny, tmp_path):
    bundle = copy_of_tiny()
    before = torch.load(bundle.weights, weights_only=True)
    load(bundle, workflow="train").run()
    after = torch.load(bundle.weights, weights_only=True)
    assert any(not torch.equal(before[k], after[k]) for k in before)
    load(bundle, workflow="evaluate", output_dir=str(tmp_path / "scores")).run()
    assert "val_psnr" in (tmp_path / "scores" / "metrics.csv").read_text()


def test_a_control_with_a_network_of_its_own_is_the_variant_of_its_name(copy_of_tiny):
    bundle = copy_of_tiny()
    own = {"learned": False, "family": "mr", "controls": {"wide": "another network"}, "variants": {"wide": "it"}}
    edit(bundle.configs / "metadata.json", multirecon=own)
    overlay = {
        "ckpt_path": "$os.path.join(@bundle_root, 'models', 'wide.pt')",
        "network_def": {"_target_": "multirecon.networks.classical.GaussianSmoothing"},
    }
    (bundle.configs / "inference_wide.json").write_text(json.dumps(overlay))
    torch.save({"log_fwhm": torch.tensor(0.25)}, bundle.weights.with_name("wide.pt"))
    assert load_network(load(bundle, "wide")).log_fwhm.item() == 0.25
    assert run_check("checkpoint", Inspection(bundle)) == []
    torch.save({"log_weight": torch.tensor(0.25)}, bundle.weights.with_name("wide.pt"))
    assert "models/wide.pt: expected the names of network_def" in run_check("checkpoint", Inspection(bundle))[0]
