"""Tables of the documentation are generated, and CI notices when they are stale."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from harness.test_report import fill

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("leaderboard_script", ROOT / "ci" / "leaderboard.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documents(root):
    (root / "bundles" / "unrolled" / "docs").mkdir(parents=True)
    (root / "docs").mkdir(exist_ok=True)
    readme = root / "README.md"
    readme.write_text("a\n<!-- leaderboard task=noise16 metrics=psnr -->\nold\n<!-- end leaderboard -->\nb\n")
    card = root / "bundles" / "unrolled" / "docs" / "README.md"
    card.write_text("<!-- leaderboard method=unrolled -->\n<!-- end leaderboard -->\n")
    return readme, card


def test_tables_are_filled_and_staleness_is_noticed(script, tmp_path, capsys):
    readme, card = documents(tmp_path)
    assert script.main(["--root", str(tmp_path)]) == 0
    assert "No results recorded yet." in readme.read_text()
    file = fill(tmp_path / "docs" / "leaderboard")
    before = readme.read_text()
    assert script.main(["--root", str(tmp_path), "--check"]) == 1
    assert "README.md" in capsys.readouterr().out
    assert readme.read_text() == before
    assert script.main(["--root", str(tmp_path)]) == 0
    text = readme.read_text()
    assert "| unrolled | 27.00 [26.00, 28.00] | +1.00 [+1.00, +1.00] |" in text
    assert "ssim" not in text
    assert text.startswith("a\n<!--")
    assert text.endswith("<!-- end leaderboard -->\nb\n")
    assert "| noise16 | unrolled | t1 psnr dB 27.00" in card.read_text()
    assert "sense |" not in card.read_text().replace("to sense |", "")
    assert script.main(["--root", str(tmp_path), "--check"]) == 0
    file.append(replace(file.records()[0], bundle="new", metrics={"t1": {"psnr": 1.0}}))
    assert script.main(["--root", str(tmp_path), "--check"]) == 1


def test_the_bundles_are_listed_from_their_metadata(script, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- bundles -->\nold\n<!-- end bundles -->\nb\n")
    assert script.main(["--root", str(tmp_path)]) == 0
    assert readme.read_text() == "a\n<!-- bundles -->\nNo bundles yet.\n<!-- end bundles -->\nb\n"
    configs = tmp_path / "bundles" / "unrolled_mr" / "configs"
    configs.mkdir(parents=True)
    own = {"learned": True, "family": ["mr", "pet_mr"]}
    (configs / "metadata.json").write_text(json.dumps({"description": "A | B", "multirecon": own}))
    (configs / "inference_fast.json").write_text("{}")
    assert script.main(["--root", str(tmp_path), "--check"]) == 1
    assert "README.md" in capsys.readouterr().out
    assert script.main(["--root", str(tmp_path)]) == 0
    line = "| [`unrolled_mr`](bundles/unrolled_mr/docs/README.md) | A \\| B | mr, pet\\_mr | yes | `fast` |"
    assert line in readme.read_text().splitlines()
    assert script.main(["--root", str(tmp_path), "--check"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- bundles -->\n", "to be closed"),
        ("<!-- leaderboard task=x -->\n", "to be closed"),
        ("<!-- leaderboard tsak=x -->\n<!-- end leaderboard -->", "task=NAME or method=NAME"),
        ("<!-- leaderboard task=x method=y -->\n<!-- end leaderboard -->", "task=NAME or method=NAME"),
    ],
)
def test_bad_marks_are_one_line(script, tmp_path, text, message, capsys):
    (tmp_path / "README.md").write_text(text)
    assert script.main(["--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_results_of_other_data_are_not_published(script, tmp_path, capsys):
    documents(tmp_path)
    file = fill(tmp_path / "docs" / "leaderboard")
    file.append(replace(file.records()[0], bundle="cheat", fingerprint="other"))
    assert script.main(["--root", str(tmp_path)]) == 1
    assert "other data" in capsys.readouterr().err


def test_the_tables_of_this_checkout_are_current(script, capsys):
    assert script.main(["--check"]) == 0, capsys.readouterr()
