"""Linear measurement operators: ``A`` and its exact adjoint, nothing else."""

from .base import AdjointOperator, ComposedOperator, LinearOperator, ScaledOperator, SumOperator
from .basic import Diagonal, Identity, Zero
from .block import BlockDiagonal
from .checks import check_operator, dot_test
from .coils import birdcage_maps, estimate_maps, low_resolution_phase, smooth_phase
from .fan import FanBeam
from .fourier import MaskedFourier
from .masks import acceleration, calibration_size, equispaced_mask, poisson_disc_mask, random_mask
from .materials import energy_bins, mass_attenuation, tube_spectrum
from .radon import ParallelBeam
from .spectral import ChannelMixing, MaterialBasis, SpectralProjector, effective_attenuation

__all__ = [
    "AdjointOperator",
    "BlockDiagonal",
    "ChannelMixing",
    "ComposedOperator",
    "Diagonal",
    "FanBeam",
    "Identity",
    "LinearOperator",
    "MaskedFourier",
    "MaterialBasis",
    "ParallelBeam",
    "ScaledOperator",
    "SpectralProjector",
    "SumOperator",
    "Zero",
    "acceleration",
    "birdcage_maps",
    "calibration_size",
    "check_operator",
    "dot_test",
    "effective_attenuation",
    "energy_bins",
    "equispaced_mask",
    "estimate_maps",
    "low_resolution_phase",
    "mass_attenuation",
    "poisson_disc_mask",
    "random_mask",
    "smooth_phase",
    "tube_spectrum",
]
