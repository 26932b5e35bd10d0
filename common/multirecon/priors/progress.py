"""Handlers of a long training run: schedule of the learning rate, averaged weights, resumable state, curve."""

from __future__ import annotations

import csv
import logging
import math
import os
import pickle
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..files import atomic_path, drop_rows_after, save_tensors, shortened

__all__ = ["GradientClip", "LearningRate", "MovingAverage", "TrainingCurve", "TrainingState", "export_weights"]

_log = logging.getLogger(__name__)


class MovingAverage:
    r"""Exponential moving average of the weights, ``a <- k a + (1 - k) w`` with ``k = min(decay, (1 + n) / (10 + n))``.

    The warm-up lets the average follow the first updates ``n``, so that it is useful from the start.

    Args:
        network: the network that is trained (not its data-parallel wrapper).
        decay: final ``k``.
    """

    def __init__(self, network: nn.Module, *, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay: expected 0 <= decay < 1, got {decay}")
        self.network = network

        def average(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
            keep = min(decay, (1 + int(count)) / (10 + int(count)))
            return old.lerp(new.to(old.dtype), 1 - keep)

        self.averaged = AveragedModel(network, avg_fn=average).eval()

    @property
    def model(self) -> nn.Module:
        """The network with averaged weights, in evaluation mode."""
        return self.averaged.module

    def attach(self, engine: Engine) -> None:
        """Update after every iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)

    def _update(self, engine: Engine) -> None:
        self.averaged.update_parameters(self.network)
        self.averaged.eval()


class TrainingState:
    """Restores a run at its start and saves it every few minutes, whole or not at all.

    Saved are weights, averaged weights, optimiser, step, seconds, the losses since the last line of the curve, and
    where the final decay began; order of the data, noise and augmentation are functions of the step. SIGTERM and SIGINT
    end the run after the current step, saved. A run that is killed goes on from its last state, with the same results.

    With ``decay`` the run goes on from the newest state of the constant phase and keeps its own file, so that the
    constant phase can be taken up again.

    With ``pretrained`` a run without a state of its own starts from those weights instead of random ones, at step 0,
    with a new optimiser and average. With ``decay`` such a run consists of the falling rate alone: a fine-tuning.

    Args:
        folder: where ``last.pt`` and ``decay.pt`` lie; made where it is missing.
        network: the network that is trained.
        optimizer: its optimiser.
        average: its averaged weights.
        interval_s: seconds between two states.
        decay: whether this is the final phase of a falling learning rate.
        write: False for all but the first process.
        others: further modules whose buffers belong to the state (a loss that keeps points), by name.
        pretrained: checkpoint of the network (a ``model.pt``) that a new run starts from; empty for none.

    Raises:
        ValueError: (when the run starts) if there is nothing to decay, or the checkpoint does not fit the network.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: MovingAverage,
        interval_s: float = 180.0,
        decay: bool = False,
        write: bool = True,
        others: Mapping[str, nn.Module] | None = None,
        pretrained: str | os.PathLike[str] = "",
    ) -> None:
        self.folder = Path(folder)
        self.pretrained = pretrained
        self.network, self.optimizer, self.average = network, optimizer, average
        self.interval_s, self.decay, self.write = interval_s, decay, write
        self.others = dict(others or {})
        self.decay_start: int | None = None
        self.losses: list[float] = []
        self.seconds = self.cpu_seconds = 0.0
        self._begin = self._saved = time.monotonic()
        self._cpu_begin = time.process_time()
        self._handlers: dict[int, Any] = {}

    @property
    def path(self) -> Path:
        """File of the current phase."""
        return self.folder / ("decay.pt" if self.decay else "last.pt")

    def elapsed(self) -> tuple[float, float]:
        """Return the wall-clock and processor seconds of this process so far, all runs together."""
        wall = self.seconds + time.monotonic() - self._begin
        return wall, self.cpu_seconds + time.process_time() - self._cpu_begin

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before everything that needs the restored step."""
        engine.add_event_handler(Events.STARTED, self._restore)
        engine.add_event_handler(Events.COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self._unlisten)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    def _listen(self, engine: Engine) -> None:
        """Let SIGTERM and SIGINT end the run after the current step; Python allows it in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                number: signal.signal(number, lambda *_: engine.terminate())
                for number in (signal.SIGTERM, signal.SIGINT)
            }

    def _unlisten(self, engine: Engine) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _failed(self, engine: Engine, error: BaseException) -> None:
        self._unlisten(engine)
        raise error

    def _restore(self, engine: Engine) -> None:
        self._listen(engine)
        # last of all that happens after a step (the average is updated, the curve written): a state is of whole steps
        if engine.has_event_handler(self._periodic):
            engine.remove_event_handler(self._periodic, Events.ITERATION_COMPLETED)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._periodic)
        source = self.path if self.path.exists() else self.folder / "last.pt"
        if self.decay and not source.exists() and not self.pretrained:
            raise ValueError(f"decay: expected a state of the constant phase in {self.folder}, got none")
        if not source.exists() and self.pretrained:
            self._start_from(Path(self.pretrained))
        if source.exists():
            device = next(self.network.parameters()).device
            state = torch.load(source, map_location=device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.average.averaged.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            for name, module in self.others.items():
                module.load_state_dict(state["others"][name])
            engine.state.iteration = state["step"]
            engine.state.epoch = state["step"] // engine.state.epoch_length
            self.seconds, self.cpu_seconds = state["seconds"], state["cpu_seconds"]
            self.decay_start = state["decay_start"]
            self.losses = [*state.get("losses", [])]
            _log.info("resumed at step %d from %s", state["step"], source)
        if self.decay and self.decay_start is None:
            self.decay_start = engine.state.iteration
        self._begin = self._saved = time.monotonic()
        self._cpu_begin = time.process_time()

    def _start_from(self, path: Path) -> None:
        """Load given weights into the network and its average, which has seen no update yet."""
        try:
            weights = torch.load(path, map_location=next(self.network.parameters()).device, weights_only=True)
            self.network.load_state_dict(weights, strict=True)
        except (OSError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
            line = " ".join(str(error).split())[:300]
            raise ValueError(
                f"pretrained: expected a checkpoint of {type(self.network).__name__}, got {line}"
            ) from None
        self.average.model.load_state_dict(self.network.state_dict())
        _log.info("started from the weights %s", path)

    def _periodic(self, engine: Engine) -> None:
        if time.monotonic() - self._saved >= self.interval_s:
            self.save(engine)

    def save(self, engine: Engine) -> None:
        """Write the state of the current phase."""
        if not self.write:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        wall, processor = self.elapsed()
        state = {
            "step": engine.state.iteration,
            "seconds": wall,
            "cpu_seconds": processor,
            "decay_start": self.decay_start,
            "losses": self.losses,
            "network": self.network.state_dict(),
            "average": self.average.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "others": {name: module.state_dict() for name, module in self.others.items()},
        }
        with atomic_path(self.path) as draft:
            torch.save(state, draft)
        self._saved = time.monotonic()


class LearningRate:
    r"""Linear warm-up, then constant; in the final phase linear decay to zero, after which the run ends.

    A function of the step alone: ``lr = base min(1, step / warmup)``, times ``1 - (step - start) / decay_steps`` in the
    final phase, whose start the :class:`TrainingState` knows. Whenever the constant phase is stopped it can be
    finished.

    Args:
        optimizer: the optimiser.
        state: knows where the final phase began.
        base: learning rate of the constant phase.
        warmup: steps of the warm-up.
        decay_steps: steps of the final phase.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        state: TrainingState,
        base: float,
        warmup: int = 200,
        decay_steps: int = 2000,
    ) -> None:
        self.optimizer, self.state, self.base = optimizer, state, base
        self.warmup, self.decay_steps = warmup, decay_steps

    def at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        rate = self.base * min(1.0, step / max(self.warmup, 1))
        if self.state.decay_start is not None:
            rate *= max(0.0, 1 - (step - 1 - self.state.decay_start) / self.decay_steps)
        return rate

    def attach(self, engine: Engine) -> None:
        """Set the rate before and check the end after every iteration."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._set)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _set(self, engine: Engine) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.at(engine.state.iteration)

    def _end(self, engine: Engine) -> None:
        start = self.state.decay_start
        if start is not None and engine.state.iteration >= start + self.decay_steps:
            engine.terminate()


class GradientClip:
    """Bounds the norm of the gradient before every update.

    Args:
        network: the network that is trained.
        max_norm: the bound.
    """

    def __init__(self, network: nn.Module, *, max_norm: float = 1.0) -> None:
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        """Attach to a SupervisedTrainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class TrainingCurve:
    """Watches the loss, and appends a line of loss and validation metrics to a CSV every few steps.

    Args:
        path: the CSV file.
        state: knows the seconds.
        evaluator: engine that validates the averaged weights, or None.
        every: steps between two lines.
        write: False for all but the first process.

    Raises:
        ValueError: (while running) if the loss is not finite.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        state: TrainingState,
        evaluator: Engine | None = None,
        every: int = 500,
        write: bool = True,
    ) -> None:
        self.path = Path(path)
        self.state, self.evaluator, self.every = state, evaluator, every
        self.write = write

    def attach(self, engine: Engine) -> None:
        """Attach to a SupervisedTrainer, after the state that it needs."""
        engine.add_event_handler(Events.STARTED, self._resume)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self._row)

    def _resume(self, engine: Engine) -> None:
        if self.write:
            drop_rows_after(self.path, engine.state.iteration)

    def _collect(self, engine: Engine) -> None:
        loss = float(engine.state.output["loss"].detach())
        if not math.isfinite(loss):
            raise ValueError(f"loss: expected a finite number at step {engine.state.iteration}, got {loss}")
        self.state.losses.append(loss)

    def _row(self, engine: Engine) -> None:
        loss = sum(self.state.losses) / len(self.state.losses)
        self.state.losses.clear()
        wall, processor = self.state.elapsed()
        if self.evaluator is not None:
            # on every process: metrics may gather over all of them
            self.evaluator.run()
        if not self.write:
            return
        row: dict[str, Any] = {
            "step": engine.state.iteration,
            "seconds": round(wall, 3),
            "cpu_seconds": round(processor, 3),
            "lr": f"{self.state.optimizer.param_groups[0]['lr']:.3e}",
            "train_loss": round(loss, 5),
        }
        if self.evaluator is not None:
            row |= {name: round(float(value), 3) for name, value in self.evaluator.state.metrics.items()}
        _log.info("%s", row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)


