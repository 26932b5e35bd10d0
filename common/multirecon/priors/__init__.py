"""Generative priors: noise schedules, the denoiser convention, diffusion priors and their training."""

from .calibration import DenoiserError, measure_denoiser_error
from .denoiser import Denoiser, HaarDomain, NetworkDenoiser, Parametrisation, PixelDomain, predicted_noise
from .diffusion import DiffusionPrior, NoisyBatch
from .generation import generate
from .haar import band_names, haar_analysis, haar_synthesis
from .sampling import SampleNoise, reverse_diffusion
from .scaling import IntensityScaling
from .schedules import NoiseSchedule

__all__ = [
    "Denoiser",
    "DenoiserError",
    "DiffusionPrior",
    "HaarDomain",
    "IntensityScaling",
    "NetworkDenoiser",
    "NoiseSchedule",
    "NoisyBatch",
    "Parametrisation",
    "PixelDomain",
    "SampleNoise",
    "band_names",
    "generate",
    "haar_analysis",
    "haar_synthesis",
    "measure_denoiser_error",
    "predicted_noise",
    "reverse_diffusion",
]
