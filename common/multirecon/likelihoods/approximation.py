"""Gaussian approximations of counting likelihoods, for solvers and libraries that know least squares only."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from multirecon.blocks import Blocks

from .base import BlockLikelihood, Likelihood
from .gaussian import Gaussian
from .poisson import Poisson
from .transmission import TransmissionPoisson, log_transform

__all__ = ["gaussian_approximation"]

_UNKNOWN = 1e6
"""Standard deviation of a ray that says nothing; finite, so that whitened data stay finite."""


@overload
def gaussian_approximation(likelihood: Likelihood, y: Tensor) -> tuple[Tensor, Gaussian]: ...


@overload
def gaussian_approximation(likelihood: BlockLikelihood, y: Blocks) -> tuple[Blocks, BlockLikelihood]: ...


def gaussian_approximation(
    likelihood: Likelihood | BlockLikelihood, y: Tensor | Blocks
) -> tuple[Tensor | Blocks, Likelihood | BlockLikelihood]:
    r"""Return data ``d`` and a Gaussian likelihood such that ``d ~ A x + noise`` to first order.

    ``Poisson``: ``d = y - b`` with variance ``max(y, 1)``. ``TransmissionPoisson``: ``d = log(I0 / (y - s))`` with
        variance
    ``y / (y - s)^2`` (penalised weighted least squares). ``Gaussian``: unchanged.

    Args:
        likelihood: likelihood of one block, or of all blocks.
        y: its data.

    Raises:
        ValueError: for a likelihood without such an approximation (several materials behind one count).

    References:
        sauer1993

    Example:
        >>> d, noise = gaussian_approximation(Poisson(2.0), torch.tensor([[9.0]]))
        >>> d, noise.sigma
        (tensor([[7.]]), tensor([[3.]]))
    """
    if isinstance(likelihood, BlockLikelihood):
        if not isinstance(y, Blocks):
            raise ValueError(f"y: expected Blocks for a block likelihood, got {type(y).__name__}")
        pairs = {name: gaussian_approximation(likelihood[name], y[name]) for name in y}
        return Blocks({n: p[0] for n, p in pairs.items()}), BlockLikelihood({n: p[1] for n, p in pairs.items()})
    if not isinstance(y, Tensor):
        raise ValueError(f"y: expected a tensor for one likelihood, got {type(y).__name__}")
    if isinstance(likelihood, Gaussian):
        return y, likelihood
    if isinstance(likelihood, Poisson):
        return y - likelihood.background.to(y), Gaussian(y.clamp_min(1.0).sqrt())
    if isinstance(likelihood, TransmissionPoisson):
        integrals, weights = log_transform(y, likelihood.I0, likelihood.scatter)
        sigma = torch.where(weights > _UNKNOWN**-2, weights.clamp_min(_UNKNOWN**-2).rsqrt(), _UNKNOWN)
        return integrals, Gaussian(sigma)
    raise ValueError(f"likelihood: expected one with a Gaussian approximation, got {type(likelihood).__name__}")
