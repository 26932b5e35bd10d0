"""Which part of an image the data determine, and which part the method filled in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..likelihoods import Gaussian, Likelihood
from ..measurement import Measurement
from ..operators import LinearOperator
from ..solvers.cg import conjugate_gradient

__all__ = ["determined_part", "trust_map"]

_EXACT = 1e-6
"""Relative cut of data without noise: ``lambda = 1e-6 |A|^2``, about the square of single precision's 1e-3."""


@torch.no_grad()
def determined_part(
    measurement: Measurement, stack: Tensor, *, contrast: float = 0.3, steps: int = 30, tolerance: float = 1e-3
) -> Tensor:
    r"""Return ``P x``, the part of an image that its own data determine, block by block.

    .. math:: P = (A^H W A + \lambda)^{-1} A^H W A, \qquad \lambda = (\text{contrast} \cdot \text{scale})^{-2}

    ``W`` is the inverse variance of the data. In the singular vectors of the whitened operator ``P`` has the weights
    ``s^2 / (s^2 + lambda)``: it tends to the projection ``A^+ A`` on the row space where noise is small, and halves a
    component that the data leave uncertain by ``contrast`` times the modality's scale. What the operator cannot see
    (``s = 0``) is gone, whatever a method wrote there. A noiseless clean image is determined as a whole, a missing
    modality not at all.

    The inverse is applied by conjugate gradients from zero, two operator calls a step and two for the right-hand side.
    Their solution grows from below: fewer steps make a cautious map, never a flattering one (with ``steps=1``, four
    calls, ``P x`` is the back-projected data of ``x`` times the one factor that fits best).

    Args:
        measurement: the data, with operator and noise model.
        stack: image ``(B, C, *shape)`` on ``measurement.space``, in the units of its modalities.
        contrast: the cut, as a fraction of the modality's scale; dimensionless.
        steps: largest number of conjugate-gradient steps.
        tolerance: relative residual at which a sample stops.

    Returns:
        ``P x``, shaped and in the units of the stack.

    Raises:
        ValueError: if the stack does not live on the measurement's space, or an argument is not positive.

    References:
        rodgers2000
    """
    for name, value in (("contrast", contrast), ("steps", steps)):
        if not value > 0:
            raise ValueError(f"{name}: expected > 0, got {value}")
    space = measurement.space
    space.check(stack, "stack")
    if len(stack) != measurement.batch_size:
        raise ValueError(f"stack: expected {measurement.batch_size} samples, got {len(stack)}")
    stack = stack.detach().to(measurement.device)
    parts = {}
    for name, operator in measurement.operator.items():
        x, likelihood = stack[:, space.channels(name)], measurement.likelihood[name]
        exact = isinstance(likelihood, Gaussian) and likelihood.is_exact
        if exact and measurement.operator.is_clean(name):
            parts[name] = x
            continue
        weight = 1.0 if exact else _weight(likelihood, operator, x, measurement.y[name])
        damping = _EXACT * operator.norms(len(x)).to(x) ** 2 if exact else (contrast * space[name].scale) ** -2

        def gram(image: Tensor, operator: LinearOperator = operator, weight: Tensor | float = weight) -> Tensor:
            return operator.adjoint(weight * operator(image))

        found = conjugate_gradient(gram, gram(x), damping=damping, max_iterations=steps, tolerance=tolerance)
        parts[name] = found.x
    return measurement.operator.assemble(parts, batch=len(stack), like=stack)


@torch.no_grad()
def trust_map(
    measurement: Measurement,
    stack: Tensor,
    *,
    contrast: float = 0.3,
    steps: int = 30,
    tolerance: float = 1e-3,
    window: int = 7,
) -> Tensor:
    r"""Return for every voxel the share of the image's local energy that the data determine, between 0 and 1.

    .. math:: t = \frac{\langle (P x)^2 \rangle}{\langle (P x)^2 \rangle + \langle (x - P x)^2 \rangle}

    with :func:`determined_part` ``P x`` and the mean over a box of ``window`` voxels (and the modality's channels). For
    a projection the denominator is the energy of ``x`` itself when all is summed up; written this way the share stays
    between 0 and 1 in every window, also where ``P x`` carries folded-in energy that ``x`` does not have. A window
    without energy takes the share of the whole image. The map is about *this* image: it tells what of it is backed by
    the data, not whether the rest is wrong.

    Args:
        measurement: the data, with operator and noise model.
        stack: image ``(B, C, *shape)`` on ``measurement.space``.
        contrast: see :func:`determined_part`.
        steps: see :func:`determined_part`.
        tolerance: see :func:`determined_part`.
        window: side of the box in voxels, odd.

    Returns:
        ``(B, M, *shape)``, one map a modality in the order of ``measurement.space``: 1 for a noiseless clean image, 0
        for a missing modality.

    Raises:
        ValueError: as :func:`determined_part`, or if the window is not an odd number of voxels.

    Example:
        >>> from multirecon.blocks import Blocks
        >>> from multirecon.likelihoods import BlockLikelihood
        >>> from multirecon.operators import BlockDiagonal, Identity
        >>> from multirecon.space import ImageSpace
        >>> space = ImageSpace(["t1", "ct"], (4, 4), (1.0, 1.0))
        >>> A = BlockDiagonal(space, {"t1": Identity((1, 4, 4))})
        >>> m = Measurement(Blocks({"t1": torch.ones(1, 1, 4, 4)}), A, BlockLikelihood({"t1": Gaussian(0.0)}))
        >>> trust_map(m, torch.ones(1, 2, 4, 4)).mean((0, 2, 3))
        tensor([1., 0.])
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window: expected an odd number of voxels, got {window}")
    part = determined_part(measurement, stack, contrast=contrast, steps=steps, tolerance=tolerance)
    rest = stack.detach().to(part) - part
    space = measurement.space
    maps = []
    for name in space.names:
        known, filled = (_energy(t[:, space.channels(name)]) for t in (part, rest))
        axes = tuple(range(1, known.ndim))
        sums = known.sum(axes, keepdim=True), filled.sum(axes, keepdim=True)
        tiny = torch.finfo(known.dtype).tiny
        share = sums[0] / (sums[0] + sums[1]).clamp_min(tiny)
        mean = (sums[0] + sums[1]) / known[0].numel()
        known, filled = (_local_mean(t, window) for t in (known, filled))
        floor = (1e-4 * mean).clamp_min(tiny)  # 1 % of the root mean square: below it there is no image to speak of
        maps.append((known + floor * share) / (known + filled + floor))
    return torch.cat(maps, dim=1).clamp(0, 1).to(part.real.dtype)


def _weight(likelihood: Likelihood, operator: LinearOperator, x: Tensor, y: Tensor) -> Tensor:
    """Return the inverse variance of the data: from the data alone, else the curvature at the image."""
    try:
        return likelihood.weight(y)
    except NotImplementedError:
        return likelihood.curvature(operator(x), y)


def _energy(image: Tensor) -> Tensor:
    """Return ``|x|^2`` summed over channels, ``(B, 1, *shape)``, in double precision."""
    return image.abs().double().square().sum(1, keepdim=True)


def _local_mean(energy: Tensor, window: int) -> Tensor:
    pool = functional.avg_pool2d if energy.ndim == 4 else functional.avg_pool3d
    return pool(energy, window, stride=1, padding=window // 2, count_include_pad=False)
