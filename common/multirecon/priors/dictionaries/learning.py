"""Learning of filters: synthesis dictionaries (CDL) and analysis operators (CAOL, and MCAOL for several channels)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from .coding import CodingState, coding_objective, high_pass, sparse_code
from .filters import analyse, nearest_tight_frame, synthesise, transfer
from .thresholds import group_energy, keep_jointly, shrink_mixed_norm

__all__ = ["AnalysisLearner", "DictionaryLearner", "SynthesisLearner"]


class DictionaryLearner(Optimizer):
    """An optimiser that alternates between codes of *all* training images and filters; no gradient is asked for.

    Its state, the codes included where they carry over, lies in ``state_dict()``, so that a run can be resumed. Of
    several processes (``torch.distributed``) each brings its own images, and all get the same filters.

    Args:
        network: owner of the parameter ``filters``.
    """

    def __init__(self, network: nn.Module) -> None:
        # "lr" is what training curves print: a full step
        filters = network.get_parameter("filters")
        super().__init__([filters], {"lr": 1.0})

    @property
    def filters(self) -> nn.Parameter:
        """The filters that are learned, ``(C, K, h, w)``."""
        return self.param_groups[0]["params"][0]

    def update(self, images: Tensor) -> Tensor:
        """Update codes and filters once and return the objective of the codes before the filters moved.

        Args:
            images: the training set ``(B, C, H, W)``, the same at every call.
        """
        raise NotImplementedError


class AnalysisLearner(DictionaryLearner):
    r"""CAOL; for several channels MCAOL: tight frames ``D_c`` whose responses are sparse at the same places.

    .. math:: \min_{D, z} \sum_{l,k} \Bigl\{ \sum_c \tfrac{g_c}{2} \|d_{c,k} (*) x_{c,l} - z_{c,l,k}\|^2
              + \|\,\textstyle\sum_c |z_{c,l,k}|\,\|_0 \Bigr\}, \qquad D_c D_c^T = I / R

    Codes by the joint hard threshold (exact). Filters by one block proximal gradient step with the majoriser ``lam H``,
    ``H`` the exact Hessian (autocorrelations of the images), whose solution under the constraint is orthogonal
    Procrustes: ``R^{-1/2} U V^T`` of ``(lam - 1) H D' + Psi^T z``. ``D'`` is extrapolated with the weight
    ``min((t_old - 1)/t, (lam - 1)/(2 (lam + 1)))``, which next to ``lam = 1`` is next to nothing; the step is repeated
    without it where the gradient mapping points against the last move. The objective does not rise.

    Args:
        network: owner of ``filters``.
        precision: ``g``, one number or one a channel.
        norm: ``"count"`` for the number of positions, ``"mixed"`` for ``sum sqrt(sum_c z_c^2)``.
        joint: whether the channels share their support; if not, this is CAOL channel by channel.
        lam: ``lam > 1``.

    Raises:
        ValueError: on a number out of range.

    References:
        chun2020, perelli2022
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        precision: float | list[float] = 1e3,
        norm: Literal["count", "mixed"] = "count",
        joint: bool = True,
        lam: float = 1.0 + 1e-6,
    ) -> None:
        super().__init__(network)
        if not lam > 1:
            raise ValueError(f"lam: expected > 1, got {lam}")
        if norm not in ("count", "mixed"):
            raise ValueError(f"norm: expected 'count' or 'mixed', got {norm!r}")
        self.norm, self.joint, self.lam = norm, joint, lam
        values = [precision] * len(self.filters) if isinstance(precision, int | float) else list(precision)
        if len(values) != len(self.filters) or min(values) <= 0:
            raise ValueError(f"precision: expected {len(self.filters)} numbers > 0, got {precision}")
        self.precision = torch.tensor(values, dtype=torch.float64)
        self._hessian: tuple[Tensor, Tensor] | None = None

    def codes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best codes ``(B, C, K, H, W)`` for the present filters and the objective."""
        g = self.precision.to(images)
        responses = analyse(images, self.filters.detach())
        if self.norm == "count":
            z = keep_jointly(responses, g, torch.ones_like(g[:1]), self.joint)
            support = (z != 0).any(1) if self.joint else z != 0
            price = support.sum(dtype=torch.float64)
        else:
            parts = [responses] if self.joint else list(responses.split(1, dim=1))
            weights = [g] if self.joint else list(g.split(1))
            shrunk = [shrink_mixed_norm(r, w) for r, w in zip(parts, weights, strict=True)]
            z = torch.cat(shrunk, dim=1)
            price = torch.stack([s.square().sum(1).sqrt().sum(dtype=torch.float64) for s in shrunk]).sum()
        return z, _over_processes(group_energy(responses - z, g).sum(dtype=torch.float64) + price)

    @torch.no_grad()
    def update(self, images: Tensor) -> Tensor:
        """See the base class."""
        z, objective = self.codes(images)
        bank, state = self.filters, self.state[self.filters]
        size = tuple(bank.shape[2:])
        # the codes' correlation with the images' patches: the data part of the normal equations of the filters
        pull = _over_processes(torch.stack([_correlate(images[:, c], z[:, c], size) for c in range(images.shape[1])]))
        before = state.get("previous", bank.detach().clone())
        t_old = float(state.get("t", torch.ones(())))
        t = (1 + math.sqrt(1 + 4 * t_old**2)) / 2
        momentum = min((t_old - 1) / t, 0.5 * (self.lam - 1) / (self.lam + 1))
        hessian = self._autocorrelation(images, size)
        ahead = bank + momentum * (bank - before)
        new = self._project(ahead, hessian, pull)
        mapping = torch.einsum("cqr,ckr->ckq", hessian, (ahead - new).flatten(2))
        if momentum > 0 and float((mapping * (new - bank).flatten(2)).sum()) > 0:
            new, t = self._project(bank, hessian, pull), 1.0
        state["previous"], state["t"] = bank.detach().clone(), torch.tensor(t)
        bank.copy_(new)
        return objective

    def _project(self, ahead: Tensor, hessian: Tensor, pull: Tensor) -> Tensor:
        inertia = (self.lam - 1) * torch.einsum("cqr,ckr->ckq", hessian, ahead.flatten(2))
        return nearest_tight_frame(inertia.reshape(pull.shape) + pull)

    def _autocorrelation(self, images: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return ``Psi^T Psi`` of every channel, ``(C, R, R)``; kept while the images stay the same."""
        key = torch.stack([images.sum(), images.square().sum()])
        if self._hessian is None or not torch.equal(self._hessian[0], key):
            grams = []
            for c in range(images.shape[1]):
                patches = _patches(images[:, c], size)
                grams.append(torch.einsum("bqn,brn->qr", patches, patches))
            self._hessian = key, _over_processes(torch.stack(grams))
        return self._hessian[1]


