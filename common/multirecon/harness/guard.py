"""Keeps a method's process away from the truth: files that hold it cannot be opened.

A method runs in a process that was never given the truth; this guard closes the remaining door, the files from which
the truth was made. It is meant against mistakes and shortcuts, not against an attacker: code that forges its own system
calls is found by reading it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Guard"]

# audit event -> positions of the arguments that name a file
EVENTS = {"open": (0,), "os.link": (0,), "os.rename": (0,)}
HARMLESS = (".py", ".pyc", ".csv", ".json", ".txt", ".md")
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")


class Guard:
    """An audit hook that refuses forbidden files; it cannot be taken out of the process again.

    Args:
        forbidden: files and folders that may not be opened.
        allowed: folders that may be, even inside a forbidden one.
        suffixes: endings that are always harmless (Python sources and small tables inside a data folder).
    """

    def __init__(
        self, forbidden: Sequence[str], *, allowed: Sequence[str] = (), suffixes: Sequence[str] = HARMLESS
    ) -> None:
        self.forbidden = tuple(os.path.realpath(p) for p in forbidden)
        self.allowed = tuple(os.path.realpath(p) for p in allowed)
        self.suffixes = tuple(suffixes)
        self.refused: list[str] = []

    def install(self) -> None:
        """Watch this process from now on (Python's own file access, and HDF5's)."""
        import h5py

        sys.addaudithook(self._audit)
        h5py.h5f.open = self._watched(h5py.h5f.open)

    def is_forbidden(self, path: Any) -> bool:
        """Whether the path, with its links followed, lies in a forbidden place."""
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str | os.PathLike):
            return False
        real = os.path.realpath(path)
        if real.endswith(self.suffixes) or _inside(real, self.allowed):
            return False
        return _inside(real, self.forbidden)

    def _refuse(self, path: Any) -> None:
        self.refused.append(os.fsdecode(path))
        raise PermissionError(f"refused: a method may not open {os.fsdecode(path)!r}, from which the truth is made")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS:
            for index in EVENTS[event]:
                if index < len(arguments) and self.is_forbidden(arguments[index]):
                    self._refuse(arguments[index])
        elif event in PROCESSES:
            text = " ".join(map(str, arguments))
            for path in self.forbidden:
                if path in text:
                    self._refuse(path)

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def opened(name: Any, *args: Any, **kwargs: Any) -> Any:
            if self.is_forbidden(name):
                self._refuse(name)
            return function(name, *args, **kwargs)

        return opened


def _inside(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)
