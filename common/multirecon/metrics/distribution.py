"""Distances between two sets of images, in the features of a named encoder: do they look alike as a population?

Every result carries its name, ``KID-phantomnet64`` or ``FD-phantomnet64``: without the encoder the number means
nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from monai.metrics import FIDMetric
from torch import Tensor

from .features import ENCODER

__all__ = ["FeatureDistance", "frechet_distance", "kid", "kid_difference"]


@dataclass(frozen=True)
class FeatureDistance:
    """A distance between two sets of images.

    Args:
        name: which distance, in the features of which encoder.
        value: the estimate; KID is unbiased, so that it may be a little below zero.
        low: lower end of the bootstrap interval, None without one.
        high: upper end.
        counts: images in the two sets.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    counts: tuple[int, int]

    def __str__(self) -> str:
        interval = f" [{self.low:.4g}, {self.high:.4g}]" if self.low is not None and self.high is not None else ""
        return f"{self.name} {self.value:.4g}{interval} (n = {self.counts[0]}, {self.counts[1]})"


def kid(
    features_a: Tensor,
    features_b: Tensor,
    *,
    encoder: str = ENCODER,
    groups_a: Sequence[Hashable] | None = None,
    groups_b: Sequence[Hashable] | None = None,
    bootstrap: int = 500,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> FeatureDistance:
    r"""Return the kernel distance: the unbiased squared maximum mean discrepancy of a cubic kernel.

    .. math:: \mathrm{MMD}^2 = \mathop{\mathrm{mean}}_{i \neq j} k(a_i, a_j)
              + \mathop{\mathrm{mean}}_{i \neq j} k(b_i, b_j) - 2 \mathop{\mathrm{mean}}_{i, j} k(a_i, b_j),
              \quad k(u, v) = (u^T v / d + 1)^3

    Its expectation is zero for one distribution at any number of images. The interval comes from a bootstrap that
    draws images, or groups of images, with replacement; pairs of an image with its own copy are left out, as they are
    from the estimate.

    Args:
        features_a: ``(N, d)``, N at least 2.
        features_b: ``(M, d)``, M at least 2.
        encoder: name of the network the features come from.
        groups_a: subject of every row; slices of one subject are alike, so that subjects and not slices are drawn.
        groups_b: the same for ``features_b``; both or none.
        bootstrap: number of resamples; 0 for no interval.
        level: coverage of the interval.
        generator: source of the resamples, on the CPU; by default one of seed 0.

    Raises:
        ValueError: on features of another shape, that are not finite, or groups that do not fit.

    References:
        binkowski2018
    """
    a, b = _features(features_a, "features_a", 2), _features(features_b, "features_b", 2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features_b: expected {a.shape[1]} features like features_a, got {b.shape[1]}")
    if (groups_a is None) != (groups_b is None):
        raise ValueError("groups_a, groups_b: expected both or none, got one")
    if bootstrap < 0 or not 0 < level < 1:
        raise ValueError(f"bootstrap, level: expected >= 0 and within (0, 1), got {bootstrap} and {level}")
    kernels = tuple((u @ v.T / a.shape[1] + 1) ** 3 for u, v in ((a, a), (b, b), (a, b)))
    value = _discrepancy(kernels, torch.ones(1, len(a)).to(a), torch.ones(1, len(b)).to(a))[0]
    low = high = None
    if bootstrap:
        source = generator if generator is not None else torch.Generator().manual_seed(0)
        weights = [
            _resample(len(x), groups, bootstrap, source, name).to(x)
            for x, groups, name in ((a, groups_a, "groups_a"), (b, groups_b, "groups_b"))
        ]
        drawn = _discrepancy(kernels, *weights)
        tail = (1 - level) / 2
        # a resample of one single image has no pairs and gives no value
        low, high = (float(q) for q in torch.nanquantile(drawn, torch.tensor([tail, 1 - tail]).to(drawn)))
    return FeatureDistance(f"KID-{encoder}", float(value), low, high, (len(a), len(b)))


def kid_difference(
    features_a: Tensor,
    features_b: Tensor,
    reference: Tensor,
    *,
    groups: Sequence[Hashable],
    encoder: str = ENCODER,
    bootstrap: int = 500,
    level: float = 0.95,
) -> FeatureDistance:
    r"""Return ``KID(a, reference) - KID(b, reference)`` with an interval that draws the same subjects for all three.

    For two methods on the same slices: below zero, ``a`` looks more like the reference than ``b``.

    Args:
        features_a: ``(N, d)``, N at least 2.
        features_b: ``(N, d)`` of the same slices, row by row.
        reference: ``(N, d)`` of the same slices, row by row.
        groups: subject of every row; without at least two there is no interval.
        encoder: name of the network the features come from.
        bootstrap: number of resamples.
        level: coverage of the interval.

    Raises:
        ValueError: on features that do not fit or are not finite, or groups that do not fit.

    References:
        binkowski2018
    """
    a, b, c = (_features(f, n, 2) for f, n in ((features_a, "features_a"), (features_b, "features_b"),
                                               (reference, "reference")))  # fmt: skip
    if not a.shape == b.shape == c.shape:
        raise ValueError(f"features: expected three sets of one shape, got {[tuple(x.shape) for x in (a, b, c)]}")

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T / u.shape[1] + 1) ** 3

    within, sets = kernel(c, c), [(kernel(x, x), kernel(x, c)) for x in (a, b)]

    def difference(weights: Tensor) -> Tensor:
        first, second = (_discrepancy((own, within, across), weights, weights) for own, across in sets)
        return first - second

    times = _resample(len(a), groups, bootstrap, torch.Generator().manual_seed(0), "groups").to(a)
    low = high = None
    if bootstrap and len(set(groups)) > 1:
        tail = (1 - level) / 2
        low, high = (float(q) for q in torch.nanquantile(difference(times), torch.tensor([tail, 1 - tail]).to(a)))
    value = float(difference(torch.ones(1, len(a)).to(a))[0])
    return FeatureDistance(f"KID-{encoder} difference", value, low, high, (len(a), len(b)))


def frechet_distance(features_a: Tensor, features_b: Tensor, *, encoder: str = ENCODER) -> FeatureDistance:
    r"""Return the Fréchet distance of Gaussians fitted to the features (MONAI's ``FIDMetric``).

    .. math:: \mathrm{FD} = \|m_a - m_b\|^2 + \mathrm{tr}\bigl(S_a + S_b - 2 (S_a S_b)^{1/2}\bigr)

    Biased upwards, the more so the fewer the images: two samples of one distribution are far from zero even at ten
    images a feature. Compare values of equal counts only, and prefer :func:`kid`. Never call it FID.

    Args:
        features_a: ``(N, d)``, N above d, so that the covariance has full rank.
        features_b: ``(M, d)``, M above d.
        encoder: name of the network the features come from.

    Raises:
        ValueError: on features of another shape, that are not finite, or too few rows.

    References:
        heusel2017
    """
    a, b = _features(features_a, "features_a"), _features(features_b, "features_b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features_b: expected {a.shape[1]} features like features_a, got {b.shape[1]}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # how MONAI calls scipy.linalg.sqrtm
        value = float(FIDMetric()(a.cpu(), b.cpu()))
    return FeatureDistance(f"FD-{encoder}", value, None, None, (len(a), len(b)))


def _features(features: Tensor, name: str, least: int | None = None) -> Tensor:
    if features.ndim != 2 or len(features) < (least or features.shape[1] + 1):
        wanted = f"at least {least}" if least else "more rows than features"
        raise ValueError(f"{name}: expected (N, d) with {wanted}, got shape {tuple(features.shape)}")
    if not torch.isfinite(features).all():
        raise ValueError(f"{name}: expected finite values, got NaN or Inf")
    return features.detach().double()


def _discrepancy(kernels: tuple[Tensor, ...], weights_a: Tensor, weights_b: Tensor) -> Tensor:
    """Return the weighted U-statistic for every row of weights ``(R, N)`` and ``(R, M)``."""
    aa, bb, ab = kernels

    def within(kernel: Tensor, weights: Tensor) -> Tensor:
        squares = weights**2
        total = ((weights @ kernel) * weights).sum(1) - squares @ kernel.diagonal()
        pairs = weights.sum(1) ** 2 - squares.sum(1)
        # one image drawn again and again has no pairs; rounding would make an infinity of 0 / 0
        return torch.where(pairs > 0, total / pairs, torch.nan)

    between = ((weights_a @ ab) * weights_b).sum(1) / (weights_a.sum(1) * weights_b.sum(1))
    return within(aa, weights_a) + within(bb, weights_b) - 2 * between


def _resample(
    count: int, groups: Sequence[Hashable] | None, rounds: int, generator: torch.Generator, name: str
) -> Tensor:
    """Return how often every image is drawn, ``(rounds, count)``; the images of one group come together."""
    labels = list(range(count)) if groups is None else list(groups)
    if len(labels) != count:
        raise ValueError(f"{name}: expected one group for each of {count} rows, got {len(labels)}")
    order = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    member = torch.tensor([order[label] for label in labels])
    drawn = torch.randint(len(order), (rounds, len(order)), generator=generator)
    times = torch.zeros(rounds, len(order)).scatter_add_(1, drawn, torch.ones(drawn.shape))
    return times[:, member]
