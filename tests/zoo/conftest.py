"""One archive of the first bundle for the quick tests, and one of every bundle for the slow ones."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.promises import BUNDLES

from multirecon.bundle import Bundle, discover
from multirecon.zoo.pack import pack


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a ``packed`` archive by default on the first bundle, and on all with the slow tests."""
    if "packed" in metafunc.fixturenames:
        found = discover(BUNDLES)
        items = [pytest.param(b, id=b.name, marks=[pytest.mark.slow] if b in found[1:] else []) for b in found]
        metafunc.parametrize("packed", items, indirect=True, scope="session")


@pytest.fixture(scope="session", autouse=True)
def _path() -> Iterator[None]:
    """Loading a bundle extends Python's path: take it back at the end."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A bundle and its archive."""
    (archive,) = pack([request.param], tmp_path_factory.mktemp("zoo"))
    return request.param, archive
