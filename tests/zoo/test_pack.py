"""An archive runs with nothing of this collection installed, from anywhere, and gives the source bundle's numbers."""

import functools
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from contract.promises import CPU, quick
from contract.stock import Stock, arguments
from zoo.fresh import fresh_environment, has, run
from zoo.strangers import folder_with_strangers, other_version

import multirecon
from multirecon.bundle import Bundle, package_files, package_hash
from multirecon.zoo.archives import digests, extract, read_archive, write_archive
from multirecon.zoo.pack import PACKAGE_REQUIREMENTS, pack
from multirecon.zoo.readme import requirements

ROOT = Path(__file__).resolve().parents[2]


def unpacked(packed: tuple[Bundle, Path], parent: Path) -> Bundle:
    bundle, archive = packed
    extract(read_archive(archive, bundle.name), parent / bundle.name)
    return Bundle(parent / bundle.name)


@pytest.fixture(scope="session")
def environments(tmp_path_factory) -> Iterator[Callable[..., tuple[Path, Stock]]]:
    """Python of an environment with some packages, and its stock commands; made once for every list of packages."""
    with ExitStack() as stack:

        @functools.cache
        def make(packages: tuple[str, ...]) -> tuple[Path, Stock]:
            python = fresh_environment(tmp_path_factory.mktemp("fresh") / "venv", packages)
            assert not has(python, "multirecon")
            assert has(python, "monai")
            assert not has(python, "pytest"), "the environment shows more than what is documented"
            return python, stack.enter_context(Stock(tmp_path_factory.mktemp("stock"), python))

        yield make


@pytest.fixture
def fresh(packed, environments):
    """An environment with the packages that the archive documents, and without multirecon."""
    bundle, archive = packed
    return environments(tuple(requirements(json.loads(read_archive(archive, bundle.name)["configs/metadata.json"]))))


def images(folder):
    return {path.name: nib.load(path) for path in sorted(folder.glob("*.nii.gz"))}


def words(copy, out):
    options = {"bundle_root": str(copy.root), "dataset_dir": str(copy.root / "sample"), "output_dir": str(out)}
    config = str(copy.configs / "inference.json")
    return arguments("run", config_file=config, device=CPU, **options, **copy.quick)


def expected_images(packed, copy, out):
    """What the bundle of the checkout makes of the archive's sample."""
    workflow = quick(packed[0], dataset_dir=str(copy.root / "sample"), output_dir=str(out))
    workflow.run()
    return images(out)


def assert_same(found, expected):
    assert expected
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name].get_fdata(), expected[name].get_fdata(), err_msg=name)
        np.testing.assert_array_equal(found[name].affine, expected[name].affine)


def test_runs_without_multirecon_and_gives_the_same_numbers(packed, fresh, tmp_path):
    """From the worst place, in a process of its own."""
    strangers = folder_with_strangers(tmp_path)
    copy = unpacked(packed, strangers / "archives")
    done = run(fresh[0], "-m", "monai.bundle", *words(copy, tmp_path / "archive ü"), cwd=strangers)
    assert done.returncode == 0, done.stderr
    assert_same(images(tmp_path / "archive ü"), expected_images(packed, copy, tmp_path / "source"))


@pytest.mark.slow
def test_runs_from_anywhere(packed, fresh, tmp_path):
    strangers = folder_with_strangers(tmp_path)
    copy = unpacked(packed, strangers / "archives")
    expected = expected_images(packed, copy, tmp_path / "source")
    for name, place in {"top": Path("/"), "strangers": strangers, "own": copy.root}.items():
        done = fresh[1].run(words(copy, tmp_path / name), place)
        assert done.code == 0, f"{name}: {done.err}"
        assert_same(images(tmp_path / name), expected)


