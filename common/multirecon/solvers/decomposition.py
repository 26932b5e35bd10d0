"""Material decomposition: of images by mixing matrices, and of counts ray by ray."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from multirecon.likelihoods import PolyenergeticPoisson

__all__ = ["decompose_counts", "decompose_images"]


def decompose_images(x: Tensor, mixing: Tensor, *, weight: Tensor | None = None, nonnegative: bool = True) -> Tensor:
    r"""Return the densities ``argmin_rho |x - M rho|_W^2`` of every voxel, exactly, optionally with ``rho >= 0``.

    The constrained problem is solved by trying every subset of materials (there are few), all voxels at once.

    Args:
        x: attenuation images of the bins in 1/cm, ``(B, K, *spatial)``.
        mixing: effective mass attenuation ``M`` in cm^2/g, ``(K, M)``, ``K >= M``.
        weight: positive weights of the bins ``(K,)`` (inverse variance); ones by default.
        nonnegative: whether densities are constrained.

    Returns:
        Densities in g/cm^3, ``(B, M, *spatial)``.

    Raises:
        ValueError: if shapes disagree or there are more materials than bins.

    Example:
        >>> M = torch.tensor([[0.2, 0.5], [0.15, 0.2]])
        >>> decompose_images(torch.einsum("km,m->k", M, torch.tensor([1.0, 0.5])).reshape(1, 2, 1, 1), M).flatten()
        tensor([1.0000, 0.5000])
    """
    bins, materials = mixing.shape
    if x.shape[1] != bins or bins < materials:
        raise ValueError(f"mixing: expected shape ({x.shape[1]}, M) with M <= {x.shape[1]}, got {tuple(mixing.shape)}")
    root = torch.ones(bins) if weight is None else weight.sqrt()
    root = root.to(x)
    matrix = root[:, None] * mixing.to(x)
    columns = (root.reshape(-1, *[1] * (x.ndim - 2)) * x).movedim(1, -1).reshape(-1, bins)
    if not nonnegative:
        best = columns @ torch.linalg.pinv(matrix).T
    else:
        best = columns.new_zeros(len(columns), materials)
        cost = columns.square().sum(1)
        for size in range(1, materials + 1):
            for subset in combinations(range(materials), size):
                part = matrix[:, list(subset)]
                rho = columns @ torch.linalg.pinv(part).T
                new_cost = (columns - rho @ part.T).square().sum(1)
                better = (rho >= 0).all(1) & (new_cost < cost)
                full = torch.zeros_like(best)
                full[:, list(subset)] = rho
                best = torch.where(better[:, None], full, best)
                cost = torch.where(better, new_cost, cost)
    return best.reshape(x.shape[0], *x.shape[2:], materials).movedim(-1, 1)


def decompose_counts(
    likelihood: PolyenergeticPoisson,
    y: Tensor,
    *,
    z0: Tensor | None = None,
    iterations: int = 30,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    r"""Return the maximum-likelihood material line integrals of every ray and their Fisher information.

    Fisher scoring with Levenberg-Marquardt damping, ray by ray: a step that does not lower a ray's deviance is
    refused and its damping raised. The information is the weight matrix of a reconstruction from the line integrals.

    Args:
        likelihood: spectra and materials.
        y: counts ``(B, K, views, bins)``.
        z0: start ``(B, M, views, bins)`` in g/cm^2; zero by default.
        iterations: bound on the number of iterations.
        tolerance: relative length of a step at which all rays count as solved.

    Returns:
        Line integrals ``(B, M, views, bins)`` in g/cm^2 and information ``(B, M, M, views, bins)``.

    References:
        schirra2013
    """
    count, dtype = likelihood.num_materials, y.dtype
    if count > 2:  # iodine is told from bone and water by little: single precision finds the system singular
        y, z0 = y.double(), None if z0 is None else z0.double()
    z = y.new_zeros(y.shape[0], count, *y.shape[2:]) if z0 is None else z0
    damping = torch.full_like(z[:, 0], 1e-2)
    cost = _deviance(likelihood.mean(z), y)
    eye = torch.eye(count, dtype=z.dtype, device=z.device)
    for _ in range(iterations):
        fisher = likelihood.fisher(z).movedim((1, 2), (-2, -1))
        slope = likelihood.grad(z, y).movedim(1, -1)
        scale = torch.diagonal(fisher, dim1=-2, dim2=-1).clamp_min(torch.finfo(z.dtype).tiny)
        system = fisher + damping[..., None, None] * scale[..., None] * eye
        step = torch.linalg.solve(system, slope.unsqueeze(-1)).squeeze(-1).movedim(-1, 1)
        trial = z - step
        trial_cost = _deviance(likelihood.mean(trial), y)
        better = torch.isfinite(trial_cost) & (trial_cost <= cost)
        z = torch.where(better.unsqueeze(1), trial, z)
        cost = torch.where(better, trial_cost, cost)
        damping = torch.where(better, damping / 5, damping * 5).clamp(1e-9, 1e9)
        length = torch.linalg.vector_norm(step, dim=1)
        if bool((length <= tolerance * (1 + torch.linalg.vector_norm(z, dim=1))).all()):
            break
    return z.to(dtype), likelihood.fisher(z).to(dtype)


def _deviance(ybar: Tensor, y: Tensor) -> Tensor:
    """Return half the deviance of every ray, summed over its bins."""
    counted = y > 0
    ratio = torch.where(counted, ybar / torch.where(counted, y, torch.ones_like(y)), torch.ones_like(y))
    return (ybar - y - y * torch.log(ratio)).sum(1)
