"""The matrix cache: shared in memory, stored atomically, rebuilt when damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from multirecon.operators import ParallelBeam, cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULTIRECON_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_MIN_WEIGHTS", 1)
    return tmp_path / "matrices"


def _matrix() -> csr_array:
    return csr_array(np.eye(3, dtype=np.float32))


def _never() -> csr_array:
    raise AssertionError("built although stored")


def test_second_process_reads_what_the_first_built(folder: Path) -> None:
    a = cache.stored_matrix("k", _matrix)
    assert [p.name for p in folder.iterdir()] == ["v1-k.npz"]
    b = cache.stored_matrix("k", _never)
    assert (a != b).nnz == 0
    assert (b.data.dtype, b.indices.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped", "empty"])
def test_damaged_file_is_built_again(folder: Path, damage: str) -> None:
    cache.stored_matrix("k", _matrix)
    path = folder / "v1-k.npz"
    good = path.read_bytes()
    at = good.index(b"NUMPY") + 130  # inside the first array
    bad = {"cut": good[: len(good) // 2], "garbage": b"x" * 100, "empty": b"",
           "flipped": good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :]}  # fmt: skip
    path.write_bytes(bad[damage])
    with pytest.warns(UserWarning, match="damaged"):
        matrix = cache.stored_matrix("k", _matrix)
    assert (matrix != _matrix()).nnz == 0
    assert path.read_bytes() == good


def test_two_processes_at_once(folder: Path) -> None:
    code = (
        "from multirecon.operators import ParallelBeam, cache; import torch; cache._MIN_WEIGHTS = 1\n"
        "A = ParallelBeam((32, 32), (1., 1.), views=30, bins=46); print(float(A(torch.ones(1, 1, 32, 32)).sum()))"
    )
    source = str(Path(cache.__file__).parents[2])
    runs = [
        subprocess.Popen([sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r})\n{code}"],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    results = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert len(list(folder.iterdir())) == 1  # one file, nothing temporary left


def test_folder_that_cannot_be_written_costs_only_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("MULTIRECON_CACHE", str(blocked))
    monkeypatch.setattr(cache, "_MIN_WEIGHTS", 1)
    with pytest.warns(UserWarning, match="not cached"):
        assert cache.stored_matrix("k", _matrix).nnz == 3


def test_off_and_small_matrices_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIRECON_CACHE", "off")
    assert cache.cache_folder() is None
    monkeypatch.setenv("MULTIRECON_CACHE", str(tmp_path))
    cache.stored_matrix("k", _matrix)
    assert not list(tmp_path.iterdir())


def test_default_folder_is_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MULTIRECON_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.cache_folder() == tmp_path / "multirecon"


def test_operators_of_one_geometry_share_one_matrix() -> None:
    make = lambda: ParallelBeam((10, 10), (1.0, 1.0), views=6, bins=15)  # noqa: E731
    first, second = make(), make()
    assert first.matrix() is second.matrix()
    assert first.matrix("cpu", torch.float64) is not first.matrix()
    other = ParallelBeam((10, 10), (1.0, 1.0), views=6, bins=16)
    assert other.matrix() is not first.matrix()


def test_memory_kept_beyond_the_last_operator_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_KEEP_BYTES", 1)
    for bins in range(5, 10):
        ParallelBeam((6, 6), (1.0, 1.0), views=4, bins=bins).matrix()
    assert len(cache._recent) == 1