@pytest.mark.parametrize("own_process", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_packing_again_gives_the_same_bytes(packed, own_process, tmp_path):
    bundle, archive = packed
    if own_process:
        command = [sys.executable, "-m", "multirecon", "pack", str(bundle.root), "--output", str(tmp_path)]
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    else:
        pack([bundle], tmp_path)
    assert (tmp_path / archive.name).read_bytes() == archive.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == sorted(
        [archive.name, "model_info.json", f"{bundle.name}.json"]
    )


def test_listing(packed):
    bundle, archive = packed
    info = json.loads((archive.parent / "model_info.json").read_text())[archive.stem]
    assert info == {**digests(archive), "size": archive.stat().st_size, "source": archive.as_uri()}
    assert (
        subprocess.run(["sha1sum", archive], capture_output=True, text=True, check=True).stdout.split()[0]
        == info["checksum"]
    )
    arguments = json.loads((archive.parent / f"{bundle.name}.json").read_text())
    assert arguments == {"name": bundle.name, "url": archive.as_uri(), "bundle_dir": "bundles"}


def test_what_is_inside(packed, tmp_path):
    bundle, archive = packed
    copy = unpacked(packed, tmp_path)
    with zipfile.ZipFile(archive) as file:
        assert {i.compress_type for i in file.infolist()} == {zipfile.ZIP_STORED}
        assert {i.date_time for i in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    inside = {p.relative_to(copy.root / "multirecon").as_posix() for p in (copy.root / "multirecon").rglob("*.*")}
    source = Path(multirecon.__file__).parent
    assert inside == {p.relative_to(source).as_posix() for p in package_files()} | {"packed.json"}
    assert not any(name.startswith(("harness", "interop", "zoo")) for name in inside)
    stamp = copy.metadata["multirecon"]["package"]
    assert stamp == {"version": multirecon.__version__, "sha256": package_hash()}
    assert stamp == json.loads((copy.root / "multirecon" / "packed.json").read_text())
    assert package_hash(copy.root / "multirecon") == stamp["sha256"]
    for path in sorted(p for p in bundle.root.rglob("*.p[yt]") if p.is_file()):
        assert (copy.root / path.relative_to(bundle.root)).read_bytes() == path.read_bytes()
    named = set(re.findall(r"multirecon\.[a-z_.]+", "".join(p.read_text() for p in copy.configs.glob("*.json"))))
    assert not {n for n in named if n.split(".")[1] in ("harness", "interop", "zoo")}


def test_documented_packages_are_the_tested_ones():
    pins = dict(re.findall(r"^([a-z0-9.-]+)==(.+)$", (ROOT / "ci" / "constraints.txt").read_text(), re.M))
    assert {name: pins[name.lower()] for name in PACKAGE_REQUIREMENTS} == PACKAGE_REQUIREMENTS


@pytest.mark.slow
def test_another_multirecon_in_the_process_is_one_clear_line(packed, fresh, tmp_path):
    copy = unpacked(packed, tmp_path)
    other = other_version(copy.root / "multirecon", tmp_path)
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(other)!r}); import multirecon; "
        f"sys.argv = ['monai.bundle', *{words(copy, tmp_path / 'out')!r}]; "
        "runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)"
    )
    done = run(fresh[0], "-c", code, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    expected = (
        rf"error: multirecon: bundle '{copy.name}' was packed with version \S+ \(\w+\), but version 9\.\S+ .* imported"
    )
    assert re.match(expected, last), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_published_never_changes(packed, tmp_path):
    bundle, archive = packed
    members = {f"{bundle.name}/{n}": c for n, c in read_archive(archive, bundle.name).items()}
    members[f"{bundle.name}/LICENSE"] = b"other"
    other = write_archive(members, tmp_path / archive.name)
    (tmp_path / "manifest.signed").write_text(json.dumps({"file": archive.name}))
    before = other.read_bytes()
    with pytest.raises(ValueError, match=r"raise the bundle's version"):
        pack([bundle], tmp_path)
    assert other.read_bytes() == before
    (tmp_path / "manifest.signed").unlink()
    pack([bundle], tmp_path)
    assert other.read_bytes() == archive.read_bytes()
