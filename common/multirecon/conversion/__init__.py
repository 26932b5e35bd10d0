"""From files to Measurements: k-space with estimated maps, projections with their geometry, counts, images."""

from .castor import castor_measurement
from .convert import convert
from .describe import describe
from .grids import mixed_grid_measurement
from .images import image_measurement
from .kspace import kspace_measurement
from .oblique import oblique_measurement
from .options import Options
from .projections import emission_measurement, projections_measurement, transmission_measurement

__all__ = [
    "Options",
    "castor_measurement",
    "convert",
    "describe",
    "emission_measurement",
    "image_measurement",
    "kspace_measurement",
    "mixed_grid_measurement",
    "oblique_measurement",
    "projections_measurement",
    "transmission_measurement",
]
