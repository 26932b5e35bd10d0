"""MATLAB version 5 to 7 files, numeric arrays only: a strict reader that checks every size before it uses it.

(SciPy's reader trusts the tags of a file; damaged ones end the process.)
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...hdf5 import DEFLATE_RATIO
from .checks import refusal

__all__ = ["Array5", "read_arrays5"]

_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
#: class of an array -> name and dtype; others (cells, structures, text, sparse matrices, objects) are listed only
_CLASSES = {6: ("double", "f8"), 7: ("single", "f4"), 8: ("int8", "i1"), 9: ("uint8", "u1"), 10: ("int16", "i2"),
            11: ("uint16", "u2"), 12: ("int32", "i4"), 13: ("uint32", "u4"), 14: ("int64", "i8"),
            15: ("uint64", "u8")}  # fmt: skip
_OTHERS = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 16: "function", 17: "opaque"}
_COMPLEX = 0x0800


@dataclass(frozen=True)
class Array5:
    """One variable of a file.

    Args:
        name: its name.
        shape: its shape as MATLAB shows it.
        kind: its class, ``"double"`` for example.
        body: bytes of its real and imaginary parts.
        order: ``"<"`` or ``">"``.
        is_complex: whether it has an imaginary part.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    body: memoryview
    order: str
    is_complex: bool

    def values(self) -> NDArray[Any]:
        """Return the numbers of a numeric array.

        Raises:
            ValueError: if it is no such array, or its parts have not the length of its shape.
        """
        dtype = next((d for name, d in _CLASSES.values() if name == self.kind), None)
        if dtype is None:
            raise refusal("dataset", "an array of numbers", f"class {self.kind!r} of {self.name!r}")
        count = prod(self.shape)
        parts = []
        for code, data, _ in _elements(self.body, self.order):
            stored = np.dtype(self.order + _STORED[code]) if code in _STORED else None
            if stored is None or len(data) != count * stored.itemsize:
                raise refusal(
                    "path", f"{count} numbers for {self.name!r} {self.shape}", f"{len(data)} bytes of type {code}"
                )
            parts.append(np.frombuffer(data, stored).astype(dtype))
        if len(parts) != 1 + self.is_complex:
            raise refusal("path", f"{1 + self.is_complex} parts of {self.name!r}", len(parts))
        array = parts[0] + 1j * parts[1] if self.is_complex else parts[0]
        return array.reshape(self.shape, order="F")


def read_arrays5(path: Path) -> list[Array5]:
    """Return the variables of a file of version 5 to 7, their numbers not yet converted.

    Args:
        path: the file.

    Raises:
        ValueError: if it is damaged.
    """
    content = path.read_bytes()
    mark = content[126:128]
    if len(content) < 136 or mark not in (b"IM", b"MI"):
        raise refusal("path", "a MATLAB file of version 5 to 7", f"another format or a cut one in {str(path)!r}")
    order = "<" if mark == b"IM" else ">"
    result = []
    budget = DEFLATE_RATIO * len(content)
    for code, data, _ in _elements(memoryview(content)[128:], order, padded=False):
        element: tuple[int, memoryview, int] | None = (code, data, 0)
        if code == _COMPRESSED:
            packed = zlib.decompressobj()
            element = next(_elements(memoryview(packed.decompress(data, budget)), order), None)
        if element is not None and element[0] == _MATRIX:
            result.append(_matrix(element[1], order, path))
    return result


def _elements(data: memoryview, order: str, *, padded: bool = True) -> Iterator[tuple[int, memoryview, int]]:
    """Yield type, content and end of the data elements, each within what is there."""
    at = 0
    while at + 8 <= len(data):
        code, size = struct.unpack_from(order + "II", data, at)
        if code >> 16:  # small element: size and type share one word, up to four bytes follow
            code, size, start, step = code & 0xFFFF, code >> 16, at + 4, 8
            if size > 4:
                raise refusal("path", "at most 4 bytes in a small element", size)
        else:
            start = at + 8
            step = 8 + size + (-size % 8 if padded else 0)
        if start + size > len(data):
            raise refusal("path", f"an element of {size} bytes", f"{len(data) - start} left")
        at += step
        yield code, data[start : start + size], at


def _matrix(data: memoryview, order: str, path: Path) -> Array5:
    parts = _elements(data, order)
    heads = [next(parts, (0, memoryview(b""), 0)) for _ in range(3)]
    (flag_type, flags, _), (size_type, sizes, _), (_, name, end) = heads
    if flag_type != 6 or len(flags) != 8 or size_type != 5 or len(sizes) % 4 or not 2 <= len(sizes) // 4 <= 32:
        raise refusal("path", "flags and sizes of an array", f"others in {str(path)!r}")
    word = struct.unpack(order + "I", flags[:4])[0]
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if min(shape) < 0:
        raise refusal("path", "sizes >= 0", f"{shape} in {str(path)!r}")
    code = word & 0xFF
    kind = _CLASSES[code][0] if code in _CLASSES else _OTHERS.get(code, f"class {code}")
    text = bytes(name).decode("latin-1")
    return Array5(text, shape, kind, data[end:], order, bool(word & _COMPLEX))
