"""Every bundle of the collection, found by scanning, and what several tests of one bundle share."""

import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from contract.promises import BUNDLES, quick, simulate
from contract.stock import Stock
from monai.bundle import ConfigWorkflow
from torch import Tensor

from multirecon.bundle import Bundle, discover, load_network
from multirecon.bundle.contract import Inspection
from multirecon.measurement import Measurement


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a ``bundle`` once for each: a new folder is under contract the moment it exists."""
    for name in {"bundle", "trained"}.intersection(metafunc.fixturenames):
        found = [b for b in discover(BUNDLES) if b.learned or name == "bundle"]
        late = found[1:] if getattr(metafunc.function, "expensive", False) else []
        items = [pytest.param(b, id=b.name, marks=[pytest.mark.slow] if b in late else []) for b in found]
        metafunc.parametrize(name, items, indirect=True, scope="session")


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy of a bundle: the checkout may be read-only, or worked on meanwhile."""
    return Bundle(Path(shutil.copytree(request.param.root, tmp_path_factory.mktemp("copy") / request.param.name)))


trained = bundle


@pytest.fixture(scope="session", autouse=True)
def _path() -> Iterator[None]:
    """Loading a bundle extends Python's path: take it back at the end."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def looks() -> Callable[[Bundle], Inspection]:
    """One inspection a bundle: its workflow is built once."""
    return cache(Inspection)


@pytest.fixture(scope="session")
def workflow(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> ConfigWorkflow:
    """The inference workflow with its weights, in its short form."""
    built = quick(bundle, output_dir=str(tmp_path_factory.mktemp("out")))
    load_network(built)
    return built


@pytest.fixture(scope="session")
def scan(workflow: ConfigWorkflow) -> tuple[Measurement, Tensor]:
    """Two samples as the bundle itself simulates them: measurement and truth."""
    return simulate(workflow, range(min(2, len(workflow.dataset))))


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """The stock command ``python -m monai.bundle``, quickly."""
    with Stock(tmp_path_factory.mktemp("stock")) as server:
        yield server


@pytest.fixture(scope="session")
def tilted(workflow: ConfigWorkflow, scan: tuple[Measurement, Tensor]) -> Measurement:
    """The scan on an oblique, shifted grid: an affine that no default produces."""
    measurement, _ = scan
    turn = torch.tensor([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    spacing = [*measurement.space.spacing_mm, 4.0][:3]
    affines = torch.eye(4, dtype=torch.float64).repeat(measurement.batch_size, 1, 1)
    for index, affine in enumerate(affines):
        affine[:3, :3] = turn * torch.tensor(spacing, dtype=torch.float64)
        affine[:3, 3] = torch.tensor([-31.5, 17.25, 4.0 * index])
    operator = measurement.operator.on(measurement.space.with_affine(affines))
    return Measurement(measurement.y, operator, measurement.likelihood, {"simulated": True})
