"""Runs of the stock command `python -m monai.bundle`, many of them for the price of one import of MONAI.

A server process imports torch and MONAI once and forks for every command; the child has the command's own directory,
arguments and `sys.path`, has not imported multirecon yet, and runs MONAI's module as `python -m` does. Where a system
cannot fork, every command is a process of its own.
"""

import contextlib
import gc
import json
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Done:
    """What a command left: exit code and text."""

    code: int
    out: str
    err: str


def arguments(command: str, **options: Any) -> list[str]:
    """Return the arguments of ``python -m monai.bundle COMMAND --key value ...``; values in Python's notation."""
    pairs = [(f"--{key}", value if isinstance(value, str) else repr(value)) for key, value in options.items()]
    return [command, *(text for pair in pairs for text in pair)]


def environment() -> dict[str, str]:
    """The environment of a user: nothing of the test's Python path."""
    lost = ("PYTHONPATH", "PYTHONHOME", "MULTIRECON_TRACEBACK")
    kept = {key: value for key, value in os.environ.items() if key not in lost}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1"}


def run_command(words: list[str], cwd: Path, python: Path = Path(sys.executable)) -> Done:
    """Run the stock command in a process of its own."""
    done = subprocess.run(
        [str(python), "-m", "monai.bundle", *words],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Stock:
    """The server as a context; ``run`` answers as :func:`run_command` does.

    Args:
        folder: for the output of the commands.
        python: of the environment whose commands they are.
    """

    def __init__(self, folder: Path, python: Path = Path(sys.executable)) -> None:
        self.folder, self.python = folder, python
        self.count = 0
        self.server: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Stock":
        if hasattr(os, "fork") and sys.platform != "darwin":
            self.server = subprocess.Popen(
                [str(self.python), __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(),
                encoding="utf-8",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.server is not None and self.server.stdin is not None:
            self.server.stdin.close()
            self.server.wait(30)

    def run(self, words: list[str], cwd: Path) -> Done:
        """Run ``python -m monai.bundle WORDS`` in a directory."""
        if self.server is None or self.server.stdin is None or self.server.stdout is None:
            return run_command(words, cwd, self.python)
        self.count += 1
        out, err = (self.folder / f"{self.count:03d}.{name}" for name in ("out", "err"))
        job = {"words": words, "cwd": str(cwd), "out": str(out), "err": str(err)}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        if not answer:
            raise RuntimeError("the server of stock commands has died")
        texts = [p.read_text(encoding="utf-8", errors="replace") for p in (out, err)]
        return Done(json.loads(answer)["code"], *texts)


def serve() -> None:
    """Import what every command needs, then fork for each line of standard input."""
    import fire  # noqa: F401
    import h5py  # noqa: F401
    import jsonschema  # noqa: F401
    import matplotlib.image  # noqa: F401
    import nibabel  # noqa: F401
    import scipy.sparse.linalg  # noqa: F401
    import torch
    from monai.bundle import ComponentLocator

    torch.set_num_threads(1)
    ComponentLocator().get_component_module_name("Compose")  # imports all of MONAI, as the first name in a config does
    gc.freeze()  # children share the pages instead of copying them at their first collection
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _command(job)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


def _command(job: dict[str, Any]) -> None:
    code = 1
    try:
        for stream, name in ((1, "out"), (2, "err")):
            target = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(target, stream)
        os.chdir(job["cwd"])
        sys.path[0] = os.getcwd()
        sys.argv = ["monai.bundle", *job["words"]]
        try:
            runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
