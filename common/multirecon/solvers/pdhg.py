"""Primal-dual hybrid gradient for total-variation-like penalties, with a certified gap."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.functionals import AnalysisFunctional
from multirecon.likelihoods import BlockLikelihood, Gaussian, Likelihood, Poisson, gaussian_approximation
from multirecon.operators import BlockDiagonal, LinearOperator

from .terms import Callback, DataTerm, Term

__all__ = ["PDHGResult", "pdhg"]


class PDHGResult(NamedTuple):
    """The outcome of a primal-dual run.

    Attributes:
        x: image ``(B, *domain_shape)``.
        gap: upper bound of ``(objective(x) - minimum) / objective(x)``, see :func:`pdhg`, ``(B,)``; infinite where
            exact data are not met.
        iterations: iterations spent.
    """

    x: Tensor
    gap: Tensor
    iterations: int


def pdhg(
    operator: LinearOperator | BlockDiagonal,
    likelihood: Likelihood | BlockLikelihood,
    y: Tensor | Blocks,
    functional: AnalysisFunctional | None = None,
    *,
    nonnegative: bool = False,
    x0: Tensor | None = None,
    ratio: float | None = None,
    iterations: int = 500,
    tolerance: float = 1e-4,
    check_every: int = 20,
    callback: Callback | None = None,
) -> PDHGResult:
    r"""Minimise ``-log p(y | A x) + R(x)``, optionally over ``x >= 0``, by primal-dual hybrid gradient.

    The data term may be Gaussian (weighted least squares, or an equality for exact data) or Poisson with background.
    With ``K`` the transform of ``R`` the dual steps are ``ratio / |A_m|`` and ``ratio / |K|``, and a channel seen by
    block ``m`` has the primal step ``1 / (ratio (|A_m| + |K|))``. Without a given ``ratio``, every block has its own,
    estimated from the noise level of its data, so that modalities of different scales converge alike; if all data are
    exact it follows the distances that image and dual travel during 10, 20, 40, ... iterations.

    The gap is a safe, often pessimistic bound: the primal objective minus the dual one, where the dual's constraint
        is replaced by its price over images
    bounded by twice the largest magnitude of the iterate (between 0 and that for non-negative images).

    Args:
        operator: ``A``, plain or block-diagonal.
        likelihood: Gaussian or Poisson, or a block likelihood of these.
        y: data ``(B, *range_shape)`` or Blocks.
        functional: ``R``, a norm of a linear transform such as total variation.
        nonnegative: whether the image is constrained to ``x >= 0`` (also if the functional says so).
        x0: start ``(B, *domain_shape)``; zero by default.
        ratio: dual over primal step, see above.
        iterations: bound on the number of iterations.
        tolerance: relative gap at which all samples stop.
        check_every: iterations between two evaluations of the gap.
        callback: called after each iteration with ``{"gap": the latest (B,)}``.

    Returns:
        The image with its gap.

    Raises:
        ValueError: for a likelihood without a proximal map; see ``likelihoods.gaussian_approximation``.

    References:
        chambolle2011, pock2011, applegate2021
    """
    data = DataTerm(operator, likelihood, y)
    for term in data.terms:
        if not isinstance(term.likelihood, Gaussian | Poisson):
            raise ValueError(f"likelihood {term.name!r}: expected Gaussian or Poisson, got "
                             f"{type(term.likelihood).__name__} (take its gaussian_approximation)")  # fmt: skip
    nonnegative = nonnegative or (functional is not None and functional.nonnegative)
    x = data.start(x0)
    steps = _Steps.of(data, functional, x, 1.0 if ratio is None else float(ratio))
    estimated = ratio is None and not all(_exact(t) for t in data.terms)
    if estimated:
        steps = _expected(steps, data, functional, nonnegative, x)
    field = torch.zeros_like(functional.analyse(x)) if functional is not None else None
    state = _State(x, x, [torch.zeros_like(t.y) for t in data.terms], field, torch.zeros_like(x))
    begin, rebalance, iteration = state, 10, 0
    gap = torch.full((x.shape[0],), torch.inf, device=x.device, dtype=x.real.dtype)
    while iteration < iterations and not bool((gap <= tolerance).all()):
        iteration += 1
        new = _step(data, functional, nonnegative, state, steps)
        # a sample that has reached its gap stays, so that a batch equals its samples
        state = new.where(gap <= tolerance, state)
        if ratio is None and not estimated and iteration == rebalance:
            steps = _travelled(steps, state, begin)
            state, rebalance = state._replace(ahead=state.x), 2 * rebalance
        if iteration % check_every == 0 or iteration == iterations:
            gap = torch.where(gap <= tolerance, gap, _gap(data, functional, nonnegative, state))
        if callback is not None:
            callback(iteration, state.x, {"gap": gap})
    return PDHGResult(state.x, gap, iteration)


class _State(NamedTuple):
    """Image, extrapolated image, duals of the blocks and of the penalty, and ``A^H q + K^H p``."""

    x: Tensor
    ahead: Tensor
    q: list[Tensor]
    p: Tensor | None
    back: Tensor

    def where(self, frozen: Tensor, old: _State) -> _State:
        """Return this state with the old one for frozen samples."""
        if not bool(frozen.any()):
            return self

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(_wide(frozen, a), b, a)

        q = [pick(a, b) for a, b in zip(self.q, old.q, strict=True)]
        p = None if self.p is None or old.p is None else pick(self.p, old.p)
        return _State(pick(self.x, old.x), pick(self.ahead, old.ahead), q, p, pick(self.back, old.back))


class _Steps(NamedTuple):
    """Norms of the blocks ``(M)`` and of the penalty on each channel ``(C,)``; dual over primal scale ``(B, C)``."""

    norms: list[float]
    k_norms: Tensor
    ratios: Tensor
    channels: list[slice]

    @classmethod
    def of(cls, data: DataTerm, functional: AnalysisFunctional | None, x: Tensor, ratio: float) -> _Steps:
        norms = [t.operator.norm() * 1.01 for t in data.terms]  # power iteration approaches the norm from below
        k_norms = x.real.new_zeros(x.shape[1]) if functional is None else functional.channel_norms(x)
        return cls(norms, k_norms, x.real.new_full(x.shape[:2], ratio), [t.channels for t in data.terms])

    def of_term(self, index: int) -> Tensor:
        """Return the ratio of a block, ``(B,)``: the same on all its channels."""
        return self.ratios[:, self.channels[index]][:, 0]

    @property
    def common(self) -> Tensor:
        """The penalty's ratio ``(B,)``, between those of the channels that it couples."""
        seen = self.k_norms > 0
        return self.ratios[:, seen].log().mean(1).exp() if bool(seen.any()) else self.ratios[:, 0]

    def curvatures(self, ratios: Tensor, common: Tensor) -> Tensor:
        """Return the inverse primal steps ``(B, C)``."""
        total = common[:, None] * self.k_norms
        for norm, channels in zip(self.norms, self.channels, strict=True):
            total[:, channels] += norm * ratios[:, channels]
        return total

    def primal(self, like: Tensor) -> Tensor:
        """Return the primal steps ``(B, C, 1, ...)``; a channel that nothing looks at has none."""
        inverse = self.curvatures(self.ratios, self.common)
        return _over_space(_quotient(torch.ones_like(inverse), inverse), like)


