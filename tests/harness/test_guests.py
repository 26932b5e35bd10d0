"""Guests: what a JSON file may say, and deepinv's methods as rows of a real run."""

import json
from pathlib import Path

import pytest
import torch

from multirecon.__main__ import main
from multirecon.harness.guests import build_guest, read_guest
from multirecon.harness.records import OK, read_records

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "guests").glob("*.json"))
MEDIAN = {"_target_": "deepinv.models.MedianFilter", "kernel_size": 3}
REMOVAL = {"_target_": "deepinv.models.ArtifactRemoval", "backbone_net": MEDIAN, "mode": "adjoint"}


def write(folder, **values):
    path = folder / "guest.json"
    path.write_text(json.dumps({"name": "guest", "model": REMOVAL, **values}))
    return path


def test_there_are_examples():
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_methods_with_a_content_of_their_own(path, tmp_path):
    guest = read_guest(path)
    one, two = guest.method(tmp_path / "one"), guest.method(tmp_path / "two")
    assert one.name == guest.name == path.stem
    assert guest.description
    assert one.content == two.content
    assert one.bundle.version.count(".") == 2
    assert callable(build_guest(guest.model, tmp_path))


def test_the_page_shows_a_guest(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "reconstruct.md").read_text(encoding="utf-8")
    (tmp_path / "guest.json").write_text(page.partition("```json")[2].partition("```")[0])
    assert read_guest(tmp_path / "guest.json").name == "deepinv_pnp_median"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "Bad Name"}, "name: expected"),
        ({"name": "../up"}, "name: expected"),
        ({"extra": 1}, r"unknown \['extra'\]"),
        ({"model": 3}, "model: expected an object"),
        ({"model": {}}, "model._target_: expected a class deepinv"),
        ({"model": {"_target_": "os.system"}}, "model._target_: expected a class deepinv"),
        ({"model": {"_target_": "deepinv.utils.load_url"}}, "model._target_"),
        ({"model": {"_target_": "deepinv.models.base.Denoiser"}}, "model._target_"),
        ({"model": {"_target_": "deepinv.models.Client"}}, "model._target_"),
        ({"model": {"_target_": "deepinv.models.NoSuchModel"}}, "model._target_"),
        ({"model": {**REMOVAL, "backbone_net": {"_target_": "builtins.eval"}}}, "model.backbone_net._target_"),
        ({"model": {**REMOVAL, "list": [{"_target_": "builtins.eval"}]}}, "model.list: expected an argument"),
        ({"model": {**MEDIAN, "kernel": 3}}, "model.kernel: expected an argument of MedianFilter"),
        ({"model": {"_target_": "deepinv.models.DRUNet", "pretrained": "download"}}, "model.pretrained: expected"),
        ({"model": {"_target_": "deepinv.models.DRUNet", "_weights_": "none.pt"}}, "model._weights_: expected"),
        ({"model": {"_target_": "deepinv.models.DRUNet", "_weights_": "../x.pt"}}, "model._weights_: expected"),
        ({"clean_sigma": 0}, "clean_sigma: expected"),
        ({"capability": {"shape": [1]}}, "capability: expected"),
        ({"capability": {"ndim": "2"}}, "capability.ndim: expected a list"),
    ],
)  # fmt: skip
def test_what_is_no_guest_is_named(tmp_path, values, message):
    with pytest.raises(ValueError, match=message) as error:
        read_guest(write(tmp_path, **values))
    assert str(tmp_path) in str(error.value)


def test_weights_are_local_tensors_and_nothing_is_downloaded(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    options = {"_target_": "deepinv.models.DnCNN", "in_channels": 1, "out_channels": 1, "depth": 3, "nf": 4}
    network = build_guest(options, tmp_path)
    with torch.no_grad():
        next(network.parameters()).fill_(0.5)
    torch.save(network.state_dict(), tmp_path / "denoiser.pt")
    guest = read_guest(write(tmp_path, model={**REMOVAL, "backbone_net": {**options, "_weights_": "denoiser.pt"}}))
    method = guest.method(tmp_path / "shelf")
    built = build_guest(guest.model, method.root / "models")
    assert torch.all(next(built.backbone_net.parameters()) == 0.5)
    assert [p.name for p in method.root.glob("models/*.pt")] == ["denoiser.pt"]
    before = method.weights
    torch.save({"other": torch.ones(1)}, tmp_path / "denoiser.pt")
    assert guest.method(tmp_path / "other").weights != before
    with pytest.raises(ValueError, match=r"_weights_ 'denoiser\.pt'"):
        build_guest(guest.model, tmp_path)
    torch.save({"code": print}, tmp_path / "denoiser.pt")  # a pickle that is more than tensors
    with pytest.raises(ValueError, match=r"_weights_ 'denoiser\.pt'"):
        build_guest(guest.model, tmp_path)


def test_names_must_differ(tmp_path, make_bundle, capsys):
    make_bundle("guest")
    words = ["evaluate", str(tmp_path / "out"), "--tasks", "ct_sparse60", "--folder", str(tmp_path / "bundles")]
    assert main([*words, "--bundles", "guest", "--guests", str(write(tmp_path))]) == 1
    assert "methods: expected different names, got ['guest']" in capsys.readouterr().err
    assert main([*words, "--guests", str(tmp_path / "none.json")]) == 1
    assert "guest: expected an existing JSON file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_guests_are_rows_of_a_run(tmp_path, monkeypatch, capsys):
    """MR and CT, from the command line, in processes of their own, against the simplest method of each."""
    monkeypatch.setenv("MULTIRECON_BUNDLES", str(Path(__file__).parents[2] / "bundles"))
    guests = ",".join(map(str, EXAMPLES))
    words = ["evaluate", str(tmp_path / "out"), "--tasks", "flair_x4,ct_sparse60", "--limit", "3", "--noprogress"]
    assert main([*words, "--guests", guests, "--bundles", "sense_mr,fbp_ct"]) == 0
    records, problems = read_records(tmp_path / "out" / "records.jsonl")
    assert problems == []
    targets = {"flair_x4": "flair", "ct_sparse60": "ct"}
    found: dict[tuple[str, str], list[float]] = {}
    for r in records:
        if r.status == OK:
            found.setdefault((r.task, r.bundle), []).append(r.metrics[targets[r.task]]["psnr"])
    psnr = {key: sum(values) / len(values) for key, values in found.items()}
    for path in EXAMPLES:
        # a median filter of 3 x 3 pixels is level with SENSE of a tuned weight; a broken scaling would lose many dB
        margin = 0.5 if path.stem == "deepinv_admm_tv" else -1.0
        assert psnr["flair_x4", path.stem] > psnr["flair_x4", "sense_mr"] + margin
        assert psnr["ct_sparse60", path.stem] > psnr["ct_sparse60", "fbp_ct"] + 0.5
    mine = [r for r in records if r.bundle == EXAMPLES[0].stem]
    assert {r.versions["deepinv"] for r in mine} == {r.versions["bundle"] for r in mine}
    assert main([*words, "--guests", guests]) == 0
    assert "nothing new; 12 already there" in capsys.readouterr().out
