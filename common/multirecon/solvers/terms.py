"""The data term of a plain operator or of a stack, seen alike by every solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Likelihood, Poisson
from multirecon.operators import BlockDiagonal, LinearOperator

__all__ = ["Callback", "DataTerm", "Term"]

Callback = Callable[[int, Tensor, dict[str, Any]], None]
"""What every solver calls after an iteration: ``callback(iteration, x, info)``, iterations counted from one."""


@dataclass(frozen=True)
class Term:
    """One block of data with the channels of the image that it sees.

    Args:
        name: modality, empty for a plain operator.
        channels: channels of the image the operator acts on.
        operator: the linear operator.
        likelihood: likelihood of the data given the operator's output.
        y: data ``(B, *range_shape)``.
    """

    name: str
    channels: slice
    operator: LinearOperator
    likelihood: Likelihood
    y: Tensor


class DataTerm:
    r"""``f(x) = -log p(y | A x)`` of one operator, or the sum over the blocks of a stack.

    Args:
        operator: a plain operator or the block-diagonal operator of a stack.
        likelihood: a likelihood, or a block likelihood for a stack.
        y: data, or Blocks for a stack.

    Raises:
        ValueError: if the three do not belong together.
    """

    def __init__(
        self,
        operator: LinearOperator | BlockDiagonal,
        likelihood: Likelihood | BlockLikelihood,
        y: Tensor | Blocks,
    ) -> None:
        if isinstance(operator, BlockDiagonal):
            if not isinstance(likelihood, BlockLikelihood) or not isinstance(y, Blocks) or tuple(y) != operator.names:
                got = list(y) if isinstance(y, Blocks) else type(y).__name__
                raise ValueError(f"likelihood and y: expected blocks {list(operator.names)}, "
                                 f"got {type(likelihood).__name__} and {got}")  # fmt: skip
            space = operator.space
            self.terms = [Term(n, space.channels(n), op, likelihood[n], y[n]) for n, op in operator.items()]
            batch = y.batch_size
        else:
            if isinstance(likelihood, BlockLikelihood) or isinstance(y, Blocks):
                raise ValueError("likelihood and y: expected a likelihood and a tensor for a plain operator")
            self.terms = [Term("", slice(None), operator, likelihood, y)]
            batch = y.shape[0]
        for term in self.terms:
            expected = term.likelihood.data_shape(term.operator.range_shape)
            if tuple(term.y.shape[1:]) != expected:
                raise ValueError(f"y {term.name!r}: expected shape (B, {', '.join(map(str, expected))}), "
                                 f"got {tuple(term.y.shape)}")  # fmt: skip
        self.shape = (batch, *operator.domain_shape)

    @classmethod
    def of(cls, terms: Sequence[Term], shape: tuple[int, ...]) -> DataTerm:
        """Return the data term of given blocks on images of ``shape`` ``(B, C, *spatial)``."""
        data = cls.__new__(cls)
        data.terms, data.shape = list(terms), shape
        return data

    def zeros(self) -> Tensor:
        """Return the zero image in the dtype and on the device that the data ask for."""
        if not self.terms:
            return torch.zeros(self.shape)
        y, dtype = self.terms[0].y, self.terms[0].operator.domain_dtype
        real = torch.promote_types(y.real.dtype if y.is_complex() else y.dtype, dtype.to_real())
        return torch.zeros(self.shape, dtype=real.to_complex() if dtype.is_complex else real, device=y.device)

    def start(self, x0: Tensor | None) -> Tensor:
        """Return ``x0`` if it is a fitting image, zeros if it is None.

        Raises:
            ValueError: if the shape differs.
        """
        if x0 is None:
            return self.zeros()
        if tuple(x0.shape) != self.shape:
            raise ValueError(f"x0: expected shape {self.shape}, got {tuple(x0.shape)}")
        return x0

    def predict(self, x: Tensor) -> list[Tensor]:
        """Return the linear predictors ``A_m x_m``."""
        return [t.operator(x[:, t.channels]) for t in self.terms]

    def nll(self, z: Sequence[Tensor]) -> Tensor:
        """Return the negative log-likelihood per sample at given predictors."""
        total = torch.zeros(self.shape[0], device=self.terms[0].y.device if self.terms else None)
        for term, zm in zip(self.terms, z, strict=True):
            total = total + term.likelihood.nll(zm, term.y)
        return total

    def slopes(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients with respect to the predictors."""
        return [t.likelihood.grad(zm, t.y) for t, zm in zip(self.terms, z, strict=True)]

    def adjoint(self, q: Sequence[Tensor]) -> Tensor:
        """Return ``A^H q``, zero in channels without data."""
        if len(self.terms) == 1 and self.terms[0].channels == slice(None):
            return self.terms[0].operator.adjoint(q[0])
        image = self.zeros()
        for term, qm in zip(self.terms, q, strict=True):
            image[:, term.channels] = term.operator.adjoint(qm)
        return image

    def ratios(self, z: Sequence[Tensor]) -> list[Tensor]:
        """Return measured over expected counts.

        Raises:
            ValueError: if a likelihood is not Poisson.
        """
        return [_poisson(t).ratio(zm, t.y) for t, zm in zip(self.terms, z, strict=True)]

    def sensitivity(self) -> Tensor:
        """Return ``A^T 1``, shaped like the image."""
        return self.adjoint([torch.ones_like(t.y) for t in self.terms])

    def uniform(self, sensitivity: Tensor) -> Tensor:
        """Return the image, constant where the sensitivity is positive, that explains all counts of its block."""
        image = self.zeros()
        for term in self.terms:
            seen = sensitivity[:, term.channels]
            level = term.y.flatten(1).sum(1) / seen.flatten(1).sum(1).clamp_min(torch.finfo(seen.dtype).tiny)
            image[:, term.channels] = (seen > 0) * level.reshape(-1, *[1] * (seen.ndim - 1))
        return image

    def subsets(self, count: int) -> list[DataTerm]:
        """Return the data terms of ``count`` ordered subsets (interleaved views, the data's last axis but one).

        Raises:
            ValueError: if an operator or likelihood has no subsets.
        """
        if count == 1:
            return [self]
        return [self.of([_subset(t, index, count) for t in self.terms], self.shape) for index in range(count)]


def _subset(term: Term, index: int, count: int) -> Term:
    for part, owner in (("operator", term.operator), ("likelihood", term.likelihood)):
        if not hasattr(owner, "subset"):
            raise ValueError(f"{part} {term.name!r}: expected one with ordered subsets, got {type(owner).__name__}")
    operator = term.operator.subset(index, count)  # type: ignore[operator]
    likelihood = term.likelihood.subset(index, count)  # type: ignore[operator]
    return Term(term.name, term.channels, operator, likelihood, term.y[..., index::count, :])


def _poisson(term: Term) -> Poisson:
    if not isinstance(term.likelihood, Poisson):
        raise ValueError(f"likelihood {term.name!r}: expected Poisson for an EM algorithm, "
                         f"got {type(term.likelihood).__name__}")  # fmt: skip
    return term.likelihood
