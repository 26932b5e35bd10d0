"""What training of a diffusion prior adds to MONAI's engines: batches, inferers, loss and validation metric."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import PrepareBatch
from monai.inferers import Inferer
from monai.utils import evenly_divisible_all_gather
from torch import Tensor, nn
from torch.utils.data import Sampler

from .diffusion import DiffusionPrior, check_units

__all__ = ["BandLoss", "DenoisingInferer", "DenoisingPSNR", "NetworkInferer", "PrepareDenoising", "PrepareNoisy",
           "StepBatchSampler", "coefficient_statistics", "denoising_metrics"]  # fmt: skip

_log = logging.getLogger(__name__)


class StepBatchSampler(Sampler[list[int]]):
    """Endless batches of indices that are a function of (seed, step, rank): a resumed run goes on where it stopped.

    Every pass over the data set is a new permutation; batches run across its end.

    Args:
        data_source: the data set, or anything with a length.
        batch_size: samples a batch of one process.
        seed: seed of the permutations.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        ValueError: if the data set is empty or a number is out of range.

    Example:
        >>> batches = StepBatchSampler(range(3), 2)
        >>> first = [next(it) for it in [iter(batches)] for _ in range(3)]
        >>> sorted(first[0] + first[1][:1])
        [0, 1, 2]
    """

    def __init__(
        self, data_source: Sized, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if not len(data_source) or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"data_source, batch_size, rank: expected a non-empty data set, >= 1 and < {world_size}, "
                             f"got {len(data_source)}, {batch_size}, {rank}")  # fmt: skip
        self.count, self.batch_size, self.seed = len(data_source), batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.start = 0

    def attach(self, engine: Engine) -> None:
        """Start at the engine's iteration (attach after the handler that restores it)."""
        engine.add_event_handler(Events.STARTED, self._restart)

    def _restart(self, engine: Engine) -> None:
        self.start = engine.state.iteration

    def __iter__(self) -> Iterator[list[int]]:
        position = (self.start * self.world_size + self.rank) * self.batch_size
        number, order = -1, torch.empty(0, dtype=torch.long)
        while True:
            batch = []
            for index in range(position, position + self.batch_size):
                if index // self.count != number:
                    number = index // self.count
                    order = torch.randperm(self.count, generator=keyed_generator("order", self.seed, number))
                batch.append(int(order[index % self.count]))
            yield batch
            position += self.world_size * self.batch_size


