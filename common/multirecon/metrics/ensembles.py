"""Many estimates of one truth: bias and spread over noise realisations, and whether posterior samples are honest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .image import _mean

__all__ = [
    "LEVELS",
    "crps",
    "normalised_bias",
    "normalised_std",
    "posterior_coverage",
    "posterior_ranks",
    "rank_deviation",
    "spread_correction",
    "widened",
]

LEVELS = (0.5, 0.8, 0.95)


def normalised_bias(realisations: Tensor, truth: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Return ``NBias`` of reconstructions of repeated noise, shape ``(B,)``.

    .. math:: \mathrm{NBias} = \|\bar x - x^*\|_{ROI} / \|x^*\|_{ROI}, \quad \bar x = \tfrac1R \sum_r x_r

    Of ``R`` unbiased realisations it is not zero but about the relative noise over :math:`\sqrt R`.

    Args:
        realisations: ``(R, B, C, *spatial)``, R at least 2.
        truth: ``(B, C, *spatial)`` in the same unit.
        mask: region of interest ``(*spatial)`` or ``(B, *spatial)``; the default is everywhere.

    Raises:
        ValueError: on shapes that do not fit, fewer than 2 realisations, or an empty mask.
    """
    x, target = _stacked(realisations, truth, "realisations")
    return (_mean((x.mean(0) - target) ** 2, mask) / _mean(target**2, mask)).sqrt()


