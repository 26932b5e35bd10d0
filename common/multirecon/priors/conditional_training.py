"""Training of conditional diffusion: the entropy curriculum, noisy batches of simulated scans, a loss by its terms."""

from __future__ import annotations

import csv
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.engines import PrepareBatch
from torch import Tensor
from torch.utils.data import Sampler

from .conditional import ConditionalBatch, ConditionalDiffusion
from .training import FollowsStep, keyed_generator

__all__ = ["CurriculumSampler", "LossTerms", "PrepareConditional", "slice_entropy"]


class Scans(Protocol):
    """Simulates the scans of a batch; random numbers follow from ``step``."""

    step: int

    def __call__(self, batchdata: Mapping[str, Any]) -> tuple[Any, Tensor]:
        """Return the measurement and its truth ``(B, C, *shape)``."""


class KeepsTerms(Protocol):
    """A loss that keeps its parts."""

    terms: dict[str, float]


def slice_entropy(image: Tensor, *, bins: int = 64) -> Tensor:
    """Return the Shannon entropy in bits of the histogram on [0, 1.28] of images ``(B, H, W)``: ``(B,)``.

    Args:
        image: slices whose bright tissue is about 1.
        bins: bins of the histogram.
    """
    codes = (image.flatten(1) * (bins / 1.28)).long().clamp(0, bins - 1)
    counts = torch.zeros(len(codes), bins).scatter_add_(1, codes, torch.ones_like(codes, dtype=torch.float32))
    share = counts / counts.sum(1, keepdim=True)
    return -(share * share.clamp_min(1e-12).log2()).sum(1)