def keyed_generator(*key: Any, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by plain values, independent of any other state."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def mean_of_all_processes(values: Sequence[float]) -> float:
    """Return the mean over the values of all processes, whatever their numbers and order: the sum is exact.

    Raises:
        ValueError: if there is none.
    """
    everything = torch.tensor(list(values), dtype=torch.float64)
    if idist.get_world_size() > 1:
        everything = evenly_divisible_all_gather(everything.to(idist.device())).cpu()
    if not len(everything):
        raise ValueError("metric: expected at least one batch, got none")
    return math.fsum(everything.tolist()) / len(everything)


def _tensor(image: Any, device: Any, non_blocking: bool) -> Tensor:
    plain = image.as_tensor() if hasattr(image, "as_tensor") else image
    return plain.to(device=device, dtype=torch.float32, non_blocking=non_blocking)


class FollowsStep:
    """What draws its random numbers by the engine's iteration, which a resumed run takes up again."""

    step = 0
    """Current iteration; 0 for what is not attached to an engine (validation)."""

    def attach(self, engine: Engine) -> None:
        """Follow the engine's iteration."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._follow)

    def _follow(self, engine: Engine) -> None:
        self.step = engine.state.iteration


class PrepareNoisy(FollowsStep, PrepareBatch):
    """Turns a batch of clean stacks into the network's input, target and time.

    The batch holds ``"image"``: ``(B, C, *shape)``; an augmentation is given ``"fine"``, a finer grid, where the batch
    has it, and returns the grid of the prior. Noise, times and augmentation are a function of (seed, step, rank).

    Args:
        prior: the prior that is trained.
        units: of the batch, ``"physical"`` (as ``prior.scaling`` takes them) or ``"unit"`` (about [0, 1]).
        augmentation: ``augmentation(image, brain, generator=...)`` in the units of the batch, with the brain masks
            ``(B, 1, *shape)`` it brings (None where there are none), or None.
        seed: seed of the random numbers.
        rank: number of this process.
    """

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        units: str = "physical",
        augmentation: Callable[..., Tensor] | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        self.prior = prior
        self.units = check_units(units)
        self.augmentation = augmentation
        self.seed, self.rank = seed, rank

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[Tensor], dict[str, Any]]:
        """Return ``(input, target, (timestep,), {})``."""
        moved = self.augmentation is not None
        image = _tensor(batchdata["fine" if moved and "fine" in batchdata else "image"], device, non_blocking)
        if self.augmentation is not None:
            brain = _tensor(batchdata["brain"], device, non_blocking) if "brain" in batchdata else None
            generator = keyed_generator("augment", self.seed, self.step, self.rank)
            image = self.augmentation(image, brain, generator=generator)
        x0 = self.prior.to_range(image, self.units)
        image, target, timestep = self.pair(
            x0, keyed_generator("noise", self.seed, self.step, self.rank, device=x0.device)
        )
        return image, target, (timestep,), {}

    def pair(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return input, target and time of clean images ``(B, C, *shape)`` in the network's range."""
        noisy = self.prior.noisy_batch(x0, generator)
        return noisy.image, noisy.target, noisy.timestep


class NetworkInferer(Inferer):
    """Runs ``network(image, timestep)``, in mixed precision if asked, and returns float32.

    Args:
        autocast: ``"bfloat16"`` or None.
    """

    def __init__(self, *, autocast: str | None = None) -> None:
        super().__init__()
        self.autocast = None if autocast is None else getattr(torch, autocast)

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return the prediction of the network, shaped like its output."""
        with torch.autocast(inputs.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return network(inputs, *args, **kwargs).float()


class BandLoss(nn.Module):
    r"""Mean over bands of ``w_b`` times the mean squared error of band ``b``; weights are scaled to mean one.

    Args:
        weights: one weight for each band of the domain; one band (pixels) by default. Equal weights are the plain mean.

    Raises:
        ValueError: if a weight is negative or all are zero.

    Example:
        >>> BandLoss([1.0, 3.0])(torch.zeros(1, 2, 1, 1), torch.tensor([0.0, 2.0]).reshape(1, 2, 1, 1)).item()
        3.0
    """

    weights: Tensor

    def __init__(self, weights: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        values = torch.tensor([float(w) for w in weights])
        if not (values >= 0).all() or not values.sum() > 0:
            raise ValueError(f"weights: expected non-negative numbers, not all zero, got {list(weights)}")
        self.register_buffer("weights", values / values.mean(), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss of predictions ``(B, C * bands, *shape)``, bands running fastest."""
        error = (prediction - target).square().unflatten(1, (-1, len(self.weights)))
        bands = error.mean(dim=[d for d in range(error.ndim) if d != 2])
        return (bands * self.weights.to(bands.device)).mean()


class PrepareDenoising(PrepareBatch):
    """Validation batches: every clean stack at every noise level, with the same noise each time.

    Args:
        prior: the prior.
        sigmas: noise levels in the network's range.
        units: of the batch, as in :class:`PrepareNoisy`.
        seed: seed of the noise.
    """

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        sigmas: Sequence[float] = (0.1, 0.3, 0.6, 1.5, 5.0),
        units: str = "physical",
        seed: int = 0,
    ) -> None:
        self.prior = prior
        self.sigmas = tuple(sigmas)
        self.units = check_units(units)
        self.seed = seed

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[Tensor], dict[str, Any]]:
        """Return ``(noisy, clean, (sigma,), {})`` with ``len(sigmas) * B`` samples, level by level."""
        x0 = self.prior.to_range(_tensor(batchdata["image"], device, non_blocking), self.units)
        noise = torch.randn(x0.shape, generator=keyed_generator("denoise", self.seed)).to(x0)
        noisy = torch.cat([x0 + sigma * noise for sigma in self.sigmas])
        levels = torch.tensor(self.sigmas, device=x0.device).repeat_interleave(len(x0))
        return noisy, x0.repeat(len(self.sigmas), *[1] * (x0.ndim - 1)), (levels,), {}