def export_weights(
    folder: str | os.PathLike[str], target: str | os.PathLike[str], *, half: bool = True, bits: int = 10
) -> str:
    """Write the averaged weights of the newest state as a flat state dict, in float16 unless told otherwise.

    Args:
        folder: folder of a :class:`TrainingState`; the finished ``decay.pt`` goes before ``last.pt``.
        target: file to write.
        half: whether to store float16.
        bits: bits of its mantissa to keep; fewer take less room, see :func:`multirecon.files.shortened`.

    Returns:
        One line that says what was written.

    Raises:
        ValueError: if there is no state.
    """
    states = [p for p in (Path(folder) / "decay.pt", Path(folder) / "last.pt") if p.exists()]
    if not states:
        raise ValueError(f"folder: expected decay.pt or last.pt in {folder}, got neither")
    state = torch.load(states[0], map_location="cpu", weights_only=True)
    prefix = "module."
    weights = {k[len(prefix) :]: v for k, v in state["average"].items() if k.startswith(prefix)}
    weights = {k: (v.half() if half and v.is_floating_point() else v).contiguous() for k, v in weights.items()}
    save_tensors({k: shortened(v, bits) for k, v in weights.items()}, target)
    size = Path(target).stat().st_size / 1e6
    wall, processor = state["seconds"] / 3600, state["cpu_seconds"] / 3600
    line = f"{target}: {size:.2f} MB, averaged weights of step {state['step']} from {states[0].name}"
    line += f" ({wall:.2f} h, {processor:.2f} h of one processor)"
    _log.info(line)
    return line
