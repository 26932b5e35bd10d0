"""Files of other people never execute: checkpoints are tensors only, arrays hold no objects, YAML builds nothing."""

import ast
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(p for folder in ("common", "bundles", "ci", "tests") for p in (ROOT / folder).rglob("*.py"))
REFUSED = {"pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "joblib.load", "shelve.open",
           "dill.load", "yaml.load", "yaml.unsafe_load", "torch.hub.load", "pandas.read_pickle"}  # fmt: skip


def dotted(node: ast.expr) -> str:
    """``torch.load`` of the expression that is called, as far as it is a plain name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str) -> list[str]:
    """Every call in a module that could execute what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found += [f"line {node.lineno}: {n}" for n in sorted(names & (REFUSED | {"torch.load", "numpy.load"}))]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        words = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        if name in REFUSED:
            found.append(f"line {node.lineno}: {name}")
        if name == "torch.load" and words.get("weights_only") is not True:
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if name.startswith(("np.load", "numpy.load")) and words.get("allow_pickle") not in (None, False):
            found.append(f"line {node.lineno}: np.load with allow_pickle")
    return found


def test_nothing_in_the_repository_unpickles():
    bad = {str(p.relative_to(ROOT)): faults(p.read_text(encoding="utf-8")) for p in SOURCES}
    assert {name: found for name, found in bad.items() if found} == {}
    assert len(SOURCES) > 300


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "import pickle\npickle.load(file)",
        "from pickle import loads",
        "from torch import load",
        "yaml.load(text, Loader=x)",
        "torch.hub.load('owner/repo', 'model')",
    ],
)
def test_the_scan_finds(line):
    assert faults(line)


def test_configs_name_no_loader_that_unpickles():
    """MONAI's CheckpointLoader reads with ``weights_only=True``; expressions may not go round it."""
    texts = {p: p.read_text(encoding="utf-8") for p in ROOT.glob("bundles/*/configs/*.json")}
    assert len(texts) > 20
    for path, text in texts.items():
        json.loads(text)
        for word in ("torch.load", "pickle", "allow_pickle", "weights_only", "eval(", "exec("):
            assert word not in text, f"{path.relative_to(ROOT)}: {word}"


def test_tracked_files_are_no_pickles():
    """A pickle begins with its protocol; checkpoints are archives of tensors."""
    if not (ROOT / ".git").exists():
        names = [str(p.relative_to(ROOT)) for p in SOURCES]
    else:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        names = [n for n in listed.split("\0") if n]
    pickles = []
    for name in names:
        path = ROOT / name
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(2)
            if len(start) == 2 and start[0] == 0x80 and start[1] in range(6):
                pickles.append(name)
    assert pickles == []
