"""Supervised training through a reconstructor: augmented truths become measurements, losses look at the stack."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import IterationEvents
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .acquisition import Acquisition, block_mean
from .acquisition.base import keyed_generator
from .blocks import Blocks
from .engines import PrepareMeasurement
from .likelihoods import BlockLikelihood, Gaussian, Likelihood
from .measurement import Measurement
from .metrics import image as image_metrics
from .operators import BlockDiagonal, Identity, LinearOperator, MaskedFourier
from .operators.fourier import centred_fft, centred_ifft
from .priors.training import FollowsStep, mean_of_all_processes
from .space import ImageSpace

__all__ = ["AverageGradients", "ChannelL1", "ChannelMetric", "CosineRate", "PrepareTraining", "crop_rows"]


def crop_rows(measurement: Measurement, start: int, rows: int) -> Measurement:
    r"""Return the measurement of some rows of the image alone: exact where whole lines of k-space are sampled.

    A mask that varies along the last axis only commutes with the transform along the first one, so that the rows of the
    image do not mix: the data are brought back along that axis, cropped, and transformed again on the shorter grid,
    which keeps white noise as it is. Clean images are cropped. The affine moves along.

    Args:
        measurement: 2D, of clean images and Cartesian MR of real images with whole lines.
        start: first row.
        rows: number of rows.

    Raises:
        ValueError: if the rows do not lie on the grid, or a block cannot be cropped.
    """
    space = measurement.space
    if not 0 <= start < start + rows <= space.shape[0]:
        raise ValueError(f"start, rows: expected rows within {space.shape[0]}, got {start} and {rows}")
    part = slice(start, start + rows)
    affine = space.affine.clone()
    affine[..., :3, 3] += start * affine[..., :3, 0]
    cropped = ImageSpace(space.modalities, (rows, *space.shape[1:]), space.spacing_mm, affine)
    y: dict[str, Tensor] = {}
    operators: dict[str, LinearOperator] = {}
    likelihoods: dict[str, Likelihood] = {}
    for name, operator in measurement.operator.items():
        data, likelihood = measurement.y[name], measurement.likelihood[name]
        whole = isinstance(operator, MaskedFourier) and bool((operator.mask == operator.mask[..., :1, :]).all())
        if isinstance(operator, MaskedFourier) and whole and isinstance(likelihood, Gaussian):
            lines = centred_ifft(data.mT, 1)[..., part]
            y[name] = centred_fft(lines, 1).mT.contiguous()
            operators[name] = MaskedFourier(operator.mask[..., part, :], operator.maps[..., part, :])
            support = likelihood.support
            likelihoods[name] = Gaussian(likelihood.sigma, support if support is None else support[..., part, :])
        elif isinstance(operator, Identity):
            y[name] = data[:, :, part].contiguous()
            operators[name], likelihoods[name] = Identity(y[name].shape[1:]), likelihood
        else:
            raise ValueError(f"block {name!r}: expected a clean image or k-space of whole lines, got {operator.kind!r}")
    return Measurement(Blocks(y), BlockDiagonal(cropped, operators), BlockLikelihood(likelihoods), measurement.metadata)


class PrepareTraining(FollowsStep, PrepareMeasurement):
    r"""Turns clean slices on the acquisition's fine grid into ``(Measurement, truth)``, new ones at every step.

    The batch holds ``"fine"``, or else ``"image"``: ``(B, C, *fine)`` on the scale of networks, and ``"brain"``: masks
    ``(B, 1, ...)``. The slices are augmented, measured, and averaged to the method's grid for the truth, so that the
    data never come from the method's own model. Everything drawn is a function of (seed, step, rank, sample): a resumed
    run goes on where it stopped.

    Args:
        acquisition: simulated scans; settings given as lists are drawn anew for every sample.
        modalities: channel names of the batch; the default is the acquisition's space.
        augmentation: ``augmentation(image, brain, generator=...)``, or None.
        rows: keep that many consecutive rows of the measured slice (:func:`crop_rows`), or None for all: the data
            consistency stays exact, a step costs less.
        seed: seed of the random numbers.
        rank: number of this process.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        *,
        modalities: Sequence[str] | None = None,
        augmentation: Callable[..., Tensor] | None = None,
        rows: int | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        super().__init__(acquisition, modalities=modalities)
        self.augmentation = augmentation
        self.rows = rows
        self.seed, self.rank = seed, rank

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Measurement, Tensor]:
        """Return the measurement on the device and its truth ``(B, C, *shape)``.

        Raises:
            ValueError: if the slices do not lie on the acquisition's fine grid.
        """
        assert self.acquisition is not None
        fine = torch.as_tensor(batchdata.get("fine", batchdata["image"]), dtype=torch.float32)
        if tuple(fine.shape[2:]) != self.acquisition.fine_shape:
            raise ValueError(f"image: expected the fine grid {self.acquisition.fine_shape}, got {tuple(fine.shape)}")
        if self.augmentation is not None:
            brain = torch.as_tensor(batchdata["brain"], dtype=torch.float32)
            if brain.shape[2:] != fine.shape[2:]:
                brain = interpolate(brain, size=fine.shape[2:], mode="nearest")
            generator = keyed_generator("augment", self.seed, self.step, self.rank)
            fine = self.augmentation(fine, brain, generator=generator)
        names = [f"{self.seed}/{self.rank}/{i}/{name}" for i, name in enumerate(batchdata["id"])]
        self.repeat = self.step
        batch = {"image": block_mean(fine, self.acquisition.oversample), "fine": fine, "id": names}
        measurement, truth = super().__call__(batch, device, non_blocking)
        assert truth is not None
        height = self.acquisition.space.shape[0]
        if self.rows is None or self.rows == height:
            return measurement, truth
        # around the middle, where the head is
        generator = keyed_generator("rows", self.seed, self.step, self.rank)
        free = height - self.rows
        start = free // 4 + int(torch.randint(free - 2 * (free // 4) + 1, (), generator=generator))
        return crop_rows(measurement, start, self.rows), truth[:, :, start : start + self.rows]


