"""Files that appear whole or not at all, and the cache folder of the user."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "cache_folder", "drop_rows_after"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error it is removed.

    The temporary name keeps the suffixes (writers choose formats by them) and gets the permissions of a plain new file.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "a.txt") as draft:
        ...     _ = draft.write_text("whole")
        >>> [p.name for p in folder.iterdir()], (folder / "a.txt").read_text()
        (['a.txt'], 'whole')
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(Path(target.name.lstrip(".")).suffixes[-2:])
    handle, name = tempfile.mkstemp(prefix=".part-", suffix=suffix, dir=target.parent)
    os.close(handle)
    draft = Path(name)
    try:
        umask = os.umask(0)
        os.umask(umask)
        draft.chmod(0o666 & ~umask)
        yield draft
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def drop_rows_after(path: str | os.PathLike[str], step: int) -> None:
    """Drop the rows of a CSV table whose first column, a whole number, is beyond ``step``, or that were cut short.

    A run that was killed had gone beyond the state that it goes on from: those rows are about to be written again.
    """
    file = Path(path)
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = lines[:1] + [line for line in lines[1:] if line.endswith("\n") and int(line.partition(",")[0]) <= step]
    if kept != lines:
        with atomic_path(file) as draft:
            draft.write_text("".join(kept), encoding="utf-8")


def cache_folder() -> Path | None:
    """Return the folder for projection matrices and simulated slices, or None where the user wants none.

    It is the value of ``MULTIRECON_CACHE`` (``off`` for none), else the platform's cache folder; it may not exist yet
    and may be deleted at any time.
    """
    setting = os.environ.get("MULTIRECON_CACHE", "")
    if setting.lower() == "off":
        return None
    if setting:
        return Path(setting)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "") or str(Path.home() / ".cache")
    return Path(base) / "multirecon"
