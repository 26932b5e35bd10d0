"""Alternating directions on the transform itself: total variation and wavelet sparsity for every likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.functionals import AnalysisFunctional
from multirecon.likelihoods import BlockLikelihood, Gaussian, Likelihood, Poisson, gaussian_approximation
from multirecon.operators import BlockDiagonal, LinearOperator

from .cg import conjugate_gradient
from .terms import Callback, DataTerm, Term

__all__ = ["AnalysisADMMResult", "analysis_admm", "mean_curvature"]

_RELAXATION = 1.7
_BALANCE_AT = (5, 10, 20, 40, 80)  # iterations after which rho is changed; later it stays, as convergence asks
_LOOSER = 5.0  # residual over change at which iterations end
_FLOOR = 1e-4  # of the largest value of a spectrum: smaller estimates are not trusted


class AnalysisADMMResult(NamedTuple):
    """The outcome of a run.

    Attributes:
        x: image ``(B, C, *spatial)``, non-negative where that was asked for.
        change: relative change ``|x+ - x| / |x+|`` of the last iteration, ``(B,)``.
        residual: distance between the image of the data step and ``x``, relative to ``|x|``, ``(B,)``.
        iterations: iterations spent.
    """

    x: Tensor
    change: Tensor
    residual: Tensor
    iterations: int


def analysis_admm(
    operator: LinearOperator | BlockDiagonal,
    likelihood: Likelihood | BlockLikelihood,
    y: Tensor | Blocks,
    functional: AnalysisFunctional | None = None,
    *,
    nonnegative: bool = True,
    x0: Tensor | None = None,
    iterations: int = 200,
    inner_iterations: int = 6,
    tolerance: float = 1e-3,
    expand_every: int = 5,
    callback: Callback | None = None,
) -> AnalysisADMMResult:
    r"""Minimise ``-log p(y | A x) + R(x)``, ``R(x) = weight sum_j |(K x)_j|``, optionally over ``x >= 0``.

    Splits ``p = K x`` and ``v = x``; an iteration is one linear system

    .. math:: (A^T W A + \rho K^T K + \tau)\, x = A^T W d + \rho K^T (p - u) + \tau (v - s),

    a shrinkage of the field and a projection on ``v >= 0``. The system is solved by a few warm-started conjugate
    gradients with a circulant preconditioner, the radial means of the spectra of ``A^T W A`` and ``K^T K`` measured
    on one random image: it fits tomography, where they fall as ``1 / |xi|``, as well as undersampled Fourier data.
    ``rho`` starts at the weight over the mean magnitude of ``K x``, ``tau`` at a tenth of the mean curvature; both are
    balanced between their two residuals a few times, and iterations are over-relaxed. A batch shares the stopping rule.

    A likelihood that is not Gaussian enters by its quadratic expansion with Fisher weights ``W``, renewed at the
    current image every ``expand_every`` iterations. At convergence the slope of the data term is that of the exact
    likelihood.

    Args:
        operator: ``A``, plain or block-diagonal, on real images.
        likelihood: Gaussian with noise, Poisson or transmission, or a block likelihood of these.
        y: data ``(B, *range_shape)`` or Blocks.
        functional: ``R``, a norm of a linear or affine transform without smoothing; none by default.
        nonnegative: whether the image is constrained to ``x >= 0`` (also if the functional says so).
        x0: start ``(B, C, *spatial)``; by default a few conjugate gradients on the quadratic problem.
        iterations: bound on the number of iterations.
        inner_iterations: bound on the conjugate gradients of an iteration.
        tolerance: iterations end when the change of every sample is below it and the residual below five times it.
        expand_every: iterations between two expansions of a likelihood that is not Gaussian.
        callback: called after each iteration with ``{"change": (B,), "residual": (B,), "rho": (B,)}``.

    Returns:
        The image with its change and residual.

    Raises:
        ValueError: for complex images, exact data, or a likelihood without a Gaussian approximation.

    References:
        boyd2011
    """
    data = DataTerm(operator, likelihood, y)
    x = data.start(x0)
    if x.is_complex():
        raise ValueError("operator: expected one on real images, got a complex domain")
    nonnegative = nonnegative or (functional is not None and functional.nonnegative)
    if functional is not None and not bool((functional.weight > 0).any()):
        functional = None
    parts = [_first_expansion(t) for t in data.terms]
    counting = [not isinstance(t.likelihood, Gaussian) for t in data.terms]
    rhs = data.adjoint([wd for _, wd in parts])
    curves = _radial_spectrum(lambda e: _normal(data, parts, e), x)
    tau = 0.1 * curves.flatten(2).mean(2).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    if x0 is None:
        x = _solve(data, parts, rhs, x, curves + 0.01 * tau, 0.01 * tau, inner_iterations)
    splitting = None if functional is None else _Splitting.of(functional, x)
    v = x.clamp_min(0) if nonnegative else x
    s = torch.zeros_like(x)
    held = tau if nonnegative or functional is None else 0.01 * tau
    change = residual = torch.full_like(x.flatten(1)[:, 0], torch.inf)
    iteration = 0
    while iteration < iterations and not bool((torch.maximum(change, residual / _LOOSER) <= tolerance).all()):
        iteration += 1
        if any(counting) and iteration % expand_every == 0:
            parts = [_expansion(t, v) if count else part
                     for t, part, count in zip(data.terms, parts, counting, strict=True)]  # fmt: skip
            rhs = data.adjoint([wd for _, wd in parts])
        right, spectrum = rhs + held * (v - s), curves + held
        if splitting is not None:
            right, spectrum = right + splitting.pull(), spectrum + splitting.spectrum()
        x = _solve(data, parts, right, x, spectrum, held, inner_iterations, splitting)
        relaxed = _RELAXATION * x + (1 - _RELAXATION) * v + s
        previous, v = v, relaxed.clamp_min(0) if nonnegative else relaxed
        s = relaxed - v
        if nonnegative and iteration in _BALANCE_AT:
            primal = _norm(x - v) / _positive(torch.maximum(_norm(x), _norm(v)))
            factor = _balance(primal, _norm(v - previous) / _positive(_norm(s)))
            held, s = held * _wide(factor, held), s / _wide(factor, s)
        if splitting is not None:
            splitting.step(x, balance=iteration in _BALANCE_AT)
        size = _positive(_norm(v))
        change, residual = _norm(v - previous) / size, _norm(x - v) / size
        if callback is not None:
            rho = torch.zeros_like(change) if splitting is None else splitting.rho
            callback(iteration, v, {"change": change, "residual": residual, "rho": rho})
    return AnalysisADMMResult(v, change, residual, iteration)


def mean_curvature(operator: LinearOperator, likelihood: Likelihood, y: Tensor) -> Tensor:
    r"""Return the mean of the diagonal of ``A^T W A`` for every channel, ``(B, C)``, with data weights ``W``.

    Its root is the standard deviation, over noise, of the slope of the data term at the true image: a penalty weight
    divided by it is dimensionless and serves all noise levels. One random sign image estimates it to about 1 %.

    Args:
        operator: ``A`` on real images.
        likelihood: likelihood of the data.
        y: data ``(B, *range_shape)``.

    Raises:
        ValueError: as :func:`analysis_admm`.

    Example:
        >>> from multirecon.operators import Identity
        >>> mean_curvature(Identity((1, 4, 4)), Gaussian(0.5), torch.zeros(1, 1, 4, 4))
        tensor([[4.]])
    """
    data = DataTerm(operator, likelihood, y)
    parts = [_first_expansion(t) for t in data.terms]
    signs = _signs(data.zeros())
    return (signs * _normal(data, parts, signs)).flatten(2).mean(2)


class _Splitting:
    """The split ``p = K x`` with its scaled dual ``u`` and coupling ``rho (B,)``."""

    def __init__(self, functional: AnalysisFunctional, x: Tensor, p: Tensor, rho: Tensor) -> None:
        self.functional, self.p, self.u, self.rho = functional, p, torch.zeros_like(p), rho
        # an affine transform K x + b: the linear part is what acts on differences
        self.offset = functional.analyse(torch.zeros_like(x))
        self.radius = functional.weight.to(p.real) if functional.weight.ndim == 0 else functional.weight.to(p)
        self.curves = _radial_spectrum(self.normal, x)

    @classmethod
    def of(cls, functional: AnalysisFunctional, x: Tensor) -> _Splitting:
        """Start at ``p = K x``."""
        p = functional.analyse(x)
        mean = functional.magnitude(p) / x[0, 0].numel()
        weight = functional.weight.to(mean).expand(mean.shape)
        return cls(functional, x, p, weight / _positive(mean))

    def normal(self, x: Tensor) -> Tensor:
        """Return ``K^T K x``."""
        return self.functional.synthesise(self.functional.analyse(x) - self.offset)

    def spectrum(self) -> Tensor:
        """Return ``rho`` times the radial spectrum of ``K^T K``."""
        return _wide(self.rho, self.curves) * self.curves

    def pull(self) -> Tensor:
        """Return ``rho K^T (p - b - u)``."""
        image = self.functional.synthesise(self.p - self.offset - self.u)
        return _wide(self.rho, image) * image

    def step(self, x: Tensor, *, balance: bool) -> None:
        """Shrink the field and update its dual; balance ``rho`` where asked."""
        field, rho = self.functional.analyse(x), _wide(self.rho, self.p)
        total = _RELAXATION * field + (1 - _RELAXATION) * self.p + self.u
        dual = self.functional.project(rho * total, self.radius) / rho
        previous, self.p, self.u = self.p, total - dual, dual
        if not balance:
            return
        primal = _norm(field - self.p) / _positive(torch.maximum(_norm(field), _norm(self.p)))
        synthesise = self.functional.synthesise
        moved = _norm(synthesise(self.p - previous)) / _positive(_norm(synthesise(self.u)))
        factor = _balance(primal, moved)
        self.rho = self.rho * factor
        self.u = self.u / _wide(factor, self.u)


def _solve(
    data: DataTerm,
    parts: Sequence[tuple[Tensor, Tensor]],
    rhs: Tensor,
    start: Tensor,
    spectrum: Tensor,
    held: Tensor,
    iterations: int,
    splitting: _Splitting | None = None,
) -> Tensor:
    axes, sizes = tuple(range(2, rhs.ndim)), rhs.shape[2:]

    def normal(x: Tensor) -> Tensor:
        image = _normal(data, parts, x) + held * x
        return image if splitting is None else image + _wide(splitting.rho, x) * splitting.normal(x)

    def precondition(r: Tensor) -> Tensor:
        return torch.fft.irfftn(torch.fft.rfftn(r, dim=axes) / spectrum, s=sizes, dim=axes)

    return conjugate_gradient(
        normal, rhs, x0=start, max_iterations=iterations, tolerance=1e-5, preconditioner=precondition
    ).x


def _normal(data: DataTerm, parts: Sequence[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Return ``A^T W A x``; one weight a sample leaves the operator its fast Gram product."""
    image = torch.zeros_like(x)
    for term, (weight, _) in zip(data.terms, parts, strict=True):
        here = x[:, term.channels]
        if weight.numel() == 1 or weight.numel() == len(x) == weight.shape[0]:
            product = weight.reshape(-1, *[1] * (x.ndim - 1)) * term.operator.gram(here)
        else:
            product = term.operator.adjoint(weight * term.operator(here))
        image[:, term.channels] = product
    return image