def _step(
    data: DataTerm, functional: AnalysisFunctional | None, nonnegative: bool, state: _State, steps: _Steps
) -> _State:
    q = []
    for index, (term, old, z) in enumerate(zip(data.terms, state.q, data.predict(state.ahead), strict=True)):
        sigma = steps.of_term(index) / max(steps.norms[index], torch.finfo(torch.float32).tiny)
        q.append(_prox_conjugate(term, old + _wide(sigma, old) * z, sigma) if steps.norms[index] > 0 else old)
    back, p = data.adjoint(q), state.p
    if functional is not None and p is not None and bool(steps.k_norms.any()):
        sigma = steps.common / steps.k_norms.max()
        p = functional.prox_conjugate(p + _wide(sigma, p) * functional.analyse(state.ahead), sigma)
        back = back + functional.synthesise(p)
    x = state.x - steps.primal(back) * back
    x = x.clamp_min(0) if nonnegative else x
    return _State(x, 2 * x - state.x, q, p, back)


def _expected(
    steps: _Steps, data: DataTerm, functional: AnalysisFunctional | None, nonnegative: bool, x: Tensor
) -> _Steps:
    """Return the ratios that the noise level foretells.

    At a solution the slopes of the data term are about as large as noise makes them, the root of the data weights; the
    penalty's dual lies on its ball wherever the image has an edge; the image is about as far as one steepest-descent
    step on weighted least squares goes.
    """
    ratios = steps.ratios.clone()
    weights = _over_space(steps.curvatures(torch.ones_like(ratios), torch.ones_like(ratios[:, 0])), x)
    for index, term in enumerate(data.terms):
        if _exact(term):
            continue
        y, likelihood = gaussian_approximation(term.likelihood, term.y)
        here = x[:, term.channels]
        slope = term.operator.adjoint(likelihood.grad(term.operator(here), y))
        turn = term.operator(slope)
        weight = likelihood.weight(y).expand(turn.shape)
        drop = (weight * turn.abs() ** 2).flatten(1).sum(1)
        move = -_wide(_quotient(slope.abs().square().flatten(1).sum(1), drop), slope) * slope
        move = (here + move).clamp_min(0) - here if nonnegative else move
        dual = steps.norms[index] * weight.flatten(1).sum(1)
        if functional is not None:
            whole = torch.zeros_like(x)
            whole[:, term.channels] = slope
            edges = functional.prox_conjugate(1e6 * functional.analyse(whole), 0.0)
            dual = dual + steps.k_norms.max() * edges.abs().square().flatten(1).sum(1)
        primal = (weights[:, term.channels] * move.abs().square()).flatten(1).sum(1)
        known = (dual > 0) & (primal > 0)
        ratios[:, term.channels] = torch.where(known, _quotient(dual, primal).sqrt(), 1.0)[:, None]
    unseen = torch.ones(ratios.shape[1], dtype=torch.bool)
    for term in data.terms:
        unseen[term.channels] = _exact(term)
    if bool(unseen.any()) and not bool(unseen.all()):
        ratios[:, unseen] = ratios[:, ~unseen].log().mean(1, keepdim=True).exp()
    return steps._replace(ratios=ratios)


