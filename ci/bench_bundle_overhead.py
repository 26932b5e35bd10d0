"""What a bundle costs beside its bare network, and a whole volume by one command.

    python ci/bench_bundle_overhead.py [METHOD ...] [--page docs/benchmarks/supervised_mr.md]

One process, one thread, processor seconds a slice, best of --rounds rounds in which all candidates take turns:

    network      the calls of the network that one reconstruction makes, repeated with the very same tensors
    physics      the data consistency of an unrolled method: what a reconstruction whose network answers from a
                 recording takes with it, less what it takes without
    method       reconstruction of a measurement in memory (the bundle's inferer)
    stack        the bundle's evaluator over one file of all slices (a volume as it is measured): reading, method, NIfTI
    run          the same over one measurement file a slice
    as shipped   files of one slice, with pictures and trust maps

The overhead is what `method` and `stack` take beyond network and physics; `run` and `as shipped` are stated as ratios,
too. Building the workflow and checking its weights is part of the three runs, shared out over the slices.

The volume (--volume; needs MULTIRECON_REAL_DATA) is FLAIR and T1 of patient 07 in slices of 4 mm, through the stock
command in a terminal of its own: wall-clock and processor seconds, peak memory of the process, and whether the progress
bar was seen.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import torch
from gallery_parts import ROOT, real_data
from study_pages import fill, table
from torch import Tensor, nn

from multirecon import tasks
from multirecon.bundle import load, load_network
from multirecon.measurement import Measurement

METHODS = ("mcvarnet_mr", "minet_mr", "discdiff_mr:fast")
PARTS = ("forward", "start", "step", "finish")
RUNS = ("method", "stack", "run", "as shipped")
SLICE_MM = 4
Calls = list[tuple[str, tuple[Any, ...], dict[str, Any], Any]]


def kept(value: Any) -> Any:
    """Return tensors of their own: networks may work in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [kept(v) for v in value] if isinstance(value, list | tuple) else value


