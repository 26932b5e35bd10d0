"""Bundles found by scanning, and one server of stock commands."""

from collections.abc import Iterator

import pytest
from contract.promises import BUNDLES
from contract.stock import Stock

from multirecon.bundle import discover


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a ``bundle`` once for each one of the collection."""
    if "bundle" in metafunc.fixturenames:
        metafunc.parametrize("bundle", discover(BUNDLES), ids=lambda b: b.name, scope="session")


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """The stock command ``python -m monai.bundle``, quickly."""
    with Stock(tmp_path_factory.mktemp("stock")) as server:
        yield server
