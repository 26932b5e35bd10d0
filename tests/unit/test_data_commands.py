"""Sub-commands for data sets and anatomies, run as a user types them."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from multirecon import __main__ as cli
from multirecon.data import commands, download
from multirecon.data.cached_slices import CachedSlices

COARSE = {"spacing_mm": [7.5, 7.5, 7.5], "matrix": 32}
TINY = ["--size", "16", "--spacing-mm", "15", "--stride", "3", "--modalities", "t1,ct", "--noprogress"]


@pytest.fixture(autouse=True)
def _embedded_only(monkeypatch):
    monkeypatch.delenv("MULTIRECON_ANATOMIES", raising=False)


@pytest.fixture
def build(tmp_path):
    """Run `multirecon dataset build` on a coarse grid; returns the exit code."""
    config = tmp_path / "coarse.json"
    config.write_text(json.dumps(COARSE), encoding="utf-8")

    def run(*words):
        return cli.main(["dataset", "build", str(tmp_path / "set"), *TINY, "--config", str(config), *words])

    run.folder = tmp_path / "set"
    return run


def test_a_set_is_built_extended_described_and_checked(build, capsys):
    assert build("--split", "train") == 0
    first = capsys.readouterr().out
    assert "subjects     1\n" in first
    assert "16 x 16 pixels of 15 mm, every 3. slice" in first
    held = {p.parent.name: p.stat().st_mtime_ns for p in build.folder.glob("*/subject.json")}

    assert build("--split", "train", "--seeds", "2") == 0
    assert "subjects     2\n" in capsys.readouterr().out
    assert held.items() <= {p.parent.name: p.stat().st_mtime_ns for p in build.folder.glob("*/subject.json")}.items()
    data = CachedSlices(build.folder, ["t1", "ct"], split="train")
    assert data[0]["image"].shape == (2, 16, 16)

    assert cli.main(["dataset", "info", str(build.folder), "--verify"]) == 0
    told = capsys.readouterr().out
    assert f"slices       {len(data)} (mni152 {len(data)})\n" in told
    assert "modalities   t1, ct\n" in told
    assert "every file as it was written" in told


def test_a_damaged_set_is_found_out(build, capsys):
    assert build("--split", "validation") == 0
    path = next(build.folder.glob("*/t1.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert cli.main(["dataset", "info", str(build.folder)]) == 0
    capsys.readouterr()
    assert cli.main(["dataset", "info", str(build.folder), "--verify"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "t1.npy does not match its checksum" in captured.err


def test_a_set_of_another_split_or_grid_is_refused(build, capsys):
    assert build("--split", "train") == 0
    assert build("--split", "test") == 1
    assert "holds a set with split train, not test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["build", "x"], 2, "missing argument SPLIT"),
        (["build", "x", "--split", "train", "--seeds", "two"], 2, "--seeds: expected a whole number"),
        (["build", "x", "--split", "train", "--seeds", "0"], 1, "seeds: expected > 0, got 0"),
        (["build", "x", "--split", "trian"], 1, "split: expected one of"),
        (["build", "x", "--split", "train", "--modalities", "t3"], 1, "modalities: expected names out of"),
        (["build", "x", "--split", "train", "--anatomies", "09"], 1, "anatomies: expected some of ['mni152'], got 09"),
        (["build", "x", "--split", "train", "--config", "none.json"], 1, "none.json"),
        (["info", "x"], 1, "expected a set made by build"),
        (["biuld", "x"], 2, "unknown command 'dataset biuld'; there are dataset build, dataset info"),
        ([], 2, "unknown command 'dataset'; there are dataset build, dataset info"),
    ],
)
def test_wrong_words_make_no_folder(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["dataset", *words]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("text", "message"), [("{", "expected a JSON file"), ("[1]", "expected a JSON object"),
                                               ('{"matrx": 3}', "expected fields of PhantomConfig")])  # fmt: skip
def test_wrong_knobs_are_refused(text, message, tmp_path, capsys):
    (tmp_path / "knobs.json").write_text(text, encoding="utf-8")
    words = ["dataset", "build", str(tmp_path / "x"), "--split", "train", "--config", str(tmp_path / "knobs.json")]
    assert cli.main(words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_help_of_a_group_and_of_a_command(capsys):
    assert cli.main(["dataset", "--help"]) == 0
    told = capsys.readouterr().out
    assert "dataset build" in told
    assert "anatomies" not in told
    assert cli.main(["dataset", "build", "--help"]) == 0
    captured = capsys.readouterr()
    assert "multirecon dataset build OUTPUT" in captured.out + captured.err


@pytest.fixture
def server(monkeypatch):
    """A server of two label maps, in place of the public one."""
    content = {f"training_seg_{n}.nii.gz": n.encode() * 1000 for n in ("01", "09")}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rsplit("/", 1)[-1]
            asked.append(name)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content[name])))
            self.end_headers()
            self.wfile.write(content[name])

        def log_message(self, *_):
            pass

    instance = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=instance.serve_forever, daemon=True)
    thread.start()
    sums = {name[13:15]: hashlib.sha256(body).hexdigest() for name, body in content.items()}
    monkeypatch.setattr(download, "CHECKSUMS", sums)
    monkeypatch.setitem(download.download.__kwdefaults__, "base_url", f"http://127.0.0.1:{instance.server_port}/maps")
    yield asked
    instance.shutdown()
    thread.join()
    instance.server_close()


def test_label_maps_are_fetched_once_and_listed(server, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "maps"
    words = ["anatomies", "download", str(folder), "--noprogress"]
    assert cli.main([*words, "--names", "09"]) == 0
    assert server == ["training_seg_09.nii.gz"]
    assert f"export MULTIRECON_ANATOMIES={folder}" in capsys.readouterr().out
    assert cli.main(words) == 0
    assert server == ["training_seg_09.nii.gz", "training_seg_01.nii.gz"]
    assert "2 label maps" in capsys.readouterr().out

    monkeypatch.setenv("MULTIRECON_ANATOMIES", str(folder))
    assert cli.main(["anatomies", "list"]) == 0
    told = capsys.readouterr().out
    assert "01          train\n09          test\n" in told
    assert "no anatomy at hand of: validation, out_of_distribution" in told


def test_an_unknown_label_map_is_not_asked_for(server, tmp_path, capsys):
    assert cli.main(["anatomies", "download", str(tmp_path / "maps"), "--names", "01,77"]) == 1
    assert "names: expected some of 01, 09, got 77" in capsys.readouterr().err
    assert server == []


def test_without_the_setting_there_is_the_embedded_anatomy(capsys):
    commands.anatomies_list()
    told = capsys.readouterr().out
    assert told.startswith("mni152      every split, by seed (embedded)\n")
    assert "anatomies download FOLDER" in told
