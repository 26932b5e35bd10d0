"""Modules of bundles, loaded from their files: the bundles themselves are not installed."""

import importlib.util
import sys
from pathlib import Path

import pytest

BUNDLES = Path(__file__).resolve().parents[3] / "bundles"


def bundle_module(name):
    """Return the module of a bundle without putting its folder on Python's path."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BUNDLES / name / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def mcvarnet():
    return bundle_module("mcvarnet_mr")


@pytest.fixture(scope="session")
def minet():
    return bundle_module("minet_mr")


@pytest.fixture(scope="session")
def uconnect():
    return bundle_module("uconnect_spectralct")
