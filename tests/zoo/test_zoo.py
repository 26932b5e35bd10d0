"""Publishing, listing, checking, downloading and upgrading, by our commands and by MONAI's own, over HTTP."""

import base64
import functools
import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
from contract.promises import CPU
from contract.stock import arguments
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from zoo.fresh import fresh_environment, run
from zoo.strangers import served
from zoo.tiny_zoo import NAME, make_zoo, members, serving, write, write_keys

from multirecon.__main__ import main
from multirecon.zoo.archives import read_archive
from multirecon.zoo.install import download
from multirecon.zoo.installed import installed_faults
from multirecon.zoo.manifest import MANIFEST, select
from multirecon.zoo.publish import GIT_ATTRIBUTES, publish, verify_installed
from multirecon.zoo.readme import requirements
from multirecon.zoo.source import Source

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def zoo(tmp_path):
    return make_zoo(tmp_path / "zoo", KEY)


def fetch(zoo, user, *names, **options):
    place = zoo if isinstance(zoo, str) else str(zoo)
    return download(Source(place), names, user, key=KEY.public_key(), progress=False, pause_s=0.01, **options)


def version_of(folder):
    return json.loads((folder / "configs" / "metadata.json").read_text())["version"]


def test_commands(tmp_path, capsys):
    private, public = write_keys(tmp_path, KEY)
    zoo, bundles = tmp_path / "zoo", tmp_path / "mit Bündel und ü"
    zoo.mkdir()
    write(zoo, members())
    with serving(zoo) as server:
        url = server.url
        assert main(["zoo", "publish", str(zoo), "--key", str(private), "--url", url]) == 0
        assert json.loads((zoo / f"{NAME}.json").read_text())["url"] == f"{url}/{NAME}_v0.1.0.zip"
        assert main(["zoo", "list", url, "--key", str(public)]) == 0
        assert main(["zoo", "verify", url, "--key", str(public), "--noprogress"]) == 0
        get = ["zoo", "download", url, NAME, "--bundle_dir", str(bundles)]
        assert main([*get, "--key", str(public)]) == 0
        check = ["zoo", "verify", url, "--key", str(public), "--bundle_dir", str(bundles)]
        assert main(check) == 0
        out = capsys.readouterr().out
        assert "signature checked" in out
        assert f"{NAME} 0.1.0 in {bundles / NAME}" in out
        (bundles / NAME / "configs" / "inference.json").write_text('{"run": []}')
        (bundles / NAME / "torch.py").write_text("evil")
        assert main(check) == 1
        out = capsys.readouterr().out
        assert "configs/inference.json" in out
        assert "torch.py" in out
        assert main(get) == 1
        assert "--key FILE" in capsys.readouterr().err
        assert main([*get, "--key", str(private)]) == 1
        assert main(["zoo", "list", str(tmp_path / "nowhere")]) == 1
        assert main(["zoo", "download", url, "other_mr", "--key", str(public), "--bundle_dir", str(bundles)]) == 1
        error = capsys.readouterr().err
        assert f"expected one of ['{NAME}'], got 'other_mr'" in error
        assert "Traceback" not in error
    assert main([*get, "--unsigned"]) == 1  # the server is gone
    assert "no complete answer" in capsys.readouterr().err


def test_the_private_key_is_not_served(tmp_path, capsys):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    write(zoo, members())
    private, _ = write_keys(zoo, KEY)
    assert main(["zoo", "publish", str(zoo), "--key", str(private)]) == 1
    assert "outside the folder" in capsys.readouterr().err


def test_publishing_again_changes_nothing(zoo):
    before = {p: p.read_bytes() for p in zoo.rglob("*") if p.is_file()}
    publish(zoo, KEY)
    assert {p: p.read_bytes() for p in zoo.rglob("*") if p.is_file()} == before


def test_openssl_agrees_with_the_signature(zoo, tmp_path):
    _, public = write_keys(tmp_path, KEY)
    signature, _, content = (zoo / MANIFEST).read_bytes().partition(b"\n")
    (tmp_path / "signature").write_bytes(base64.b64decode(signature))
    command = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        public,
        "-rawin",
        "-sigfile",
        tmp_path / "signature",
    ]
    for text, good in ((content, True), (content + b" ", False)):
        (tmp_path / "content").write_bytes(text)
        done = subprocess.run([*command, "-in", tmp_path / "content"], capture_output=True, check=False)
        assert (done.returncode == 0) is good, done.stderr


