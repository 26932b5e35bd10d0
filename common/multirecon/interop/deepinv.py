"""Our operators and measurements as deepinv physics, so that its optimisers and samplers run on them.

Two views of a measurement are offered. *Flat*: all blocks become one whitened real vector ``(B, M)`` with unit noise,
after a Gaussian approximation of counting blocks; every deepinv algorithm takes it. *Stacked*: one physics a block
with its own likelihood as data fidelity, exact for counts; deepinv's optimisers take it, its posterior samplers do
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from deepinv.optim import StackedPhysicsDataFidelity
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.optim.distance import Distance
from deepinv.physics import GaussianNoise, LinearPhysics, StackedLinearPhysics, ZeroNoise
from deepinv.utils import TensorList
from torch import Tensor

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian, Likelihood, gaussian_approximation
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, LinearOperator

__all__ = ["FlatOperator", "LikelihoodFidelity", "OperatorPhysics", "as_data", "as_fidelity", "as_physics"]

View = Literal["flat", "stacked"]


class FlatOperator(LinearOperator):
    """A plain operator or a stack as a map to real vectors, optionally whitened.

    Blocks are scaled, complex data become pairs of real numbers, and everything is concatenated in block order.

    Args:
        operator: a plain operator or the block-diagonal operator of a stack.
        scales: factor of every block's data (``1 / sigma``), broadcastable to it; ones by default.

    Example:
        >>> from multirecon.operators import Identity
        >>> FlatOperator(Identity((1, 4, 4)))(torch.ones(2, 1, 4, 4)).shape
        torch.Size([2, 16])
    """

    def __init__(self, operator: LinearOperator | BlockDiagonal, scales: dict[str, Tensor] | None = None) -> None:
        blocks = dict(operator.items()) if isinstance(operator, BlockDiagonal) else {"": operator}
        self._sizes = {n: op.range_shape for n, op in blocks.items()}
        self._complex = {n: op.range_dtype.is_complex for n, op in blocks.items()}
        widths = [torch.Size(s).numel() * (2 if self._complex[n] else 1) for n, s in self._sizes.items()]
        domain = next((op.domain_dtype for op in blocks.values()), torch.float32)
        super().__init__(operator.domain_shape, (sum(widths),), domain_dtype=domain, range_dtype=domain.to_real())
        self._widths = dict(zip(blocks, widths, strict=True))
        self.operator = operator
        for name, scale in (scales or {}).items():
            self.register_buffer(f"scale_{name}", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled data as vectors ``(B, M)``."""
        z = self.operator(x)
        return self.flatten(self._scaled(z if isinstance(z, Blocks) else {"": z}))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the adjoint of vectors ``(B, M)``."""
        parts = self._scaled(self.unflatten(self.check_range(y)))
        return (
            self.operator.adjoint(Blocks(parts))
            if isinstance(self.operator, BlockDiagonal)
            else self.operator.adjoint(parts[""])
        )

    def flatten(self, y: Blocks | dict[str, Tensor]) -> Tensor:
        """Return blocks as vectors ``(B, M)``, unscaled."""
        rows = [(torch.view_as_real(t) if t.is_complex() else t).flatten(1) for t in y.values()]
        batch = max(row.shape[0] for row in rows)  # scales of several samples meet a single image in norm()
        return torch.cat([row.expand(batch, -1) for row in rows], dim=1)

    def unflatten(self, y: Tensor) -> dict[str, Tensor]:
        """Return the blocks of vectors ``(B, M)``, unscaled."""
        parts = {}
        for (name, shape), piece in zip(self._sizes.items(), y.split(list(self._widths.values()), dim=1), strict=True):
            pairs = (*shape, 2) if self._complex[name] else shape
            block = piece.reshape(-1, *pairs)
            parts[name] = torch.view_as_complex(block.contiguous()) if self._complex[name] else block
        return parts

    def whiten(self, y: Blocks | dict[str, Tensor]) -> Tensor:
        """Return scaled data as vectors ``(B, M)``."""
        return self.flatten(self._scaled(y))

    def _scaled(self, parts: Blocks | dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t * getattr(self, f"scale_{n}", 1.0) for n, t in parts.items()}


class OperatorPhysics(LinearPhysics):
    """A deepinv ``LinearPhysics`` that calls one of our operators, with its exact adjoint and gram.

    Args:
        operator: any operator.
        sigma: standard deviation of white Gaussian noise that ``physics(x)`` adds, 0 for none.
        options: passed to ``LinearPhysics`` (``solver``, ``max_iter``, ``tol``).
    """

    def __init__(self, operator: LinearOperator, *, sigma: float = 0.0, **options: Any) -> None:
        noise = GaussianNoise(sigma=sigma) if sigma else ZeroNoise()
        super().__init__(noise_model=noise, img_size=operator.domain_shape, **options)
        self.operator = operator

    def A(self, x: Tensor, **_: Any) -> Tensor:
        """Return ``A x``."""
        return self.operator(x)

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        """Return ``A^H y``."""
        return self.operator.adjoint(y)

    def A_adjoint_A(self, x: Tensor, **_: Any) -> Tensor:
        """Return ``A^H A x``."""
        return self.operator.gram(x)


class _OnChannels(LinearOperator):
    """A block acting on its channels of the whole stack."""

    def __init__(self, operator: LinearOperator, channels: slice, stack_shape: Sequence[int]) -> None:
        super().__init__(stack_shape, operator.range_shape,
                         domain_dtype=operator.domain_dtype, range_dtype=operator.range_dtype)  # fmt: skip
        self.operator, self.channels = operator, channels

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x[:, self.channels])

    def adjoint(self, y: Tensor) -> Tensor:
        image = self.operator.adjoint(y)
        before, after = self.channels.start, self.domain_shape[0] - self.channels.stop
        pads = [image.new_zeros(image.shape[0], n, *image.shape[2:]) for n in (before, after)]
        return torch.cat([pads[0], image, pads[1]], dim=1)


class LikelihoodFidelity(DataFidelity):
    """One of our likelihoods as a deepinv data fidelity: background, Beer-Lambert and the ``0 log 0`` convention kept.

    Args:
        likelihood: likelihood of the data that the physics' ``A`` predicts.
    """

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.d = _LikelihoodDistance(likelihood)


class _LikelihoodDistance(Distance):
    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    def fn(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.likelihood.nll(x, y)

    def grad(self, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.likelihood.grad(x, y)


def as_physics(
    source: LinearOperator | BlockDiagonal | Measurement,
    *,
    view: View = "flat",
    clean_sigma: float = 0.01,
    **options: Any,
) -> LinearPhysics:
    r"""Return an operator or a measurement as deepinv physics.

    An operator's flat view is not whitened and adds no noise; a single operator keeps the shape of its data in the
    stacked view. A measurement's flat view is whitened: its ``sigma`` is 1.

    Args:
        source: a plain operator, the operator of a stack, or a measurement.
        view: ``"flat"`` for one vector of data, ``"stacked"`` for one tensor a block.
        clean_sigma: standard deviation given to noiseless clean images, as a fraction of their modality's scale.
        options: passed to ``LinearPhysics`` (``solver``, ``max_iter``, ``tol``).

    Raises:
        ValueError: on an unknown view, or a likelihood without a Gaussian approximation in the flat view.

    Example:
        >>> from multirecon.operators import Identity
        >>> as_physics(Identity((1, 4, 4))).A(torch.ones(2, 1, 4, 4)).shape
        torch.Size([2, 16])
    """
    if view not in ("flat", "stacked"):
        raise ValueError(f"view: expected 'flat' or 'stacked', got {view!r}")
    operator = source.operator if isinstance(source, Measurement) else source
    if view == "stacked":
        if isinstance(operator, LinearOperator):
            return OperatorPhysics(operator, **options)
        return StackedLinearPhysics([
            OperatorPhysics(_OnChannels(op, operator.space.channels(name), operator.domain_shape), **options)
            for name, op in operator.items()
        ])  # fmt: skip
    if not isinstance(source, Measurement):
        return OperatorPhysics(FlatOperator(operator), **options)
    return OperatorPhysics(_whitened(source, clean_sigma)[0], sigma=1.0, **options)


def as_data(measurement: Measurement, *, view: View = "flat", clean_sigma: float = 0.01) -> Tensor | TensorList:
    """Return the data that belong to ``as_physics(measurement, view=view)``: a vector ``(B, M)``, or a TensorList.

    Args:
        measurement: the measurement.
        view: ``"flat"`` for whitened vectors, ``"stacked"`` for the blocks as they are.
        clean_sigma: as in :func:`as_physics`.
    """
    if view == "stacked":
        return TensorList(list(measurement.y.values()))
    operator, data = _whitened(measurement, clean_sigma)
    return operator.whiten(data)


def as_fidelity(measurement: Measurement, *, clean_sigma: float = 0.01) -> StackedPhysicsDataFidelity:
    """Return the exact data term of the stacked view.

    Args:
        measurement: the measurement.
        clean_sigma: as in :func:`as_physics`.
    """
    likelihood = _noisy(measurement, clean_sigma)
    return StackedPhysicsDataFidelity([LikelihoodFidelity(likelihood[n]) for n in measurement.available])


def _noisy(measurement: Measurement, clean_sigma: float) -> BlockLikelihood:
    """Give noiseless images the noise that whitening needs."""
    parts = {}
    for name in measurement.available:
        likelihood = measurement.likelihood[name]
        if isinstance(likelihood, Gaussian) and likelihood.is_exact:
            likelihood = Gaussian(clean_sigma * measurement.space[name].scale)
        parts[name] = likelihood
    return BlockLikelihood(parts)


def _whitened(measurement: Measurement, clean_sigma: float) -> tuple[FlatOperator, Blocks]:
    data, likelihood = gaussian_approximation(_noisy(measurement, clean_sigma), measurement.y)
    scales = {name: likelihood[name].weight(data[name]).sqrt() for name in data}
    return FlatOperator(measurement.operator, scales), data
