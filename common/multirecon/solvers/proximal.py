"""The proximal map of a data term, block by block, with the solver that fits each likelihood."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian, Likelihood, Poisson
from multirecon.operators import BlockDiagonal, Identity, LinearOperator

from .cg import least_squares
from .em import map_em
from .surrogate import separable_surrogate
from .terms import DataTerm, Term

__all__ = ["data_proximal", "mean_curvature"]


def data_proximal(
    operator: LinearOperator | BlockDiagonal,
    likelihood: Likelihood | BlockLikelihood,
    y: Tensor | Blocks,
    anchor: Tensor,
    *,
    rho: float | Tensor,
    x0: Tensor | None = None,
    iterations: int = 20,
    tolerance: float = 1e-6,
    curvature: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Return ``argmin_x -log p(y | A x) + rho / 2 |x - v|^2``.

    The blocks of a stack separate: Gaussian ones are solved by conjugate gradients (in closed form where the operator
    is the identity), Poisson ones by De Pierro's EM over ``x >= 0``, other likelihoods by separable surrogates over
    ``x >= 0``. A modality without data returns its anchor, noiseless clean data return themselves.

    Args:
        operator: ``A``, plain or block-diagonal.
        likelihood: any likelihood, or a block likelihood.
        y: data ``(B, *range_shape)`` or Blocks.
        anchor: ``v``, ``(B, *domain_shape)``.
        rho: positive strength, a number, one a sample ``(B,)``, or broadcastable to the image.
        x0: warm start ``(B, *domain_shape)``; the anchor by default.
        iterations: bound on the iterations of a block.
        tolerance: relative residual at which conjugate gradients stop.
        curvature: of Gaussian blocks, by name, as :func:`mean_curvature` gives it: conjugate gradients are then
            preconditioned by ``1 / (curvature + rho)``, which pays where ``rho`` differs much between pixels.

    Returns:
        The image ``(B, *domain_shape)``.

    Raises:
        ValueError: if ``rho`` is not positive, or a noiseless block is not the identity.

    Example:
        >>> data_proximal(Identity((1, 2)), Gaussian(1.0), torch.tensor([[[2.0, 4.0]]]), torch.zeros(1, 1, 2), rho=1.0)
        tensor([[[1., 2.]]])
    """
    data = DataTerm(operator, likelihood, y)
    data.start(anchor)
    strength = torch.as_tensor(rho, dtype=anchor.real.dtype, device=anchor.device)
    if not bool((strength > 0).all()):
        raise ValueError(f"rho: expected > 0, got {rho}")
    strength = strength.reshape(-1, *[1] * (anchor.ndim - 1)) if strength.ndim == 1 else strength
    result = anchor.clone()
    for term in data.terms:
        here = strength[:, term.channels] if strength.ndim > 1 and strength.shape[1] > 1 else strength
        start = None if x0 is None else x0[:, term.channels]
        level = (curvature or {}).get(term.name)
        result[:, term.channels] = _block(term, anchor[:, term.channels], here, start, iterations, tolerance, level)
    return result


def mean_curvature(
    operator: BlockDiagonal, likelihood: BlockLikelihood, y: Blocks, *, seed: int = 0
) -> dict[str, Tensor]:
    r"""Return the mean diagonal of ``A^H W A`` of every Gaussian block that is no identity, by name, each ``(B,)``.

    One product with a vector of random signs (Hutchinson's estimate of the trace): its error is about that of a mean
    over as many pixels as an image has.

    Args:
        operator: the operator of a stack.
        likelihood: its likelihood; other blocks are left out.
        y: data, for their number of samples and the weights ``W``.
        seed: of the signs.
    """
    found = {}
    for name in operator.names:
        noise, block = likelihood[name], operator[name]
        if not isinstance(noise, Gaussian) or noise.is_exact or isinstance(block, Identity):
            continue
        generator = torch.Generator().manual_seed(seed)
        signs = 2.0 * torch.randint(2, (1, *block.domain_shape), generator=generator) - 1
        signs = signs.to(y[name].device, block.domain_dtype.to_real()).expand(len(y[name]), *block.domain_shape)
        predicted = block(signs.to(block.domain_dtype))
        weight = noise.weight(y[name])
        found[name] = (weight * predicted.abs().square()).flatten(1).sum(1) / signs[0].numel()
    return found


def _block(
    term: Term,
    anchor: Tensor,
    rho: Tensor,
    x0: Tensor | None,
    iterations: int,
    tolerance: float,
    curvature: Tensor | None,
) -> Tensor:
    operator, likelihood, y = term.operator, term.likelihood, term.y
    if isinstance(likelihood, Gaussian):
        if isinstance(operator, Identity):
            variance = likelihood.sigma.to(anchor.real) ** 2
            return (y + variance * rho * anchor) / (1 + variance * rho)
        if likelihood.is_exact:
            raise ValueError(f"likelihood {term.name!r}: expected noise for {type(operator).__name__}, got sigma = 0")
        precondition = None
        if curvature is not None:
            scale = 1 / (curvature.to(rho).reshape(-1, *[1] * (anchor.ndim - 1)) + rho)
            precondition = scale.__mul__
        return least_squares(
            operator, y, weight=likelihood.weight(y), damping=rho, anchor=anchor, x0=anchor if x0 is None else x0,
            max_iterations=iterations, tolerance=tolerance, preconditioner=precondition,
        ).x  # fmt: skip
    if isinstance(likelihood, Poisson):
        return map_em(operator, likelihood, y, anchor=anchor, rho=rho, x0=x0, iterations=iterations)
    return separable_surrogate(operator, likelihood, y, anchor=anchor, rho=rho, x0=x0, iterations=iterations)