def test_a_broken_download_is_continued(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", KEY, padding=200_000)
    with serving(zoo) as server:
        server.break_after = [50_000, 60_000]
        fetch(server.url, tmp_path / "user")
        asked = [r for name, r in server.requests if name.endswith(".zip")]
        assert asked == [None, "bytes=50000-", "bytes=110000-"]
        assert not list((tmp_path / "user").glob(".p*"))


def test_what_an_ended_run_left_is_continued(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", KEY, padding=200_000)
    user = tmp_path / "user"
    with serving(zoo) as server:
        server.break_after = [50_000, 0, 0, 0]
        with pytest.raises(OSError, match="no complete answer after 4 attempts"):
            fetch(server.url, user)
        assert [p.stat().st_size for p in (user / ".parts").iterdir()] == [50_000]
        fetch(server.url, user)
        assert server.requests[-1][1] == "bytes=50000-"
    assert version_of(user / NAME) == "0.1.0"
    assert not (user / ".parts").exists()


def test_a_part_that_is_no_good_is_fetched_anew(zoo, tmp_path):
    user = tmp_path / "user"
    (entry,) = select(Source(str(zoo)).manifest(None), [])
    (user / ".parts").mkdir(parents=True)
    (user / ".parts" / f"{entry.file}.{entry.sha256[:12]}.part").write_bytes(b"x" * 100)
    with serving(zoo) as server:
        fetch(server.url, user)
        assert [r for name, r in server.requests if name.endswith(".zip")] == ["bytes=100-", None]
    assert installed_faults(user / NAME, entry) == []


def test_upgrade_in_place(zoo, tmp_path):
    user = tmp_path / "user"
    with serving(zoo) as server:
        (folder,) = fetch(server.url, user)
        (folder / "eval").mkdir()
        (folder / "eval" / "result.nii.gz").write_bytes(b"mine")
        (folder / "configs" / "my.json").write_text("{}")
        (folder / "__pycache__").mkdir()
        count = len(server.requests)
        fetch(server.url, user)
        assert [n for n, _ in server.requests[count:]] == [MANIFEST], "what is there is not fetched again"
        make_zoo(zoo, KEY, "0.2.0")
        fetch(server.url, user)
    assert version_of(folder) == "0.2.0"
    assert (folder / "models" / "model.pt").read_bytes() == b"weights of 0.2.0"
    assert (folder / "eval" / "result.nii.gz").read_bytes() == b"mine"
    assert (folder / "configs" / "my.json").read_text() == "{}"
    assert sorted(p.name for p in user.iterdir()) == [".zoo.json", NAME]


def test_upgrade_does_not_lose_what_a_user_changed(zoo, tmp_path):
    user = tmp_path / "user"
    (folder,) = fetch(zoo, user)
    (folder / "configs" / "inference.json").write_text('{"mine": 1}')
    write(zoo, members("0.2.0", **{"configs/my.json": b"theirs"}), "0.2.0")
    publish(zoo, KEY)
    with pytest.raises(ValueError, match=r"\['configs/inference.json'\] edited"):
        fetch(zoo, user)
    (folder / "configs" / "inference.json").write_bytes(b"{}")
    (folder / "configs" / "my.json").write_text("mine")
    with pytest.raises(ValueError, match=r"no file of yours .* got \['configs/my.json'\]"):
        fetch(zoo, user)
    assert (version_of(folder), (folder / "configs" / "my.json").read_text()) == ("0.1.0", "mine")
    fetch(zoo, user, overwrite=True)
    assert (version_of(folder), (folder / "configs" / "my.json").read_text()) == ("0.2.0", "theirs")


def test_a_folder_that_came_another_way_is_left_alone(zoo, tmp_path):
    (tmp_path / "user" / NAME).mkdir(parents=True)
    (tmp_path / "user" / NAME / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="move it away first"):
        fetch(zoo, tmp_path / "user")
    assert (tmp_path / "user" / NAME / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("moment", ["between", "after"])
def test_an_upgrade_that_was_killed_is_ended_by_the_next_run(zoo, tmp_path, moment):
    user = tmp_path / "user"
    (folder,) = fetch(zoo, user)
    (folder / "eval").mkdir()
    (folder / "eval" / "result.txt").write_text("mine")
    make_zoo(zoo, KEY, "0.2.0")
    fetch(zoo, tmp_path / "other")
    folder.rename(user / f".{NAME}.old")
    if moment == "after":
        (tmp_path / "other" / NAME).rename(folder)
    (user / ".staging" / NAME).mkdir(parents=True)
    fetch(zoo, user)
    assert version_of(folder) == "0.2.0"
    assert (folder / "eval" / "result.txt").read_text() == "mine"
    assert sorted(p.name for p in user.iterdir()) == [".zoo.json", NAME]


# ------------------------------------------------------------------------------------------------- MONAI's own commands


def test_stock_download_by_the_args_file(zoo, tmp_path):
    with served(zoo) as url:
        publish(zoo, KEY, url=url)
        monai.bundle.download(args_file=str(zoo / f"{NAME}.json"), bundle_dir=str(tmp_path / "stock"), progress=False)
    manifest = Source(str(zoo)).manifest(KEY.public_key())
    assert verify_installed(manifest, tmp_path / "stock") == {f"{NAME} 0.1.0": []}


def test_stock_download_from_github_releases(zoo, tmp_path, monkeypatch):
    """The assets of the release `hosting_storage_v1`, as MONAI lists and fetches them."""
    make_zoo(zoo, KEY, "0.2.0")
    with served(zoo) as url:
        files = [*sorted(zoo.glob("*.zip")), zoo / MANIFEST]
        assets = [{"name": p.name, "browser_download_url": f"{url}/{p.name}"} for p in files]
        releases = [{"tag_name": "v1", "assets": []}, {"tag_name": "hosting_storage_v1", "assets": assets}]

        class Answer:
            text = json.dumps(releases)

            def raise_for_status(self):
                pass

        scripts = monai.bundle.scripts
        asked = []
        monkeypatch.setattr(scripts.requests, "get", lambda address, **_: asked.append(address) or Answer())
        monkeypatch.setattr(
            scripts, "_get_git_release_url", lambda owner, repo, tag_name, filename: f"{url}/{filename}"
        )
        listed = monai.bundle.get_all_bundles_list(repo="owner/repo", tag="hosting_storage_v1")
        assert (NAME, "0.2.0") in listed
        assert asked == ["https://api.github.com/repos/owner/repo/releases"]
        versions = monai.bundle.get_bundle_versions(NAME, repo="owner/repo", tag="hosting_storage_v1")
        assert versions == {"latest_version": "0.2.0", "all_versions": ["0.1.0", "0.2.0"]}
        place = {"source": "github", "repo": "owner/repo/hosting_storage_v1", "progress": False}
        monai.bundle.download(NAME, version="0.2.0", bundle_dir=str(tmp_path / "stock"), **place)
    assert version_of(tmp_path / "stock" / NAME) == "0.2.0"


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download needs: a listing of one commit, and its files."""

    def __init__(self, *arguments, root: Path):
        self.root = root
        super().__init__(*arguments)

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body):
        path = self.path.partition("?")[0].strip("/")
        files = sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())
        headers = {}
        if path.startswith("api/models/owner/"):
            siblings = [{"rfilename": f} for f in files]
            if "/tree/" in path:
                content = json.dumps([{"type": "file", "oid": "0" * 40, "path": f, "size": 1} for f in files]).encode()
            else:
                content = json.dumps({"id": f"owner/{NAME}", "sha": "a" * 40, "siblings": siblings}).encode()
            headers["Content-Type"] = "application/json"
        else:
            content = (self.root / path.split("/", 4)[4]).read_bytes()
            headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Repo-Commit"] = "a" * 40
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_arguments):
        pass


def test_stock_download_from_a_hugging_face_repository(zoo, tmp_path):
    repository = zoo / "huggingface" / NAME
    assert (repository / ".gitattributes").read_text() == GIT_ATTRIBUTES
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Hub, root=repository))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = str(tmp_path / "hub" / NAME)
    command = (
        "from huggingface_hub import snapshot_download as get; "
        f"get('owner/{NAME}', revision='0.1.0', local_dir={place!r})"
    )
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(tmp_path / "cache")}
    try:
        done = run(Path(sys.executable), "-c", command, cwd=tmp_path, HF_HUB_DISABLE_PROGRESS_BARS="1", **settings)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    manifest = Source(str(zoo)).manifest(KEY.public_key())
    assert verify_installed(manifest, tmp_path / "hub") == {f"{NAME} 0.1.0": []}


@pytest.mark.slow
def test_stock_commands_end_to_end(packed, tmp_path):
    """`download --args_file`, `run`, `load` in an environment with the documented packages only, over HTTP."""
    bundle, archive = packed
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    (zoo / archive.name).write_bytes(archive.read_bytes())
    with served(zoo) as url:
        publish(zoo, KEY, url=url, huggingface=False)
        metadata = json.loads(read_archive(archive, bundle.name)["configs/metadata.json"])
        python = fresh_environment(tmp_path / "venv", [*requirements(metadata), "requests", "huggingface_hub"])
        arguments_file = zoo / f"{bundle.name}.json"
        done = run(python, "-m", "monai.bundle", "download", "--args_file", str(arguments_file), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    root = tmp_path / "bundles" / bundle.name
    places = {"bundle_root": str(root), "dataset_dir": str(root / "sample"), "output_dir": str(tmp_path / "out")}
    words = arguments("run", config_file=str(root / "configs" / "inference.json"), device=CPU, **places, **bundle.quick)
    done = run(python, "-m", "monai.bundle", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").glob("*.nii.gz"))
    code = (
        f"import monai.bundle; n = monai.bundle.load({bundle.name!r}, bundle_dir={str(root.parent)!r}, "
        "workflow_type='inference', device='cpu'); print(sum(p.numel() for p in n.parameters()))"
    )
    done = run(python, "-c", code, cwd=tmp_path, PYTHONPATH=str(root))
    assert done.returncode == 0, done.stderr
    assert np.isfinite(float(done.stdout.split()[-1]))
