"""Files from a web server: continued where they broke off, bounded in size, with a checksum to compare."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

__all__ = ["fetch", "file_sha256", "read_url"]

_CHUNK = 1 << 16


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_url(url: str, *, limit: int) -> bytes:
    """Return a small file from a server.

    Raises:
        OSError: if it cannot be had.
        ValueError: if it is larger than ``limit`` bytes.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read(limit + 1)
    except urllib.error.HTTPError as error:
        raise OSError(f"{url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{url}: no complete answer ({error})") from error
    if len(content) > limit:
        raise ValueError(f"{url}: expected at most {limit} bytes, got more")
    return content


def fetch(
    url: str,
    part: Path,
    *,
    attempts: int = 4,
    pause_s: float = 1.0,
    progress: bool = True,
    limit: int | None = None,
) -> None:
    """Bring ``url`` into the file ``part``, going on from what is there; tries again when the connection breaks.

    Args:
        url: address of the file.
        part: where it goes; the caller compares a checksum and renames it.
        attempts: how often a broken connection is tried again.
        pause_s: wait before the second attempt in seconds; it doubles each time.
        progress: show a progress bar.
        limit: bytes that the file has at most.

    Raises:
        OSError: if the server cannot be reached or does not have the file.
        ValueError: if more than ``limit`` bytes arrive.
    """
    for attempt in range(attempts):
        try:
            _transfer(url, part, progress=progress, limit=limit)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing beyond what is there: complete, or a stale part that the checksum refuses
                return
            if error.code < 500 or attempt == attempts - 1:
                raise OSError(f"{url}: the server answered {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            if attempt == attempts - 1:
                raise OSError(f"{url}: no complete answer after {attempts} attempts ({error})") from error
        time.sleep(pause_s * 2**attempt)


def _transfer(url: str, part: Path, *, progress: bool, limit: int | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        continues = answer.status == 206
        length = int(answer.headers.get("Content-Length", 0))
        start = have if continues else 0  # a server without ranges sends all of it again
        total = start + length
        done = start
        with (
            part.open("ab" if continues else "wb") as file,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress or None
            ) as bar,
        ):
            while chunk := answer.read(_CHUNK):
                done += len(chunk)
                if limit is not None and done > limit:
                    raise ValueError(f"{url}: expected at most {limit} bytes, got more")
                file.write(chunk)
                bar.update(len(chunk))
    if length and part.stat().st_size < total:
        raise http.client.IncompleteRead(b"", total - part.stat().st_size)
