"""From files to Measurements: k-space with estimated maps, projections with their geometry, counts, images."""

from .convert import convert
from .describe import describe
from .images import image_measurement
from .kspace import kspace_measurement
from .options import Options
from .projections import castor_measurement, emission_measurement, projections_measurement, transmission_measurement

__all__ = [
    "Options",
    "castor_measurement",
    "convert",
    "describe",
    "emission_measurement",
    "image_measurement",
    "kspace_measurement",
    "projections_measurement",
    "transmission_measurement",
]
