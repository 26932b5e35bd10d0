"""Image quality, lesions, spectra, ensembles, populations and data consistency, with stated data ranges."""

from .channels import channel_key, channel_range, channel_ranges, crosstalk, evaluate_channels
from .consistency import data_residual
from .contrast import contrast_recovery, contrast_to_noise, surroundings
from .distribution import FeatureDistance, frechet_distance, kid, kid_difference
from .ensembles import (
    LEVELS,
    crps,
    normalised_bias,
    normalised_std,
    posterior_coverage,
    posterior_ranks,
    rank_deviation,
    spread_correction,
    widened,
)
from .evaluate import (
    HIGHER_IS_BETTER,
    IDEAL,
    LESION_METRICS,
    METRICS,
    UNDIRECTED,
    evaluate_image,
    evaluate_samples,
    metric_score,
    metric_unit,
)
from .features import ENCODER, ENCODER_MODALITIES, ENCODER_SHA256, FeatureEncoder, load_encoder, network_scale
from .image import bias, mae, nrmse, psnr, rmse, ssim, ssim_map
from .ranges import ReportingRange, reporting_range
from .reslices import reslice_psnr, through_plane_variation
from .spectrum import high_frequency_ratio, radial_power

__all__ = [
    "ENCODER",
    "ENCODER_MODALITIES",
    "ENCODER_SHA256",
    "HIGHER_IS_BETTER",
    "IDEAL",
    "LESION_METRICS",
    "LEVELS",
    "METRICS",
    "UNDIRECTED",
    "FeatureDistance",
    "FeatureEncoder",
    "ReportingRange",
    "bias",
    "channel_key",
    "channel_range",
    "channel_ranges",
    "contrast_recovery",
    "contrast_to_noise",
    "crosstalk",
    "crps",
    "data_residual",
    "evaluate_channels",
    "evaluate_image",
    "evaluate_samples",
    "frechet_distance",
    "high_frequency_ratio",
    "kid",
    "kid_difference",
    "load_encoder",
    "mae",
    "metric_score",
    "metric_unit",
    "network_scale",
    "normalised_bias",
    "normalised_std",
    "nrmse",
    "posterior_coverage",
    "posterior_ranks",
    "psnr",
    "radial_power",
    "rank_deviation",
    "reporting_range",
    "reslice_psnr",
    "rmse",
    "spread_correction",
    "ssim",
    "ssim_map",
    "surroundings",
    "through_plane_variation",
    "widened",
]
