"""A small zoo for tests: archives in the right form with next to nothing inside, and a server with its faults."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from multirecon.bundle.package import content_hash
from multirecon.zoo.archives import archive_name, write_archive
from multirecon.zoo.manifest import MANIFEST
from multirecon.zoo.publish import publish
from multirecon.zoo.signature import sign

NAME = "tiny_mr"


def members(version: str = "0.1.0", name: str = NAME, padding: int = 0, **more: bytes) -> dict[str, bytes]:
    """What the archive of a bundle holds, relative to its folder."""
    package = {"__init__.py": b'__version__ = "0.1.0"\n', "space.py": b"MILLIMETRE = 1.0\n"}
    stamp = {"version": "0.1.0", "sha256": content_hash(package.items())}
    metadata = {"name": name, "version": version, "task": "MR of nothing", "multirecon": {"package": stamp}}
    return {
        "LICENSE": b"Apache-2.0\n",
        "README.md": f"# {name} {version}\n".encode(),
        "configs/metadata.json": json.dumps(metadata).encode(),
        "configs/inference.json": b"{}",
        "models/model.pt": b"weights of " + version.encode() + bytes(padding),
        "multirecon/packed.json": json.dumps(stamp).encode(),
        **{f"multirecon/{file}": content for file, content in package.items()},
        **more,
    }


def inside(content: dict[str, bytes], name: str = NAME) -> dict[str, bytes]:
    return {f"{name}/{file}": data for file, data in content.items()}


def write(folder: Path, content: dict[str, bytes], version: str = "0.1.0", name: str = NAME) -> Path:
    return write_archive(inside(content, name), folder / archive_name(name, version))


def make_zoo(folder: Path, key: Ed25519PrivateKey, *versions: str, padding: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for version in versions or ("0.1.0",):
        write(folder, members(version, padding=padding), version)
    publish(folder, key)
    return folder


def forge(folder: Path, key: Ed25519PrivateKey, change: dict[str, object]) -> None:
    """Sign a manifest whose first archive says something else: the owner's key in the wrong hands, or a mistake."""
    content = json.loads((folder / MANIFEST).read_bytes().partition(b"\n")[2])
    content["archives"][0].update(change)
    text = json.dumps(content).encode()
    (folder / MANIFEST).write_bytes(sign(text, key) + text)


def write_keys(folder: Path, key: Ed25519PrivateKey) -> tuple[Path, Path]:
    private, public = folder / "zoo.pem", folder / "zoo.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


class Server(ThreadingHTTPServer):
    """Serves a folder with ranges; may break connections, send too much, or be slow."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: list[int] = []
        self.endless = False
        self.pause_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, asked = self.path.strip("/"), self.headers.get("Range")
        self.server.requests.append((name, asked))
        path = self.server.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        body = path.read_bytes()
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        archive = name.endswith(".zip")
        if not (archive and self.server.endless):
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        body = body[start:]
        if archive and self.server.break_after:
            body = body[: self.server.break_after.pop(0)]
        try:
            for begin in range(0, len(body), 1 << 14):
                self.wfile.write(body[begin : begin + (1 << 14)])
                time.sleep(self.server.pause_s if archive else 0)
            while archive and self.server.endless:
                self.wfile.write(bytes(1 << 14))
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
