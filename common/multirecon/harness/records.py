"""Results as JSON lines: append-only, locked, flushed to the disk, readable after a kill at any moment."""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system: single runs only
    fcntl = None  # type: ignore[assignment]

__all__ = ["FAILED", "NOT_APPLICABLE", "OK", "Record", "RecordFile", "consistent", "latest", "read_records"]

OK, FAILED, NOT_APPLICABLE = "ok", "failed", "not applicable"
TEXTS = "task", "bundle", "variant", "sample", "anatomy", "fingerprint", "weights", "content", "reason", "device"


@dataclass(frozen=True)
class Record:
    """What one bundle did with one measurement.

    Args:
        task: name of the task.
        bundle: name of the bundle's folder.
        variant: name of its inference variant, empty for the default.
        sample: id of the sample.
        anatomy: the anatomy it comes from, the unit of every statistic.
        repeat: number of the noise realisation.
        seed: seed of the method's own random numbers.
        fingerprint: SHA-256 of the measured data.
        weights: SHA-256 of the bundle's weight files.
        content: SHA-256 of everything in the bundle that can change a result.
        status: ``"ok"``, ``"failed"`` or ``"not applicable"``.
        reason: one line, empty when ok.
        seconds: time inside the inferer.
        peak_mb: peak memory of the process while it ran, in MiB (and of the device, where there is one).
        device: where the result was computed.
        versions: of the bundle and of the packages.
        metrics: modality -> metric -> value.
        settling: how soon an iterative method was done, see :mod:`multirecon.harness.settling`; empty where not asked.
    """

    task: str
    bundle: str
    sample: str
    fingerprint: str
    status: str
    variant: str = ""
    anatomy: str = ""
    repeat: int = 0
    seed: int = 0
    weights: str = ""
    content: str = ""
    reason: str = ""
    seconds: float | None = None
    peak_mb: float | None = None
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    settling: dict[str, float] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """``bundle`` or ``bundle:variant``: the row of a table."""
        return f"{self.bundle}:{self.variant}" if self.variant else self.bundle

    @property
    def question(self) -> tuple[str, str, int]:
        """``(task, sample, repeat)``: what every method is asked with bit-identical data."""
        return self.task, self.sample, self.repeat

    @property
    def key(self) -> tuple[Any, ...]:
        """Identity of the result: the question, the method with its content, and the seed."""
        return *self.question, self.bundle, self.variant, self.content, self.seed

    def to_line(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(_encode(asdict(self)), sort_keys=True, allow_nan=False, ensure_ascii=True)

    @classmethod
    def from_line(cls, line: str) -> Record:
        """Return the record of a line.

        Raises:
            ValueError: if the line is no record.
        """
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"record: expected JSON, got {error}") from None
        return cls._checked(values)

    @classmethod
    def _checked(cls, values: Any) -> Record:
        if not isinstance(values, dict):
            raise ValueError(f"record: expected a JSON object, got {type(values).__name__}")
        names = {f.name for f in fields(cls)}
        missing = sorted({"task", "bundle", "sample", "fingerprint", "status"} - set(values))
        if missing:
            raise ValueError(f"record: expected the keys {missing}, got {sorted(values)}")
        if values["status"] not in (OK, FAILED, NOT_APPLICABLE):
            raise ValueError(f"status: expected 'ok', 'failed' or 'not applicable', got {values['status']!r}")
        try:
            metrics = {
                str(m): {str(n): float(v) for n, v in row.items()} for m, row in values.get("metrics", {}).items()
            }
            record = cls(**{n: v for n, v in values.items() if n in names and n != "metrics"}, metrics=metrics)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"record: {error}") from None
        for name in TEXTS:
            if not isinstance(getattr(record, name), str):
                raise ValueError(f"{name}: expected text, got {getattr(record, name)!r}")
        for name in ("repeat", "seed"):
            if not isinstance(getattr(record, name), int):
                raise ValueError(f"{name}: expected a whole number, got {getattr(record, name)!r}")
        for name in ("seconds", "peak_mb"):
            if not isinstance(getattr(record, name), int | float | None):
                raise ValueError(f"{name}: expected a number, got {getattr(record, name)!r}")
        if not isinstance(record.settling, dict) or not all(
            isinstance(v, int | float) for v in record.settling.values()
        ):
            raise ValueError(f"settling: expected an object of numbers, got {record.settling!r}")
        if not isinstance(record.versions, dict) or not all(isinstance(v, str) for v in record.versions.values()):
            raise ValueError(f"versions: expected an object of texts, got {record.versions!r}")
        return record