def normalised_std(realisations: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Return ``NStd``, the mean over the region of :math:`\mathrm{std}_r x_r / \mathrm{mean}_r x_r`, shape ``(B,)``.

    The standard deviation is the sample one (``R - 1``).

    Args:
        realisations: ``(R, B, C, *spatial)``, R at least 2, of positive mean inside the region.
        mask: region of interest ``(*spatial)`` or ``(B, *spatial)``; the default is everywhere.

    Raises:
        ValueError: on fewer than 2 realisations, an empty mask, or a mean inside the region that is not positive.
    """
    x, _ = _stacked(realisations, realisations[0], "realisations")
    mean = x.mean(0)
    usable = mean > 0
    outside = _mean((~usable).to(mean.dtype), mask)
    if (outside > 0).any():
        raise ValueError(
            "mask: expected a region where the mean over realisations is positive, "
            f"got {outside.max().item():.1%} of it at or below zero"
        )
    ratio = x.std(0) / torch.where(usable, mean, 1.0)
    return _mean(ratio, mask)


def posterior_coverage(
    samples: Tensor, truth: Tensor, *, levels: Sequence[float] = LEVELS, mask: Tensor | None = None
) -> dict[float, Tensor]:
    r"""Return, per level, the share of voxels whose truth lies in the central interval of the samples, shape ``(B,)``.

    Per voxel the interval of level ``p`` is built from order statistics. With S samples and the truth drawn from one
    distribution, the truth's rank is uniform on 0 .. S: the interval between the k-th smallest and the k-th largest
    holds it with probability :math:`1 - 2k / (S + 1)`. Between two values of k the truth counts in part, so that an
    honest posterior covers ``p`` **exactly** in expectation, for any S. Far below ``p`` is over-confident.

    Args:
        samples: posterior samples ``(S, B, C, *spatial)``, S at least 2.
        truth: ``(B, C, *spatial)`` in the same unit.
        levels: nominal probabilities from ``1 / (S + 1)`` to ``(S - 1) / (S + 1)``: 0.95 needs 39 samples.
        mask: region of interest ``(*spatial)`` or ``(B, *spatial)``; the default is everywhere. Air that every
            sample leaves at exactly zero counts as covered: give a mask.

    Raises:
        ValueError: on shapes that do not fit, fewer than 2 samples, a level the number of samples cannot support, or
            an empty mask.

    Example:
        >>> samples = torch.arange(39.0).reshape(39, 1, 1, 1, 1)
        >>> posterior_coverage(samples, torch.full((1, 1, 1, 1), 19.5))[0.5].item()
        1.0
    """
    x, target = _stacked(samples, truth, "samples")
    count = len(x)
    least, largest = 1 / (count + 1), (count - 1) / (count + 1)
    wrong = [p for p in levels if not least <= p <= largest]
    if wrong:
        raise ValueError(
            f"levels: expected within [{least:.3f}, {largest:.3f}], what {count} samples can support, got {wrong}"
        )
    # equal values (air in every sample) take the middle of the ranks they could have
    below, above = (x < target).sum(0).double(), (x > target).sum(0).double()
    depth = torch.minimum((count + below - above) / 2, (count - below + above) / 2)
    found = {}
    for level in levels:
        edge = (1 - level) * (count + 1) / 2  # ranks outside the interval on each side
        found[level] = _mean((depth + 1 - edge).clamp(0, 1), mask)
    return found


def widened(samples: Tensor, factor: float) -> Tensor:
    """Return samples ``(S, ...)`` whose deviations from their mean are ``factor`` times as large."""
    mean = samples.mean(0)
    return samples if factor == 1 else mean + factor * (samples - mean)


def spread_correction(cases: Sequence[tuple[Tensor, Tensor, Tensor | None]], *, level: float = 0.8) -> float:
    r"""Return the factor by which samples, widened about their mean, cover the truth as often as the level says.

    Found by bisection to 1 %, between 1/8 and 8, for the mean coverage over all cases. One number for all voxels:
    places that were more honest than others stay so. Fit it on validation data, and check it on others.

    Args:
        cases: ``(samples (S, B, C, *spatial), truth (B, C, *spatial), mask or None)``, as of
            :func:`posterior_coverage`.
        level: nominal probability that is met.

    Raises:
        ValueError: without cases, on what :func:`posterior_coverage` refuses, or if no factor in that range does it.
    """
    if not cases:
        raise ValueError("cases: expected at least one, got none")

    def coverage(factor: float) -> float:
        total = 0.0
        for samples, truth, mask in cases:
            found = posterior_coverage(widened(samples, factor), truth, levels=(level,), mask=mask)[level]
            total += float(found.mean()) / len(cases)
        return total

    low, high = 1 / 8, 8.0
    if not coverage(low) < level < coverage(high):
        raise ValueError(f"cases: expected a coverage of {level} for a factor between {low} and {high}, got "
                         f"{coverage(low):.3f} to {coverage(high):.3f}")  # fmt: skip
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if coverage(middle) < level else (low, middle)
    return math.sqrt(low * high)


def crps(samples: Tensor, truth: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Return the continuous ranked probability score per sample ``(B,)`` in the unit of the images; smaller is better.

    .. math:: \mathrm{CRPS} = \tfrac1S \sum_s |x_s - x^*| - \tfrac{1}{2 S (S - 1)} \sum_{s, t} |x_s - x_t|

    averaged over the region: the fair estimator, whose expectation does not depend on S. Of a point mass it is the mean
    absolute error.

    Args:
        samples: posterior samples ``(S, B, C, *spatial)``, S at least 2.
        truth: ``(B, C, *spatial)`` in the same unit.
        mask: region of interest ``(*spatial)`` or ``(B, *spatial)``; the default is everywhere.

    Raises:
        ValueError: on shapes that do not fit, fewer than 2 samples, or an empty mask.

    References:
        gneiting2007
    """
    x, target = _stacked(samples, truth, "samples")
    count = len(x)
    ordered = x.sort(dim=0).values
    # sum over pairs |x_s - x_t| = 2 sum_k (2k - S - 1) x_(k), k = 1 .. S
    weights = 2 * torch.arange(1, count + 1, dtype=x.dtype, device=x.device) - count - 1
    pairs = 2 * torch.einsum("s,s...->...", weights, ordered)
    return _mean((x - target).abs().mean(0) - pairs / (2 * count * (count - 1)), mask)


def posterior_ranks(samples: Tensor, truth: Tensor) -> Tensor:
    r"""Return how many posterior samples lie below the truth, 0 .. S, element by element: simulation-based calibration.

    Where a truth is drawn from a prior, data from the truth, and samples from the posterior of that prior, the rank is
    uniform on 0 .. S for every scalar of the image; with too narrow a posterior the outer ranks are too many, with too
    wide a one the inner ones, with a biased one those of one side. Equal values take the middle rank, rounded down.

    Args:
        samples: ``(S, *shape)``, S at least 1: images or any scalars of them.
        truth: the same of the truth, ``(*shape)``.

    Raises:
        ValueError: on shapes that do not fit.

    References:
        talts2018
    """
    if samples.ndim < 1 or not len(samples) or samples.shape[1:] != truth.shape:
        raise ValueError(f"samples: expected (S, ...) over {tuple(truth.shape)}, got {tuple(samples.shape)}")
    below, above = (samples < truth).sum(0), (samples > truth).sum(0)
    return (len(samples) + below - above) // 2


def rank_deviation(ranks: Tensor, count: int) -> tuple[float, float, float]:
    r"""Return how far ranks are from uniform: ``(spread, shift, distance)``.

    ``spread`` is their standard deviation over that of uniform ones (above 1: the posterior is too narrow), ``shift``
    their mean minus one half, as a share of the range (above 0: samples lie too low), ``distance`` the largest
    difference of the distribution functions (Kolmogorov). Of ``n`` independent uniform ranks ``shift`` has the
    standard deviation :math:`0.29 / \sqrt n` and ``distance`` exceeds :math:`1.36 / \sqrt n` in at most 5 %; ranks of
    neighbouring pixels are not independent.

    Args:
        ranks: integers 0 .. ``count``, any shape.
        count: samples that each was taken among.

    Raises:
        ValueError: without ranks, or with one outside.

    Example:
        >>> [round(v, 3) for v in rank_deviation(torch.tensor([0, 1, 2, 3]), 3)]
        [1.0, 0.0, 0.0]
    """
    flat = ranks.flatten()
    if not len(flat) or count < 1 or not bool(((flat >= 0) & (flat <= count)).all()):
        raise ValueError(f"ranks: expected at least one, within 0 to {count}, got {flat[:5].tolist()}")
    share = torch.bincount(flat, minlength=count + 1).double() / len(flat)
    distance = (share.cumsum(0) - torch.arange(1, count + 2, device=share.device) / (count + 1)).abs().max()
    uniform = math.sqrt(((count + 1) ** 2 - 1) / 12)
    values = flat.double()
    return float(values.std(correction=0)) / uniform, float(values.mean()) / count - 0.5, float(distance)


def _stacked(values: Tensor, truth: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if values.ndim not in (5, 6) or values.shape[1:] != truth.shape or len(values) < 2:
        raise ValueError(
            f"{name}: expected (N, B, C, *spatial) with N >= 2 over {tuple(truth.shape)}, got {tuple(values.shape)}"
        )
    return values.double(), truth.double()
