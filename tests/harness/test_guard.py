"""Which files the guard refuses (that it refuses them in a worker is shown by the fakes)."""

import os
from pathlib import Path

from multirecon.harness.guard import Guard
from multirecon.harness.process import environment


def test_links_and_detours_lead_nowhere(tmp_path):
    data, own = tmp_path / "data", tmp_path / "data" / "own"
    own.mkdir(parents=True)
    (data / "truth.npz").touch()
    (tmp_path / "database").mkdir()
    (tmp_path / "link.npz").symlink_to(data / "truth.npz")
    guard = Guard([str(data)], allowed=[str(own)])
    assert guard.is_forbidden(data / "truth.npz")
    assert guard.is_forbidden(os.fsencode(data / "truth.npz"))
    assert guard.is_forbidden(tmp_path / "link.npz")
    assert guard.is_forbidden(f"{own}/../truth.npz")
    for harmless in (own / "x.npz", data / "code.py", data / "table.csv", tmp_path / "database" / "x.npz", 3, None):
        assert not guard.is_forbidden(harmless)


def test_the_environment_of_a_worker_leads_to_no_data(monkeypatch):
    monkeypatch.setenv("MULTIRECON_ANATOMIES", "/data")
    monkeypatch.setenv("MULTIRECON_CACHE", "/cache")
    monkeypatch.setenv("PYTHONPATH", "relative")
    values = environment()
    assert [n for n in values if n.startswith("MULTIRECON_")] == ["MULTIRECON_CACHE"]
    assert all(Path(p).is_absolute() for p in values["PYTHONPATH"].split(os.pathsep))
