"""Memory and time of a training step: one U-Net on pixels and on wavelet coefficients, in two and three dimensions.

    python ci/bench_wavelet_memory.py --output docs/benchmarks/wavelet_memory.md

Every figure comes from a process of its own. What differs between the rows of a table is the domain of the prior alone:
blocks, levels, widths, batch and images are equal; only the number of channels at either end follows the domain.
With ``--store`` and ``--budget_s`` it can be run in pieces.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multirecon.files import atomic_path
from multirecon.networks.inflated import InflatedUNet
from multirecon.networks.unet import UNet
from multirecon.priors import DiffusionPrior, HaarDomain, NoiseSchedule, Parametrisation, PixelDomain
from multirecon.space import ImageSpace, Modality

MIB = 2**20
PLANE, VOLUME, INFLATED = "2D", "3D", "inflated"
NETWORKS: dict[str, dict[str, Any]] = {
    # of wavelet_diffusion_petmrct, and of wavelet_diffusion_petct3d: configs/train_haar3d.json and configs/train.json
    PLANE: {"channels": [48, 96, 128], "num_res_blocks": 1, "attention_levels": [False, False, True],
        "num_head_channels": 32, "norm_num_groups": 16},
    VOLUME: {"channels": [32, 48, 48], "num_res_blocks": 1, "attention_levels": [False, False, True],
        "num_head_channels": 16, "norm_num_groups": 16, "skip": "add", "resblock_updown": False},
    INFLATED: {"channels": [48, 64, 96], "num_res_blocks": 1, "attention_levels": [False, False, True],
        "num_head_channels": 16, "norm_num_groups": 16, "skip": "add", "resblock_updown": False},
}  # fmt: skip
MODALITIES = {2: ("t1", "flair", "t2star", "ct", "pet_fdg"), 3: ("ct", "pet_fdg")}
GOALS = {PLANE: 3.0, VOLUME: 5.0}
SIZES = [(PLANE, [128, 128], 8), (VOLUME, [64, 64, 16], 4), (INFLATED, [64, 64, 16], 4)]
LEVELS = (0, 1, 2)
NAMES = {0: "pixels", 1: "wavelet, one level", 2: "wavelet, two levels"}
CUBES = {0: range(64, 129, 16), 1: range(128, 257, 16)}

Case = dict[str, Any]


def network_of(kind: str, channels: int) -> nn.Module:
    """Return a network of a kind for a number of coefficients a position."""
    if kind == INFLATED:
        return InflatedUNet(channels, out_channels=channels, **NETWORKS[kind])
    return UNet(int(kind[0]), channels, out_channels=channels, **NETWORKS[kind])


def measure(case: Case) -> dict[str, float]:
    """Return peak memory in bytes and the best time of a step in seconds, of this fresh process."""
    shape, dims, device = case["shape"], len(case["shape"]), torch.device(case["device"])
    torch.set_num_threads(1)
    units = {"ct": Modality("ct", unit="1/cm", scale=0.2)}
    space = ImageSpace([units.get(n, Modality(n)) for n in MODALITIES[dims]], shape, [3.75] * dims)
    kind = case["kind"]
    axes = 2 if kind == INFLATED else dims  # bands in the plane of the slices alone
    domain = HaarDomain(axes=axes, levels=case["levels"]) if case["levels"] else PixelDomain()
    prior = DiffusionPrior(
        space, NoiseSchedule.cosine(1000), parametrisation=Parametrisation("sample"), domain=domain, clamp=None
    )
    bands = 2 ** (axes * case["levels"])
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(case["batch"], space.num_channels, *shape, generator=generator).to(device)
    # a tiny network first: the code of kernels, autograd and optimiser is none of the method's memory
    small = network_of(kind, 1).to(device)
    small(torch.ones(1, 1, *[8] * dims, device=device)).sum().backward()
    torch.optim.AdamW(small.parameters()).step()
    del small
    gc.collect()
    before = _reset_peak(device)
    channels = space.num_channels * bands
    torch.manual_seed(0)
    network = network_of(kind, channels).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def training_step() -> None:
        batch = prior.noisy_batch(truth, torch.Generator(device).manual_seed(1))
        loss = (network(batch.image, batch.timestep) - batch.target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def denoising_step() -> None:
        prior.denoiser(network)(truth, 1.0)

    step = training_step if case["mode"] == "training" else denoising_step
    best = float("inf")
    for _ in range(case["steps"]):
        start = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    parameters = sum(p.numel() for p in network.parameters())
    return {"bytes": _peak(device) - before, "seconds": best, "parameters": parameters}


def _reset_peak(device: torch.device) -> int:
    """Forget the peak so far and return the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


class Results:
    """Figures of cases, measured once each and kept in a file, so that a long run can be made in pieces.

    Args:
        path: file of the figures, or None.
        budget_s: seconds after which no new case is started.
    """

    def __init__(self, path: Path | None, budget_s: float) -> None:
        self.path = path
        self.end = time.monotonic() + budget_s
        self.known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path and path.exists() else {}

    def __call__(self, case: Case) -> dict[str, float]:
        key = json.dumps(case, sort_keys=True)
        if key not in self.known:
            if time.monotonic() > self.end:
                raise SystemExit("budget_s: used up; run the command again to go on")
            # forked before anything was computed: a fresh heap, without importing the libraries again
            with multiprocessing.get_context("fork").Pool(1) as process:
                self.known[key] = process.apply(measure, (case,))
            print(key, self.known[key], flush=True)
            if self.path:
                with atomic_path(self.path) as draft:
                    draft.write_text(json.dumps(self.known, indent=1) + "\n", encoding="utf-8")
        return self.known[key]


