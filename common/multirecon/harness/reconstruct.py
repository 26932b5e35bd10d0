"""``multirecon reconstruct``: a measurement file in, images with their provenance out, by the method that fits best."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..bundle.folder import BUNDLES_SETTING
from ..measurement import Measurement
from .acquisitions import acquisition_text, default_targets, describe_acquisition
from .derivatives import check_bids, copy_to_bids
from .methods import Method, select_methods
from .process import Worker, Workers
from .records import FAILED, OK
from .runner import package_versions
from .selection import Choice, choose, read_leaderboard
from .workspace import work_folder, write_json

__all__ = ["default_records", "find_refusals", "reconstruct_file", "run_method"]

LOAD_SECONDS = 120.0


def reconstruct_file(
    file: Path,
    output: Path,
    *,
    method: str = "auto",
    targets: Sequence[str] = (),
    budget: float | None = None,
    metric: str = "psnr",
    records: Path | None = None,
    folder: str = "",
    seed: int = 0,
    device: str | None = None,
    timeout: float = 3600.0,
    explain_only: bool = False,
    quiet: bool = False,
    workers: Workers | None = None,
    subject: str = "",
) -> list[str]:
    """Reconstruct a measurement file, print why by which method, and write images and provenance.

    Args:
        file: a measurement file.
        output: folder of the images (NIfTI, PNG, trust maps) and of ``<file>.json`` with their provenance.
        method: ``"auto"``, or ``NAME`` or ``NAME:VARIANT`` of a bundle.
        targets: modalities wanted; see :func:`multirecon.harness.acquisitions.default_targets`.
        budget: seconds that the reconstruction may take, judged by recorded times.
        metric: what methods are ranked by.
        records: records file, or folder of results; see :func:`default_records`.
        folder: folder of the bundles.
        seed: seed of the method's random numbers.
        device: device of the bundles; by default their own choice.
        timeout: seconds after which the method is ended.
        explain_only: run nothing.
        quiet: print nothing.
        workers: kept from file to file; by default each process is ended with its work.
        subject: label of the subject: the images are also written into ``bids``, a BIDS derivative in the output.

    Returns:
        The reasons, line by line.

    Raises:
        ValueError: if the file cannot be read, no method is left or named, or the method fails.
    """
    if not timeout > 0:
        raise ValueError(f"timeout: expected > 0, got {timeout}")
    if subject and not re.fullmatch(r"[A-Za-z0-9]+", subject):
        raise ValueError(f"subject: expected letters and digits, got {subject!r}")
    shown, output = output, output.absolute()  # the worker has a working directory of its own
    measurement = Measurement.load(file)
    if method == "auto":
        methods = select_methods((), folder or None)
        tasks = read_leaderboard(records or default_records(folder))
    else:
        methods = select_methods((method,), folder or None)
        tasks = []
    with _place(None if explain_only else output) as work:
        wanted = tuple(targets) or default_targets(describe_acquisition(measurement))
        if subject:
            check_bids(wanted)
        refusals = find_refusals(methods, file, wanted, work, device=device, worker=workers[""] if workers else None)
        choice = choose(measurement, methods, refusals, tasks, targets=wanted, metric=metric, budget=budget)
        lines = choice.lines() if method == "auto" else _explicit(methods[0], choice)
        if not quiet:
            print("\n".join(lines))
        chosen = _chosen(choice, explicit=method != "auto")
        if explain_only:
            return lines
        answer = run_method(
            chosen,
            file,
            wanted,
            work,
            seed=seed,
            device=device,
            timeout=timeout,
            worker=workers[chosen.name] if workers else None,
        )
        written = _publish(work / "images", output)
    path = output / f"{file.stem}.json"
    note = _provenance(file, measurement, chosen, answer, written, lines, seed=seed)
    if subject:
        written += copy_to_bids(output, written, wanted, subject=subject, method=chosen.name, provenance=note)
    write_json(path, {**note, "asked": {"method": method, "targets": [*targets], "seed": seed}})
    if not quiet:
        print(f"written     {', '.join(str(p.relative_to(output)) for p in [*written, path])} in {shown}")
    return lines


@contextmanager
def _place(output: Path | None) -> Iterator[Path]:
    """Make a private folder: below the output, so that files can be moved there in one step, or anywhere."""
    if output is not None:
        with work_folder(output) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="multirecon-") as name:
            yield Path(name)


def default_records(folder: str = "") -> Path:
    """Return ``docs/leaderboard`` beside the folder of the bundles."""
    return Path(folder or os.environ.get(BUNDLES_SETTING) or "bundles").absolute().parent / "docs" / "leaderboard"


def find_refusals(
    methods: Sequence[Method],
    file: Path,
    targets: Sequence[str],
    work: Path,
    *,
    device: str | None = None,
    worker: Worker | None = None,
) -> dict[str, str]:
    """Return why methods cannot take a measurement, by their capability; all are asked in one process of their own.

    Args:
        methods: the methods.
        file: the measurement file.
        targets: modalities wanted.
        work: a private folder.
        device: device of the bundles.
        worker: the process to ask; by default one for this call.

    Returns:
        Method name -> reason, without an entry for a method that can take it.
    """
    refusals = {}
    with nullcontext(worker) if worker is not None else Worker(work / "asked") as asked:
        for method in methods:
            job = _job(method, file, targets, work / "asked", seed=0, device=device)
            answer = asked.run({**job, "only_refusals": True}, timeout=LOAD_SECONDS)
            if answer["status"] == FAILED:
                refusals[method.name] = f"cannot be loaded: {answer['reason']}"
            elif answer.get("reason"):
                refusals[method.name] = answer["reason"]
    return refusals


def run_method(
    method: Method,
    file: Path,
    targets: Sequence[str],
    work: Path,
    *,
    seed: int = 0,
    device: str | None = None,
    timeout: float = 3600.0,
    worker: Worker | None = None,
) -> dict[str, Any]:
    """Run a bundle on a measurement file in a process of its own; its images appear in ``work/images``.

    Raises:
        ValueError: if it fails, or writes no image.
    """
    with nullcontext(worker) if worker is not None else Worker(work / "run") as runner:
        job = _job(method, file, targets, work / "run", seed=seed, device=device)
        answer = runner.run({**job, "output_dir": str(work / "images"), "keep_files": True}, timeout=timeout)
    if answer["status"] != OK:
        raise ValueError(f"method {method.name!r}: {answer['reason']}")
    if not any((work / "images").glob("*.nii.gz")):
        raise ValueError(f"method {method.name!r}: expected images, it wrote none")
    return answer


def _job(
    method: Method, file: Path, targets: Sequence[str], folder: Path, *, seed: int, device: str | None
) -> dict[str, Any]:
    """Return a worker's job on a folder that holds nothing but the file, under its own name."""
    data = folder / "data" / f"{file.stem}.h5"
    if not data.exists():
        data.parent.mkdir(parents=True, exist_ok=True)
        data.symlink_to(file.absolute())
    return {
        "config_files": [str(p) for p in method.config_files],
        "bundle_root": str(method.root),
        "measurement": str(data),
        "output_dir": str(folder / "output"),
        "result": str(folder / "result.npy"),
        "targets": [*targets],
        "seed": seed,
        "device": device,
    }


