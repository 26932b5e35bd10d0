"""CASToR data files of PET: list-mode and histogram events behind a text header, both ways.

An event is a packed little-endian record; which fields it has, the header's flags say. In order (time in ms as uint32,
crystals as uint32, the number of lines as uint16, everything else float32):

* list-mode: time, [attenuation], [event kind, one byte], [scatter], [randoms], [normalisation], [time of flight in ps],
  [number of lines], pairs of crystals;
* histogram: time, [attenuation], [randoms], [normalisation], for every time-of-flight bin: amount, [scatter]; [number
  of lines], pairs of crystals;
* normalization (every line that can detect something): [attenuation], [normalisation], [number of lines], pairs of
  crystals.

Attenuation and normalisation are correction factors, scatter and randoms rates in counts/s; the number of lines is
there if an event may have more than one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...files import atomic_path
from .checks import check_finite, existing_file, refusal

__all__ = ["CastorEvents", "event_dtype", "is_castor", "read_castor", "read_crystals", "write_castor"]

_MODES = {"list-mode": "list-mode", "list": "list-mode", "0": "list-mode", "histogram": "histogram",
          "histo": "histogram", "1": "histogram", "normalization": "normalization", "norm": "normalization",
          "2": "normalization"}  # fmt: skip
_FLAGS = {"attenuation": "Attenuation correction flag", "kind": "Coincidence kind flag",
          "scatter": "Scatter correction flag", "randoms": "Random correction flag",
          "normalisation": "Normalization correction flag", "tof": "TOF information flag"}  # fmt: skip
_OLD_KIND = "Event kind flag"
_REFUSED = ("POI information flag", "POI correction flag", "Emission point flag", "Per event TOF resolution flag")
_LARGEST_HEADER = 1 << 20
_MOST_LINES, _MOST_TOF_BINS = 65535, 65535


@dataclass(frozen=True, eq=False)
class CastorEvents:
    """Events of a PET scan, or the lines that its scanner has.

    Args:
        mode: ``"list-mode"``, ``"histogram"`` or ``"normalization"``.
        events: structured array with the fields ``time_ms``, ``crystals`` ``(lines, 2)`` and, where flagged,
            ``attenuation``, ``kind``, ``scatter``, ``randoms``, ``normalisation``, ``tof_ps``, ``lines``; a histogram
            has ``amount`` (counts) of ``(tof_bins,)``, and ``scatter`` likewise.
        scanner: name of the scanner whose table the crystal numbers refer to.
        duration_s: scan duration in s.
        start_s: start of the scan in s.
        calibration: factor from counts/s to the image's unit.
        header: other keys of the header, as written.
    """

    mode: str
    events: NDArray[Any]
    scanner: str
    duration_s: float
    start_s: float = 0.0
    calibration: float = 1.0
    header: Mapping[str, str] | None = None

    @property
    def counts(self) -> float:
        """Number of detected events."""
        if self.mode == "histogram":
            return float(self.events["amount"].sum(dtype=np.float64))
        return float(len(self.events)) if self.mode == "list-mode" else 0.0


def is_castor(path: str | os.PathLike[str]) -> bool:
    """Whether a text file has the keys that every CASToR data header has."""
    with open(path, "rb") as stream:
        start = stream.read(8192)
    if b"\0" in start:
        return False
    keys = _keys(start.decode("latin-1"))
    return {"data filename", "number of events", "data mode"} <= set(keys)


def event_dtype(mode: str, *, flags: Mapping[str, bool], lines: int = 1, tof_bins: int = 1) -> np.dtype[Any]:
    """Return the packed record of an event.

    Args:
        mode: see :class:`CastorEvents`.
        flags: which of ``attenuation``, ``kind``, ``scatter``, ``randoms``, ``normalisation``, ``tof`` are there.
        lines: most lines an event may have.
        tof_bins: time-of-flight bins of a histogram.

    Example:
        >>> event_dtype("list-mode", flags={"tof": True}).itemsize
        16
    """
    number = "<f4"

    def has(name: str) -> bool:
        return bool(flags.get(name))

    fields: list[tuple[Any, ...]] = [] if mode == "normalization" else [("time_ms", "<u4")]
    if has("attenuation"):
        fields.append(("attenuation", number))
    if mode == "list-mode":
        fields += [("kind", "u1")] * has("kind") + [("scatter", number)] * has("scatter")
    fields += [("randoms", number)] * (has("randoms") and mode != "normalization")
    fields += [("normalisation", number)] * has("normalisation")
    if mode == "list-mode":
        fields += [("tof_ps", number)] * has("tof")
    elif mode == "histogram":
        parts = [("amount", number), *[("scatter", number)] * has("scatter")]
        fields.append(("bins", np.dtype(parts), (tof_bins,)))
    fields += [("lines", "<u2")] * (lines > 1)
    fields.append(("crystals", "<u4", (lines, 2)))
    return np.dtype(fields)


def read_castor(path: str | os.PathLike[str]) -> CastorEvents:
    """Read the events that a CASToR header (``.cdh``) describes.

    Args:
        path: the header; the data file lies beside it.

    Raises:
        ValueError: if it is no such header, is not of PET, asks for fields that are not read here, or the data file
            does not hold the stated number of events.
    """
    file = existing_file(path)
    if file.stat().st_size > _LARGEST_HEADER or not is_castor(file):
        raise refusal("path", "a CASToR data header (Data filename, Number of events, Data mode)",
                      f"another format in {str(path)!r}")  # fmt: skip
    keys = _keys(file.read_bytes().decode("latin-1"))
    mode = _MODES.get(keys["data mode"].lower(), "")
    if not mode:
        raise refusal(
            "path", "data mode list-mode, histogram or normalization", f"{keys['data mode']!r} in {str(path)!r}"
        )
    if keys.get("data type", "PET").upper() not in ("PET", "0"):
        raise refusal("path", "data type PET", f"{keys['data type']!r} in {str(path)!r}")
    for name in _REFUSED:
        if _flag(keys, name, path):
            raise refusal("path", f"{name}: 0", f"1 in {str(path)!r}")
    flags = {name: _flag(keys, key, path) for name, key in _FLAGS.items()}
    flags["kind"] = flags["kind"] or _flag(keys, _OLD_KIND, path)
    lines = _integer(keys, "maximum number of lines per event", path, default=1, most=_MOST_LINES)
    tof_bins = _integer(keys, "histo tof number of bins", path, default=1, most=_MOST_TOF_BINS) if flags["tof"] else 1
    count = _integer(keys, "number of events", path)
    dtype = event_dtype(mode, flags=flags, lines=lines, tof_bins=tof_bins)
    data = _data_file(file, keys["data filename"])
    if data.stat().st_size != count * dtype.itemsize:
        raise refusal("path", f"{count} events of {dtype.itemsize} bytes ({count * dtype.itemsize} bytes)",
                      f"{data.stat().st_size} bytes in {str(data)!r}")  # fmt: skip
    events = _flat(np.fromfile(data, dtype, count=count), mode)
    _check_events(events, data, lines)
    return CastorEvents(
        mode,
        events,
        keys.get("scanner name", ""),
        _number(keys, "duration (s)", path, 0.0 if mode == "normalization" else None),
        _number(keys, "start time (s)", path, 0.0),
        _number(keys, "calibration factor", path, 1.0),
        keys,
    )


def read_crystals(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read a crystal table (``.lut``): six float32 a crystal, position in mm and orientation.

    Args:
        path: the table.

    Returns:
        ``(crystals, 3)`` positions in mm.

    Raises:
        ValueError: if the size is no multiple of six numbers, or values are not finite.
    """
    file = existing_file(path, "scanner")
    size = file.stat().st_size
    if size % 24:
        raise refusal("scanner", "six float32 for each crystal (a multiple of 24 bytes)", f"{size} in {str(path)!r}")
    return check_finite(np.fromfile(file, "<f4").reshape(-1, 6), path, "scanner")[:, :3]


