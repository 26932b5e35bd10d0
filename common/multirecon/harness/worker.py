"""The method's side of the fence: a process that runs one bundle as a user would, and never holds a truth.

The parent writes one JSON line a measurement to standard input and reads one JSON line a result from what was standard
output; whatever the bundle prints goes to a log file. The process ends when its input does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from ..bundle.guard import root_cause
from .guard import Guard

__all__ = ["main"]


class TimedInferer:
    """Stands in for a bundle's inferer: times nothing but its calls, and notes the peak memory up to their end.

    Args:
        inferer: the bundle's own.
        seed: seed of the generator that a Reconstructor is called with.
    """

    def __init__(self, inferer: Any, seed: int | None = None) -> None:
        self.inferer = inferer
        self.seed = seed
        self.seconds = 0.0
        self.calls = 0
        self.peak_mb = 0.0
        self.result: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inferer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the inferer; the clock stops when the device has finished."""
        if self.seed is not None and hasattr(self.inferer, "capability"):
            import torch

            kwargs.setdefault("generator", torch.Generator().manual_seed(self.seed))
        _synchronise()
        begin = time.perf_counter()
        result = self.inferer(*args, **kwargs)
        _synchronise()
        self.seconds += time.perf_counter() - begin
        self.peak_mb = max(self.peak_mb, _peak_mb())
        self.calls += 1
        self.result = result
        return result


def main() -> None:
    """Serve jobs until standard input ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    settings = json.loads(sys.stdin.readline())
    log = os.open(settings["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    jobs = _jobs()
    import torch  # noqa: F401  what every bundle needs is loaded before the guard and the clock
    from monai.bundle import ConfigWorkflow  # noqa: F401

    from .. import engines  # noqa: F401

    guard = Guard(settings["forbidden"], allowed=settings["allowed"])
    guard.install()
    _send(channel, {"ready": True})
    while (job := jobs.get()) is not None:
        guard.refused.clear()
        try:
            answer = run_job(job)
        except Exception as error:
            traceback.print_exc()
            answer = {"status": "failed", "reason": describe(error)}
        if guard.refused:
            answer = {"status": "failed", "reason": f"refused: the method tried to open {guard.refused[0]!r}"}
        sys.stdout.flush()
        _send(channel, answer)


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Run the bundle on a folder with one measurement file; see the module.

    Args:
        job: ``config_files``, ``bundle_root``, ``measurement`` (file), ``output_dir``, ``result`` (file to write),
            ``targets``, ``seed`` and ``device`` (or ``None``: the bundle's own choice). With ``only_refusals`` nothing
            is reconstructed: the status is ``"applicable"`` or ``"not applicable"``. With ``keep_files`` what the
            bundle writes is wanted, trust maps included; else they are left out. With ``samples`` above zero, what
            an inferer with ``draw`` draws, off the clock, is written to ``drawn``: ``(S, 1, C, *shape)``. With
            ``settling`` a method that reports its iterates runs once more, off the clock, and the answer says how
            soon it settled.
    """
    import numpy as np
    import torch
    from monai.bundle import ConfigWorkflow

    from ..measurement import Measurement
    from .workspace import save_image

    if job["bundle_root"] not in sys.path:
        sys.path.insert(1, job["bundle_root"])
    override = {"device": f"$torch.device({job['device']!r})"} if job["device"] else {}
    workflow = ConfigWorkflow(
        config_file=job["config_files"],
        workflow_type="inference",
        bundle_root=job["bundle_root"],
        dataset_dir=str(Path(job["measurement"]).parent),
        output_dir=job["output_dir"],
        **override,
    )
    workflow.initialize()
    capability = getattr(workflow.inferer, "capability", None)
    if capability is not None:
        reasons = capability.refusals(Measurement.load(job["measurement"]), job["targets"])
        if reasons:
            return {"status": "not applicable", "reason": "; ".join(reasons)}
    if job.get("only_refusals"):
        return {"status": "applicable"}
    if not job.get("keep_files"):
        _without_trust(workflow)
    evaluator = workflow.evaluator
    timed = TimedInferer(evaluator.inferer, job["seed"])
    evaluator.inferer = timed
    # after `initialize`, which fixes MONAI's own seed: what a method draws from global generators follows ours
    random.seed(job["seed"])
    np.random.seed(job["seed"] % 2**32)  # noqa: NPY002
    torch.manual_seed(job["seed"])
    _reset_peak()
    workflow.run()
    workflow.finalize()
    if timed.calls == 0:
        return {"status": "failed", "reason": "no result: the evaluator never called the inferer"}
    if not isinstance(timed.result, torch.Tensor):
        return {"status": "failed", "reason": f"result: expected a tensor, got {type(timed.result).__name__}"}
    result = torch.as_tensor(timed.result).detach()
    save_image(Path(job["result"]), result.cpu().numpy())
    own = timed.inferer, getattr(timed.inferer, "reconstructor", None)  # a sampler for slices lies inside a wrapper
    sampler = next((m for m in own if callable(getattr(m, "draw", None))), None)
    if job.get("samples") and sampler is not None:
        generator = torch.Generator().manual_seed(job["seed"] + 1)
        measurement = Measurement.load(job["measurement"])
        drawn = sampler.draw(measurement, evaluator.network, job["samples"], generator=generator)
        save_image(Path(job["drawn"]), drawn.detach().cpu().numpy())
    answer: dict[str, Any] = {
        "status": "ok",
        "seconds": timed.seconds,
        "peak_mb": timed.peak_mb,
        "device": _device_name(result.device),
    }
    if job.get("settling") and capability is not None:
        measurement = Measurement.load(job["measurement"])
        answer["settling"] = _settling(timed.inferer, measurement, evaluator.network, job["seed"])
    return answer


def _settling(inferer: Any, measurement: Any, network: Any, seed: int) -> dict[str, float]:
    """Return what :class:`~multirecon.harness.settling.Settling` says of a run of the same seed."""
    import torch

    from .settling import Settling

    report = Settling()
    try:
        with torch.no_grad():
            inferer(measurement, network, generator=torch.Generator().manual_seed(seed), callback=report)
    except OverflowError:
        return {}
    return report.result()


def _without_trust(workflow: Any) -> None:
    """Let the bundle's handlers save no trust maps: only the result itself is read."""
    from ..engines import SaveReconstructions

    for handler in workflow.parser.get_parsed_content("handlers") if "handlers" in workflow.parser else ():
        if isinstance(handler, SaveReconstructions):
            handler.trust = False


def describe(error: BaseException) -> str:
    """Return one line for an error: the root cause, below what MONAI's parser and the engines wrapped around it."""
    error = root_cause(error)
    first = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {first}"[:500]


def _jobs() -> queue.Queue[Any]:
    """Read jobs in a thread of its own, so that the process ends with its parent even while it computes."""
    waiting: queue.Queue[Any] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            waiting.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return waiting


def _send(channel: Any, answer: dict[str, Any]) -> None:
    channel.write(json.dumps(answer) + "\n")
    channel.flush()


def _synchronise() -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _device_name(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else str(device.type)


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # where it cannot be reset, the peak covers the life of the process
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    import torch

    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() and torch.cuda.is_initialized() else 0
    try:
        status = Path("/proc/self/status").read_text()
        host = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return round((host + device) / 2**20, 1)


if __name__ == "__main__":
    main()
