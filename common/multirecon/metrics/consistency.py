"""Agreement with the data: what can be said about an estimate without the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from ..measurement import Measurement

__all__ = ["data_residual"]


def data_residual(measurement: Measurement, stack: Tensor) -> dict[str, Tensor]:
    r"""Return the relative residual of every block, ``|y - E[y | A x]| / |y|``, each of shape ``(B,)``.

    The expected data come from the block's likelihood, so that counts are compared with counts. Near the block's
    ratio of noise to signal the estimate explains its data; far above, it contradicts them; far below, it fits noise.

    Args:
        measurement: the measurement handed to the method.
        stack: the estimate ``(B, C, *shape)`` on ``measurement.space``.

    Raises:
        ValueError: if the stack does not live on the measurement's space.
    """
    with torch.no_grad():
        predictor = measurement.operator(measurement.space.check(stack, "stack"))
        expected = measurement.likelihood.mean(predictor)
        residual = measurement.y - expected
        return {n: _norm(residual[n]) / _norm(measurement.y[n]).clamp_min(1e-30) for n in measurement.available}


def _norm(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t.flatten(1), dim=1)