def write_castor(data: CastorEvents, path: str | os.PathLike[str]) -> Path:
    """Write events as a header ``.cdh`` and a data file ``.cdf`` beside it; the data are complete before the header.

    Args:
        data: the events.
        path: the header.

    Raises:
        ValueError: if the path has the suffix of the data file.
    """
    head = Path(path)
    target = head.with_suffix(".Cdf")
    if head.suffix.lower() == ".cdf":
        raise refusal("path", "a header name, .Cdh", repr(str(path)))
    names = data.events.dtype.names or ()
    flags = {name: ("tof_ps" if name == "tof" else name) in names for name in _FLAGS}
    lines = data.events["crystals"].shape[1]
    tof_bins = data.events["amount"].shape[1] if data.mode == "histogram" else 1
    flags["tof"] = flags["tof"] or tof_bins > 1
    records = np.zeros(len(data.events), event_dtype(data.mode, flags=flags, lines=lines, tof_bins=tof_bins))
    for name in names:
        inner = data.mode == "histogram" and name in ("amount", "scatter")
        (records["bins"] if inner else records)[name] = data.events[name]
    text = [f"Scanner name: {data.scanner}", f"Data filename: {target.name}", f"Number of events: {len(records)}",
            f"Data mode: {data.mode}", "Data type: PET", f"Start time (s): {data.start_s:g}",
            f"Duration (s): {data.duration_s:g}", f"Calibration factor: {data.calibration:g}",
            f"Maximum number of lines per event: {lines}",
            *(f"{_FLAGS[name]}: {int(value)}" for name, value in flags.items() if value)]  # fmt: skip
    if tof_bins > 1:
        text.append(f"Histo TOF number of bins: {tof_bins}")
    known = {line.partition(":")[0].lower() for line in text}
    text += [f"{key}: {value}" for key, value in (data.header or {}).items() if key not in known and "tof" in key]
    with atomic_path(target) as draft:
        records.tofile(draft)
    with atomic_path(head) as draft:
        draft.write_text("\n".join(text) + "\n", encoding="utf-8")
    return head


