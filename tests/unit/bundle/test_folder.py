"""Bundles are found by scanning."""

import shutil

import pytest
from contract.tiny_bundle import edit

from multirecon.bundle import discover, find


def test_scan_finds_every_folder_with_metadata(tiny, tmp_path):
    for name in ("b_mr", "a_ct"):
        shutil.copytree(tiny.root, tmp_path / name)
    (tmp_path / "notes").mkdir()
    shutil.copytree(tiny.root, tmp_path / ".c_mr.part")
    assert [b.name for b in discover(tmp_path)] == ["a_ct", "b_mr"]


def test_setting_names_the_folder(tiny, monkeypatch):
    monkeypatch.setenv("MULTIRECON_BUNDLES", str(tiny.root.parent))
    assert discover() == [tiny]
    assert find("tiny_mr") == tiny


def test_no_bundle_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder .*got '.*nowhere'"):
        discover(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got none"):
        discover(tmp_path)


def test_unknown_bundle_names_those_that_exist(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"expected one of \['tiny_mr'\].*got 'tiny_ct'"):
        find("tiny_ct", tiny.root.parent)
    with pytest.raises(ValueError, match="expected a folder with configs/"):
        find(tmp_path / "x" / "y")


def test_facts_come_from_files(copy_of_tiny):
    bundle = copy_of_tiny()
    (bundle.configs / "inference_fast.json").write_text("{}")
    own = {"learned": True, "family": ["mr", "pet_mr"], "controls": {"unconstrained": "a control"}, "quick": {"a": 1}}
    edit(bundle.configs / "metadata.json", multirecon=own)
    assert (bundle.version, bundle.learned, bundle.families) == ("0.1.0", True, ("mr", "pet_mr"))
    assert (bundle.variants, bundle.controls, bundle.quick) == (("fast",), ("unconstrained",), {"a": 1})


def test_unreadable_metadata_name_the_file(copy_of_tiny):
    bundle = copy_of_tiny()
    (bundle.configs / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match=r"metadata\.json: expected a JSON file"):
        _ = bundle.metadata
