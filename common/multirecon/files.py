"""Files that appear whole or not at all, checkpoints that take little room, and the cache folder of the user."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["atomic_path", "cache_folder", "drop_rows_after", "save_tensors", "shortened"]


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


def save_tensors(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> Path:
    """Write tensors so that ``torch.load(path, weights_only=True)`` reads them, compressed, whole or not at all.

    PyTorch's archives are ZIP files whose members it stores as they are; it reads compressed members all the same
    (not with ``mmap=True``). Weights in float16 get a little smaller, those :func:`shortened` more so.

    Returns:
        The path.
    """
    plain = io.BytesIO()
    torch.save({name: value.detach().cpu().clone() for name, value in state.items()}, plain)
    with atomic_path(path) as draft, zipfile.ZipFile(plain) as stored, zipfile.ZipFile(draft, "w") as packed:
        for member in stored.infolist():
            # without a date, so that the same weights give the same file
            packed.writestr(zipfile.ZipInfo(member.filename), stored.read(member), zipfile.ZIP_DEFLATED, 9)
    return Path(path)


def shortened(value: Tensor, bits: int) -> Tensor:
    """Return a float16 tensor rounded to ``bits`` of its ten explicit bits of the mantissa; any other as it is.

    The largest relative error is ``2 ** -(bits + 1)``. The dropped bits are zero and cost nothing once compressed.

    Raises:
        ValueError: if ``bits`` is not within 1 to 10.

    Example:
        >>> shortened(torch.tensor([0.1, -3.0], dtype=torch.float16), 3).tolist()
        [0.1015625, -3.0]
    """
    if not 1 <= bits <= 10:
        raise ValueError(f"bits: expected 1 to 10, got {bits}")
    if value.dtype != torch.float16:
        return value
    unit = 1 << (10 - bits)
    magnitude = value.abs().view(torch.int16).int()
    # to the nearest in magnitude; a carry into the exponent is what rounding up asks for
    rounded = ((magnitude + unit // 2) // unit * unit).to(torch.int16).view(torch.float16)
    return torch.copysign(torch.where(rounded.isfinite(), rounded, value.abs()), value)


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
