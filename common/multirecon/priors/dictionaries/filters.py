"""Banks of small filters with circular boundaries: responses, their exact adjoint, tight frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["analyse", "dct_bank", "frame_error", "nearest_tight_frame", "random_bank", "synthesise", "transfer"]


def analyse(image: Tensor, bank: Tensor) -> Tensor:
    r"""Return the responses ``r_{c,k}(p) = sum_q d_{c,k}(q) x_c(p + q - o)`` of every channel, ``(B, C, K, H, W)``.

    Boundaries are circular; the origin ``o`` is the middle of the filter, left of it for even sides.

    Args:
        image: ``(B, C, H, W)``.
        bank: filters ``d``, ``(C, K, h, w)``, or ``(1, K, h, w)`` for one bank of all channels.

    Example:
        >>> delta = torch.zeros(1, 1, 3, 3)
        >>> delta[..., 1, 1] = 1.0
        >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> torch.equal(analyse(image, delta)[:, :, 0], image)
        True
    """
    channels, count = image.shape[1], bank.shape[1]
    weight = bank.expand(channels, count, bank.shape[2], bank.shape[3]).reshape(-1, 1, bank.shape[2], bank.shape[3])
    left, right = _margins(bank.shape[3])
    above, below = _margins(bank.shape[2])
    padded = functional.pad(image, [left, right, above, below], mode="circular")
    return functional.conv2d(padded, weight, groups=channels).unflatten(1, (channels, count))


def synthesise(codes: Tensor, bank: Tensor) -> Tensor:
    r"""Return ``sum_k d_{c,k} * z_{c,k}``, the adjoint of :func:`analyse`, ``(B, C, H, W)``.

    Args:
        codes: ``z``, ``(B, C, K, H, W)``.
        bank: filters, ``(C, K, h, w)`` or ``(1, K, h, w)``.
    """
    channels, count = codes.shape[1], codes.shape[2]
    weight = bank.expand(channels, count, bank.shape[2], bank.shape[3]).flip(2, 3)
    right, left = _margins(bank.shape[3])
    below, above = _margins(bank.shape[2])
    padded = functional.pad(codes.flatten(1, 2), [left, right, above, below], mode="circular")
    return functional.conv2d(padded, weight, groups=channels)


def transfer(bank: Tensor, height: int, width: int) -> Tensor:
    """Return the transfer functions of ``z -> d * z`` as ``rfft2`` orders them, ``(C, K, H, W // 2 + 1)``.

    Args:
        bank: filters ``(C, K, h, w)``.
        height: rows of the image.
        width: columns of the image.
    """
    above, _ = _margins(bank.shape[2])
    left, _ = _margins(bank.shape[3])
    padded = functional.pad(bank, [0, width - bank.shape[3], 0, height - bank.shape[2]])
    return torch.fft.rfft2(torch.roll(padded, [-above, -left], [2, 3]))


def _margins(size: int) -> tuple[int, int]:
    return (size - 1) // 2, size - 1 - (size - 1) // 2


def frame_error(bank: Tensor) -> float:
    r"""Return ``max_c |D_c D_c^T - I / R|_F`` for the ``R x K`` matrices ``D_c`` of vectorised filters.

    It is zero for a tight frame: ``sum_k |d_k (*) x|^2 = |x|^2`` for every image.

    Args:
        bank: filters ``(C, K, h, w)``.
    """
    matrix = bank.flatten(2).double()
    gram = matrix.mT @ matrix
    return float(torch.linalg.matrix_norm(gram - torch.eye(gram.shape[-1]).to(gram) / gram.shape[-1]).max())


def nearest_tight_frame(matrix: Tensor) -> Tensor:
    r"""Return the tight frame nearest to a matrix of filters, ``R^{-1/2} U V^T`` of ``U S V^T`` (Procrustes).

    Args:
        matrix: ``(C, K, h, w)`` with at least as many filters as pixels.

    Raises:
        ValueError: if there are fewer filters than pixels: no frame.
    """
    flat = matrix.flatten(2)
    count, pixels = flat.shape[1:]
    if count < pixels:
        raise ValueError(f"matrix: expected at least as many filters as pixels, got {count} filters of {pixels}")
    # in double precision: the constraint is to hold to the last bits of the filters
    u, _, vh = torch.linalg.svd(flat.double(), full_matrices=False)
    return (u @ vh / math.sqrt(pixels)).to(matrix.dtype).reshape(matrix.shape)


def dct_bank(size: int) -> Tensor:
    """Return the two-dimensional cosine transform as a tight frame of ``size^2`` filters, ``(1, size^2, size, size)``.

    Args:
        size: side of the filters in pixels.

    Example:
        >>> frame_error(dct_bank(5)) < 1e-12
        True
    """
    n = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (n + 0.5) * n[:, None]) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return torch.einsum("ai,bj->abij", rows, rows).reshape(1, size * size, size, size) / size


def random_bank(
    channels: int, count: int, size: int, *, norm: float, constant: bool, generator: torch.Generator
) -> Tensor:
    """Return random normal filters of equal norm, the first one constant if asked, ``(C, K, size, size)``.

    Args:
        channels: number of banks.
        count: filters a bank.
        size: side of the filters in pixels.
        norm: Euclidean norm of every filter.
        constant: whether the first filter of every bank is constant.
        generator: random numbers.
    """
    bank = torch.randn(channels, count, size, size, generator=generator, dtype=torch.float64)
    if constant:
        bank[:, 0] = 1.0
    return (norm * bank / torch.linalg.vector_norm(bank, dim=(2, 3), keepdim=True)).float()
