"""The README's code blocks: what they name exists, and a new user can run them word for word."""

import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from multirecon.__main__ import COMMANDS, check, load, split_command

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = ("bash", "sh", "")
REAL_DATA = Path("/path/to/real")  # what the README calls the folder of measured data
# `make test` is run as it stands; a variable that pytest itself reads keeps this from running the whole suite again.
SUITE = "" if os.environ.get("MULTIRECON_README_FULL") else "tests/unit/test_space.py tests/unit/test_main.py"


def blocks(text: str) -> list[tuple[str, str]]:
    """Return language and content of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)


def commands(block: str) -> list[list[str]]:
    joined = re.sub(r"\\\n\s*", "", block)
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]


def test_blocks_are_found():
    assert blocks("a\n```bash\nmake x\n```\n```\ny\n```\n") == [("bash", "make x\n"), ("", "y\n")]
    assert len([b for language, b in blocks(README) if language in SHELL]) >= 3
    assert {language for language, _ in blocks(README)} <= {*SHELL, "mermaid", "python", "json"}


@pytest.mark.parametrize("block", [b for language, b in blocks(README) if language in SHELL])
def test_what_a_block_names_exists(block):
    """Quick: commands, flags, targets, scripts, bundles and configs; nothing is run."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for words in filter(None, commands(block)):
        if words[0] == "multirecon":
            name, rest = split_command(words[1:])
            check(load(COMMANDS[name][0]), rest)
        elif words[0] == "make":
            assert set(words[1:]) <= targets
        else:
            assert words[0] in ("python", "source", "export", "pip", "git", "cd", "torchrun", "openssl"), words
        for word in words[1:]:
            if word.startswith(("bundles/", "ci/", "docs/", "common/")):
                assert (ROOT / word).exists(), f"{word} in: {' '.join(words)}"


# ---------------------------------------------------------------------------------------------------- a user of its own


@pytest.fixture
def user() -> Iterator[pwd.struct_passwd]:
    """A new user of this machine with a home of its own, for the length of a test."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("useradd", "userdel", "unshare", "mount", "runuser"))):
        pytest.skip("needs root, useradd and unshare")
    name, home = f"readme{os.getpid()}", Path(tempfile.mkdtemp(prefix="multirecon-readme-"))
    home.chmod(0o755)
    subprocess.run(["useradd", "--no-create-home", "--home-dir", home / "home", name], check=True)
    try:
        account = pwd.getpwnam(name)
        (home / "home").mkdir()
        os.chown(home / "home", account.pw_uid, account.pw_gid)
        yield account
    finally:
        subprocess.run(["userdel", name], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


def clone(target: Path) -> None:
    """Copy the tracked files as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def installed(checkout: Path) -> None:
    """Stand in for the download of the packages: an environment that shows those of this one, with a stamp."""
    folder = checkout / ".venv"
    venv.create(folder, with_pip=False, symlinks=True)
    sites = [p for p in sys.path if p.endswith("site-packages")]
    lines = [str(checkout / "common"), *(f"import site; site.addsitedir({p!r})" for p in sites)]
    (next(folder.glob("lib/python*/site-packages")) / "packages.pth").write_text("\n".join(lines) + "\n")
    for path in Path(sys.executable).parent.iterdir():
        target = folder / "bin" / path.name
        if target.exists() or not path.is_file():
            continue
        head, _, rest = path.read_bytes().partition(b"\n")
        if head.startswith(b"#!") and b"python" in head:
            # as pip does where the path has blanks, which a first line cannot hold
            line = f"#!/bin/sh\n'''exec' \"{folder}/bin/python\" \"$0\" \"$@\"\n' '''\n"
            target.write_bytes(line.encode() + rest)
            target.chmod(0o755)
        else:
            target.symlink_to(path)
    stamp = 'printf "%s\\n" "$1" dev,data,io,interop,zoo; cksum <"$1/pyproject.toml"; cksum <"$1/ci/constraints.txt"'
    done = subprocess.run(["bash", "-c", stamp, "bash", str(checkout)], capture_output=True, text=True, check=True)
    (folder / "multirecon.stamp").write_text(done.stdout)


def closed_folder(path: Path) -> Path | None:
    """Return the first folder on the way to a path that other users may not enter."""
    return next((p for p in [*reversed(path.parents), path] if not p.stat().st_mode & 0o001), None)


def preparation(checkout: Path, real: Path) -> str:
    """Commands that make the world of the user: no network, a read-only clone, an interpreter that others may run."""
    lines = ["set -e", "mount --make-rprivate /", "ip link set lo up 2>/dev/null || true"]
    needed = {Path(p).resolve() for p in (sys.base_prefix, real, *(p for p in sys.path if p.endswith("site-packages")))}
    closed: dict[Path, list[Path]] = {}
    for path in sorted(needed):
        if (folder := closed_folder(path)) is not None:
            closed.setdefault(folder, []).append(path)
    for folder, paths in closed.items():
        for index, path in enumerate(paths):
            lines += [
                f"mkdir -p /tmp/kept{os.getpid()}/{index}",
                f"mount --bind {shlex.quote(str(path))} /tmp/kept{os.getpid()}/{index}",
            ]
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(folder))}")
        for index, path in enumerate(paths):
            lines += [
                f"mkdir -p {shlex.quote(str(path))}",
                f"mount --move /tmp/kept{os.getpid()}/{index} {shlex.quote(str(path))}",
            ]
    here = shlex.quote(str(checkout))
    lines += [f"mount --bind {here} {here}"]
    lines += [f"mount --bind {here}/{part} {here}/{part}" for part in (".venv", "output")]
    lines += [f"mount -o remount,ro,bind {here}", f"mount --bind {shlex.quote(str(real))} {REAL_DATA}"]
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_new_user_runs_every_block(user, real_data):
    """useradd, no network after installation, a read-only clone: every block, word for word, in one shell."""
    home = Path(user.pw_dir)
    checkout = home / "clone mit ü"
    clone(checkout)
    (checkout / "output").mkdir()
    installed(checkout)
    for path in [checkout / ".venv", *(checkout / ".venv").rglob("*"), checkout / "output"]:
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    text = "".join(block for language, block in blocks(README) if language in SHELL)
    (home / "blocks.sh").write_text(f"set -e\ncd {shlex.quote(str(checkout))}\n{text}", encoding="utf-8")
    kept = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTEST_ADDOPTS": SUITE}
    if os.environ.get("OMP_NUM_THREADS"):
        kept["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    environment = " ".join(f"{k}={shlex.quote(v)}" for k, v in kept.items())
    shell = f"exec runuser -u {user.pw_name} -- env -i {environment} bash -x {home / 'blocks.sh'}"
    script = f"{preparation(checkout, real_data)}\n{shell}\n"
    made = [p for p in (REAL_DATA, *REAL_DATA.parents) if not p.exists()]
    REAL_DATA.mkdir(parents=True, exist_ok=True)
    try:
        with (home.parent / "log").open("w+", encoding="utf-8", errors="replace") as log:
            done = subprocess.run(["unshare", "-m", "-n", "bash", "-c", script], stdout=log, stderr=log, check=False)
            log.seek(0)
            tail = log.read()[-6000:]
    finally:
        for path in made:
            path.rmdir()
        shutil.rmtree(f"/tmp/kept{os.getpid()}", ignore_errors=True)
    assert done.returncode == 0, tail
    assert list((checkout / "output").rglob("*.nii.gz")), tail
    assert list((checkout / "output").rglob("report.html")), tail
