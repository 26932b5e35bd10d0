"""Likelihoods of the linear predictor: noise sampling and data fidelity in one object."""

from .approximation import gaussian_approximation
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
    "gaussian_approximation",
    "log_transform",
]
