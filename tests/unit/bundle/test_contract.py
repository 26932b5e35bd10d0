"""The checks pass a good bundle, and each of them can fail."""

import json
import shutil
import zlib

import pytest
import torch
from contract.tiny_bundle import edit

from multirecon.bundle import CHECKS, verify, write_weights
from multirecon.bundle.contract import Inspection, run_check
from multirecon.bundle.upload import published_faults


def faults(bundle, check):
    return "\n".join(run_check(check, Inspection(bundle)))


def test_good_bundle_passes_every_check(tiny):
    assert verify(tiny) == {name: [] for name in CHECKS}


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "docs/README.md",
        "configs/inference.json",
        "configs/train.json",
        "configs/evaluate.json",
        "configs/logging.conf",
        "models/model.pt",
    ],
)
def test_missing_files_are_found(copy_of_tiny, name):
    bundle = copy_of_tiny()
    (bundle.root / name).unlink()
    assert f"{name}: expected a non-empty file" in faults(bundle, "files")


def test_trained_bundle_needs_the_multi_gpu_overlay(copy_of_tiny):
    bundle = copy_of_tiny()
    edit(bundle.configs / "metadata.json", multirecon={"learned": True, "family": "mr"})
    assert "configs/multi_gpu_train.json" in faults(bundle, "files")


@pytest.mark.parametrize("name", ["scripts", "multirecon", "eval"])
def test_folders_that_do_not_belong_are_found(copy_of_tiny, name):
    bundle = copy_of_tiny()
    (bundle.root / name).mkdir()
    assert f"{name}: does not belong" in faults(bundle, "files")


def test_stray_modules_and_checkpoints_are_found(copy_of_tiny):
    bundle = copy_of_tiny()
    (bundle.root / "helpers.py").write_text("x = 1\n")
    shutil.copy(bundle.weights, bundle.weights.with_name("other.pt"))
    assert "helpers.py: expected a module that carries the bundle's name" in faults(bundle, "files")
    assert "models/other.pt: expected an entry in multirecon.controls" in faults(bundle, "files")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": ["$@evaluator.run()"]}, "guard'} first in 'run'"),
        ({"initialize": ["$multirecon.bundle.guard()"]}, "no multirecon before 'run'"),
        ({"ckpt_path": "/data/model.pt"}, "expected no absolute path"),
        ({"space": "%configs/space.json"}, "expected no file macro"),
    ],
)
def test_configs_that_work_in_one_place_only_are_found(copy_of_tiny, changes, words):
    bundle = copy_of_tiny()
    edit(bundle.configs / "inference.json", **changes)
    assert words in faults(bundle, "files")


def test_metadata_faults_and_unstated_variants_are_found(copy_of_tiny):
    bundle = copy_of_tiny()
    (bundle.configs / "inference_fast.json").write_text("{}")
    edit(bundle.configs / "metadata.json", changelog={"0.0.9": "older"})
    found = faults(bundle, "metadata")
    assert "changelog" in found
    assert "multirecon.variants: expected ['fast']" in found


def test_checkpoint_of_another_network_is_found(copy_of_tiny):
    bundle = copy_of_tiny()
    write_weights({"layer.weight": torch.ones(1, 1, 3, 3)}, bundle.weights)
    assert "missing ['layer.bias']" in faults(bundle, "checkpoint")


def test_wrong_weights_hash_is_found(copy_of_tiny):
    bundle = copy_of_tiny()
    weights = {"source": "tuned", "sha256": "0" * 64}
    edit(bundle.configs / "metadata.json", multirecon={"learned": False, "family": "mr", "weights": weights})
    assert "multirecon.weights.sha256" in faults(bundle, "checkpoint")


def test_missing_property_is_found(copy_of_tiny):
    bundle = copy_of_tiny()
    config = json.loads((bundle.configs / "inference.json").read_text())
    text = json.dumps(config).replace("@inferer", "@method").replace('"inferer": {', '"method": {')
    (bundle.configs / "inference.json").write_text(text)
    assert "inferer" in faults(bundle, "properties")


def break_network(bundle, old, new):
    """Change the bundle's module, under a name of its own: Python imports a name once."""
    module = bundle.root / f"{bundle.name}.py"
    broken = f"{bundle.name}_{zlib.crc32(new.encode())}"
    (bundle.root / f"{broken}.py").write_text(module.read_text().replace(old, new))
    path = bundle.configs / "inference.json"
    path.write_text(path.read_text().replace(f"{bundle.name}.", f"{broken}."))


def test_wrong_shapes_are_found(copy_of_tiny):
    bundle = copy_of_tiny()
    break_network(bundle, "return image + self.layer(image)", "return (image + self.layer(image))[..., 1:]")
    assert "network_data_format.outputs.pred: expected (1, 1, 8, 8), got (1, 1, 8, 7)" in faults(bundle, "network")


