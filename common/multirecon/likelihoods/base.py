"""The likelihood contract: noise sampling and data fidelity in one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..batching import join_modules
from ..blocks import Blocks

__all__ = ["BlockLikelihood", "Likelihood"]


class Likelihood(nn.Module):
    r"""``p(y | z)`` of the data ``y`` given the linear predictor ``z = A x``.

    Every non-linearity of a measurement (counting, Beer-Lambert) lives here, so that operators stay linear. Per-sample
    constants of ``nll`` that depend on ``y`` alone make the smallest value zero where a finite one exists.

    Attributes:
        kind: the name under which the likelihood is stored in a measurement file.
        counting: whether the data are counts, which are never negative.
    """

    kind: ClassVar[str] = ""
    counting: ClassVar[bool] = False

    def data_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of one datum for a predictor of ``shape`` (both without the batch axis)."""
        return tuple(shape)

    def mean(self, z: Tensor) -> Tensor:
        """Return the expected data ``E[y | z]``, shaped like the data."""
        raise NotImplementedError

    def sample(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Return data drawn at the predictor ``z``; random numbers come from the generator, on its device."""
        raise NotImplementedError

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the negative log-likelihood per sample, of shape ``(B,)``."""
        raise NotImplementedError

    def grad(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of ``nll`` with respect to ``z``, shaped like ``z``."""
        raise NotImplementedError

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """Return a non-negative diagonal curvature (second derivative or Fisher information), shaped like ``z``."""
        raise NotImplementedError

    def weight(self, y: Tensor) -> Tensor:
        """Return data weights ``1/variance`` estimated from the data alone, broadcastable to ``z`` (for whitening)."""
        raise NotImplementedError(f"{type(self).__name__} has no data-only weights")

    def samples(self, start: int, stop: int) -> Likelihood:
        """Return the likelihood of samples ``start .. stop - 1``; one without per-sample tensors returns itself."""
        return self

    def join(self, likelihoods: Sequence[Likelihood]) -> Likelihood:
        """Return one likelihood for the batch made of each given likelihood's single sample."""
        return join_modules(likelihoods)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments (plain values and tensors)."""
        raise NotImplementedError


class BlockLikelihood(nn.Module):
    """One likelihood a block; the blocks are independent given the image.

    Args:
        likelihoods: block name -> likelihood.

    Example:
        >>> from multirecon.likelihoods import Gaussian
        >>> y = Blocks({"t1": torch.zeros(2, 3)})
        >>> BlockLikelihood({"t1": Gaussian(0.5)}).nll(y + 1.0 * Blocks({"t1": torch.ones(2, 3)}), y)
        tensor([6., 6.])
    """

    def __init__(self, likelihoods: Mapping[str, Likelihood]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(dict(likelihoods))

    @property
    def names(self) -> tuple[str, ...]:
        """The block names."""
        return tuple(self.blocks)

    def __getitem__(self, name: str) -> Likelihood:
        if name not in self.blocks:
            raise ValueError(f"likelihood: expected a block of {list(self.names)}, got {name!r}")
        return self.blocks[name]  # type: ignore[return-value]

    def mean(self, z: Blocks) -> Blocks:
        """Return the expected data block by block."""
        return Blocks({name: self[name].mean(z[name]) for name in z})

    def sample(self, z: Blocks, generator: torch.Generator) -> Blocks:
        """Return data drawn block by block, in block order, from one generator."""
        return Blocks({name: self[name].sample(z[name], generator) for name in z})

    def nll(self, z: Blocks, y: Blocks) -> Tensor:
        """Return the sum of the blocks' negative log-likelihoods, of shape ``(B,)``."""
        parts = [self[name].nll(z[name], y[name]) for name in z]
        return torch.stack(parts).sum(0) if parts else torch.zeros(y.batch_size)

    def grad(self, z: Blocks, y: Blocks) -> Blocks:
        """Return the gradient with respect to every block of ``z``."""
        return Blocks({name: self[name].grad(z[name], y[name]) for name in z})

    def curvature(self, z: Blocks, y: Blocks) -> Blocks:
        """Return the diagonal curvature of every block."""
        return Blocks({name: self[name].curvature(z[name], y[name]) for name in z})

    def restrict(self, names: tuple[str, ...] | list[str]) -> BlockLikelihood:
        """Return the likelihood of the named blocks."""
        return BlockLikelihood({name: self[name] for name in names})

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"likelihoods": {name: self[name] for name in self.names}}
