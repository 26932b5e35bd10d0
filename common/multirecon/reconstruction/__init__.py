"""Reconstructors: the methods, as MONAI inferers."""

from .base import Capability, ImageSource, PosteriorSampler, Reconstructor
from .fbp import FilteredBackProjection
from .slicewise import SliceWise
from .tikhonov import Tikhonov
from .tuning import Tuning, block_kind

__all__ = [
    "Capability",
    "FilteredBackProjection",
    "ImageSource",
    "PosteriorSampler",
    "Reconstructor",
    "SliceWise",
    "Tikhonov",
    "Tuning",
    "block_kind",
]
