import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from multirecon.data.download import CHECKSUMS, download

CONTENT = {f"training_seg_{n}.nii.gz": bytes([int(n)]) * 50_000 + n.encode() for n in ("01", "02")}
SUMS = {name[13:15]: hashlib.sha256(body).hexdigest() for name, body in CONTENT.items()}


class _Server(ThreadingHTTPServer):
    """Serves CONTENT with ranges; may break connections, or know no ranges."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: list[int] = []  # bytes after which the next answers end
        self.ranges = True
        self.corrupt = False


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        name, asked = self.path.rsplit("/", 1)[-1], self.headers.get("Range")
        self.server.requests.append((name, asked))
        if name not in CONTENT:
            self.send_error(404)
            return
        body = CONTENT[name]
        if self.server.corrupt:
            body = b"x" + body[1:]
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and self.server.ranges else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        limit = self.server.break_after.pop(0) if self.server.break_after else len(body)
        self.wfile.write(body[start : start + limit])

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    instance = _Server()
    thread = threading.Thread(target=instance.serve_forever, daemon=True)
    thread.start()
    yield instance
    instance.shutdown()
    instance.server_close()


def fetch(server, folder, **options):
    url = f"http://127.0.0.1:{server.server_address[1]}/maps"
    return download(folder, base_url=url, checksums=SUMS, progress=False, pause_s=0.01, **options)


def test_files_arrive_and_are_not_fetched_twice(server, tmp_path):
    paths = fetch(server, tmp_path / "maps")
    assert [p.name for p in paths] == list(CONTENT)
    assert all(p.read_bytes() == CONTENT[p.name] for p in paths)
    assert not list((tmp_path / "maps").glob("*.part"))
    count = len(server.requests)
    fetch(server, tmp_path / "maps")
    assert len(server.requests) == count


def test_a_broken_connection_is_continued_not_restarted(server, tmp_path):
    server.break_after = [20_000, 10_000]
    paths = fetch(server, tmp_path)
    assert paths[0].read_bytes() == CONTENT[paths[0].name]
    asked = [r for name, r in server.requests if name == paths[0].name]
    assert asked == [None, "bytes=20000-", "bytes=30000-"]


def test_a_part_of_an_earlier_run_is_continued(server, tmp_path):
    name = "training_seg_01.nii.gz"
    (tmp_path / f"{name}.part").write_bytes(CONTENT[name][:1234])
    fetch(server, tmp_path)
    assert server.requests[0] == (name, "bytes=1234-")
    assert (tmp_path / name).read_bytes() == CONTENT[name]


def test_a_server_without_ranges_works_too(server, tmp_path):
    server.ranges = False
    name = "training_seg_01.nii.gz"
    (tmp_path / f"{name}.part").write_bytes(b"stale")
    fetch(server, tmp_path)
    assert (tmp_path / name).read_bytes() == CONTENT[name]


def test_a_wrong_checksum_is_refused_and_removed(server, tmp_path):
    server.corrupt = True
    with pytest.raises(ValueError, match="SHA-256"):
        fetch(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_replaced(server, tmp_path):
    fetch(server, tmp_path)
    (tmp_path / "training_seg_02.nii.gz").write_bytes(b"damaged")
    fetch(server, tmp_path)
    assert (tmp_path / "training_seg_02.nii.gz").read_bytes() == CONTENT["training_seg_02.nii.gz"]


def test_missing_file_and_dead_server_end_in_one_clear_line(server, tmp_path):
    url = f"http://127.0.0.1:{server.server_address[1]}/maps"
    with pytest.raises(OSError, match="404"):
        download(tmp_path, base_url=url, checksums={"99": "0" * 64}, progress=False, pause_s=0.01)
    server.break_after = [100] * 10
    with pytest.raises(OSError, match="after 2 attempts"):
        fetch(server, tmp_path, attempts=2)


def test_table_names_all_public_maps():
    assert list(CHECKSUMS) == [f"{n:02d}" for n in range(1, 17)]
    assert all(len(digest) == 64 for digest in CHECKSUMS.values())