class DenoisingInferer(Inferer):
    """Runs the prior's denoiser, ``(x, network, sigma) -> E[x0 | x]``.

    Args:
        prior: the prior.
        autocast: ``"bfloat16"`` or None.
    """

    def __init__(self, prior: DiffusionPrior, *, autocast: str | None = None) -> None:
        super().__init__()
        self.prior = prior
        self.autocast = None if autocast is None else getattr(torch, autocast)

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return the denoised images ``(B, C, *shape)``; the first further argument is the noise level."""
        return self.prior.denoiser(network, autocast=self.autocast)(inputs, *args, **kwargs)


class DenoisingPSNR(Metric):
    r"""Mean over images and channels of ``10 log10(4 / MSE)``: images in [-1, 1], a data range of 2.

    Where several processes share the images, it is the mean over those of all.

    Args:
        num_levels: noise levels in a batch of :class:`PrepareDenoising`.
        index: which of them; None for all.
    """

    def __init__(self, num_levels: int, *, index: int | None = None) -> None:
        self.num_levels, self.index = num_levels, index
        super().__init__(output_transform=lambda output: (output["pred"], output["label"]))

    def reset(self) -> None:
        """Forget everything."""
        self._values: list[float] = []

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Add a batch ``(pred, label)``, each ``(num_levels * B, C, *shape)``."""
        pred, label = (t.unflatten(0, (self.num_levels, -1)) for t in output)
        chosen = slice(None) if self.index is None else slice(self.index, self.index + 1)
        mse = (pred[chosen] - label[chosen]).square().flatten(3).mean(-1)
        psnr = 10 * torch.log10(4 / mse.clamp(min=1e-10))
        self._values += psnr.flatten().tolist()

    def compute(self) -> float:
        """Return the mean PSNR in dB.

        Raises:
            ValueError: if no batch was added.
        """
        return mean_of_all_processes(self._values)


def denoising_metrics(sigmas: Sequence[float]) -> dict[str, DenoisingPSNR]:
    """Return one metric ``psnr_SIGMA`` for every noise level of :class:`PrepareDenoising`."""
    return {f"psnr_{sigma:g}": DenoisingPSNR(len(sigmas), index=i) for i, sigma in enumerate(sigmas)}


def coefficient_statistics(
    prior: DiffusionPrior, images: Iterable[Tensor], *, units: str = "physical"
) -> dict[str, list[float]]:
    """Return mean and standard deviation of every coefficient channel, for ``Parametrisation("preconditioned")``.

    Args:
        prior: supplies scaling and domain.
        images: stacks ``(C, *shape)``.
        units: of the stacks, as in :class:`PrepareNoisy`.
    """
    total, square, count = torch.zeros(()), torch.zeros(()), 0
    for image in images:
        x0 = prior.to_range(torch.as_tensor(image, dtype=torch.float64)[None], units)
        w = prior.domain.forward(x0)[0].flatten(1)
        total, square, count = total + w.sum(1), square + w.square().sum(1), count + w.shape[1]
    if not count:
        raise ValueError("images: expected at least one, got none")
    mean = total / count
    std = (square / count - mean**2).clamp(min=1e-12).sqrt()
    found = {"mean": [round(float(v), 4) for v in mean], "std": [round(float(v), 4) for v in std]}
    _log.info("%s", found)
    return found
