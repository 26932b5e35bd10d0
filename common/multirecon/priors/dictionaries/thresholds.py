"""Proximal maps of sparse codes that several channels share."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["group_energy", "keep_jointly", "shrink", "shrink_mixed_norm"]


def group_energy(responses: Tensor, precision: Tensor) -> Tensor:
    """Return ``sum_c precision_c r_c^2 / 2`` over the channels, ``(B, 1, K, H, W)``.

    Args:
        responses: ``r``, ``(B, C, K, H, W)``.
        precision: non-negative, ``(C,)``.
    """
    return 0.5 * (precision.reshape(1, -1, 1, 1, 1) * responses.square()).sum(1, keepdim=True)


def keep_jointly(responses: Tensor, precision: Tensor, cost: Tensor, joint: bool = True) -> Tensor:
    r"""Return the codes ``argmin_z sum_c p_c/2 |r_c - z_c|^2 + cost |{positions where some z_c is not 0}|``.

    The joint hard threshold: where ``sum_c p_c r_c^2 / 2 >= cost`` all channels are kept as they are, elsewhere all
    are zero. Without coupling every channel is thresholded by itself at ``sqrt(2 cost_c / p_c)``.

    Args:
        responses: ``r``, ``(B, C, K, H, W)``.
        precision: ``p``, ``(C,)``.
        cost: price of a position: ``(1,)``, without coupling also ``(C,)``.
        joint: whether the channels share their support.
    """
    price = cost.reshape(1, -1, 1, 1, 1)
    if joint:
        return torch.where(group_energy(responses, precision) >= price, responses, torch.zeros_like(responses))
    energy = 0.5 * precision.reshape(1, -1, 1, 1, 1) * responses.square()
    return torch.where(energy >= price, responses, torch.zeros_like(responses))


def shrink_mixed_norm(responses: Tensor, precision: Tensor, iterations: int = 10) -> Tensor:
    r"""Return ``argmin_z sum_c p_c/2 |r_c - z_c|^2 + sum sqrt(sum_c z_c^2)``, the mixed-norm form of the coupling.

    For equal precisions ``p`` it is the vector soft threshold ``1 / p``; otherwise some proximal gradient steps of
    length ``1 / max p`` from there.

    Args:
        responses: ``r``, ``(B, C, K, H, W)``.
        precision: ``p > 0``, ``(C,)``.
        iterations: proximal gradient steps where the precisions differ.
    """
    top = precision.max()
    codes = _shrink_group(responses, 1 / top)
    if bool((precision == top).all()):
        return codes
    share = (precision / top).reshape(1, -1, 1, 1, 1)
    for _ in range(iterations):
        codes = _shrink_group(codes - share * (codes - responses), 1 / top)
    return codes


def shrink(values: Tensor, single: Tensor, group: Tensor) -> Tensor:
    r"""Return the proximal map of ``sum_c single_c |z_c|_1 + group sum sqrt(sum_c z_c^2)``, in this order exact.

    Args:
        values: ``(B, C, K, H, W)``.
        single: soft thresholds, broadcastable to the values.
        group: threshold of the norm over the channels, broadcastable to the values.
    """
    soft = values.sign() * (values.abs() - single).clamp_min(0)
    return _shrink_group(soft, group)


def _shrink_group(values: Tensor, threshold: Tensor) -> Tensor:
    size = values.square().sum(1, keepdim=True).sqrt()
    tiny = 1e-30
    return values * ((size - threshold).clamp_min(0) / size.clamp_min(tiny))