def comparison(results: Results, kind: str, shape: list[int], batch: int, device: str) -> list[str]:
    """Return the table of the domains at one image size."""
    rows = [
        "| domain | parameters | training: peak MiB | factor | step s | factor | denoising: peak MiB | factor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first: tuple[dict[str, float], dict[str, float]] | None = None
    for levels in LEVELS:
        case = {"kind": kind, "shape": shape, "batch": batch, "levels": levels, "device": device}
        train = results({**case, "mode": "training", "steps": 2})
        denoise = results({**case, "mode": "denoising", "steps": 1})
        first = first or (train, denoise)
        factors = [a[k] / b[k] for a, b, k in ((first[0], train, "bytes"), (first[0], train, "seconds"),
                                               (first[1], denoise, "bytes"))]  # fmt: skip
        cells = [
            NAMES[levels], f"{train['parameters']:,}", f"{train['bytes'] / MIB:.0f}", f"{factors[0]:.1f}",
            f"{train['seconds']:.2f}", f"{factors[1]:.1f}", f"{denoise['bytes'] / MIB:.0f}", f"{factors[2]:.1f}",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def largest(results: Results, budget: int, device: str) -> list[str]:
    """Return the largest cube whose training step fits the budget, batch 1, with its memory and the next one's."""
    rows = ["| domain | largest cube | peak MiB | next cube | its peak MiB |", "|---|---|---|---|---|"]
    for levels, sizes in CUBES.items():
        fits: tuple[int, float] | None = None
        for n in sizes:
            case = {"kind": VOLUME, "shape": [n] * 3, "batch": 1, "levels": levels, "device": device,
                    "mode": "training", "steps": 1}  # fmt: skip
            peak = results(case)["bytes"]
            if peak > budget:
                fitting = ("none", "-") if fits is None else (f"{fits[0]}^3", f"{fits[1] / MIB:.0f}")
                rows.append(f"| {NAMES[levels]} | {fitting[0]} | {fitting[1]} | {n}^3 | {peak / MIB:.0f} |")
                break
            fits = n, peak
        else:
            assert fits is not None
            rows.append(f"| {NAMES[levels]} | {fits[0]}^3 or more | {fits[1] / MIB:.0f} | - | - |")
    return rows


def verdict(results: Results, kind: str, shape: list[int], batch: int, device: str) -> str:
    """Return the factor of one level, against its goal if there is one."""
    case = {"kind": kind, "shape": shape, "batch": batch, "device": device, "mode": "training", "steps": 2}
    cases = [{**case, "levels": n} for n in (0, 1)]
    pixel, wavelet = (results(case)["bytes"] for case in cases)
    factor, size = pixel / wavelet, " x ".join(map(str, shape))
    if kind not in GOALS:
        return f"- {size}, batch {batch}, factorised convolutions, bands in the plane: {factor:.1f}"
    goal = GOALS[kind]
    return f"- {size}, batch {batch}: {factor:.1f}, goal {goal:g}: {'reached' if factor >= goal else '**not reached**'}"


def page(results: Results, budget: int, device: str, command: str) -> str:
    """Return the page."""
    tables = []
    for kind, shape, batch in SIZES:
        dims = len(shape)
        names = ", ".join(MODALITIES[dims])
        widths = "-".join(map(str, NETWORKS[kind]["channels"]))
        form = ", factorised convolutions" if kind == INFLATED else ""
        bands = "; bands in the plane, which leave a quarter of the positions" if kind == INFLATED else ""
        title = f"## {' x '.join(map(str, shape))}, batch {batch}{form}"
        tables += ["", title, "", f"{names}; widths {widths}{bands}.", ""]
        tables += comparison(results, kind, shape, batch, device)
    tables += ["", f"## Largest volume within {budget // MIB} MiB", "",
               "Training step of the three-dimensional network on a cube, batch 1.", ""]  # fmt: skip
    tables += largest(results, budget, device)
    # not before the last fork: a process that has opened the GPU cannot hand it on
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, one thread"
    head = [
        "# Memory of the wavelet prior",
        "",
        f"Written by `{command}`; do not edit.",
        "The same U-Net, equal in blocks, levels, widths and batch, as a prior of pixels and of Haar coefficients",
        "(`multirecon.priors.HaarDomain`), float32. Memory is the peak of a process of its own above what it holds",
        "before the network is made: weights, optimiser, gradients, activations, workspace of the convolutions. A step",
        f"is noising, forward, backward and AdamW; best of two in processor time. Machine: {machine},",
        f"Python {platform.python_version()}, torch {torch.__version__}. Figures below 20 MiB are uncertain: heap that",
        "the process had freed before may serve again. Times are of one run on a machine with other work: look at the",
        "ratios.",
        "",
        "Factor of the training peak, pixels over one level:",
        "",
        *[verdict(results, *size, device) for size in SIZES],
    ]
    return "\n".join([*head, *tables]) + "\n"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="page to write")
    parser.add_argument("--store", type=Path, help="file that keeps the figures between runs")
    parser.add_argument("--budget_s", type=float, default=float("inf"), help="start no new case after this time")
    parser.add_argument("--budget_mib", type=int, default=2048, help="memory that the largest cube may take")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    command = "python ci/bench_wavelet_memory.py --output docs/benchmarks/wavelet_memory.md"
    text = page(Results(options.store, options.budget_s), options.budget_mib * MIB, options.device, command)
    if options.output:
        with atomic_path(options.output) as draft:
            draft.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
