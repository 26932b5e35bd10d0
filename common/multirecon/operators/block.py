"""The block-diagonal operator of a modality stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import Blocks
from ..space import ImageSpace
from .base import LinearOperator
from .basic import Identity

__all__ = ["BlockDiagonal"]


class BlockDiagonal(nn.Module):
    r"""``A = diag(A_1, ..., A_M)`` from an image stack to :class:`~multirecon.blocks.Blocks`.

    Each modality that was measured has one block acting on its own channels. A clean modality has an ``Identity``
    block, a missing one has no block at all: nothing is known about it, and the adjoint is zero there.

    Args:
        space: the image space of the stack.
        operators: block name -> operator. A block is named after its modality.

    Raises:
        ValueError: on an unknown modality or a block whose domain does not fit its channels and grid.

    Example:
        >>> space = ImageSpace(["t1", "ct"], (4, 4), (1.0, 1.0))
        >>> A = BlockDiagonal(space, {"ct": Identity((1, 4, 4))})
        >>> A(torch.zeros(1, 2, 4, 4))
        Blocks(ct: (1, 1, 4, 4) float32)
    """

    def __init__(self, space: ImageSpace, operators: Mapping[str, LinearOperator]) -> None:
        super().__init__()
        self.space = space
        for name, operator in operators.items():
            expected = (space[name].channels, *space.shape)
            if operator.domain_shape != expected:
                raise ValueError(f"operators[{name!r}]: expected domain {expected}, got {operator.domain_shape}")
        self.blocks = nn.ModuleDict(dict(operators))

    @property
    def names(self) -> tuple[str, ...]:
        """The measured modalities in block order."""
        return tuple(self.blocks)

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """``(C, *shape)`` of one stack."""
        return self.space.stack_shape

    def __getitem__(self, name: str) -> LinearOperator:
        if name not in self.blocks:
            raise ValueError(f"block: expected one of {list(self.names)}, got {name!r}")
        return self.blocks[name]  # type: ignore[return-value]

    def items(self) -> list[tuple[str, LinearOperator]]:
        """Return the ``(name, operator)`` pairs in block order."""
        return [(name, self[name]) for name in self.names]

    def forward(self, x: Tensor) -> Blocks:
        """Return the Blocks ``A_m x_m`` of a stack ``(B, C, *shape)``."""
        self.space.check(x, "x")
        return Blocks({name: op(x[:, self.space.channels(name)]) for name, op in self.items()})

    def adjoint(self, y: Blocks) -> Tensor:
        """Return the stack ``(B, C, *shape)`` of ``A_m^H y_m``, zero for modalities without a block."""
        if tuple(y) != self.names:
            raise ValueError(f"y: expected blocks {list(self.names)}, got {list(y)}")
        return self.assemble({name: op.adjoint(y[name]) for name, op in self.items()}, batch=y.batch_size)

    def gram(self, x: Tensor) -> Tensor:
        """Return ``A^H A x``."""
        self.space.check(x, "x")
        parts = {name: op.gram(x[:, self.space.channels(name)]) for name, op in self.items()}
        return self.assemble(parts, batch=x.shape[0], like=x)

    def assemble(self, parts: Mapping[str, Tensor], *, batch: int, like: Tensor | None = None) -> Tensor:
        """Return the stack whose modalities are ``parts`` and zero elsewhere (differentiable).

        Args:
            parts: modality -> ``(B, channels, *shape)``.
            batch: batch size ``B``.
            like: a tensor whose dtype and device an empty stack takes.
        """
        reference = next(iter(parts.values()), like)
        dtype = reference.dtype if reference is not None else torch.float32
        device = reference.device if reference is not None else torch.device("cpu")
        pieces = [
            parts[m.name] if m.name in parts
            else torch.zeros(batch, m.channels, *self.space.shape, dtype=dtype, device=device)
            for m in self.space.modalities
        ]  # fmt: skip
        return torch.cat(pieces, dim=1)

    @torch.no_grad()
    def norm(self) -> float:
        """Return the spectral norm: the largest of the blocks'."""
        return max((op.norm() for _, op in self.items()), default=0.0)

    def restrict(self, names: Sequence[str]) -> BlockDiagonal:
        """Return the operator of the named blocks on the same stack (the others count as missing)."""
        return BlockDiagonal(self.space, {name: self[name] for name in names})

    def subset(self, index: int, count: int) -> BlockDiagonal:
        """Return subset ``index`` of ``count`` of every block's data (ordered subsets).

        Raises:
            ValueError: if a block cannot be divided.
        """
        parts = {}
        for name, op in self.items():
            if not hasattr(op, "subset"):
                raise ValueError(f"block {name!r}: expected an operator with subsets, got {type(op).__name__}")
            parts[name] = op.subset(index, count)  # type: ignore[operator]
        return BlockDiagonal(self.space, parts)

    def on(self, space: ImageSpace) -> BlockDiagonal:
        """Return the same blocks on a larger stack of the same grid."""
        if not self.space.same_grid(space):
            raise ValueError(f"space: expected the grid {self.space.shape} at {self.space.spacing_mm} mm, "
                             f"got {space.shape} at {space.spacing_mm} mm")  # fmt: skip
        return BlockDiagonal(space, dict(self.items()))

    def is_clean(self, name: str) -> bool:
        """Whether modality ``name`` was measured by the identity, that is, is available as an image."""
        return name in self.blocks and isinstance(self.blocks[name], Identity)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"space": self.space, "operators": dict(self.items())}
