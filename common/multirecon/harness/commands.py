"""The harness on the command line; see :mod:`multirecon.__main__`. Imports wait for the call, so that help is quick."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["bundles", "evaluate", "merge", "reconstruct", "report", "simulate", "tasks", "version"]


def evaluate(
    output: Path,
    *,
    tasks: tuple[str, ...] = (),
    bundles: tuple[str, ...] = (),
    guests: tuple[str, ...] = (),
    folder: str = "",
    set_name: str = "small",
    seed: int = 0,
    device: str = "",
    timeout: float = 600.0,
    shard: str = "1/1",
    repeats: int | None = None,
    limit: int | None = None,
    samples: int = 0,
    settling: bool = False,
    progress: bool = True,
) -> None:
    """Run bundles on tasks and record how well they do; run it again to go on where it stopped.

    Args:
        output: folder of the results.
        tasks: names or JSON files, separated by commas; every task by default.
        bundles: NAME, NAME:VARIANT or folders, separated by commas; every bundle by default, none beside guests.
        guests: JSON files of guests (deepinv models and algorithms), separated by commas.
        folder: folder of the bundles; by default the setting MULTIRECON_BUNDLES, else ./bundles.
        set_name: evaluation set: small or full.
        seed: seed of the methods' random numbers.
        device: device of the bundles, such as cpu or cuda:0; by default their own choice.
        timeout: seconds that one measurement may take.
        shard: I/N: only every N-th result, beginning with the I-th.
        repeats: noise realisations a sample; by default the task's.
        limit: only the first samples of every set.
        samples: posterior samples to judge a sampler by (coverage, CRPS), at least 2; 39 for intervals of 95 %.
        settling: also record after how many iterations and seconds an iterative method is done (a second run).
        progress: show the progress bar (--noprogress: do not).
    """
    from ..tasks import load, names
    from .guests import read_guest
    from .methods import select_methods
    from .records import read_records
    from .runner import evaluate as run
    from .runner import parse_shard
    from .shares import share_of_this_process

    for name, value in (("timeout", timeout), ("repeats", repeats), ("limit", limit)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}: expected > 0, got {value}")
    if samples < 0 or samples == 1:
        raise ValueError(f"samples: expected 0 or at least 2, got {samples}")
    part = parse_shard(shard)
    place = _device(device)
    questions = [load(name) for name in tasks or names()]
    chosen = select_methods(bundles, folder or None) if bundles or not guests else []
    with tempfile.TemporaryDirectory(prefix="multirecon-guests-") as shelf, share_of_this_process(part) as share:
        chosen += [read_guest(file).method(Path(shelf)) for file in dict.fromkeys(guests)]
        summary = run(
            questions,
            chosen,
            output,
            set_name=set_name,
            seed=seed,
            device=place,
            timeout=timeout,
            shard=(share.index, share.count),
            repeats=repeats,
            limit=limit,
            samples=samples,
            settling=settling,
            progress=progress and share.rank == 0,
        )
        share.total(0)  # the processes that torchrun started end together
    for problem in read_records(summary.records)[1]:
        print(f"multirecon: no record: {problem}", file=sys.stderr)
    print(summary)


def reconstruct(
    file: Path,
    output: Path = Path("output"),
    *,
    method: str = "auto",
    targets: tuple[str, ...] = (),
    budget: float | None = None,
    metric: str = "psnr",
    records: str = "",
    folder: str = "",
    seed: int = 0,
    device: str = "",
    timeout: float = 3600.0,
    subject: str = "",
    list: bool = False,
    shard: str = "1/1",
    progress: bool = True,
) -> None:
    """Reconstruct a measurement file, or all of a folder, by the method that did best on similar data, and say why.

    Args:
        file: a measurement file (HDF5), as written by simulate or Measurement.save; or a folder of them: run again, it
            goes on where it stopped, and under torchrun its processes divide the files.
        output: folder of the images (NIfTI, PNG), trust maps and the provenance (JSON).
        method: auto, or NAME or NAME:VARIANT of a bundle.
        targets: modalities wanted, separated by commas; by default those scanned, else the missing ones.
        budget: seconds that the reconstruction may take, judged by recorded times.
        metric: what methods are ranked by, such as psnr or ssim.
        records: records file, or folder of results; by default docs/leaderboard beside the folder of the bundles.
        folder: folder of the bundles; by default the setting MULTIRECON_BUNDLES, else ./bundles.
        seed: seed of the method's random numbers.
        device: device, such as cpu or cuda:0; by default the bundle's own choice.
        timeout: seconds after which the method is ended.
        subject: label of the subject: also write the images into OUTPUT/bids, a BIDS derivative with provenance.
        list: only say what would be done and why.
        shard: I/N: of a folder, only every N-th file, beginning with the I-th.
        progress: show the progress bar of a folder (--noprogress: do not).
    """
    from .cohort import reconstruct_folder
    from .reconstruct import reconstruct_file
    from .runner import parse_shard

    call: Callable[..., Any] = reconstruct_file
    if file.is_dir() and subject:
        raise ValueError(f"subject: expected one file of one subject, got the folder {str(file)!r}")
    if file.is_dir() and not list:
        call = partial(reconstruct_folder, shard=parse_shard(shard), progress=progress)
    elif shard != "1/1":
        raise ValueError(f"shard: expected a folder to divide, got {str(file)!r}")
    call(
        file,
        output,
        method=method,
        targets=targets,
        budget=budget,
        metric=metric,
        records=Path(records) if records else None,
        folder=folder,
        seed=seed,
        device=_device(device),
        timeout=timeout,
        **({"explain_only": True} if list else {}),
        **({"subject": subject} if subject else {}),
    )


def report(*folders: str, output: str = "", baseline: str = "", claims: str = "") -> None:
    """Turn records into one HTML file that needs nothing else, Markdown and CSV.

    Args:
        folders: output folders of evaluate; several are joined.
        output: folder of the report; by default the folder report in the first one.
        baseline: method that paired differences refer to; by default the one recorded first.
        claims: folder of claims (JSON files) to test against the records.
    """
    from .claims import read_claims
    from .report import write_report

    if not folders:
        raise ValueError("folders: expected at least one output folder of `multirecon evaluate`, got none")
    tested = read_claims(Path(claims)) if claims else []
    files = write_report(folders, Path(output or Path(folders[0]) / "report"), baseline=baseline, claims=tested)
    for kind, path in files.items():
        print(f"{kind:12}{path}")


def merge(output: Path, *folders: str) -> None:
    """Join the records (and the images kept for the report) of several folders; the order does not matter.

    Args:
        output: folder of the joined results.
        folders: output folders of evaluate.
    """
    from .merging import merge_folders

    records, refused = merge_folders([Path(f) for f in folders], output)
    for record in refused:
        print(f"multirecon: other data under the same name: {record.method} {record.question}", file=sys.stderr)
    print(f"{records} records in {output}")


def simulate(
    task: str,
    output: Path,
    *,
    set_name: str = "small",
    repeat: int = 0,
    limit: int | None = None,
    progress: bool = True,
) -> None:
    """Write a task's measurements as HDF5 files, for `python -m monai.bundle run ... --dataset_dir OUTPUT`.

    Args:
        task: name or JSON file.
        output: folder of the files, one a sample.
        set_name: evaluation set: small or full.
        repeat: number of the noise realisation.
        limit: only the first samples of the set.
        progress: show the progress bar (--noprogress: do not).
    """
    from tqdm import tqdm

    from ..engines import safe_name
    from ..tasks import load

    question = load(task)
    samples = question.samples(set_name)
    count = len(samples) if limit is None else min(limit, len(samples))
    if count < 1:
        raise ValueError(f"limit: expected at least one sample of task {question.name!r}, got {count}")
    for index in tqdm(range(count), desc=question.name, unit="sample", disable=not progress or None):
        measurement, _ = question.measure(samples[index], repeat)
        measurement.save(output / f"{safe_name(str(samples[index]['id']))}.h5")
    print(f"{count} measurements in {output}")


def tasks() -> None:
    """List the tasks with their targets."""
    from ..tasks import load, names

    for name in names():
        task = load(name)
        print(f"{name:24} {','.join(task.targets):16} {task.description}")


def bundles(folder: str = "") -> None:
    """List the bundles and their variants.

    Args:
        folder: folder of the bundles; by default the setting MULTIRECON_BUNDLES, else ./bundles.
    """
    from .methods import find_methods

    for method in find_methods(folder or None):
        print(f"{method.name:32} {method.bundle.version:8} {method.root}")


def version(*, packages: bool = False) -> None:
    """Print the version.

    Args:
        packages: also those of Python, torch and MONAI.
    """
    from .. import __version__

    print(f"multirecon {__version__}")
    if packages:
        from importlib.metadata import version as installed
        from platform import python_version

        print(f"python {python_version()}")
        for name in ("torch", "monai", "pytorch-ignite", "deepinv", "numpy"):
            print(f"{name} {installed(name)}")


def _device(name: str) -> str | None:
    import torch

    if not name:
        return None
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected a device such as cpu or cuda:0, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected a CUDA device for {name!r}, this machine has none")
    return name
