"""The environments of MONAI Label and MONAI Deploy: complete, pinned, and refused in one line otherwise."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def lines(path):
    text = (ROOT / "ci" / path).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_server_has_every_dependency_but_the_one_it_excludes():
    """Copied, as pip could not resolve an extra: a new dependency has to be added there too."""
    asked = {line.split(" ")[0] for line in lines("requirements-label.txt")}
    wanted = {d for d in PROJECT["dependencies"] if name_of(d) != "jsonschema"}
    assert wanted <= asked


@pytest.mark.parametrize("name", ["label", "deploy"])
def test_everything_asked_for_is_pinned(name):
    pins = {name_of(line) for line in lines(f"constraints-{name}.txt") if "==" in line}
    asked = lines("requirements-label.txt") if name == "label" else PROJECT["optional-dependencies"]["deploy"]
    assert {name_of(line) for line in asked} - pins == set()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^ ;@]+", line) for line in lines(f"constraints-{name}.txt"))


@pytest.mark.parametrize("words", [[], ["lable"]])
def test_an_unknown_environment_is_refused(words):
    done = subprocess.run(["bash", str(ROOT / "ci" / "interop_env.sh"), *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("interop_env: expected label or deploy")
