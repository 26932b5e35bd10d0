"""Reconstructors: the methods, as MONAI inferers."""

from .base import Capability, ImageSource, PosteriorSampler, Reconstructor
from .fbp import FilteredBackProjection
from .posterior import DecomposedSampling, PosteriorSampling
from .slicewise import SliceWise
from .tikhonov import Tikhonov
from .tuning import Tuning, block_kind
from .unrolled import UnrolledReconstructor

__all__ = [
    "Capability",
    "DecomposedSampling",
    "FilteredBackProjection",
    "ImageSource",
    "PosteriorSampler",
    "PosteriorSampling",
    "Reconstructor",
    "SliceWise",
    "Tikhonov",
    "Tuning",
    "UnrolledReconstructor",
    "block_kind",
]
