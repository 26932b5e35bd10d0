"""The published trainings of spectral CT, built whole: data, network, loss and trainer."""

from pathlib import Path

import pytest
from monai.bundle import ConfigParser

BUNDLES = Path(__file__).parents[3] / "bundles"


def parsed(name, *configs):
    root = BUNDLES / name
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / f"{c}.json") for c in configs])
    parser["bundle_root"] = str(root)
    parser["device"] = "$torch.device('cpu')"
    return parser


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dps_spectralct", {}),
        ("mcaol_spectralct", {"slices": 24, "iterations": 1000, "precision": 1000.0}),
        ("pnp_admm_spectralct", {"jacobian_weight": 1e-5, "jacobian_iterations": 5, "sigma": 0.01, "patch": 45}),
        ("uconnect_spectralct", {}),
    ],
)
def test_published_training_is_built_whole(name, settings, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BUNDLES / name))
    parser = parsed(name, "train", "train_published")
    parser["output_dir"] = parser["ckpt_dir"] = str(tmp_path)
    assert {key: parser[key] for key in settings} == settings
    shipped, published = (p.get_parsed_content("network_def") for p in (parsed(name, "train"), parser))
    larger = sum(v.numel() for v in published.parameters()) > sum(v.numel() for v in shipped.parameters())
    assert larger != (name == "mcaol_spectralct")  # whose banks are shipped as published
    trainer = parser.get_parsed_content("train#trainer")
    assert trainer.state.max_epochs >= 1
    assert not list(tmp_path.iterdir())