def _travelled(steps: _Steps, state: _State, begin: _State) -> _Steps:
    """Return the common ratio that minimises the convergence bound for the distances travelled so far."""
    dual = torch.zeros_like(steps.ratios[:, 0])
    for norm, q, q0 in zip(steps.norms, state.q, begin.q, strict=True):
        dual = dual + norm * (q - q0).abs().square().flatten(1).sum(1)
    if state.p is not None and begin.p is not None:
        dual = dual + steps.k_norms.max() * (state.p - begin.p).abs().square().flatten(1).sum(1)
    weights = _over_space(steps.curvatures(torch.ones_like(steps.ratios), torch.ones_like(dual)), state.x)
    primal = (weights * (state.x - begin.x).abs().square()).flatten(1).sum(1)
    known = ((dual > 0) & (primal > 0))[:, None]
    return steps._replace(ratios=torch.where(known, _quotient(dual, primal).sqrt()[:, None], steps.ratios))


def _over_space(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(*values.shape, *[1] * (like.ndim - 2))


def _exact(term: Term) -> bool:
    return isinstance(term.likelihood, Gaussian) and term.likelihood.is_exact


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    safe = torch.where(b > 0, b, torch.ones_like(b))
    return torch.where(b > 0, a / safe, torch.zeros_like(a))


def _prox_conjugate(term: Term, v: Tensor, sigma: Tensor) -> Tensor:
    """Return the proximal map of ``sigma f*`` of a block's negative log-likelihood ``f``."""
    wide = _wide(sigma, v)
    likelihood = term.likelihood
    if isinstance(likelihood, Gaussian):
        variance = likelihood.sigma.to(v.device, v.real.dtype) ** 2
        return (v - wide * term.y) / (1 + wide * variance)
    background = cast(Poisson, likelihood).background.to(v)
    w = v + wide * background
    return (1 + w - ((w - 1) ** 2 + 4 * wide * term.y).sqrt()) / 2


def _conjugate(term: Term, q: Tensor) -> Tensor:
    """Return ``f*(q)`` of a block's negative log-likelihood per sample."""
    likelihood = term.likelihood
    if isinstance(likelihood, Gaussian):
        variance = likelihood.sigma.to(q.device, q.real.dtype) ** 2
        value = variance / 2 * q.abs() ** 2 + (q.conj() * term.y).real
    else:
        background = cast(Poisson, likelihood).background.to(q)
        counted = term.y > 0
        inside = torch.where(counted, 1 - q, torch.ones_like(q)).clamp_min(0)
        value = -torch.where(counted, term.y * torch.log(inside), torch.zeros_like(q)) - q * background
    return value.flatten(1).sum(1)


def _gap(data: DataTerm, functional: AnalysisFunctional | None, nonnegative: bool, state: _State) -> Tensor:
    x = state.x
    primal = data.nll(data.predict(x))
    dual = torch.zeros_like(primal)
    for term, q in zip(data.terms, state.q, strict=True):
        dual = dual - _conjugate(term, q)
    if functional is not None and state.p is not None:
        primal = primal + functional.value(x)
        dual = dual - functional.conjugate(state.p)
    radius = 2 * x.abs().flatten(1).amax(1)
    violation = (-state.back).clamp_min(0) if nonnegative else state.back.abs()
    dual = dual - radius * violation.flatten(1).sum(1)
    relative = (primal - dual).clamp_min(0) / primal.abs().clamp_min(torch.finfo(primal.dtype).tiny)
    return torch.where(torch.isfinite(primal), relative, torch.full_like(primal, torch.inf))


def _wide(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))
