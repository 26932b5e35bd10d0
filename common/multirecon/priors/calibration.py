"""How far a denoiser's estimates can be trusted: their error by noise level, channel and value."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..files import atomic_path
from .diffusion import DiffusionPrior

__all__ = ["DenoiserError", "measure_denoiser_error"]

FORMAT = 1
_FEW = 50  # pixels in a bin below which its neighbour speaks for it
_FLOOR = 1e-3  # of the root-mean-square error, in the range of the network: below any that bfloat16 resolves


class DenoiserError:
    r"""Error variance of a denoiser's estimate, looked up by noise level, channel and estimated value.

    One number a noise level hides where data are needed: a prior knows the air around a head almost exactly
    and dense bone well, and errs at the borders, whose values lie between. The table holds ``E[(D(x, sigma) - x0)^2]``
    given ``sigma``, channel and value of ``D``; logarithms are interpolated linearly in ``log sigma`` and in the
    value, and the outermost entries go on.

    Args:
        sigma: noise levels, increasing, ``(S,)``.
        values: centres of the value bins in the network's range, increasing, ``(K,)``.
        variance: positive error variances ``(S, C, K)``.

    Raises:
        ValueError: if shapes disagree, or levels, values or variances are not as stated.

    Example:
        >>> error = DenoiserError([0.1, 1.0], [-1.0, 1.0], [[[0.01, 0.04]], [[0.01, 0.04]]])
        >>> [round(v, 3) for v in error(0.5, torch.tensor([[[-1.0, 0.0, 1.0]]])).flatten().tolist()]
        [0.01, 0.02, 0.04]
    """

    def __init__(self, sigma: Sequence[float] | Tensor, values: Sequence[float] | Tensor, variance: Any) -> None:
        self.sigma, self.values, self.variance = (
            torch.as_tensor(v, dtype=torch.float64) for v in (sigma, values, variance)
        )
        for name, axis in (("sigma", self.sigma), ("values", self.values)):
            if axis.ndim != 1 or len(axis) < 2 or not bool(axis.isfinite().all() and (axis.diff() > 0).all()):
                raise ValueError(f"{name}: expected two or more increasing numbers, got {axis.tolist()}")
        if not bool((self.sigma > 0).all()):
            raise ValueError(f"sigma: expected noise levels > 0, got {self.sigma.tolist()}")
        shape = (len(self.sigma), self.variance.shape[1] if self.variance.ndim > 1 else 0, len(self.values))
        if self.variance.shape != shape or not bool((self.variance > 0).all() and self.variance.isfinite().all()):
            raise ValueError(f"variance: expected positive numbers of shape (S = {shape[0]}, C, K = {shape[2]}), "
                             f"got shape {tuple(self.variance.shape)}")  # fmt: skip

    @property
    def channels(self) -> int:
        """Channels of the stacks it speaks of."""
        return self.variance.shape[1]

    def __call__(self, sigma: float, estimate: Tensor) -> Tensor:
        """Return error variances shaped like ``estimate``, ``(B, C, *shape)`` in the network's range.

        Raises:
            ValueError: if the channels of ``estimate`` are not those of the table.
        """
        if estimate.ndim < 2 or estimate.shape[1] != self.channels:
            raise ValueError(f"estimate: expected (B, {self.channels}, ...), got shape {tuple(estimate.shape)}")
        row = _between(self.sigma.log(), math.log(sigma), self.variance.log()).to(estimate)  # (C, K)
        values = self.values.to(estimate)
        right = torch.searchsorted(values, estimate.detach().contiguous()).clamp(1, len(values) - 1)
        left = right - 1
        share = ((estimate - values[left]) / (values[right] - values[left])).clamp(0, 1)
        channel = torch.arange(self.channels, device=estimate.device).reshape(-1, *[1] * (estimate.ndim - 2))
        return ((1 - share) * row[channel, left] + share * row[channel, right]).exp()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, whole or not at all."""
        round_trip = {
            "format": FORMAT,
            "sigma": _digits(self.sigma),
            "values": _digits(self.values),
            "variance": [[_digits(row) for row in level] for level in self.variance],
        }
        with atomic_path(Path(path)) as draft:
            draft.write_text(json.dumps(round_trip, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DenoiserError:
        """Read a table that :meth:`save` wrote.

        Raises:
            ValueError: if the file cannot be read, or is no such table.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']}")
            return cls(found["sigma"], found["values"], found["variance"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path: expected a table of denoiser errors, got {str(path)!r} ({error})") from None


def measure_denoiser_error(
    prior: DiffusionPrior,
    network: nn.Module,
    images: Iterable[Tensor],
    *,
    levels: int = 14,
    bins: int = 16,
    largest: float = 100.0,
    units: str = "physical",
    autocast: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
) -> DenoiserError:
    """Measure the error of a prior's denoiser on images that it was not trained on.

    Args:
        prior: the prior.
        network: its trained network.
        images: clean stacks ``(C, *shape)`` of validation subjects.
        levels: noise levels, equally spaced in their logarithm from the least of the schedule.
        bins: equal bins of the estimate over [-1, 1]. A bin with few pixels takes the error of the nearest one that has
            enough.
        largest: largest noise level; above it an estimate is the mean of the training set.
        units: of the images, ``"physical"`` or ``"unit"`` (about [0, 1]).
        autocast: precision inside the network, as the sampler will use it.
        limit: use this many of the images, spread evenly over a sequence; all by default.
        seed: of the noise.
        path: where the table is written, if anywhere.

    Raises:
        ValueError: if there are no images.
    """
    stacks = list(images)
    if not stacks:
        raise ValueError("images: expected at least one, got none")
    stacks = stacks[:: max(1, len(stacks) // limit)][:limit] if limit else stacks
    device = next(network.parameters(), torch.empty(0)).device
    generator = torch.Generator().manual_seed(seed)
    denoiser = prior.denoiser(network.eval(), autocast=None if autocast is None else getattr(torch, autocast))
    low = math.log(prior.schedule.sigma_range[0])
    sigmas = torch.linspace(low, math.log(largest), levels, dtype=torch.float64).exp()
    total = torch.zeros(levels, prior.space.num_channels, bins, dtype=torch.float64)
    count = torch.zeros_like(total)
    for image in tqdm(stacks, desc="denoiser error", unit="image", leave=False):
        stack = torch.as_tensor(image, dtype=torch.float32, device=device)[None]
        x0 = prior.to_range(stack, units)
        for level, sigma in enumerate(sigmas.tolist()):
            noise = torch.randn(x0.shape, generator=generator).to(device)
            with torch.no_grad():
                estimate = denoiser(x0 + sigma * noise, sigma)
            square = (estimate - x0).square()[0].flatten(1).double().cpu()
            bin_ = ((estimate[0].flatten(1) + 1) * bins / 2).long().clamp(0, bins - 1).cpu()
            total[level].scatter_add_(1, bin_, square)
            count[level].scatter_add_(1, bin_, torch.ones_like(square))
    variance = _filled(total / count.clamp_min(1), count).clamp_min(_FLOOR**2)
    centres = (torch.arange(bins, dtype=torch.float64) + 0.5) * 2 / bins - 1
    error = DenoiserError(sigmas, centres, variance)
    if path is not None:
        error.save(path)
    return error


def _between(axis: Tensor, value: float, rows: Tensor) -> Tensor:
    """Return the rows interpolated at a place on their first axis; the outermost go on."""
    right = int(torch.searchsorted(axis, torch.tensor(value, dtype=axis.dtype)).clamp(1, len(axis) - 1))
    share = float(((value - axis[right - 1]) / (axis[right] - axis[right - 1])).clamp(0, 1))
    return (1 - share) * rows[right - 1] + share * rows[right]


def _filled(variance: Tensor, count: Tensor) -> Tensor:
    """Return variances in which bins with few pixels have the value of the nearest bin that has enough."""
    filled = variance.clone()
    places = torch.arange(count.shape[-1])
    for level, channel in torch.cartesian_prod(*map(torch.arange, count.shape[:2])).tolist():
        enough = places[count[level, channel] >= min(_FEW, float(count[level, channel].max()))]
        nearest = enough[(places[:, None] - enough).abs().argmin(1)]
        filled[level, channel] = variance[level, channel, nearest]
    return filled


def _digits(values: Tensor) -> list[float]:
    return [float(f"{v:.4g}") for v in values.tolist()]