class SynthesisLearner(DictionaryLearner):
    r"""CDL: filters in the unit ball whose sparse combinations are the images without their smooth part.

    .. math:: \min_{d, z} \sum_{l,c} \tfrac12 \|\sum_k d_k * z_{c,l,k} - s_{c,l}\|^2 + \lambda \|z\|_1
              + \mu \sum_{l,k,p} \bigl(\sum_c z_{c,l,k}(p)^2\bigr)^{1/2}, \qquad \|d_k\| \le 1

    One ADMM iteration of the codes and one step of the filters in turn; the filters see the sparse variable of the
    codes. Their step is an accelerated projected gradient with backtracking (gradient in the Fourier domain, cropped
    to the support, norms cut at one), repeated without acceleration where it would raise the misfit.

    Args:
        network: owner of ``filters``, ``(1, K, h, w)`` for a dictionary shared by the channels.
        sparsity: ``lambda``.
        coupling: ``mu``.
        smoothing: weight of the smooth part that is taken off, see :func:`~.coding.high_pass`.

    Raises:
        ValueError: on a negative weight.

    References:
        wohlberg2016
    """

    def __init__(
        self, network: nn.Module, *, sparsity: float = 0.2, coupling: float = 0.1, smoothing: float = 5.0
    ) -> None:
        super().__init__(network)
        if min(sparsity, coupling, smoothing) < 0:
            raise ValueError(f"sparsity, coupling, smoothing: expected >= 0, got {sparsity}, {coupling}, {smoothing}")
        self.sparsity, self.coupling, self.smoothing = sparsity, coupling, smoothing

    @torch.no_grad()
    def update(self, images: Tensor) -> Tensor:
        """See the base class."""
        bank, state = self.filters, self.state[self.filters]
        signal = high_pass(images, self.smoothing)
        single, group = signal.new_full((signal.shape[1],), self.sparsity), signal.new_full((1,), self.coupling)
        place = None
        if "codes" in state:
            place = CodingState(state["codes"], state["dual"], state["rho"], int(state["count"]))
        place = sparse_code(signal, bank.detach(), single=single, group=group, state=place, iterations=1)
        residual = synthesise(place.codes, bank.detach()) - signal
        objective = _over_processes(
            coding_objective(residual, place.codes, single=single, group=group).sum(dtype=torch.float64)
        )
        state.update(codes=place.codes, dual=place.dual, rho=place.rho, count=torch.tensor(float(place.count)))
        misfit = _Misfit(place.codes, signal, tuple(bank.shape[1:]))
        value = _over_processes(0.5 * residual.square().sum(dtype=torch.float64))
        new = self._step(misfit, state, float(value))
        state["previous"] = bank.detach().clone()
        bank.copy_(new)
        return objective

    def _step(self, misfit: _Misfit, state: dict[str, Any], value: float) -> Tensor:
        """Return filters whose misfit is not above ``value``, that of the present ones."""
        bank = self.filters.detach()
        before, t_old = state.get("previous", bank), float(state.get("t", torch.ones(())))
        t = (1 + math.sqrt(1 + 4 * t_old**2)) / 2
        curvature = float(state.get("curvature", torch.ones(()))) / 2
        for start, next_t in ((bank + (t_old - 1) / t * (bank - before), t), (bank, 1.0)):
            level, slope = misfit(start)
            while True:
                new = _unit_ball(start - slope / curvature)
                move = new - start
                found = misfit.value(new)
                bound = level + float((slope * move).sum()) + 0.5 * curvature * float(move.square().sum())
                if found <= bound * (1 + 1e-6) or curvature > 1e12:
                    break
                curvature *= 2
            if found <= value:
                state["t"], state["curvature"] = torch.tensor(next_t), torch.tensor(curvature)
                return new
        state["t"], state["curvature"] = torch.tensor(1.0), torch.tensor(curvature)
        return bank


