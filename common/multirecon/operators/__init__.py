"""Linear measurement operators: ``A`` and its exact adjoint, nothing else."""

from .base import AdjointOperator, ComposedOperator, LinearOperator, ScaledOperator, SumOperator
from .basic import Diagonal, Identity, Zero
from .block import BlockDiagonal
from .checks import check_operator, dot_test
from .coils import birdcage_maps, smooth_phase
from .fourier import MaskedFourier
from .masks import acceleration, equispaced_mask, poisson_disc_mask, random_mask
from .radon import ParallelBeam

__all__ = [
    "AdjointOperator",
    "BlockDiagonal",
    "ComposedOperator",
    "Diagonal",
    "Identity",
    "LinearOperator",
    "MaskedFourier",
    "ParallelBeam",
    "ScaledOperator",
    "SumOperator",
    "Zero",
    "acceleration",
    "birdcage_maps",
    "check_operator",
    "dot_test",
    "equispaced_mask",
    "poisson_disc_mask",
    "random_mask",
    "smooth_phase",
]
