"""Photon counting: Poisson data with a known background."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from .base import Likelihood

__all__ = ["Poisson", "count_ratio", "draw_counts", "of_samples", "of_views", "poisson_deviance"]

Choice = TypeVar("Choice", bound=str)
Curvature = Literal["observed", "fisher"]


class Poisson(Likelihood):
    r"""``y ~ Poisson(z + b)``: emission counts with randoms and scatter as a known background ``b``.

    ``nll = sum ybar - y + y log(y / ybar)`` with ``ybar = z + b`` and ``0 log 0 = 0``: half the deviance, zero at a
    perfect fit. Where ``y = 0`` the term is ``ybar`` and its derivative ``1``, also at ``ybar = 0``; where ``y > 0``
    and ``ybar <= 0`` the data are impossible and the term is infinite. The background is never subtracted from the
    data.

    Args:
        background: expected background counts ``b >= 0``: a number, or a tensor with the data's axes ``(1 or B, ...)``.
        curvature: ``"observed"`` for ``y / ybar^2``, ``"fisher"`` for ``1 / ybar``.

    Raises:
        ValueError: if the background is negative or not finite, or the curvature is unknown.

    References:
        shepp1982

    Example:
        >>> likelihood = Poisson(background=1.0)
        >>> likelihood.nll(torch.tensor([[3.0, 0.0]]), torch.tensor([[4.0, 0.0]]))
        tensor([1.])
        >>> likelihood.grad(torch.tensor([[1.0, -1.0]]), torch.tensor([[4.0, 0.0]]))
        tensor([[-1.,  1.]])
    """

    kind = "poisson"
    counting = True

    def __init__(self, background: float | Tensor = 0.0, *, curvature: Curvature = "observed") -> None:
        super().__init__()
        self.background: Tensor
        self.register_buffer("background", non_negative(background, "background"))
        self._curvature: Curvature = one_of(curvature, ("observed", "fisher"), "curvature")

    def mean(self, z: Tensor) -> Tensor:
        """Return ``z + b``, in counts."""
        return z + self.background.to(z)

    def sample(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Return Poisson counts (in the dtype of ``z``) drawn on the generator's device."""
        return draw_counts(self.mean(z), generator)

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        """Return half the Poisson deviance per sample, ``(B,)``."""
        return poisson_deviance(self.mean(z), y)

    def grad(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``1 - y / ybar``, and ``1`` where ``y = 0``."""
        return 1 - count_ratio(y, self.mean(z))

    def ratio(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``y / ybar`` with ``0 / 0 = 0``: what an EM iteration projects back."""
        return count_ratio(y, self.mean(z))

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``y / ybar^2`` or the Fisher information ``1 / ybar``; zero where ``ybar <= 0``."""
        ybar = self.mean(z)
        positive = ybar > 0
        safe = torch.where(positive, ybar, torch.ones_like(ybar))
        value = y / safe**2 if self._curvature == "observed" else 1 / safe
        return torch.where(positive, value, torch.zeros_like(value))

    def weight(self, y: Tensor) -> Tensor:
        """Return ``1 / max(y, 1)``: the count is its own variance, and an empty bin is known to about one count."""
        return 1 / y.clamp_min(1.0)

    def samples(self, start: int, stop: int) -> Likelihood:
        """Return the likelihood with the background of samples ``start .. stop - 1``."""
        return Poisson(of_samples(self.background, start, stop), curvature=self._curvature)

    def subset(self, index: int, count: int) -> Poisson:
        """Return the likelihood of the views ``index, index + count, ...`` (last axis but one)."""
        return Poisson(of_views(self.background, index, count), curvature=self._curvature)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"background": self.background, "curvature": self._curvature}


def poisson_deviance(ybar: Tensor, y: Tensor) -> Tensor:
    r"""Return ``sum ybar - y + y log(y / ybar)`` per sample, of shape ``(B,)``.

    Written with ``d = (ybar - y) / y`` as ``y (d - log(1 + d))``, which keeps float32 accurate near a perfect fit.
    Two times this sum is the deviance; at the truth it is close to one a bin for counts above about ten.

    Args:
        ybar: expected counts ``(B, ...)``.
        y: measured counts, same shape.
    """
    counted = y > 0
    safe = torch.where(counted, y, torch.ones_like(y))
    excess = torch.where(counted, (ybar - y) / safe, torch.zeros_like(ybar))
    possible = excess > -1
    inside = torch.where(possible, excess, torch.zeros_like(excess))
    term = torch.where(possible, y * (inside - torch.log1p(inside)), torch.full_like(excess, torch.inf))
    return torch.where(counted, term, ybar).flatten(1).sum(1)


def count_ratio(y: Tensor, ybar: Tensor) -> Tensor:
    """Return ``y / ybar`` with ``0 / 0 = 0``; infinite where counts were measured and none can be expected."""
    counted = y > 0
    # clamp: a negative expectation must push as strongly as a vanishing one, not with the opposite sign.
    safe = torch.where(counted, ybar.clamp_min(0), torch.ones_like(ybar))
    return torch.where(counted, y / safe, torch.zeros_like(ybar))


def draw_counts(ybar: Tensor, generator: torch.Generator) -> Tensor:
    """Return Poisson counts of mean ``ybar`` in its dtype and on its device, drawn on the generator's device.

    Raises:
        ValueError: if an expected count is negative or not finite.
    """
    if not bool(torch.isfinite(ybar).all()) or bool((ybar < 0).any()):
        raise ValueError(f"mean counts: expected finite values >= 0, got a minimum of {float(ybar.min()):.4g}")
    counts = torch.poisson(ybar.detach().to(generator.device, torch.float64), generator=generator)
    return counts.to(ybar)


def non_negative(value: float | Tensor, name: str) -> Tensor:
    """Return ``value`` as a floating tensor, or raise ValueError naming it."""
    tensor = value if isinstance(value, Tensor) and value.is_floating_point() else torch.as_tensor(value).float()
    if not bool(torch.isfinite(tensor).all()) or bool((tensor < 0).any()):
        raise ValueError(f"{name}: expected finite values >= 0, got a minimum of {float(tensor.min()):.4g}")
    return tensor


def of_samples(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Return samples ``start .. stop - 1`` of a tensor with the data's axes; one without a batch axis stays whole."""
    return tensor[start:stop] if tensor.ndim > 1 and tensor.shape[0] > 1 else tensor


def of_views(tensor: Tensor, index: int, count: int) -> Tensor:
    """Return the views ``index, index + count, ...`` (last axis but one); a tensor constant over views stays whole."""
    return tensor[..., index::count, :] if tensor.ndim > 1 and tensor.shape[-2] > 1 else tensor


def one_of(value: Choice, choices: tuple[str, ...], name: str) -> Choice:
    """Return ``value`` if it is one of ``choices``, or raise ValueError naming it."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {list(choices)}, got {value!r}")
    return value