class CurriculumSampler(Sampler[list[int]]):
    r"""Endless batches of slices, simple ones first; a function of (seed, step, rank).

    Slices are binned by the rounded entropy of their target. In the first ``curriculum`` steps the bin is drawn from a
    normal of standard deviation 0.5, truncated to the bins there are, whose mean rises linearly from the lowest to the
    highest; the slice is drawn evenly from the bin. Afterwards every pass over the set is a new permutation.

    Simulating a scan takes longer than a training step on it. Each position ``p`` of the sequence is therefore seen by
    ``batch_size / fresh`` steps, ``spacing`` steps apart and each time with other noise: step ``s`` sees the positions
    ``fresh (s - i spacing) + j``. With ``fresh = batch_size`` every slice is new. The end of a batch's sequence lies at
    negative positions in the first steps; they are drawn like the first one.

    Args:
        data_source: data set whose items' ``"image"`` is ``(C, H, W)``.
        batch_size: slices a batch of one process.
        fresh: slices of a batch that were not seen before; must divide the batch.
        spacing: steps between two uses of a slice.
        curriculum: steps of the curriculum; 0 for none.
        channel: channel of the target.
        seed: seed of all draws.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        ValueError: if a number is out of range or the data set is empty.

    References:
        mao2023
    """

    def __init__(
        self,
        data_source: Any,
        batch_size: int,
        *,
        fresh: int | None = None,
        spacing: int = 32,
        curriculum: int = 0,
        channel: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.fresh = batch_size if fresh is None else fresh
        if batch_size < 1 or self.fresh < 1 or batch_size % self.fresh or spacing < 1 or curriculum < 0:
            raise ValueError(
                "batch_size, fresh, spacing, curriculum: expected >= 1, a divisor of it, >= 1 and >= 0, "
                f"got {batch_size}, {self.fresh}, {spacing}, {curriculum}"
            )
        if not len(data_source) or not 0 <= rank < world_size:
            raise ValueError(f"data_source, rank: expected a non-empty data set and a rank below {world_size}, "
                             f"got {len(data_source)} and {rank}")  # fmt: skip
        self.data, self.count, self.batch_size = data_source, len(data_source), batch_size
        self.spacing, self.curriculum, self.channel = spacing, curriculum, channel
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.start = 0
        self._members: list[Tensor] | None = None
        self._order: tuple[int, Tensor] = (0, torch.empty(0, dtype=torch.long))

    def attach(self, engine: Engine) -> None:
        """Start at the engine's iteration (attach after the handler that restores it)."""
        engine.add_event_handler(Events.STARTED, self._restart)

    def _restart(self, engine: Engine) -> None:
        self.start = engine.state.iteration

    @property
    def members(self) -> list[Tensor]:
        """Numbers of the slices in each bin, lowest entropy first."""
        if self._members is None:
            images = (torch.as_tensor(self.data[i]["image"])[None, self.channel] for i in range(self.count))
            rounded = torch.cat([slice_entropy(image) for image in images]).round().long()
            self._members = [torch.nonzero(rounded == value).flatten() for value in rounded.unique(sorted=True)]
        return self._members

    def bin_mean(self, position: int) -> float:
        """Return the mean bin number at a position of the curriculum."""
        return (len(self.members) - 1) * min(max(position / (self.fresh * self.curriculum), 0.0), 1.0)

    def index(self, position: int) -> int:
        """Return the number of the slice at a position of this process's sequence."""
        if self.curriculum and position < self.fresh * self.curriculum:
            generator = keyed_generator("curriculum", self.seed, self.rank, position)
            normal = torch.distributions.Normal(self.bin_mean(position), 0.5)
            # bin n stands for [n - 1/2, n + 1/2]: a normal cut to the range of bins, then rounded
            edges = torch.tensor([-0.5, len(self.members) - 0.5])
            low, high = normal.cdf(edges).tolist()
            draw = float(normal.icdf(torch.tensor(low) + (high - low) * torch.rand((), generator=generator)))
            members = self.members[min(max(round(draw), 0), len(self.members) - 1)]
            return int(members[torch.randint(len(members), (), generator=generator)])
        number, place = divmod(position * self.world_size + self.rank, self.count)
        if self._order[0] != number or not len(self._order[1]):
            generator = keyed_generator("order", self.seed, number)
            self._order = number, torch.randperm(self.count, generator=generator)
        return int(self._order[1][place])

    def positions(self, step: int) -> list[int]:
        """Return the positions that a step (counted from 0) sees."""
        uses = range(self.batch_size // self.fresh)
        return [self.fresh * (step - use * self.spacing) + j for use in uses for j in range(self.fresh)]

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            yield [self.index(p) for p in self.positions(step)]
            step += 1


class PrepareConditional(FollowsStep, PrepareBatch):
    """Turns clean slices into noisy batches: scans are simulated once for each position, noise is new at every step.

    Args:
        scans: simulates and augments slices, ``scans(batch) -> (Measurement, truth)``; draws by its ``step``, which is
            set to the slice's position (:class:`~multirecon.training.PrepareTraining`).
        degrade: ``degrade(A, y)``, the degraded image ``(B, 1, H, W)`` of the target's data.
        diffusion: the diffusion of the target.
        sampler: knows which position each slice of the batch has.
        rows: keep that many consecutive rows of every slice, or None for all. The network sees images alone, so any
            part of a slice with its degraded image is a training sample.
        target: channel of the target in the stack.
        reference: channel of the reference.
        seed: seed of noise, times and rows.
        rank: number of this process.
    """

    def __init__(
        self,
        scans: Scans,
        *,
        degrade: Callable[[Any, Tensor], Tensor],
        diffusion: ConditionalDiffusion,
        sampler: CurriculumSampler,
        rows: int | None = None,
        target: int = 0,
        reference: int = 1,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        self.scans, self.degrade, self.diffusion = scans, degrade, diffusion
        self.sampler, self.rows = sampler, rows
        self.target, self.reference = target, reference
        self.seed, self.rank = seed, rank
        self._measured: OrderedDict[int, Tensor] = OrderedDict()
        # every use of a slice lies within the last uses * spacing steps
        self._limit = sampler.batch_size * (sampler.spacing + 1)

    def images(self, batchdata: Mapping[str, Any], positions: Sequence[int]) -> Tensor:
        """Return target, degraded target and reference ``(B, 3, H, W)``, simulated where they are not kept."""
        for i, position in enumerate(positions):
            if position not in self._measured:
                one = {key: value[i : i + 1] for key, value in batchdata.items() if key in ("image", "fine", "brain")}
                # the position may be negative: it only keys random numbers
                self.scans.step = position
                measurement, truth = self.scans({**one, "id": [batchdata["id"][i]]})
                name = measurement.space.names[self.target]
                degraded = self.degrade(measurement.operator[name], measurement.y[name])
                pair = truth[:, [self.target, self.reference]]
                self._measured[position] = torch.cat([pair[:, :1], degraded, pair[:, 1:]], dim=1)[0]
        kept = torch.stack([self._measured[p] for p in positions])
        while len(self._measured) > self._limit:
            del self._measured[min(self._measured)]
        return kept

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ConditionalBatch, tuple[Tensor], dict[str, Any]]:
        """Return ``(input, batch, (timestep,), {})``."""
        images = self.images(batchdata, self.sampler.positions(max(self.step, 1) - 1))
        generator = keyed_generator("noise", self.seed, self.step, self.rank)
        if self.rows is not None and self.rows < images.shape[2]:
            starts = torch.randint(images.shape[2] - self.rows + 1, (len(images),), generator=generator).tolist()
            cut = [image[:, start : start + self.rows] for image, start in zip(images, starts, strict=True)]
            images = torch.stack(cut)
        images = self.diffusion.to_range(images.to(device=device, non_blocking=non_blocking))
        if images.device.type != "cpu":
            generator = keyed_generator("noise", self.seed, self.step, self.rank, device=images.device)
        batch = self.diffusion.training_batch(images[:, :1], images[:, 1:], generator)
        return batch.image, batch, (batch.timestep,), {}


class LossTerms:
    """Writes the loss and its terms of every step to a CSV file: the sum alone hides which of them falls.

    Args:
        path: the file; a resumed run appends.
        loss: a loss function that keeps the terms of its last value in ``terms``.
        write: whether this process writes.
    """

    def __init__(self, path: str | os.PathLike[str], *, loss: KeepsTerms, write: bool = True) -> None:
        self.path, self.loss, self.write = Path(path), loss, write

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Append one line."""
        if not self.write:
            return
        row = {"step": engine.state.iteration, "loss": float(engine.state.output["loss"].detach()), **self.loss.terms}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow({k: v if isinstance(v, int) else f"{v:.6g}" for k, v in row.items()})
