"""A packed bundle notices that another multirecon is imported."""

import shutil
from pathlib import Path

import pytest

import multirecon
from multirecon.bundle import check_package, package_files, package_hash

HERE = Path(multirecon.__file__).parent


def stamped(**changes):
    return {
        "name": "tiny_mr",
        "multirecon": {"package": {"version": multirecon.__version__, "sha256": package_hash(), **changes}},
    }


def test_same_package_and_no_stamp_pass():
    check_package(stamped())
    check_package({"name": "tiny_mr", "multirecon": {"learned": False}})


@pytest.mark.parametrize("changes", [{"version": "9.9.9"}, {"sha256": "0" * 64}])
def test_another_package_is_one_clear_line(changes):
    with pytest.raises(ValueError, match=r"bundle 'tiny_mr' was packed with version .* is imported from") as caught:
        check_package(stamped(**changes))
    assert "\n" not in str(caught.value)


def test_hash_is_of_what_an_archive_carries(tmp_path):
    names = {p.relative_to(HERE).parts[0] for p in package_files()}
    assert {"bundle", "space.py", "tasks"} <= names
    assert names.isdisjoint({"harness", "interop"})
    copy = tmp_path / "multirecon"
    for path in package_files():
        target = copy / path.relative_to(HERE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "space.cpython-311.pyc").write_bytes(b"x")
    assert package_hash(copy) == package_hash()
    edited = tmp_path / "edited"
    shutil.copytree(copy, edited)
    (edited / "space.py").write_text((edited / "space.py").read_text() + "\n")
    assert package_hash(edited) != package_hash()