def _first_expansion(term: Term) -> tuple[Tensor, Tensor]:
    """Return ``W`` and ``W d`` from the data alone."""
    d, likelihood = gaussian_approximation(term.likelihood, term.y)
    weight = likelihood.weight(d)
    return weight, weight * d


def _expansion(term: Term, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``W`` and ``W d = W z - slope`` of the expansion at ``z = A x``."""
    z = term.operator(x[:, term.channels])
    if isinstance(term.likelihood, Poisson):
        # With W = 1 / ybar the centre d = y - b does not move. The floor bounds W where next to nothing is expected.
        ybar = term.likelihood.mean(z)
        floor = 1e-2 * term.y.flatten(1).mean(1) + torch.finfo(z.dtype).tiny
        weight = 1 / torch.maximum(ybar, _wide(floor, ybar))
        return weight, weight * (term.y - term.likelihood.background.to(z))
    weight = term.likelihood.curvature(z, term.y)
    return weight, weight * z - term.likelihood.grad(z, term.y)


def _signs(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (1, *like.shape[1:]), generator=generator) * 2 - 1
    return signs.to(like).expand_as(like)


def _radial_spectrum(normal: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Return the radial means of the spectrum of a normal operator, ``(B, C, *spatial)`` as ``rfftn`` orders it."""
    axes, sizes = tuple(range(2, like.ndim)), like.shape[2:]
    signs = _signs(like)
    before = torch.fft.rfftn(signs, dim=axes)
    power, cross = before.abs() ** 2, (before.conj() * torch.fft.rfftn(normal(signs), dim=axes)).real
    square = torch.zeros((), device=like.device)
    for axis, size in enumerate(sizes):
        last = axis == len(sizes) - 1
        frequency = torch.fft.rfftfreq(size) if last else torch.fft.fftfreq(size)
        square = square.unsqueeze(-1) + frequency.to(like.device) ** 2
    ring = (square.sqrt() * max(sizes)).round().long().flatten()
    count = int(ring.max()) + 1

    def by_ring(values: Tensor) -> Tensor:
        return values.new_zeros(*like.shape[:2], count).index_add_(2, ring, values.flatten(2))

    mean = by_ring(cross) / by_ring(power).clamp_min(torch.finfo(like.dtype).tiny)
    top = mean.amax(2, keepdim=True)
    mean = torch.maximum(mean, _FLOOR * top)
    mean = torch.where(top > 0, mean, torch.ones_like(mean) * torch.finfo(like.dtype).eps)
    return mean[..., ring].reshape(*like.shape[:2], *before.shape[2:])


def _balance(primal: Tensor, dual: Tensor) -> Tensor:
    """Return the factor of a coupling that brings the two relative residuals closer."""
    factor = (primal / _positive(dual)).sqrt().clamp(0.2, 5.0)
    return torch.where((primal > 0) & (dual > 0), factor, torch.ones_like(factor)).detach()


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _positive(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.ones_like(x))


def _wide(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))
