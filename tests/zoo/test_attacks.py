"""What a zoo must refuse: each attack is planted, over HTTP, and nothing of it is left behind."""

import io
import json
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from zoo.tiny_zoo import NAME, forge, inside, make_zoo, members, serving, write

from multirecon.transfer import file_sha256
from multirecon.zoo.archives import DATE, read_archive
from multirecon.zoo.install import download
from multirecon.zoo.manifest import MANIFEST
from multirecon.zoo.publish import publish
from multirecon.zoo.source import Source

FILE = f"{NAME}_v0.1.0.zip"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def pack_freely(
    content: list[tuple[str, bytes]], *, mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_STORED
) -> bytes:
    """A ZIP file as somebody else writes it: any name, as often as wanted; ``mode`` is that of the last member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index, (name, data) in enumerate(content):
            info = zipfile.ZipInfo(name, DATE)
            info.create_system, info.compress_type = 3, method
            info.external_attr = (mode if index == len(content) - 1 else stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def plain(*more: tuple[str, bytes]) -> list[tuple[str, bytes]]:
    """The members of a good archive and some more, in order."""
    return sorted([*inside(members()).items(), *more])


def replaced(folder: Path, data: bytes) -> None:
    """Put an archive in the place of the good one, signed by the owner's own key: only its form is left to refuse."""
    (folder / FILE).write_bytes(data)
    forge(folder, KEY, {"size": len(data), "sha256": file_sha256(folder / FILE)})


def _tampered(folder):
    data = bytearray((folder / FILE).read_bytes())
    data[data.index(b"weights of")] ^= 1
    (folder / FILE).write_bytes(data)


def _truncated(folder):
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-30])


def _another_archive(folder):
    write(folder, members(LICENSE=b"mine\n"))


def _wrong_hash(folder):
    forge(folder, KEY, {"sha256": "0" * 64})


def _manifest_changed(folder):
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes().replace(b"MR of nothing", b"MR of anything"))


def _foreign_key(folder):
    forge(folder, OTHER, {"task": "signed by somebody else"})


def _no_signature(folder):
    path = folder / MANIFEST
    path.write_bytes(b"\n" + path.read_bytes().partition(b"\n")[2])


def _manifest_names_a_path(folder):
    forge(folder, KEY, {"file": "../../etc/passwd"})


def _manifest_name_traverses(folder):
    forge(folder, KEY, {"name": "../evil_mr", "file": "../evil_mr_v0.1.0.zip"})


def _traversal(folder):
    replaced(folder, pack_freely(plain((f"{NAME}/../../evil.py", b"evil"))))


def _absolute(folder):
    replaced(folder, pack_freely([("/tmp/evil.py", b"evil"), *plain()]))


def _drive(folder):
    replaced(folder, pack_freely([("C:\\evil.py", b"evil"), *plain()]))


def _outside(folder):
    replaced(folder, pack_freely(plain(("other_mr/evil.py", b"evil"))))


def _symlink(folder):
    replaced(folder, pack_freely(plain((f"{NAME}/sample/zz", b"/etc/passwd")), mode=stat.S_IFLNK | 0o777))


def _device(folder):
    replaced(folder, pack_freely(plain((f"{NAME}/sample/zz", b"")), mode=stat.S_IFCHR | 0o666))


def _duplicate(folder):
    replaced(folder, pack_freely(plain((f"{NAME}/LICENSE", b"mine\n"))))


def _case_collision(folder):
    replaced(folder, pack_freely(plain((f"{NAME}/configs/Inference.json", b"mine"))))


def _file_and_folder(folder):
    replaced(folder, pack_freely(plain((f"{NAME}/models", b"mine"))))


def _bomb(folder):
    replaced(folder, pack_freely(plain((f"{NAME}/sample/zeros", bytes(50_000_000))), method=zipfile.ZIP_DEFLATED))


def _overlapping(folder):
    """Two entries of the list that point to the same bytes: a bomb without compression."""
    data = bytearray(pack_freely(plain((f"{NAME}/sample/aaaa", b"x" * 1000), (f"{NAME}/sample/bbbb", b"x" * 1000))))
    first = data.index(f"{NAME}/sample/aaaa".encode()) - 30
    where = data.rindex(f"{NAME}/sample/bbbb".encode()) - 46 + 42
    data[where : where + 4] = struct.pack("<I", first)
    replaced(folder, bytes(data))


def _lying_size(folder):
    """The list says 10 bytes, the member has 1000."""
    data = bytearray(pack_freely(plain((f"{NAME}/sample/zzzz", b"x" * 1000))))
    where = data.rindex(f"{NAME}/sample/zzzz".encode()) - 46
    data[where + 20 : where + 28] = struct.pack("<II", 10, 10)
    replaced(folder, bytes(data))


def _bytes_in_front(folder):
    replaced(folder, b"#!/bin/sh\nexit\n" + (folder / FILE).read_bytes())


def _extra_module(folder):
    replaced(folder, pack_freely(plain((f"{NAME}/torch.py", b"evil"))))


def _extra_in_package(folder):
    replaced(folder, pack_freely(plain((f"{NAME}/multirecon/harness/evil.py", b"evil"))))


