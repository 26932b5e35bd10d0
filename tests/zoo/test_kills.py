"""kill -9 while an archive is packed, published or downloaded: what is there is whole, and the next run ends it."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
from contract.tiny_bundle import write_tiny
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from zoo.tiny_zoo import NAME, make_zoo, members, serving

from multirecon.zoo.archives import read_archive
from multirecon.zoo.install import download
from multirecon.zoo.pack import pack
from multirecon.zoo.publish import publish, verify
from multirecon.zoo.source import Source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def kill_again_and_again(work, check, *, kills, seed=0):
    """Run ``work`` in processes that are killed at random moments, ``check`` what they left; return how many died."""
    fork, chance = multiprocessing.get_context("fork"), random.Random(seed)
    begin = time.monotonic()
    process = fork.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0
    whole = time.monotonic() - begin
    count = 0
    for _ in range(kills):
        process = fork.Process(target=work)
        begin = time.monotonic()
        process.start()
        process.join(whole * chance.uniform(0.0, 1.1))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            count += 1
        else:
            whole = min(whole, time.monotonic() - begin)
        process.join()
        check()
    return count


def leftovers(folder):
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
    return sorted(
        n for n in names if any(p.startswith(".") for p in n.split("/")) and n not in (".work", ".work/.lock")
    )


def test_packing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    bundle = write_tiny(tmp_path / "bundles")
    (reference,) = pack([bundle], tmp_path / "reference")
    output = tmp_path / "zoo"

    def files(folder):
        return [p for p in folder.glob("*") if p.is_file() and not p.name.startswith(".")]

    content = {p.name: p.read_bytes() for p in files(tmp_path / "reference")}

    def work():
        for file in files(output):
            file.unlink()  # so that there is something to write
        pack([bundle], output, url=(tmp_path / "reference").as_uri())

    def check():
        for path in files(output):
            assert path.read_bytes() == content[path.name], path.name

    assert kill_again_and_again(work, check, kills=25) >= 8
    work()
    assert {p.name for p in files(output)} == set(content)
    check()
    assert leftovers(output) == []
    assert read_archive(reference, bundle.name)


def test_publishing(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", KEY)
    (tmp_path / "next").mkdir()
    make_zoo(tmp_path / "next", KEY, "0.2.0")

    def work():
        (zoo / f"{NAME}_v0.2.0.zip").write_bytes((tmp_path / "next" / f"{NAME}_v0.2.0.zip").read_bytes())
        publish(zoo, KEY)
        (zoo / f"{NAME}_v0.2.0.zip").unlink()
        publish(zoo, KEY)

    serials = []

    def check():
        serials.append(Source(str(zoo)).manifest(KEY.public_key()).serial)  # signed and whole at any moment
        json.loads((zoo / "model_info.json").read_text())

    assert kill_again_and_again(work, check, kills=25) >= 8
    assert serials == sorted(serials)
    publish(zoo, KEY)
    assert leftovers(zoo) == [f"huggingface/{NAME}/.gitattributes"]
    assert verify(Source(str(zoo)), KEY.public_key(), tmp_path)


def test_downloading_and_upgrading(tmp_path):
    """Killed while it fetches, unpacks or swaps: the bundle is the old or the new one, never a mixture."""
    old, new = (make_zoo(tmp_path / v, KEY, v, padding=400_000) for v in ("0.1.0", "0.2.0"))
    user = tmp_path / "user"
    whole = {v: members(v, padding=400_000) for v in ("0.1.0", "0.2.0")}
    with serving(old) as first, serving(new) as second:
        first.pause_s = second.pause_s = 0.002

        def work():
            for server in (first, second):
                download(Source(server.url), [], user, key=KEY.public_key(), allow_downgrade=True, progress=False)

        def check():
            folder = user / NAME if (user / NAME).exists() else user / f".{NAME}.old"
            if not folder.exists():
                return
            found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            found.pop(".multirecon.json", None)
            mine = found.pop("eval/mine.txt", b"mine")
            version = json.loads(found["configs/metadata.json"])["version"]
            assert found == whole[version]
            assert mine == b"mine"

        def with_results():
            work()
            (user / NAME / "eval").mkdir(exist_ok=True)
            (user / NAME / "eval" / "mine.txt").write_bytes(b"mine")

        with_results()
        assert kill_again_and_again(work, check, kills=40) >= 8
        work()
        check()
    assert (user / NAME / "eval" / "mine.txt").read_bytes() == b"mine"
    assert sorted(p.name for p in user.iterdir()) == [".zoo.json", NAME]
