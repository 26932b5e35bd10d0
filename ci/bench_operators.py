"""Time the operators against other libraries, and write the table of goals.

One process, one thread. The candidates of a row run in turns, so that all of them see the same machine, and each keeps
its best round, in CPU time of the process. Every row first checks that the candidates compute the same thing. Run it
with the extra `peers` installed:

    python ci/bench_operators.py --output docs/benchmarks/operators.md

A peer that cannot be imported gives no row. `parallelproj` is looked for as a shared library (`--parallelproj PATH`).
Where there is a CUDA device, a second table times the same operators on it.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import os
import platform
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from bench_cases import bench_matrix, bench_mr, bench_projectors, bench_volumes, bench_wavelets, parallel, peak_memory
from bench_timing import Candidate, Row, Settings, race

from multirecon import operators as ops
from multirecon.files import atomic_path

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

# --------------------------------------------------------------------------------------------------------- accuracy


def examples() -> list[ops.LinearOperator]:
    """One operator of every projector class at a size of practice."""
    mu = 0.1 * torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    scanner = {"rings": 5, "ring_spacing_mm": 4.0, "radius_mm": 300.0}
    return [
        parallel(128, 60),
        ops.FanBeam((128, 128), (2.0, 2.0), views=90, bins=200, source_mm=400.0, detector_mm=300.0),
        ops.PETProjector((64, 64), (4.0, 4.0), views=60, bins=95, attenuation=mu, psf_fwhm_mm=5.0, tof_bins=9,
                         tof_spacing_mm=40.0, tof_fwhm_mm=60.0),
        ops.PETProjector3D((48, 48, 5), (4.0, 4.0, 4.0), views=48, bins=69, **scanner),
        ops.ConeBeam((48, 48, 48), (2.0,) * 3, views=24, rows=64, bins=64, source_mm=300.0, detector_mm=200.0),
    ]  # fmt: skip


def bench_accuracy(s: Settings) -> list[Row]:
    """Adjoint errors and the analytic sinogram of two off-centre discs."""
    rows = []
    for dtype, goal in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        errors = {type(A).__name__: ops.dot_test(A.to(dtype), batch=2) for A in examples()}
        detail = ", ".join(f"{n} {e:.1g}" for n, e in errors.items())
        rows.append(Row(f"adjoint error, {str(dtype)[6:]}", max(errors.values()), goal, False, unit="", detail=detail))
    A = ops.ParallelBeam((256, 256), (0.9375, 0.9375), views=360, bins=364)
    fine, pitch = 12, 0.9375
    u = (torch.arange(256 * fine, dtype=torch.float64) - (256 * fine - 1) / 2) * pitch / fine
    theta, position = torch.tensor(A.angles, dtype=torch.float64)[:, None], torch.from_numpy(A.geometry.positions)
    image, truth = torch.zeros(256, 256, dtype=torch.float64), torch.zeros(360, 364, dtype=torch.float64)
    for value, (c0, c1), radius in ((0.2, (20.0, -33.0), 60.0), (0.1, (-40.0, 30.0), 25.0)):
        inside = ((u[:, None] - c0) ** 2 + (u[None] - c1) ** 2 <= radius**2).double()
        image += value * inside.reshape(256, fine, 256, fine).mean((1, 3))
        edges = [
            ((position + k * pitch / 2 - c0 * torch.cos(theta) - c1 * torch.sin(theta)) / radius).clamp(-1, 1)
            for k in (-1, 1)
        ]
        area = [radius**2 * (q * torch.sqrt(1 - q * q) + torch.asin(q)) for q in edges]
        truth += value * (area[1] - area[0]) / pitch / 10
    y = A(image.float()[None, None])[0, 0].double()
    error = float((y - truth).norm() / truth.norm())
    return [*rows, Row("analytic disc sinogram 256 x 256 x 360, relative error", error, 2e-3, False, unit="")]


# -------------------------------------------------------------------------------------------------------------- CUDA


def bench_cuda(s: Settings) -> list[str]:
    """Return table lines of the projectors on a CUDA device."""
    import deepinv

    lines = ["| case | ours | deepinv | ratio |", "|---|---|---|---|"]

    def timed(run: Candidate) -> Candidate:
        def complete() -> None:
            run()
            torch.cuda.synchronize()

        return complete

    for batch in (1, 16):
        A = parallel(256, 360).to("cuda")
        theirs = deepinv.physics.Tomography(angles=360, img_width=256, circle=False, normalize=False, device="cuda")
        x = torch.rand(batch, 1, 256, 256, device="cuda")
        y, z = A(x), theirs.A(x)
        pairs = {"forward": (lambda A=A, x=x: A(x), lambda t=theirs, x=x: t.A(x)),
                 "adjoint": (lambda A=A, y=y: A.adjoint(y), lambda t=theirs, z=z: t.A_adjoint(z))}  # fmt: skip
        for name, (a, b) in pairs.items():
            with torch.no_grad():
                t = race({"ours": timed(a), "deepinv": timed(b)}, s)
            title = f"{name} 256 x 256 x 360, batch {batch}"
            lines.append(f"| {title} | {t['ours']:.3g} ms | {t['deepinv']:.3g} ms | {t['deepinv'] / t['ours']:.3g} |")
    return lines


def page(rows: list[Row], cuda: list[str], note: str) -> str:
    """Return the Markdown page."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        info = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((v.split(":", 1)[1].strip() for v in info if v.startswith("model name")), processor)
    aims = sum(r.goal is not None for r in rows)
    missed = [r.name for r in rows if not r.reached]
    lines = [
        "# Operators against other libraries",
        "",
        "Written by `python ci/bench_operators.py --output docs/benchmarks/operators.md`; do not edit. One thread,",
        "candidates in turns in one process, best round of each in CPU time of the process. Each row first checks that",
        "the candidates agree. Ratios carry over to other machines better than times. This one:",
        f"{processor}, Python {platform.python_version()}, torch {torch.__version__}.",
        *(["", note] if note else []),
        "",
        "| what | goal | measured | reached | from |",
        "|---|---|---|---|---|",
        *(r.markdown() for r in rows),
        "",
        f"Reached: {aims - len(missed)} of {aims}." + (f" Missed: {'; '.join(missed)}." if missed else ""),
    ]
    if cuda:
        lines += ["", f"## {torch.cuda.get_device_name()}", "", *cuda]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a row may take beyond three rounds")
    parser.add_argument("--note", default="", help="a sentence about this run for the page")
    parser.add_argument("--only", default="", help="run only the groups whose name contains this")
    parser.add_argument("--parallelproj", default=ctypes.util.find_library("parallelproj_c"), help="its shared library")
    parser.add_argument("--memory", choices=("ours", "deepinv"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if any(os.environ.get(name) != "1" for name in THREADS):  # they count only if set before the libraries load
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **dict.fromkeys(THREADS, "1")})
    torch.set_num_threads(1)
    if given.memory:
        print(peak_memory(given.memory))
        return
    library = ctypes.CDLL(given.parallelproj) if given.parallelproj else None
    settings = Settings(given.rounds, given.budget, library)
    groups = [bench_projectors, bench_matrix, bench_volumes, bench_mr, bench_wavelets, bench_accuracy]
    rows = [row for group in groups if given.only in group.__name__ for row in group(settings)]
    cuda = bench_cuda(replace(settings, clock=time.perf_counter)) if torch.cuda.is_available() else []
    text = page(rows, cuda, given.note)
    print(text)
    if given.output is not None:
        with atomic_path(given.output) as draft:
            draft.write_text(text)


if __name__ == "__main__":
    main()