def _encode(value: Any) -> Any:
    """JSON has no infinity: a PSNR of equal images is written as the text ``"inf"``, which ``float`` reads back."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: _encode(v) for k, v in value.items()}
    return value


class RecordFile:
    """An append-only file of records that several processes may write to.

    Every line is written with one call under a lock and flushed to the disk before :meth:`append` returns. A line cut
    short by a power failure or a full disk is closed off by the next append and reported, never silently dropped.

    Args:
        path: the file, made with its folder where it is missing.

    Raises:
        ValueError: if compressed results are kept in its place (see :func:`read_records`): they cannot be added to.

    Example:
        >>> import tempfile
        >>> file = RecordFile(Path(tempfile.mkdtemp()) / "records.jsonl")
        >>> record = Record(task="t", bundle="b", sample="s", fingerprint="f", status="ok")
        >>> file.append(record), file.append(record), len(file.records())
        (True, False, 1)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.exists() and _packed(self.path).exists():
            raise ValueError(f"records: expected a file to add to, got {str(_packed(self.path))!r} (unpack it: gunzip)")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._settled: set[tuple[Any, ...]] = set()
        self._offset = 0

    def records(self) -> list[Record]:
        """Return every readable record, in the order of the file."""
        return read_records(self.path)[0] if self.path.exists() else []

    def append(self, record: Record) -> bool:
        """Write the record; return False where a settled one (ok, or not applicable) with its key is already there.

        Raises:
            OSError: if it cannot be written (full disk); the file then ends as it ended before.
        """
        with self._locked() as descriptor:
            size = self._catch_up(descriptor)
            if record.key in self._settled:
                return False
            lead = b"\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else b""
            line = lead + record.to_line().encode() + b"\n"
            try:
                written = os.write(descriptor, line)
                if written != len(line):
                    raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written (disk full?)")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        return True

    @contextmanager
    def _locked(self) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _catch_up(self, descriptor: int) -> int:
        """Note the settled keys that others appended since the last look; return the size of the file."""
        size = os.fstat(descriptor).st_size
        if size < self._offset:
            self._settled, self._offset = set(), 0
        fresh = os.pread(descriptor, size - self._offset, self._offset)
        end = fresh.rfind(b"\n") + 1
        for line in fresh[:end].decode(errors="replace").split("\n"):
            try:
                record = Record.from_line(line)
            except ValueError:
                continue
            if record.status != FAILED:
                self._settled.add(record.key)
        self._offset += end
        return size


def read_records(path: str | os.PathLike[str]) -> tuple[list[Record], list[str]]:
    """Return the records of a file and one sentence for every line that is no record.

    Results that are kept rather than added to may be compressed: where ``path`` is missing, ``path`` with ``.gz``
    behind it is read.

    Raises:
        ValueError: if there is no such file, or the compressed one is damaged.
    """
    source = Path(path)
    packed = _packed(source)
    if source.is_file():
        content = source.read_bytes()
    elif packed.is_file():
        try:
            content = gzip.decompress(packed.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"records: expected a whole gzip file, got {str(packed)!r} ({error})") from None
    else:
        raise ValueError(f"records: expected an existing file, got {str(source)!r}")
    records, problems = [], []
    for number, line in enumerate(content.decode(errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_line(line))
        except ValueError as error:
            problems.append(f"{source.name}:{number}: {error}")
    return records, problems


def _packed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def latest(records: Iterable[Record]) -> list[Record]:
    """Return one record a key, in a fixed order: a settled one where there is one, else the last failure."""
    chosen: dict[tuple[Any, ...], Record] = {}
    for record in records:
        held = chosen.get(record.key)
        if held is None or held.status == FAILED:
            chosen[record.key] = record
    return sorted(chosen.values(), key=lambda r: tuple(map(str, r.key)))


def consistent(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """Split records into those that may be compared and those refused because their data differ.

    For every ``(task, sample, repeat)`` the fingerprint that most records carry stands (on a draw, the one seen first).
    """
    items = list(records)
    votes: dict[tuple[str, str, int], dict[str, int]] = {}
    for record in items:
        counts = votes.setdefault(record.question, {})
        counts[record.fingerprint] = counts.get(record.fingerprint, 0) + 1
    stands = {question: max(counts, key=lambda f: counts[f]) for question, counts in votes.items()}
    kept = [r for r in items if r.fingerprint == stands[r.question]]
    return kept, [r for r in items if r.fingerprint != stands[r.question]]
