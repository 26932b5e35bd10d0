"""The worst place to start a command from, and a server on loopback."""

import functools
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def folder_with_strangers(parent: Path) -> Path:
    """A folder with blanks and an umlaut in its path that holds packages which other people called the same."""
    folder = parent / "mit Bündel und ü"
    for name in ("multirecon", "scripts"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('a stranger')\n", encoding="utf-8")
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder as `python -m http.server` does; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def other_version(multirecon: Path, folder: Path) -> Path:
    """Copy a multirecon with another version number; returns the folder to put on Python's path."""
    copy = Path(shutil.copytree(multirecon, folder / "other" / "multirecon"))
    text = (copy / "__init__.py").read_text(encoding="utf-8")
    (copy / "__init__.py").write_text(text.replace('__version__ = "', '__version__ = "9.'), encoding="utf-8")
    return copy.parent
