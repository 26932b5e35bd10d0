"""Functionals of image stacks: value, gradient where smooth, proximal map."""

from .base import AnalysisFunctional, Functional, ProximalResult
from .differences import divergence_adjoint, gradient, gradient_norm
from .relative_difference import RelativeDifference, bowsher_weights, half_neighbourhood
from .simple import L1, NonNegativity, Quadratic
from .structure import DirectionalTotalVariation, ParallelLevelSets
from .tv import GradientFunctional, JointTotalVariation, NuclearTotalVariation, TotalVariation

__all__ = [
    "L1",
    "AnalysisFunctional",
    "DirectionalTotalVariation",
    "Functional",
    "GradientFunctional",
    "JointTotalVariation",
    "NonNegativity",
    "NuclearTotalVariation",
    "ParallelLevelSets",
    "ProximalResult",
    "Quadratic",
    "RelativeDifference",
    "TotalVariation",
    "bowsher_weights",
    "divergence_adjoint",
    "gradient",
    "gradient_norm",
    "half_neighbourhood",
]