@contextmanager
def replaced(network: nn.Module, make: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Put ``make(name, function)`` in the place of what a reconstructor calls of a network, and put it back."""
    held = {name: getattr(network, name) for name in PARTS if hasattr(network, name)}
    for name, function in held.items():
        object.__setattr__(network, name, make(name, function))
    try:
        yield
    finally:
        for name in held:
            object.__delattr__(network, name)


def record(run: Callable[[], object], network: nn.Module) -> Calls:
    """Return the calls of the network that ``run`` makes."""
    calls: Calls = []

    def make(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = kept(args)
            answer = function(*args, **kwargs)
            calls.append((name, tuple(given), kwargs, kept(answer)))
            return answer

        return call

    with replaced(network, make):
        run()
    return calls


def from_recording(run: Callable[[], object], network: nn.Module, calls: Calls) -> Callable[[], object]:
    """Return ``run`` with a network that answers from the recording."""

    def again() -> object:
        answers = iter(calls)

        def make(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: next(answers)[3]

        with replaced(network, make):
            return run()

    return again


def overhead(method: str, rounds: int, slices: int) -> dict[str, float]:
    """Return processor seconds a slice of every candidate."""
    name, _, variant = method.partition(":")
    task = tasks.load("flair_x4_t1")
    samples = task.samples("small")
    with tempfile.TemporaryDirectory() as folder:
        data, plain, shipped = (Path(folder) / n for n in ("data", "plain", "shipped"))
        measurements = [task.measure(samples[k])[0] for k in range(slices)]
        for k, measurement in enumerate(measurements):
            measurement.save(data / f"slice{k}.h5")
        joined(task, [samples[k] for k in range(slices)]).save(Path(folder) / "stack" / "volume.h5")
        common = {"device": "$torch.device('cpu')", "dataset_dir": str(data)}
        workflow = load(name, variant or None, output_dir=str(shipped), **common)
        bare = {"handlers#1#png": False, "handlers#1#trust": False}
        lean = load(name, variant or None, output_dir=str(plain), **common, **bare)
        whole = {**common, "dataset_dir": str(Path(folder) / "stack"), "output_dir": str(Path(folder) / "whole")}
        stack = load(name, variant or None, **whole, **bare)
        network = load_network(workflow).eval()
        one = measurements[0]

        def reconstruct() -> object:
            with torch.no_grad():
                return workflow.inferer(one, network, generator=torch.Generator().manual_seed(0))

        calls = record(reconstruct, network)

        def repeat() -> None:
            with torch.no_grad():
                for part, args, kwargs, _ in calls:
                    getattr(network, part)(*args, **kwargs)

        candidates: dict[str, tuple[Callable[[], object], int]] = {
            "network": (repeat, 1),
            "method": (reconstruct, 1),
            "rest": (from_recording(reconstruct, network, calls), 1),
            "stack": (stack.run, slices),
            "run": (lean.run, slices),
            "as shipped": (workflow.run, slices),
        }
        solver = getattr(workflow.inferer.reconstructor, "data_consistency", False)
        if solver:
            candidates["without data"] = (
                from_recording(without_data(workflow.inferer, reconstruct), network, calls),
                1,
            )
        best = dict.fromkeys(candidates, float("inf"))
        for number in range(rounds + 1):
            for label, (run, count) in candidates.items():
                begin = time.process_time()
                run()
                if number:  # the first round warms up
                    best[label] = min(best[label], (time.process_time() - begin) / count)
    best["physics"] = best["rest"] - best["without data"] if solver else 0.0
    return best


def joined(task: tasks.Task, items: list[dict[str, Any]]) -> Measurement:
    """Return one measurement of several slices."""
    maps = {
        name: torch.cat([item["fine"][k : k + 1][None] for item in items]) for k, name in enumerate(task.space.names)
    }
    return task.acquisition(maps, [str(item["id"]) for item in items])


def without_data(inferer: Any, run: Callable[[], object]) -> Callable[[], object]:
    """Return ``run`` with the data consistency switched off."""

    def plain() -> object:
        inferer.reconstructor.data_consistency = False
        try:
            return run()
        finally:
            inferer.reconstructor.data_consistency = True

    return plain


def overhead_table(methods: list[str], rounds: int, slices: int) -> str:
    rows = []
    for method in methods:
        t = overhead(method, rounds, slices)
        base = t["network"] + t["physics"]
        rows.append(
            [
                f"`{method}`",
                *(f"{t[k]:.3f}" for k in ("network", "physics", *RUNS)),
                *(f"{100 * (t[k] / base - 1):+.0f} %" for k in RUNS),
            ]
        )
        print(method, {k: round(v, 4) for k, v in t.items()}, flush=True)
    words = ("method", "run over a stack", "run over files", "run as shipped")
    head = ["method", "network", "physics", *words, *(f"overhead: {w}" for w in words)]
    note = f"Processor seconds a slice of 128 x 128, one thread, best of {rounds} rounds; runs over {slices} slices."
    return f"{table(head, rows)}\n\n{note}"


def thick_slices(folder: Path) -> None:
    """Write FLAIR and T1 of patient 07 as means over 4 mm, one sample of two images."""
    source = real_data("ms_mni/patient07_FLAIR.nii.gz", "ms_mni/patient07_T1.nii.gz")
    folder.mkdir(parents=True)
    for place, name in (("0_flair", "FLAIR"), ("1_t1", "T1")):
        image = nib.load(source / f"ms_mni/patient07_{name}.nii.gz")
        values = image.get_fdata(dtype="float32").clip(0)
        count = values.shape[2] // SLICE_MM
        thick = values[:, :, : count * SLICE_MM].reshape(*values.shape[:2], count, SLICE_MM).mean(-1)
        affine = image.affine.copy()
        affine[:3, 3] += affine[:3, 2] * (SLICE_MM - 1) / 2
        affine[:3, 2] *= SLICE_MM
        nib.save(nib.Nifti1Image(thick, affine), folder / f"{place}.nii.gz")


def volume(method: str, data: Path, output: Path) -> list[str]:
    """Run the stock command in a terminal of its own; return a row of the table."""
    name, _, variant = method.partition(":")
    root = Path("bundles") / name
    files = [str(root / "configs" / f) for f in ("inference.json", *([f"inference_{variant}.json"] if variant else []))]
    words = ["-m", "monai.bundle", "run", "--config_file", files[0] if len(files) == 1 else repr(files),
             "--bundle_root", str(root), "--dataset_dir", str(data), "--output_dir", str(output)]  # fmt: skip
    print(f"$ python {shlex.join(words)}", flush=True)
    begin = time.perf_counter()
    main_end, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # else it has no columns to draw in
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdin=other_end, stdout=other_end, stderr=other_end)
    os.close(other_end)
    text = b""
    while True:
        try:
            part = os.read(main_end, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(text.decode(errors="replace")[-2000:])
    bars = re.findall(rb"slices:\s+(\d+)%", text)
    made = nib.load(next(output.glob("*_flair.nii.gz")))
    given = nib.load(next(data.rglob("*flair.nii.gz")))
    if made.shape != given.shape:
        raise SystemExit(f"volume: expected shape {given.shape}, got {made.shape}")
    seen = f"{len(bars)} updates, up to {max(map(int, bars))} %" if bars else "**not seen**"
    return [f"`{method}`", "x".join(map(str, made.shape)), f"{seconds:.0f}",
            f"{usage.ru_utime + usage.ru_stime:.0f}", f"{usage.ru_maxrss / 1024:.0f}", seen]  # fmt: skip


def volume_table(methods: list[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        thick_slices(Path(folder) / "data" / "patient07")
        rows = [volume(m, Path(folder) / "data", Path(folder) / m.replace(":", "_")) for m in methods]
    return table(["method", "volume", "seconds", "processor seconds", "peak MiB", "progress bar"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=8, help="slices of the runs")
    parser.add_argument("--volume", action="store_true", help="run the volume instead")
    parser.add_argument("--page", type=Path, help="page whose block 'overhead' or 'volume' is filled")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.volume:
        text = volume_table(arguments.methods)
    else:
        text = overhead_table(arguments.methods, arguments.rounds, arguments.slices)
    print(text)
    if arguments.page:
        fill(arguments.page, "volume" if arguments.volume else "overhead", text)


if __name__ == "__main__":
    main()
