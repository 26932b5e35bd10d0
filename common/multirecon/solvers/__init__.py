"""Solvers of inverse problems: plain functions on operators, likelihoods and functionals."""

from .admm import ADMMResult, admm
from .cg import CGResult, conjugate_gradient, least_squares
from .decomposition import decompose_counts, decompose_images
from .em import bsrem, map_em, mlem, one_step_late, osem, subset_order
from .em_engine import EMEngine, TorchEM, anchored_em
from .fista import fista
from .pdhg import PDHGResult, pdhg
from .projected_newton import projected_newton
from .proximal import data_proximal, mean_curvature
from .quasi_newton import bounded_quasi_newton
from .sirt import sirt
from .surrogate import separable_surrogate
from .terms import Callback, DataTerm

__all__ = [
    "ADMMResult",
    "CGResult",
    "Callback",
    "DataTerm",
    "EMEngine",
    "PDHGResult",
    "TorchEM",
    "admm",
    "anchored_em",
    "bounded_quasi_newton",
    "bsrem",
    "conjugate_gradient",
    "data_proximal",
    "decompose_counts",
    "decompose_images",
    "fista",
    "least_squares",
    "map_em",
    "mean_curvature",
    "mlem",
    "one_step_late",
    "osem",
    "pdhg",
    "projected_newton",
    "separable_surrogate",
    "sirt",
    "subset_order",
]
