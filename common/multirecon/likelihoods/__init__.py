"""Likelihoods of the linear predictor: noise sampling and data fidelity in one object."""

from .base import BlockLikelihood, Likelihood
from .gaussian import Gaussian

__all__ = ["BlockLikelihood", "Gaussian", "Likelihood"]
