"""Interfile headers: ``key := value`` lines, their numbers, and the raw data file that they describe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...files import atomic_path
from .checks import check_finite, existing_file, refusal

__all__ = ["InterfileHeader", "is_interfile", "read_header", "read_raw", "write_pair"]

_LARGEST_HEADER = 1 << 20
_MOST_DIMENSIONS = 5
_FORMATS = {"signed integer": "i", "unsigned integer": "u", "float": "f", "short float": "f", "long float": "f"}
_BYTES = {"short float": 4, "long float": 8, "float": 4}


@dataclass(frozen=True)
class InterfileHeader:
    """The keys of a header, lower case, without ``!`` and with ``[i]`` close to the name.

    Args:
        path: the header file.
        keys: key -> value as written.
    """

    path: Path
    keys: Mapping[str, str]

    def text(self, key: str, default: str = "") -> str:
        """Return a value, or the default where the key is absent or empty."""
        return self.keys.get(key, "") or default

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number.

        Raises:
            ValueError: if it is none, or absent without a default.
        """
        text = self.text(key)
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise refusal("path", f"a number for {key!r}", f"{text!r} in {str(self.path)!r}")
        return value

    def integer(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """Return a whole number.

        Raises:
            ValueError: if it is none, too small, or absent without a default.
        """
        value = self.number(key, None if default is None else float(default))
        if value != int(value) or not least <= value < 2**53:
            raise refusal("path", f"a whole number >= {least} for {key!r}", f"{value:g} in {str(self.path)!r}")
        return int(value)

    def integers(self, key: str) -> list[int]:
        """Return the whole numbers of ``{1, 2, 3}``, or of one number."""
        words = self.text(key).strip("{} \t").replace(",", " ").split()
        try:
            return [int(word) for word in words]
        except ValueError:
            raise refusal("path", f"whole numbers for {key!r}", f"{self.text(key)!r} in {str(self.path)!r}") from None

    def label(self, axis: int) -> str:
        """Return the label of an axis, counted from one, lower case."""
        return self.text(f"matrix axis label[{axis}]").lower()

    @property
    def dimensions(self) -> int:
        """Number of axes with a matrix size."""
        return sum(f"matrix size[{i}]" in self.keys for i in range(1, _MOST_DIMENSIONS + 1))


def is_interfile(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as an Interfile header does."""
    with open(path, "rb") as stream:
        start = stream.read(512)
    return re.match(rb"\s*(;[^\n]*\n\s*)*!?\s*interfile\s*:=", start, re.IGNORECASE) is not None


def read_header(path: str | os.PathLike[str]) -> InterfileHeader:
    """Read an Interfile header.

    Raises:
        ValueError: if it is none.
    """
    file = existing_file(path)
    if not is_interfile(file):
        raise refusal("path", "an Interfile header (!INTERFILE :=)", f"another format in {str(path)!r}")
    if file.stat().st_size > _LARGEST_HEADER:
        raise refusal("path", f"a header of at most {_LARGEST_HEADER} bytes", f"{file.stat().st_size} in {str(path)!r}")
    keys: dict[str, str] = {}
    for line in file.read_bytes().decode("latin-1").splitlines():
        if ":=" in line and not line.lstrip().startswith(";"):
            name, _, value = line.partition(":=")
            keys.setdefault(_normal(name), value.strip())
    return InterfileHeader(file, keys)


def read_raw(header: InterfileHeader, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Read the raw data of a header as float32 of the given shape, scaled as the header says.

    Raises:
        ValueError: if the file is missing, its size is not that of the shape, or values are not finite.
    """
    kind = header.text("number format").lower()
    if kind not in _FORMATS:
        raise refusal("path", f"a number format of {sorted(_FORMATS)}", f"{kind!r} in {str(header.path)!r}")
    width = header.integer("number of bytes per pixel", _BYTES.get(kind), least=1)
    order = header.text("imagedata byte order", "BIGENDIAN").upper()  # the default of the format
    if order not in ("BIGENDIAN", "LITTLEENDIAN"):
        raise refusal("path", "BIGENDIAN or LITTLEENDIAN byte order", f"{order!r} in {str(header.path)!r}")
    if width not in ((4, 8) if _FORMATS[kind] == "f" else (1, 2, 4, 8)):
        raise refusal("path", f"a size of {kind} numbers", f"{width} bytes in {str(header.path)!r}")
    if header.integer("number of time frames", 1) > 1:
        raise refusal("path", "one time frame", f"{header.integer('number of time frames')} in {str(header.path)!r}")
    data = _data_file(header)
    blocks = header.integer("data starting block", 0) * 2048
    offset = header.integer("data offset in bytes[1]", header.integer("data offset in bytes", blocks))
    declared, present = prod(shape) * width, data.stat().st_size - offset
    if declared != present or not declared:
        raise refusal("path", f"{declared} bytes of data for {shape} values of {width} bytes",
                      f"{present} behind offset {offset} in {str(data)!r}")  # fmt: skip
    dtype = np.dtype(f"{'>' if order == 'BIGENDIAN' else '<'}{_FORMATS[kind]}{width}")
    values = np.fromfile(data, dtype, count=prod(shape), offset=offset).reshape(shape)
    factor = header.number("image scaling factor[1]", header.number("rescale slope", 1.0))
    scaled = values.astype(np.float64) * factor + header.number("rescale intercept", 0.0)
    return check_finite(scaled.astype(np.float32), data)


def write_pair(path: str | os.PathLike[str], lines: list[str], values: NDArray[np.float32], *, suffix: str) -> Path:
    """Write a header and its raw data (little-endian float32) beside it; the data file is complete before the header.

    Args:
        path: the header file.
        lines: header lines between the first and the last.
        values: the data in file order.
        suffix: suffix of the data file.
    """
    head = Path(path)
    data = head.with_suffix(suffix)
    if data == head:
        raise refusal("path", f"another suffix than {suffix}, which the data file has", repr(str(path)))
    start = ["!INTERFILE :=", f"!name of data file := {data.name}", "originating system := multirecon",
             "imagedata byte order := LITTLEENDIAN", "!number format := short float",
             "!number of bytes per pixel := 4"]  # fmt: skip
    with atomic_path(data) as draft:
        np.ascontiguousarray(values, dtype="<f4").tofile(draft)
    with atomic_path(head) as draft:
        draft.write_text("\n".join([*start, *lines, "!END OF INTERFILE :="]) + "\n", encoding="ascii")
    return head


def _normal(name: str) -> str:
    words = " ".join(name.replace("!", " ").lower().split())
    return re.sub(r"\s*\[\s*(\d+)\s*\]", r"[\1]", words)


def _data_file(header: InterfileHeader) -> Path:
    name = header.text("name of data file")
    if not name or "\0" in name:
        raise refusal("path", "a key 'name of data file'", f"{name!r} in {str(header.path)!r}")
    for place in (header.path.parent / name, header.path.parent / Path(name.replace("\\", "/")).name):
        if place.is_file():
            return place
    raise refusal("path", f"the data file {name!r} beside the header", f"none for {str(header.path)!r}")
