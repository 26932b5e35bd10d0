"""Solvers of inverse problems: plain functions on operators, likelihoods and functionals."""

from .cg import Callback, CGResult, conjugate_gradient, least_squares

__all__ = ["CGResult", "Callback", "conjugate_gradient", "least_squares"]
