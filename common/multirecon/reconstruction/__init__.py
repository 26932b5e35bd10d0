"""Reconstructors: the methods, as MONAI inferers."""

from .base import Capability, ImageSource, PosteriorSampler, Reconstructor
from .fbp import FilteredBackProjection
from .slicewise import SliceWise
from .tikhonov import Tikhonov
from .tuning import Tuning, block_kind
from .unrolled import UnrolledReconstructor

__all__ = [
    "Capability",
    "FilteredBackProjection",
    "ImageSource",
    "PosteriorSampler",
    "Reconstructor",
    "SliceWise",
    "Tikhonov",
    "Tuning",
    "UnrolledReconstructor",
    "block_kind",
]