class ChannelL1(nn.Module):
    """Weighted sum over channels of the mean absolute error.

    Args:
        weights: one weight a channel of the stack; 0 leaves a channel out.

    Example:
        >>> ChannelL1([1.0, 0.0])(torch.zeros(1, 2, 1, 1), torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1)).item()
        3.0
    """

    weights: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        values = torch.tensor([float(w) for w in weights])
        if not (values >= 0).all() or not values.sum() > 0:
            raise ValueError(f"weights: expected non-negative numbers, not all zero, got {list(weights)}")
        self.register_buffer("weights", values, persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss of stacks ``(B, C, *shape)``.

        Raises:
            ValueError: if the channels and the weights differ in number.
        """
        if prediction.shape[1] != len(self.weights):
            raise ValueError(f"prediction: expected {len(self.weights)} channels, got {tuple(prediction.shape)}")
        plain = prediction.as_tensor() if hasattr(prediction, "as_tensor") else prediction
        errors = (plain - target).abs().movedim(1, 0).flatten(1).mean(1)
        return errors @ self.weights.to(errors)


class ChannelMetric(Metric):
    """Mean over the samples of an image metric of one channel, data range 1; over those of all processes, if several.

    Args:
        name: ``"psnr"`` or ``"ssim"``.
        channel: channel of the stack.
    """

    def __init__(self, name: str, *, channel: int = 0) -> None:
        if name not in ("psnr", "ssim"):
            raise ValueError(f"name: expected 'psnr' or 'ssim', got {name!r}")
        self.function = getattr(image_metrics, name)
        self.channel = channel
        super().__init__(output_transform=lambda output: (output["pred"], output["label"]))

    def reset(self) -> None:
        """Forget everything."""
        self._values: list[float] = []

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Add a batch ``(pred, label)``, each ``(B, C, *shape)``."""
        part = slice(self.channel, self.channel + 1)
        pred, label = (torch.as_tensor(t)[:, part].detach().cpu() for t in output)
        self._values += self.function(pred, label, data_range=1.0).tolist()

    def compute(self) -> float:
        """Return the mean.

        Raises:
            ValueError: if no batch was added.
        """
        return mean_of_all_processes(self._values)


class AverageGradients:
    """Averages the gradients of all processes after every backward pass; does nothing in a single process.

    An unrolled network is entered through its steps, not its ``forward``, which PyTorch's data-parallel wrapper needs.

    Args:
        network: the network that is trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to a SupervisedTrainer, before what looks at the gradient."""
        engine.add_event_handler(Events.STARTED, self._same_start)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._average)

    def _same_start(self, engine: Engine) -> None:
        if _processes() > 1:
            for tensor in self.network.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def _average(self, engine: Engine) -> None:
        count = _processes()
        if count > 1:
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= count


class CosineRate:
    r"""Learning rate that falls from ``first`` to ``last`` along half a cosine: a function of the step alone.

    Args:
        optimizer: the optimiser.
        first: rate of the first step.
        last: rate after ``steps`` steps and later.
        steps: length of the fall.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, first: float, last: float, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"steps: expected >= 1, got {steps}")
        self.optimizer, self.first, self.last, self.steps = optimizer, first, last, steps

    def at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        done = min(1.0, (step - 1) / self.steps)
        return self.last + 0.5 * (self.first - self.last) * (1 + math.cos(math.pi * done))

    def attach(self, engine: Engine) -> None:
        """Set the rate before every iteration."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._set)

    def _set(self, engine: Engine) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.at(engine.state.iteration)


def _processes() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1
