"""Files, metadata, checkpoint, properties, network and exports of every bundle."""

import subprocess
import sys
from pathlib import Path

import pytest
from contract.promises import BUNDLES

from multirecon.bundle import CHECKS, discover
from multirecon.bundle.contract import run_check

ROOT = Path(__file__).resolve().parents[2]


def test_there_are_bundles():
    assert len(discover(BUNDLES)) >= 2


@pytest.mark.parametrize("check", CHECKS)
def test_check(bundle, looks, check):
    assert run_check(check, looks(bundle)) == []


def test_overlays_of_the_metadata_and_the_capability_agree(bundle, workflow):
    """A summary in the metadata is what the inferer computes."""
    stated = bundle.metadata["multirecon"].get("capability", {})
    computed = workflow.inferer.capability
    for key, value in stated.items():
        actual = getattr(computed, key)
        assert value == (
            sorted(actual) if isinstance(actual, frozenset) else list(actual or ()) if key == "shape" else actual
        )


@pytest.mark.slow
def test_every_check_as_a_command(tmp_path):
    """`ci/verify_bundles.py` in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "ci" / "verify_bundles.py"), "--root", str(BUNDLES)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
