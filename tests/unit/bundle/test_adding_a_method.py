"""The walk-through `docs/adding-a-method.md` is run as it stands."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from multirecon.__main__ import main
from multirecon.bundle import find, load, load_network, verify
from multirecon.measurement import Measurement

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A folder of bundles with a copy of the one that the walk-through starts from."""
    folder = tmp_path_factory.mktemp("walk") / "bundles"
    shutil.copytree(ROOT / "bundles" / "sense_mr", folder / "sense_mr")
    path = list(sys.path)
    yield folder
    sys.path[:] = path
    sys.modules.pop("descent_mr", None)


@pytest.fixture(scope="module")
def bundle(bundles):
    """The new bundle, after the page's first three sections."""
    words = shlex.split(blocks("sh")[0])
    assert words.pop(0) == "multirecon"
    assert main([*words, "--root", str(bundles)]) == 0
    made = find("descent_mr", bundles)
    assert {k: v for k, v in verify(made).items() if v} == {}
    source = blocks("python")[0]
    assert source.startswith("# descent_mr.py\n")
    (made.root / "descent_mr.py").write_text(source, encoding="utf-8")
    for name, changes in json.loads(blocks("json")[0]).items():
        config = json.loads((made.root / name).read_text(encoding="utf-8"))
        for key, value in changes.items():
            *parents, last = key.split("#")
            inner = config
            for parent in parents:
                inner = inner[parent]
            assert last in inner, f"the page changes {key!r}, which {name} does not have"
            inner[last] = value
        (made.root / name).write_text(json.dumps(config), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def trained(bundle, tmp_path_factory):
    """Two steps of training, which write the first checkpoint of the new network."""
    sys.path.insert(1, str(bundle.root))
    sys.modules.pop("descent_mr", None)
    steps = {"train#trainer#max_epochs": 1, "train#trainer#epoch_length": 2, "validate#evaluator#epoch_length": 1}
    logs = str(tmp_path_factory.mktemp("logs"))  # the list of samples; by default it lies in the bundle's eval/
    load(bundle, workflow="train", device="$torch.device('cpu')", output_dir=logs, **steps).run()
    return bundle


def test_forgotten_statement_about_new_weights_is_noticed(trained):
    faults = verify(trained)
    assert "multirecon.weights.sha256" in " ".join(faults.pop("checkpoint"))
    assert {k: v for k, v in faults.items() if v} == {}


def test_example_reconstructs(trained, monkeypatch, tmp_path):
    monkeypatch.setenv("MULTIRECON_BUNDLES", str(trained.root.parent))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(blocks("python")[1], names)
    workflow, network = names["workflow"], names["network"]
    item = workflow.dataset[0]
    batch = workflow.evaluator.data_loader.collate_fn([item])
    measurement, truth = workflow.evaluator.prepare_batch(batch, torch.device("cpu"), False)
    assert isinstance(measurement, Measurement)
    result = workflow.inferer(measurement, network)
    assert result.shape == truth.shape
    assert load_network(workflow) is network


def test_every_file_and_key_that_the_page_names_exists():
    for name in re.findall(r"`((?:common|ci|tests)/[\w./]+)`", PAGE):
        assert (ROOT / name).exists(), name
    schema = json.loads((ROOT / "common/multirecon/bundle/metadata.schema.json").read_text(encoding="utf-8"))
    section = schema["$defs"]["multirecon"]["properties"]
    table = PAGE.split("The section `multirecon`:")[1].split("##")[0]
    named = set(re.findall(r"`(\w+)`", "\n".join(r.split("|")[1] for r in table.splitlines() if r.startswith("| `"))))
    assert named == set(section) - {"package"}
