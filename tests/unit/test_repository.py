"""Promises of the repository as a whole: package, versions, sizes, names."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import multirecon

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
BUNDLE_MODULES = sorted(ROOT.glob("bundles/*/**/*.py"))
BUNDLE_MAY_IMPORT = {"multirecon", "monai", "torch", "numpy", "deepinv", "__future__"}
MAX_LINES, MAX_MEDIAN_LINES = 400, 200
MAX_WEIGHTS_BYTES = 40 * 1024**2


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def imported(path: Path) -> set[str]:
    """Top-level names of what a module imports, wherever in the module it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_library_imports_no_bundle():
    own_modules = {path.stem for path in BUNDLE_MODULES} | {path.name for path in BUNDLES} | {"bundles"}
    found = {str(path.relative_to(ROOT)): imported(path) & own_modules for path in (ROOT / "common").rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {}


def test_bundles_import_the_library_and_themselves_only():
    strangers = {}
    for path in BUNDLE_MODULES:
        bundle = ROOT / "bundles" / path.relative_to(ROOT / "bundles").parts[0]
        own = {inner.stem for inner in bundle.rglob("*.py")} | {bundle.name}
        strangers[str(path.relative_to(ROOT))] = imported(path) - own - BUNDLE_MAY_IMPORT - sys.stdlib_module_names
    assert {path: names for path, names in strangers.items() if names} == {}


def test_import_of_the_package_alone_is_light():
    code = "import multirecon, sys; print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_version_everywhere():
    version = multirecon.__version__
    assert importlib.metadata.version("multirecon") == version
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)[1] == version
    assert re.fullmatch(r"\d\.\d\.\d", version), "MONAI sorts versions as text: every part is one digit"


def test_every_dependency_is_pinned():
    pins = set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / "ci" / "constraints.txt").read_text(encoding="utf-8"), re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = list(project["dependencies"])
    for extra in ("dev", "data", "io", "interop", "zoo", "peers", "browser"):
        asked += project["optional-dependencies"][extra]
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-") for line in asked}
    assert names - pins == set()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_bundles_state_the_versions_that_are_tested(bundle):
    pins = dict(
        re.findall(r"^([a-z0-9.-]+)==(.+)$", (ROOT / "ci" / "constraints.txt").read_text(encoding="utf-8"), re.M)
    )
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    stated = {name: metadata[f"{name}_version"] for name in ("monai", "numpy")} | {"torch": metadata["pytorch_version"]}
    stated |= metadata["required_packages_version"]
    assert {name: pins.get(name.lower().replace("_", "-")) for name in stated} == stated


def test_modules_stay_readable():
    sizes = {path: lines(path) for folder in ("common", "bundles") for path in (ROOT / folder).rglob("*.py")}
    assert {str(path.relative_to(ROOT)): size for path, size in sizes.items() if size > MAX_LINES} == {}
    assert statistics.median(sizes.values()) <= MAX_MEDIAN_LINES


@pytest.mark.parametrize("word", ["utils", "util", "helpers", "helper", "manager"])
def test_no_module_is_a_drawer(word):
    assert [str(path.relative_to(ROOT)) for path in (ROOT / "common").rglob(f"{word}.py")] == []


def test_weights_stay_within_the_budget():
    weights = [path for folder in ("common", "bundles") for path in (ROOT / folder).rglob("*") if path.suffix == ".pt"]
    assert sum(path.stat().st_size for path in weights) <= MAX_WEIGHTS_BYTES


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_bundle_name_survives_monai_and_label(bundle):
    assert not re.search(r"_v|segmentation|detection|classification|deepedit", bundle.name)


@pytest.mark.skipif(sys.platform == "win32", reason="the scripts are bash")
class TestPreflight:
    """`ci/preflight.sh` names everything that is missing in one line."""

    def run(self, venv: Path, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **settings}
        command = ["/bin/bash", str(ROOT / "ci" / "preflight.sh"), str(venv)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    def test_prints_an_interpreter(self, tmp_path):
        done = self.run(tmp_path / "new" / "venv", PYTHON=sys.executable, NEED_GB="0")
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()) == Path(sys.executable)

    def test_shim_that_only_fails_is_no_python(self, tmp_path):
        shim = tmp_path / "python with space"
        shim.write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")
        shim.chmod(0o755)
        done = self.run(tmp_path / "venv", PYTHON=str(shim), NEED_GB="0")
        assert done.returncode == 1
        assert "Python 3.11, 3.12 or 3.13" in done.stderr

    def test_everything_missing_is_one_line(self, tmp_path):
        done = self.run(tmp_path / "venv", PYTHON="no-such-python", NEED_GB="1000000")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "PYTHON=no-such-python" in done.stderr
        assert "disk space" in done.stderr

    def test_make_is_asked_for(self, tmp_path):
        tools = tmp_path / "bin"
        tools.mkdir()
        for name in ("dirname", "df", "du", "awk"):
            (tools / name).symlink_to(shutil.which(name))
        done = self.run(tmp_path / "venv", PYTHON=sys.executable, NEED_GB="0", PATH=str(tools))
        assert done.returncode == 1
        assert "missing: make" in done.stderr
