"""The parent's handle on a worker: start, ask, time out, kill, start again."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import multirecon

__all__ = ["START_SECONDS", "Worker", "Workers"]

START_SECONDS = 180.0
KEPT = ("MULTIRECON_CACHE",)  # projection matrices; the simulated subjects beside them are guarded


class Worker:
    """A process that runs one bundle; it is started on the first job and again after one that killed it.

    Args:
        folder: the worker's own folder: working directory and log.
        forbidden: files and folders from which the truth is made.
        allowed: folders it may read even inside a forbidden one.
    """

    def __init__(self, folder: Path, *, forbidden: Sequence[str] = (), allowed: Sequence[str] = ()) -> None:
        self.folder = folder
        self.forbidden = list(forbidden)
        self.allowed = [*allowed, str(folder)]
        self.log = folder / "log.txt"
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def run(self, job: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        """Return the worker's answer to a job, or a failure: crash, time-out, or a process that does not start.

        Args:
            job: see :func:`multirecon.harness.worker.run_job`.
            timeout: seconds that the job may take, without the start of the process.
        """
        if self._process is None:
            problem = self._start()
            if problem:
                return _failed(problem)
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(dict(job)) + "\n")
            process.stdin.flush()
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.stop()
            return _failed(f"timeout: no result within {timeout:g} s")
        except OSError:
            answer = None
        if answer is None:
            return _failed(self._crash())
        return answer

    def stop(self) -> None:
        """End the process, if it runs."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except OSError:
                pass  # what was still buffered for a dead process
        self._process = None

    def _start(self) -> str:
        """Start the process; return what went wrong, or an empty text."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._answers = queue.Queue()
        with self.log.open("a") as log:
            self._process = process = subprocess.Popen(
                [sys.executable, "-P", "-m", "multirecon.harness.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.folder,
                env=environment(),
                text=True,
            )
        threading.Thread(target=_listen, args=(process, self._answers), daemon=True).start()
        assert process.stdin is not None
        settings = {"log": str(self.log), "forbidden": self.forbidden, "allowed": self.allowed}
        try:
            process.stdin.write(json.dumps(settings) + "\n")
            process.stdin.flush()
            answer = self._answers.get(timeout=START_SECONDS)
        except queue.Empty:
            self.stop()
            return f"timeout: the process did not start within {START_SECONDS:g} s"
        except OSError:
            answer = None
        return "" if answer else self._crash()

    def _crash(self) -> str:
        assert self._process is not None
        begin = time.monotonic()
        while self._process.poll() is None and time.monotonic() - begin < 5:
            time.sleep(0.01)
        code = self._process.poll()
        self.stop()
        tail = self.log.read_text(errors="replace").strip().splitlines()[-1:] if self.log.exists() else []
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"crash: the process ended ({how})" + (f"; last line of its log: {tail[0][:200]}" if tail else "")


class Workers:
    """Workers that are kept for further jobs, by name: starting a process costs more than most reconstructions."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._known: dict[str, Worker] = {}

    def __enter__(self) -> Workers:
        self._home = Path(self._stack.enter_context(TemporaryDirectory(prefix="multirecon-workers-")))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Worker:
        """Return the worker of that name, a new one at the first call."""
        if name not in self._known:
            self._known[name] = self._stack.enter_context(Worker(self._home / str(len(self._known))))
        return self._known[name]


def _listen(process: subprocess.Popen[str], answers: queue.Queue[dict[str, Any] | None]) -> None:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            answers.put(json.loads(line))
    except ValueError:
        pass  # the pipe was closed, or the process wrote garbage: either way nothing more comes
    answers.put(None)


def _failed(reason: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason}


def environment() -> dict[str, str]:
    """Return the worker's environment: this one's, without the settings that lead to data, with this very package."""
    values = {k: v for k, v in os.environ.items() if k in KEPT or not k.startswith("MULTIRECON_")}
    package = str(Path(multirecon.__file__).resolve().parents[1])
    given = [str(Path(p).absolute()) for p in values.get("PYTHONPATH", "").split(os.pathsep) if p]
    values["PYTHONPATH"] = os.pathsep.join([package, *given])
    return values