def _package_changed(folder):
    content = members() | {"multirecon/space.py": b"evil"}
    replaced(folder, write(folder, content).read_bytes())


def _another_bundle(folder):
    content = members(name="other_mr")
    replaced(folder, write(folder, content).read_bytes())


def _older_inside(folder):
    replaced(folder, write(folder, members("0.0.9")).read_bytes())


def _unlisted_content(folder):
    """In good form, signed and hashed, but not the files that the manifest promises."""
    replaced(folder, write(folder, members() | {"configs/inference.json": b'{"run": ["evil"]}'}).read_bytes())


ATTACKS = {
    _tampered: "SHA-256",
    _truncated: "bytes",
    _another_archive: "SHA-256|bytes",
    _wrong_hash: "SHA-256",
    _manifest_changed: "signature",
    _foreign_key: "signature",
    _no_signature: "signature",
    _manifest_names_a_path: "file: expected",
    _manifest_name_traverses: "name: expected",
    _traversal: "relative path",
    _absolute: "relative path",
    _drive: "relative path",
    _outside: "inside the folder",
    _symlink: "a folder or a link",
    _device: "a folder or a link",
    _duplicate: "the same file",
    _case_collision: "the same file",
    _file_and_folder: "both a file and a folder",
    _bomb: "stored file",
    _overlapping: "at byte",
    _lying_size: "at byte",
    _bytes_in_front: "at byte",
    _extra_module: "does not belong into a bundle",
    _extra_in_package: "hash does not count",
    _package_changed: "multirecon with SHA-256",
    _another_bundle: "its own metadata",
    _older_inside: "its own metadata",
    _unlisted_content: "what the manifest says",
}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def test_there_are_twenty_attacks():
    assert len(ATTACKS) >= 20


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.__name__.strip("_"))
def test_attack_is_refused_and_leaves_nothing(attack, tmp_path):
    zoo = make_zoo(tmp_path / "zoo", KEY)
    attack(zoo)
    with serving(zoo) as server:
        source = Source(server.url)
        place = tmp_path / "user"
        place.mkdir()
        with pytest.raises(ValueError, match=ATTACKS[attack]) as caught:
            download(source, [], place / "bundles", key=KEY.public_key(), progress=False, pause_s=0.01)
        assert "\n" not in str(caught.value)
        assert everything(place) == {}
        # neither does it harm what is there
        good = make_zoo(tmp_path / "good", KEY, "0.0.8")
        download(Source(str(good)), [], place, key=KEY.public_key(), progress=False)
        before = everything(place)
        assert (place / NAME / "LICENSE").is_file()
        with pytest.raises(ValueError, match=ATTACKS[attack]):
            download(source, [], place, key=KEY.public_key(), progress=False, pause_s=0.01)
        assert everything(place) == before
    assert not (tmp_path / "evil.py").exists()


def test_the_same_zoo_without_an_attack_is_accepted(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", KEY)
    with serving(zoo) as server:
        (folder,) = download(Source(server.url), [], tmp_path / "user", key=KEY.public_key(), progress=False)
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found.pop(".multirecon.json")
    assert found == read_archive(zoo / FILE, NAME) == members()


def test_endless_answer_is_cut(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", KEY)
    with serving(zoo) as server:
        server.endless = True
        with pytest.raises(ValueError, match="expected at most"):
            download(Source(server.url), [], tmp_path / "user", key=KEY.public_key(), progress=False)
    assert not (tmp_path / "user").exists()


def test_downgrades_are_refused(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", KEY)
    old = (zoo / MANIFEST).read_bytes()
    make_zoo(zoo, KEY, "0.2.0")
    new = (zoo / MANIFEST).read_bytes()
    user = tmp_path / "user"

    def fetch(*names, **options):
        return download(Source(str(zoo)), names, user, key=KEY.public_key(), progress=False, **options)

    fetch()
    before = everything(user)
    with pytest.raises(ValueError, match=r"expected version 0.2.0 \(there now\) or later, got 0.1.0"):
        fetch(f"{NAME}:0.1.0")
    (zoo / MANIFEST).write_bytes(old)  # rightly signed, but of yesterday
    with pytest.raises(ValueError, match=r"expected number 2 \(seen before\) or later, got 1"):
        fetch()
    assert everything(user) == before
    fetch(allow_downgrade=True)
    assert json.loads((user / NAME / "configs/metadata.json").read_text())["version"] == "0.1.0"
    (zoo / MANIFEST).write_bytes(new)
    fetch()
    assert everything(user) == before


def test_a_version_never_changes(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", KEY)
    download(Source(str(zoo)), [], tmp_path / "user", key=KEY.public_key(), progress=False)
    write(zoo, members(LICENSE=b"mine\n"))
    with pytest.raises(ValueError, match="raise the bundle's version"):
        publish(zoo, KEY)
    (zoo / MANIFEST).unlink()
    publish(zoo, KEY)
    with pytest.raises(ValueError, match="a published version never changes"):
        download(Source(str(zoo)), [], tmp_path / "user", key=KEY.public_key(), progress=False)


def test_another_key_cannot_take_a_zoo_over(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", KEY)
    before = everything(zoo)
    with pytest.raises(ValueError, match="signed by somebody else"):
        publish(zoo, OTHER)
    assert everything(zoo) == before
