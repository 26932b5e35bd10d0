"""Bundles written for one test: complete folders, run by the harness exactly as real ones."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

HONEST = """
def reconstruct(measurement):
    return measurement.back_projection()
"""


def write_bundle(folder: Path, name: str, code: str = HONEST, *, capability: str = "Capability()") -> Path:
    """Write a bundle whose method is the function ``reconstruct(measurement)`` of ``code``."""
    root = folder / name
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    module = f"""
        import torch
        from multirecon.reconstruction.base import Capability

        class Method:
            capability = {capability}

            def __call__(self, inputs, network=None, *args, **kwargs):
                return reconstruct(inputs)
    """
    (root / f"{name}.py").write_text(textwrap.dedent(module) + "\n" + textwrap.dedent(code))
    torch.save({}, root / "models" / "model.pt")
    metadata = {"version": "0.1.0", "name": name}
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    config = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": "",
        "output_dir": "",
        "device": "$torch.device('cpu')",
        "files": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.h5')))",
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': f, 'id': os.path.basename(f)} for f in @files]",
            "transform": {"_target_": "multirecon.inputs.LoadInputd", "keys": "image"},
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "collate_fn": {"_target_": "multirecon.engines.collate", "_mode_": "callable"},
        },
        "network_def": {"_target_": "torch.nn.Identity"},
        "network": "@network_def",
        "inferer": {"_target_": f"{name}.Method"},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "prepare_batch": {"_target_": "multirecon.engines.PrepareMeasurement"},
            "decollate": False,
        },
        "run": ["$@evaluator.run()"],
    }
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    return root


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle into the test's own folder of bundles."""

    def make(name: str, code: str = HONEST, **options: str) -> Path:
        return write_bundle(tmp_path / "bundles", name, code, **options)

    return make
