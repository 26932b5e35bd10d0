"""Photon-counting transmission scans (CT): Beer-Lambert's law at one effective energy."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .base import Likelihood
from .poisson import count_ratio, draw_counts, non_negative, of_samples, of_views, one_of, poisson_deviance

__all__ = ["TransmissionPoisson", "log_transform"]

Curvature = Literal["observed", "fisher", "paraboloid"]


class TransmissionPoisson(Likelihood):
    r"""``y ~ Poisson(I0 exp(-z) + s)`` for line integrals ``z`` of the attenuation.

    Args:
        I0: expected counts of a ray in air (blank scan): a number, or a tensor with the data's axes ``(1 or B, ...)``.
        scatter: expected background counts ``s >= 0``, likewise.
        curvature: ``"observed"`` for the second derivative clipped at zero, ``"fisher"`` for its expectation
            ``t^2 / (t + s)`` with ``t = I0 exp(-z)``, ``"paraboloid"`` for the smallest curvature whose parabola at
            ``z`` lies above the negative log-likelihood on ``z >= 0``, which makes surrogate descent monotone.

    Raises:
        ValueError: if ``I0`` is not positive, the scatter negative, or the curvature unknown.

    References:
        erdogan1999

    Example:
        >>> likelihood = TransmissionPoisson(I0=1000.0)
        >>> z = torch.tensor([[0.0, 1.0]])
        >>> likelihood.nll(z, likelihood.mean(z))
        tensor([0.])
    """

    kind = "transmission_poisson"
    counting = True

    def __init__(self, I0: float | Tensor, scatter: float | Tensor = 0.0, *, curvature: Curvature = "fisher") -> None:
        super().__init__()
        self.I0: Tensor
        self.scatter: Tensor
        self.register_buffer("I0", non_negative(I0, "I0"))
        if bool((self.I0 == 0).any()):
            raise ValueError("I0: expected values > 0, got 0")
        self.register_buffer("scatter", non_negative(scatter, "scatter"))
        self._curvature: Curvature = one_of(curvature, ("observed", "fisher", "paraboloid"), "curvature")

    def mean(self, z: Tensor) -> Tensor:
        """Return ``I0 exp(-z) + s``, in counts."""
        return self._transmitted(z) + self.scatter.to(z)

    def sample(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Return Poisson counts (in the dtype of ``z``) drawn on the generator's device."""
        return draw_counts(self.mean(z), generator)

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        """Return half the Poisson deviance per sample, ``(B,)``."""
        return poisson_deviance(self.mean(z), y)

    def grad(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``t (y / ybar - 1)`` with ``t = I0 exp(-z)``."""
        transmitted = self._transmitted(z)
        return transmitted * (count_ratio(y, transmitted + self.scatter.to(z)) - 1)

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the chosen non-negative curvature, shaped like ``z``."""
        transmitted, scatter = self._transmitted(z), self.scatter.to(z)
        if self._curvature == "fisher":
            return transmitted**2 / (transmitted + scatter)
        if self._curvature == "observed":
            return self._second(transmitted, y).clamp_min(0)
        return self._paraboloid(z, y)

    def _second(self, transmitted: Tensor, y: Tensor) -> Tensor:
        scatter = self.scatter.to(transmitted)
        return transmitted * (1 - y * scatter / (transmitted + scatter) ** 2)

    def _paraboloid(self, z: Tensor, y: Tensor) -> Tensor:
        # Differences of large numbers: in double precision whatever the data.
        wide, counts = z.double(), y.double()
        blank, scatter = self.I0.to(wide), self.scatter.to(wide)
        ybar0, ybar = (blank + scatter).expand_as(wide), self.mean(wide)
        safe = torch.where(counts > 0, ybar0 / ybar, torch.ones_like(ybar))
        drop = ybar0 - ybar - counts * torch.log(safe)  # nll at 0 minus nll at z, ray by ray
        start = self._second(blank, counts).clamp_min(0)
        far = wide > 1e-4
        length = torch.where(far, wide, torch.ones_like(wide))
        value = (2 * (drop + wide * self.grad(wide, counts)) / length**2).clamp_min(0)
        return torch.where(far, value, start).to(z)

    def weight(self, y: Tensor) -> Tensor:
        """Return the log-domain weights ``(y - s)^2 / y``, zero where no primary photon was counted."""
        return log_transform(y, self.I0, self.scatter)[1]

    def _transmitted(self, z: Tensor) -> Tensor:
        return self.I0.to(z) * torch.exp(-z)

    def samples(self, start: int, stop: int) -> Likelihood:
        """Return the likelihood with the tensors of samples ``start .. stop - 1``."""
        blank, scatter = of_samples(self.I0, start, stop), of_samples(self.scatter, start, stop)
        return TransmissionPoisson(blank, scatter, curvature=self._curvature)

    def subset(self, index: int, count: int) -> TransmissionPoisson:
        """Return the likelihood of the views ``index, index + count, ...`` (last axis but one)."""
        blank, scatter = of_views(self.I0, index, count), of_views(self.scatter, index, count)
        return TransmissionPoisson(blank, scatter, curvature=self._curvature)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"I0": self.I0, "scatter": self.scatter, "curvature": self._curvature}


def log_transform(
    y: Tensor, I0: float | Tensor, scatter: float | Tensor = 0.0, *, minimum_counts: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Return line integrals ``log(I0 / (y - s))`` and their weights ``(y - s)^2 / y`` for weighted least squares.

    A ray with fewer than ``minimum_counts`` primary photons gets the line integral of that many; a ray with none has
    weight zero, so that it only matters to unweighted methods.

    Args:
        y: measured counts ``(B, ...)``.
        I0: expected counts in air, a number or broadcastable to ``y``.
        scatter: expected background counts, a number or broadcastable to ``y``.
        minimum_counts: smallest number of primary counts the logarithm is taken of.

    Returns:
        Line integrals (dimensionless) and weights (their inverse variance), both shaped like ``y``.

    Raises:
        ValueError: if ``minimum_counts`` is not positive.

    Example:
        >>> log_transform(torch.tensor([[100.0, 0.0]]), 100.0)
        (tensor([[0.0000, 4.6052]]), tensor([[100.,   0.]]))
    """
    if not minimum_counts > 0:
        raise ValueError(f"minimum_counts: expected > 0, got {minimum_counts}")
    primary = y - torch.as_tensor(scatter).to(y)
    integrals = torch.log(torch.as_tensor(I0).to(y) / primary.clamp_min(minimum_counts))
    weights = torch.where(primary > 0, primary**2 / y.clamp_min(torch.finfo(y.dtype).tiny), torch.zeros_like(y))
    return integrals, weights
