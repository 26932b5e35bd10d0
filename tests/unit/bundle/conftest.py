"""One small bundle for a whole session; tests that change something get a copy."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contract.tiny_bundle import write_tiny

from multirecon.bundle import Bundle


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A bundle that fulfils the contract; not to be changed."""
    path = list(sys.path)
    yield write_tiny(tmp_path_factory.mktemp("bundles") / "bundles")
    sys.path[:] = path


@pytest.fixture
def copy_of_tiny(tiny: Bundle, tmp_path: Path) -> Callable[[], Bundle]:
    """Make a copy that a test may break."""

    def copy() -> Bundle:
        return Bundle(Path(shutil.copytree(tiny.root, tmp_path / "bundles" / tiny.name)))

    return copy
