"""What every test shares: one thread, seeded networks, and where measured data lie."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch or numpy; processes that tests start inherit it.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# The same examples on every run and every machine; a found example belongs into a test of its own.
hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("deterministic")


def _folder(setting: str) -> Path | None:
    """Folder that an environment variable names; None when unset, an error when it names no folder."""
    value = os.environ.get(setting)
    if not value:
        return None
    path = Path(value)
    if not path.is_dir():
        raise pytest.UsageError(f"{setting}={value} is not a folder")
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    lacking = {}
    if _folder("MULTIRECON_REAL_DATA") is None:
        lacking["realdata"] = "MULTIRECON_REAL_DATA is not set"
    if not torch.cuda.is_available():
        lacking["gpu"] = "no CUDA device"
    for item in items:
        for marker, reason in lacking.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seeded_networks() -> Iterator[None]:
    """Initial weights come from torch's global generator: fix it, and leave it as it was found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """The explicit source of randomness (CPU, seed 0)."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the measured data; for tests marked `realdata`."""
    path = _folder("MULTIRECON_REAL_DATA")
    if path is None:
        pytest.skip("MULTIRECON_REAL_DATA is not set")
    return path


@pytest.fixture(scope="session")
def anatomies() -> Path:
    """Folder of the label maps; without it the embedded default has to do."""
    path = _folder("MULTIRECON_ANATOMIES")
    if path is None:
        pytest.skip("MULTIRECON_ANATOMIES is not set")
    return path