def _chosen(choice: Choice, *, explicit: bool) -> Method:
    if not explicit:
        return choice.best.method
    if choice.refused:
        raise ValueError(f"method {choice.refused[0].method.name!r}: {choice.refused[0].refusal}")
    return choice.ranked[0].method


def _explicit(method: Method, choice: Choice) -> list[str]:
    count = f"{choice.samples} sample{'s' if choice.samples > 1 else ''}"
    return [
        f"measured    {acquisition_text(choice.acquisition)}; {count}",
        f"wanted      {', '.join(choice.targets)}",
        f"method      {method.name}, as asked",
    ]


def _publish(source: Path, output: Path) -> list[Path]:
    """Move finished files (of the same file system) into the output folder, one by one and each as a whole."""
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(p for p in source.iterdir() if p.is_file()):
        os.replace(path, output / path.name)
        written.append(output / path.name)
    return written


def _provenance(
    file: Path,
    measurement: Measurement,
    method: Method,
    answer: dict[str, Any],
    written: Sequence[Path],
    lines: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any]:
    return {
        "measurement": {
            "file": file.name,
            "sha256": measurement.fingerprint(),
            "acquisition": describe_acquisition(measurement),
            "metadata": measurement.metadata,
        },
        "method": {
            "name": method.name,
            "version": method.bundle.version,
            "weights": method.weights,
            "content": method.content,
            "seed": seed,
        },
        "why": [*lines],
        "seconds": answer["seconds"],
        "peak_mb": answer["peak_mb"],
        "device": answer["device"],
        "versions": package_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in written},
    }