def _keys(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line and not line.lstrip().startswith("#"))
    return {" ".join(name.lower().split()): value.strip() for name, _, value in pairs}


def _flat(records: NDArray[Any], mode: str) -> NDArray[Any]:
    """Return the events with the fields of the time-of-flight bins beside the others."""
    if mode != "histogram":
        return records
    inner = records.dtype["bins"].base
    fields = [(n, records.dtype[n]) for n in records.dtype.names or () if n != "bins"]
    bins = records.dtype["bins"].shape
    result = np.empty(len(records), np.dtype([*fields, *((n, inner[n], bins) for n in inner.names or ())]))
    for name, _ in fields:
        result[name] = records[name]
    for name in inner.names or ():
        result[name] = records["bins"][name]
    return result


def _check_events(events: NDArray[Any], data: Path, lines: int) -> None:
    if not len(events):
        raise refusal("path", "at least one event", f"none in {str(data)!r}")
    for name in ("attenuation", "scatter", "randoms", "normalisation", "tof_ps", "amount"):
        if name in (events.dtype.names or ()):
            check_finite(events[name], data)
            if name != "tof_ps" and events[name].min() < 0:
                raise refusal("path", f"{name} >= 0", f"{events[name].min():g} in {str(data)!r}")
    if lines > 1 and not ((events["lines"] >= 1) & (events["lines"] <= lines)).all():
        raise refusal("path", f"1 to {lines} lines in every event", f"{int(events['lines'].max())} in {str(data)!r}")
    pairs = events["crystals"][:, 0]
    if (pairs[:, 0] == pairs[:, 1]).any():
        raise refusal("path", "two different crystals in every event", f"one twice in {str(data)!r}")


def _data_file(header: Path, name: str) -> Path:
    for place in (header.parent / name, header.parent / Path(name.replace("\\", "/")).name):
        if name and "\0" not in name and place.is_file():
            return place
    raise refusal("path", f"the data file {name!r} beside the header", f"none for {str(header)!r}")


def _number(keys: Mapping[str, str], key: str, path: str | os.PathLike[str], default: float | None) -> float:
    text = keys.get(key, "")
    if not text and default is not None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise refusal("path", f"a number for {key!r}", f"{text!r} in {str(path)!r}")
    return value


def _integer(
    keys: Mapping[str, str], key: str, path: str | os.PathLike[str], *, default: int | None = None, most: int = 2**53
) -> int:
    value = _number(keys, key, path, default)
    if value != int(value) or not 1 <= value <= most:
        raise refusal("path", f"a whole number from 1 to {most} for {key!r}", f"{value:g} in {str(path)!r}")
    return int(value)


def _flag(keys: Mapping[str, str], key: str, path: str | os.PathLike[str]) -> bool:
    value = _number(keys, key.lower(), path, 0.0)
    if value not in (0, 1):
        raise refusal("path", f"0 or 1 for {key!r}", f"{value:g} in {str(path)!r}")
    return bool(value)
