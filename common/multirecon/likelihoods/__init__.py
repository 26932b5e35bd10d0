"""Likelihoods of the linear predictor: noise sampling and data fidelity in one object."""

from .base import BlockLikelihood, Likelihood
from .gaussian import Gaussian
from .poisson import Poisson
from .polyenergetic import PolyenergeticPoisson
from .transmission import TransmissionPoisson, log_transform

__all__ = [
    "BlockLikelihood",
    "Gaussian",
    "Likelihood",
    "Poisson",
    "PolyenergeticPoisson",
    "TransmissionPoisson",
    "log_transform",
]
