"""Image quality, regional values and data consistency, with stated data ranges."""

from .consistency import data_residual
from .evaluate import HIGHER_IS_BETTER, METRICS, evaluate_image, metric_unit
from .image import bias, mae, nrmse, psnr, ssim, ssim_map
from .ranges import ReportingRange, reporting_range

__all__ = [
    "HIGHER_IS_BETTER",
    "METRICS",
    "ReportingRange",
    "bias",
    "data_residual",
    "evaluate_image",
    "mae",
    "metric_unit",
    "nrmse",
    "psnr",
    "reporting_range",
    "ssim",
    "ssim_map",
]
