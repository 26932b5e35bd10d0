"""Linear measurement operators: ``A`` and its exact adjoint, nothing else."""

from .base import AdjointOperator, ComposedOperator, LinearOperator, ScaledOperator, SumOperator
from .basic import Diagonal, Identity, Zero
from .block import BlockDiagonal
from .checks import check_operator, dot_test
from .coils import birdcage_maps, estimate_maps, low_resolution_phase, smooth_phase
from .cone import ConeBeam
from .fan import FanBeam
from .fourier import MaskedFourier
from .hadamard import Hadamard, sequency_order, variance_order
from .masks import acceleration, calibration_size, equispaced_mask, poisson_disc_mask, random_mask
from .materials import energy_bins, mass_attenuation, tube_spectrum
from .pet import PETProjector
from .pet_blur import GaussianBlur
from .pet_volume import PETProjector3D
from .projector_lines import LineProjector
from .projector_stack import SliceStack
from .radon import ParallelBeam
from .resample import Resample
from .spectral import ChannelMixing, MaterialBasis, SpectralProjector, effective_attenuation
from .wavelet import Haar, Wavelet

__all__ = [
    "AdjointOperator",
    "BlockDiagonal",
    "ChannelMixing",
    "ComposedOperator",
    "ConeBeam",
    "Diagonal",
    "FanBeam",
    "GaussianBlur",
    "Haar",
    "Hadamard",
    "Identity",
    "LineProjector",
    "LinearOperator",
    "MaskedFourier",
    "MaterialBasis",
    "PETProjector",
    "PETProjector3D",
    "ParallelBeam",
    "Resample",
    "ScaledOperator",
    "SliceStack",
    "SpectralProjector",
    "SumOperator",
    "Wavelet",
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
    "sequency_order",
    "smooth_phase",
    "tube_spectrum",
    "variance_order",
]
