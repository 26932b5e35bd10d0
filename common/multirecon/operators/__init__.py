"""Linear measurement operators: ``A`` and its exact adjoint, nothing else."""

from .base import AdjointOperator, ComposedOperator, LinearOperator, ScaledOperator, SumOperator
from .basic import Diagonal, Identity, Zero
from .block import BlockDiagonal
from .checks import check_operator, dot_test

__all__ = [
    "AdjointOperator",
    "BlockDiagonal",
    "ComposedOperator",
    "Diagonal",
    "Identity",
    "LinearOperator",
    "ScaledOperator",
    "SumOperator",
    "Zero",
    "check_operator",
    "dot_test",
]