def test_network_that_does_not_script_is_found(copy_of_tiny):
    bundle = copy_of_tiny()
    break_network(bundle, "timestep: Tensor | None = None", "timestep: Tensor | None = None, **kwargs")
    assert faults(bundle, "torchscript")
    assert not faults(bundle, "network")


def test_network_that_exports_to_something_else_is_found(copy_of_tiny):
    bundle = copy_of_tiny()
    branch = "return image if torch.jit.is_scripting() else image + self.layer(image)"
    break_network(bundle, "return image + self.layer(image)", branch)
    assert "relative difference" in faults(bundle, "torchscript")


def test_network_with_data_dependent_branches_does_not_export(copy_of_tiny):
    bundle = copy_of_tiny()
    branch = "return image if bool(image.mean() > 0) else image + self.layer(image)"
    break_network(bundle, "return image + self.layer(image)", branch)
    assert faults(bundle, "torch.export")


def test_ranges_of_settings_fit_the_config(copy_of_tiny):
    bundle = copy_of_tiny()
    config = json.loads((bundle.configs / "inference.json").read_text())
    config["tuning"] = {"_target_": "multirecon.reconstruction.Tuning", "parameters": {"weight": 2.0, "fixed": 1.0}}
    config["run"].append("$@tuning('weight', 'pet/poisson')")
    (bundle.configs / "inference.json").write_text(json.dumps(config))
    section, own = {"low": 0.1, "high": 10.0, "scale": "log"}, bundle.metadata["multirecon"]
    for ranges, words in (
        ({"weight": section}, ""),
        ({"weight": {**section, "high": 1.0}}, "multirecon.tuning.weight: expected a default in [0.1, 1], got 2"),
        ({"wieght": section}, "expected some of ['fixed', 'weight']"),
    ):
        edit(bundle.configs / "metadata.json", multirecon={**own, "tuning": ranges})
        found = faults(type(bundle)(bundle.root), "tuning")
        assert words in found if words else found == ""


def test_packages_that_do_not_exist_or_are_not_stated_are_found(copy_of_tiny):
    bundle = copy_of_tiny()
    edit(bundle.configs / "metadata.json", required_packages_version={"no-such-package": "1.0.0", "nibabel": "latest"})
    (bundle.root / "tiny_mr_more.py").write_text("import scipy.ndimage\nimport json, torch\nfrom . import x\n")
    found = faults(bundle, "requirements")
    assert "expected packages that are installed, got 'no-such-package'" in found
    assert "required_packages_version.nibabel: expected a released version, got 'latest'" in found
    assert "tiny_mr_more.py: imports 'scipy', which required_packages_version does not name" in found
    assert "json" not in found
    assert "torch" not in found


def test_logging_that_executes_is_found(copy_of_tiny):
    bundle = copy_of_tiny()
    path = bundle.configs / "logging.conf"
    path.write_text(path.read_text().replace("class=StreamHandler", "class=__import__('os').system"))
    assert "configs/logging.conf: " in faults(bundle, "files")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"path": "../model.pt"}, "expected a file inside the bundle"),
        ({"path": "/model.pt"}, "expected a file inside the bundle"),
        ({"url": "http://example.org/model.pt"}, "expected https://"),
        ({"hash_type": "sha1", "hash_val": "0" * 40}, "expected hash_type of"),
        ({"hash_val": ""}, "expected hash_type of"),
        ({}, ""),
    ],
)
def test_large_files(copy_of_tiny, entry, words):
    bundle = copy_of_tiny()
    good = {"path": "models/x.pt", "url": "https://example.org/x.pt", "hash_type": "sha256", "hash_val": "0" * 64}
    (bundle.root / "large_files.yml").write_text(json.dumps({"large_files": [{**good, **entry}]}))
    found = faults(bundle, "files")
    assert (words in found) if words else (found == "")


def test_large_files_in_another_form_are_found(copy_of_tiny):
    bundle = copy_of_tiny()
    (bundle.root / "large_files.yml").write_text("- models/x.pt\n")
    assert "large_files.yml: expected a list" in faults(bundle, "files")


def test_published_version_is_not_used_again(tiny, tmp_path):
    listing = tmp_path / "model_info.json"
    listing.write_text(json.dumps({f"{tiny.name}_v{tiny.version}": {}}))
    assert published_faults(tiny, listing) == ["version: expected one that is not in model_info.json yet, got '0.1.0'"]
    listing.write_text(json.dumps({f"{tiny.name}_v0.0.9": {}}))
    assert published_faults(tiny, listing) == []
