"""What prepares a MONAI Label server, without one."""

import json
import shutil
import sys

import pytest
from contract.promises import BUNDLES

from multirecon.bundle import Bundle, discover, find
from multirecon.interop.label import (
    application_of,
    list_bundles,
    options,
    prepare,
    prepare_app,
    refusal,
    servable,
    start_command,
)


@pytest.fixture
def template(tmp_path):
    """Stands in for the stock application."""
    folder = tmp_path / "monaibundle"
    (folder / "lib" / "__pycache__").mkdir(parents=True)
    (folder / "main.py").write_text("# the stock application\n")
    (folder / "lib" / "__pycache__" / "x.pyc").write_bytes(b"")
    return folder


def stamped(root, target, sha256):
    """A copy of a bundle that says which multirecon it was packed with."""
    copy = Bundle(shutil.copytree(root, target))
    metadata = json.loads((copy.configs / "metadata.json").read_text())
    metadata["multirecon"]["package"] = {"version": "0.1.0", "sha256": sha256}
    (copy.configs / "metadata.json").write_text(json.dumps(metadata))
    return copy


def test_raw_data_methods_are_refused_with_the_reason():
    assert refusal(find("sense_mr", BUNDLES)) is None
    assert "raw data" in refusal(find("osem_pet", BUNDLES))
    with pytest.raises(ValueError, match="osem_pet takes measurement files"):
        servable(["sense_mr", "osem_pet"], BUNDLES)
    assert [b.name for b in servable(folder=BUNDLES)] == [b.name for b in discover(BUNDLES) if refusal(b) is None]


def test_a_bundle_without_weights_is_refused(tmp_path):
    copy = Bundle(shutil.copytree(find("sense_mr", BUNDLES).root, tmp_path / "sense_mr"))
    copy.weights.unlink()
    assert refusal(copy) == "has no weights (models/model.pt)"
    (copy.configs / "inference.json").write_text("{")
    assert "expected a readable configs/inference.json" in refusal(copy)


def test_the_folder_of_the_server_holds_application_and_bundles(template, tmp_path):
    bundle = find("mcvarnet_mr", BUNDLES)
    app = prepare(tmp_path / "servers" / "app", [bundle], template=template)
    assert (app / "main.py").read_text() == (template / "main.py").read_text()
    served = Bundle(app / "model" / "mcvarnet_mr")
    assert options(served) == options(bundle)
    assert (served.root / "mcvarnet_mr.py").is_file()
    assert not list(app.rglob("*.pyc"))
    assert [p.name for p in (tmp_path / "servers").iterdir()] == ["app"], "no draft is left"
    words = start_command(app, "studies", port=8011, python="python3")
    assert words[:4] == ["python3", "-m", "monailabel.main", "start_server"]
    conf = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "--conf"}
    assert conf == {"models": "mcvarnet_mr", "zoo_source": "local", "sam2": "false", "skip_trainers": "true"}


def test_nothing_is_overwritten_and_nothing_half_made(template, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="app: expected a new or empty folder"):
        prepare(tmp_path / "full", [find("sense_mr", BUNDLES)], template=template)
    gone = Bundle(tmp_path / "gone")
    with pytest.raises(OSError, match="gone"):
        prepare(tmp_path / "servers" / "app", [gone], template=template)
    assert list((tmp_path / "servers").iterdir()) == []


def test_archives_with_different_copies_do_not_share_a_server(tmp_path):
    root = find("sense_mr", BUNDLES).root
    one, same, other = (stamped(root, tmp_path / n, s * 64) for n, s in (("a_mr", "a"), ("b_mr", "a"), ("c_mr", "c")))
    assert len(servable([str(one.root), str(same.root)])) == 2
    with pytest.raises(ValueError, match=r"archives with one multirecon.*aaaaaaaaaaaa\) of a_mr.*of c_mr"):
        servable([str(one.root), str(other.root)])


def test_commands_print_what_is_served_and_how_to_start(capsys, tmp_path, monkeypatch, template):
    list_bundles(str(BUNDLES))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["serves", "sense_mr"] and "acceleration=4" in line for line in lines)
    assert any(line.split()[:2] == ["not", "osem_pet"] for line in lines)
    monkeypatch.setattr("multirecon.interop.label.application_of", lambda python: template)
    prepare_app(tmp_path / "app", sys.executable, bundles=("sense_mr",), folder=str(BUNDLES))
    out = capsys.readouterr().out
    assert "1 bundles" in out
    assert "monailabel.main start_server" in out


def test_an_interpreter_without_the_server_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"python: expected an interpreter that has MONAI Label \(ci"):
        application_of(sys.executable)
    with pytest.raises(ValueError, match="python: expected an interpreter"):
        application_of(tmp_path / "nothing")
