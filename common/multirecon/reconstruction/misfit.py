"""The misfit whose gradient guides a posterior sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from ..likelihoods import Gaussian, Likelihood, PolyenergeticPoisson, gaussian_approximation
from ..measurement import Measurement
from ..operators import Identity
from ..priors import DiffusionPrior, IntensityScaling
from ..solvers import decompose_counts
from ..space import ImageSpace

__all__ = ["Misfit"]

_BEHIND = 0.7  # share of the blank counts below which a ray counts as one behind the object


class Misfit:
    r"""``x0 -> (sum_m |y_m - A_m u_m|^2)^(1/2)`` per sample, in units of half the network's range.

    Residuals of counts are those of their Gaussian approximation, each over its standard deviation; a factor a block
    brings them to the common unit. Where counts keep their likelihood, ``2 (-log p(y | A u))``, the deviance, takes the
    place of the sum of squares, to which it is equal in second order.

    With ``precondition`` the value is another one, whose gradient is ``P grad_x0 E``: ``E`` is half the sum of squares,
    and ``P`` multiplies the frequency ``k`` by ``max(1, |k| / k_min)`` and every channel of a block by the inverse of
    its mean information: a projector's gram falls as ``1 / |k|`` and bins differ in counts, so that plain gradients
    reach detail only after many steps. Materials are not told apart by it: the inverse of their joint information is
    unstable where a ray's spectrum differs from the mean one.
    ``P`` is symmetric and positive, the images at which the gradient vanishes stay the same, and a step is near the
    error of the image instead of having a length of its own.

    Args:
        measurement: data in the stack of the prior.
        prior: the prior, whose scaling leads to physical units; or the image space of the stack alone.
        scaling: scaling of a stack that is no prior's.
        exact: whether all counts keep their likelihood; those behind several materials always do.
        precondition: whether the gradient is preconditioned for projections.
        ridge: for counts behind several materials, precondition with the inverse of their joint information, of rays
            that cross the object, plus this multiple of its diagonal, and let no ray weigh more than a typical one of
            those; None: channel by channel, as said above. Behind a head the information of (water, bone, iodine) with
            a unit diagonal has the eigenvalues 2.9, 0.1 and 0.007: a step that is stable along the first needs 29 and
            440 times as many along the others.

    References:
        chung2023dps
    """

    def __init__(
        self,
        measurement: Measurement,
        prior: DiffusionPrior | ImageSpace,
        *,
        scaling: IntensityScaling | None = None,
        exact: bool = False,
        precondition: bool = False,
        ridge: float | None = None,
    ) -> None:
        if ridge is not None and not ridge > 0:
            raise ValueError(f"ridge: expected > 0 or None, got {ridge}")
        space = prior if isinstance(prior, ImageSpace) else prior.space
        self.scaling = scaling or (IntensityScaling(space) if isinstance(prior, ImageSpace) else prior.scaling)
        self.operator, self.precondition = measurement.operator, precondition
        self.channels = {name: space.channels(name) for name in measurement.available}
        self.data: dict[str, Tensor] = {}
        self.factor: dict[str, Tensor] = {}
        self.likelihood: dict[str, Likelihood] = {}
        self.inverse: dict[str, Tensor] = {}
        self.information: dict[str, Tensor] = {}
        self.joint: dict[str, Tensor] = {}
        self.weight: dict[str, Tensor] = {}
        middle = self.scaling.inverse(torch.zeros(1, space.num_channels, *[1] * len(space.shape)))
        slope = self.slope = self.scaling.slope(middle).flatten()
        for name, channels in self.channels.items():
            y, likelihood = measurement.y[name], measurement.likelihood[name]
            if isinstance(measurement.operator[name], Identity):
                full = torch.zeros(len(y), space.num_channels, *space.shape, dtype=y.dtype, device=y.device)
                full[:, channels] = y
                self.data[name] = self.scaling(full)[:, channels]
                continue
            unit = 0.5 * float(slope[channels].mean()) / float(measurement.operator[name].norm())
            if isinstance(likelihood, PolyenergeticPoisson) or (exact and not isinstance(likelihood, Gaussian)):
                self.data[name], self.likelihood[name] = y, likelihood
                information = _information(likelihood, y)
                self.factor[name] = unit * information.mean(1).rsqrt()
                if ridge is not None and isinstance(likelihood, PolyenergeticPoisson):
                    inverse, self.weight[name] = _joint_inverse(likelihood, y, ridge)
                    # a quarter of the step in the range, as all that is in units of half of it
                    gain = 0.25 / float(measurement.operator[name].norm()) ** 2
                    self.joint[name] = gain * slope[channels].to(inverse)[:, None] * inverse
            else:
                self.data[name], noise = gaussian_approximation(likelihood, y)
                weight = noise.weight(self.data[name])
                self.factor[name] = unit * (weight / _typical(weight, len(y))).sqrt()
                information = _means(weight, self.data[name])
            if precondition and information.shape[1] == len(slope[channels]):  # coils are not channels of the image
                scaled = information / slope[channels].to(information) ** 2
                self.inverse[name] = scaled.mean(1, keepdim=True) / scaled.clamp_min(1e-30)
                self.information[name] = information

    def __call__(self, x: Tensor) -> Tensor:
        """Return the misfit ``(B,)`` of a clean estimate ``(B, C, *shape)`` in the range of the prior."""
        if self.precondition:
            return (self.direction(x.detach()) * x).flatten(1).sum(1)
        return self.squares(x).clamp_min(torch.finfo(x.dtype).tiny).sqrt()

    def direction(self, x: Tensor) -> Tensor:
        """Return ``P grad E`` of a clean estimate, shaped like it."""
        if self.joint:
            return self._joint_direction(x.detach())
        with torch.enable_grad():
            image = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(0.5 * self.squares(image).sum(), image)
        gradient = _sharpened(gradient)
        for name, inverse in self.inverse.items():
            here = self.channels[name]
            gradient[:, here] *= inverse.reshape(*inverse.shape, *[1] * (x.ndim - 2)).to(gradient)
        return gradient

    @torch.no_grad()
    def _joint_direction(self, x: Tensor) -> Tensor:
        physical, result = self.scaling.inverse(x), torch.zeros_like(x)
        for name, matrix in self.joint.items():
            here, operator = self.channels[name], self.operator[name]
            slope = self.likelihood[name].grad(operator(physical[:, here]), self.data[name])
            back = _sharpened(operator.adjoint(self.weight[name] * slope))
            result[:, here] = torch.einsum("bmn,bn...->bm...", matrix.to(back), back)
        return result

    def length(self, name: str, count: int) -> Tensor:
        """Return the mean length ``(B,)`` that :meth:`direction` gives a unit error of the first channels of a block.

        It is 1 where their ranges are equally wide; how far it is from 1 depends on all that share the block.
        """
        slope = self.slope[self.channels[name]][:count].to(self.information[name])
        information = self.information[name][:, :count]
        return slope.mean() ** 2 * (information / slope**2).mean(1) / information.mean(1)

    def squares(self, x: Tensor) -> Tensor:
        """Return the sum of squares ``(B,)``, or of deviances, of a clean estimate."""
        physical, total = self.scaling.inverse(x), torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for name, channels in self.channels.items():
            if name in self.likelihood:
                z = self.operator[name](physical[:, channels])
                total = total + 2 * self.factor[name] ** 2 * self.likelihood[name].nll(z, self.data[name])
                continue
            if name in self.factor:
                residual = self.factor[name] * (self.data[name] - self.operator[name](physical[:, channels]))
            else:
                residual = 0.5 * (self.data[name] - x[:, channels])
            # parts of complex residuals one by one: no square root in the value, no division in the gradient
            parts = torch.view_as_real(residual) if residual.is_complex() else residual
            total = total + parts.square().flatten(1).sum(1)
        return total


def _sharpened(image: Tensor) -> Tensor:
    """Return an image with every frequency times its distance from zero in units of the smallest one, at least 1."""
    shape = image.shape[2:]
    square = torch.zeros(shape, dtype=image.dtype, device=image.device)
    for axis, n in enumerate(shape):
        steps = torch.fft.fftfreq(n, 1 / n, dtype=image.dtype, device=image.device)
        square = square + steps.reshape([-1 if a == axis else 1 for a in range(len(shape))]) ** 2
    axes = list(range(2, image.ndim))
    return torch.fft.ifftn(torch.fft.fftn(image, dim=axes) * square.sqrt().clamp_min(1.0), dim=axes).real


def _information(likelihood: Likelihood, y: Tensor) -> Tensor:
    """Return the mean information of a ray on the line integrals of every channel, ``(B, C)``."""
    if isinstance(likelihood, PolyenergeticPoisson):
        information = decompose_counts(likelihood, y)[1]
        return torch.diagonal(information.flatten(3).mean(3), dim1=1, dim2=2)
    return _means(likelihood.weight(y), y)


def _joint_inverse(likelihood: PolyenergeticPoisson, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the damped inverse ``(B, M, M)`` of the mean information of rays behind the object, and rays' weights."""
    information = decompose_counts(likelihood, y)[1]
    blank = likelihood.mean(y.new_zeros(y.shape[0], likelihood.num_materials, *y.shape[2:])).sum(1)
    behind = (y.sum(1) < _BEHIND * blank).to(information)
    behind = torch.where(behind.flatten(1).any(1)[:, None, None], behind, torch.ones_like(behind))
    mean = (information * behind[:, None, None]).flatten(3).sum(3) / behind.flatten(1).sum(1)[:, None, None]
    typical = torch.diagonal(mean, dim1=1, dim2=2)
    level = (torch.diagonal(information, dim1=1, dim2=2).movedim(-1, 1) / typical[:, :, None, None]).mean(1)
    weight = level.clamp_min(1.0).reciprocal()[:, None]
    return torch.linalg.inv(mean + ridge * torch.diag_embed(typical)), weight


def _means(weight: Tensor, data: Tensor) -> Tensor:
    """Return the mean weights of the channels, ``(B, C)``."""
    return weight.expand(data.shape).flatten(2).mean(2)


def _typical(weight: Tensor, batch: int) -> Tensor:
    """Return the mean weight of every sample, with the axes of the data."""
    if weight.ndim > 1 and len(weight) == batch:
        return weight.flatten(1).mean(1).reshape(-1, *[1] * (weight.ndim - 1))
    return weight.mean()
