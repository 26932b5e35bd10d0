"""Reconstructors: the methods, as MONAI inferers."""

from .base import Capability, ImageSource, PosteriorSampler, Reconstructor
from .connected import ConnectedPenalty, ConnectedReconstruction
from .decomposition import ImageDomainDecomposition, ProjectionDomainDecomposition
from .dictionaries import AnalysisReconstruction, SynthesisReconstruction
from .fbp import FilteredBackProjection
from .hybrid import HybridSampling
from .penalised_least_squares import PenalisedLeastSquares
from .plug_and_play import PlugAndPlayADMM
from .plug_and_play_stack import StackPlugAndPlayADMM
from .posterior import DecomposedSampling, PosteriorSampling
from .slicewise import SliceWise
from .tikhonov import Tikhonov
from .tuning import Tuning, block_kind
from .unrolled import UnrolledReconstructor
from .variational import TotalVariationReconstruction, WaveletSense

__all__ = [
    "AnalysisReconstruction",
    "Capability",
    "ConnectedPenalty",
    "ConnectedReconstruction",
    "DecomposedSampling",
    "FilteredBackProjection",
    "HybridSampling",
    "ImageDomainDecomposition",
    "ImageSource",
    "PenalisedLeastSquares",
    "PlugAndPlayADMM",
    "PosteriorSampler",
    "PosteriorSampling",
    "ProjectionDomainDecomposition",
    "Reconstructor",
    "SliceWise",
    "StackPlugAndPlayADMM",
    "SynthesisReconstruction",
    "Tikhonov",
    "TotalVariationReconstruction",
    "Tuning",
    "UnrolledReconstructor",
    "WaveletSense",
    "block_kind",
]