class _Misfit:
    """``1/2 |D z - s|^2`` over all images as a function of a shared bank, and its gradient on the filters' support."""

    def __init__(self, codes: Tensor, signal: Tensor, shape: tuple[int, ...]) -> None:
        self.size = tuple(signal.shape[-2:])
        self.codes = torch.fft.rfft2(codes.flatten(0, 1))
        self.signal = torch.fft.rfft2(signal.flatten(0, 1))
        count, self.height, self.width = shape
        self.count = count
        weight = torch.full((self.signal.shape[-1],), 2.0, device=signal.device)  # of the half spectrum
        weight[0] = 1.0
        if self.size[1] % 2 == 0:
            weight[-1] = 1.0
        self.weight = weight / (self.size[0] * self.size[1])

    def _residual(self, bank: Tensor) -> Tensor:
        return torch.einsum("khw,bkhw->bhw", transfer(bank, *self.size)[0], self.codes) - self.signal

    def value(self, bank: Tensor) -> float:
        """Return the misfit."""
        return self._square(self._residual(bank))

    def _square(self, residual: Tensor) -> float:
        return 0.5 * float(_over_processes((self.weight * residual.abs().square()).sum(dtype=torch.float64)))

    def __call__(self, bank: Tensor) -> tuple[float, Tensor]:
        """Return the misfit and its gradient ``(1, K, h, w)``."""
        residual = self._residual(bank)
        spectrum = torch.einsum("bkhw,bhw->khw", self.codes.conj(), residual)
        image = _over_processes(torch.fft.irfft2(spectrum, s=self.size))
        above, left = (self.height - 1) // 2, (self.width - 1) // 2
        slope = torch.roll(image, (above, left), dims=(1, 2))[:, : self.height, : self.width]
        return self._square(residual), slope[None]


def _over_processes(value: Tensor) -> Tensor:
    """Return the sum over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def _unit_ball(bank: Tensor) -> Tensor:
    return bank / torch.linalg.vector_norm(bank, dim=(2, 3), keepdim=True).clamp_min(1.0)


def _patches(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return all patches with circular boundaries ``(B, R, H * W)``; the sum over ``q`` of ``analyse`` runs over R."""
    height, width = size
    above, left = (height - 1) // 2, (width - 1) // 2
    margins = [left, width - 1 - left, above, height - 1 - above]
    return functional.unfold(functional.pad(image[:, None], margins, mode="circular"), size)


def _correlate(image: Tensor, codes: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return ``Psi^T z``: for every filter the codes' correlation with the patches, ``(K, h, w)``."""
    product = torch.einsum("bkn,bqn->kq", codes.flatten(2), _patches(image, size))
    return product.reshape(-1, *size)
