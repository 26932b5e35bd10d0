"""The data side: named tensors of different shapes that behave as one vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["Blocks"]


class Blocks(Mapping[str, Tensor]):
    """Ordered ``name -> Tensor`` with vector arithmetic.

    A sinogram, k-space and energy bins differ in shape and dtype; ``Blocks`` holds one tensor ``(B, *range_shape)`` a
    block, so that solvers never mention modalities. Operators act block by block; both operands must have the same
    names in the same order.

    Args:
        blocks: mapping of names to tensors with one common batch size.

    Raises:
        ValueError: if batch sizes differ, or if two operands have different names.

    Example:
        >>> y = Blocks({"ct": torch.ones(1, 2), "mr": torch.ones(1, 3, dtype=torch.complex64)})
        >>> float((2 * y - y).inner(y))
        5.0
    """

    __slots__ = ("_data",)

    def __init__(self, blocks: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] = ()) -> None:
        data = dict(blocks)
        sizes = {name: (t.shape[0] if t.ndim else None) for name, t in data.items()}
        if None in sizes.values() or len(set(sizes.values())) > 1:
            raise ValueError(f"blocks: expected one common batch size on the first axis, got {sizes}")
        self._data = data

    def __getitem__(self, name: str) -> Tensor:
        return self._data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        inside = ", ".join(f"{n}: {tuple(t.shape)} {str(t.dtype)[6:]}" for n, t in self._data.items())
        return f"Blocks({inside})"

    @property
    def batch_size(self) -> int:
        """Size of the common batch axis (0 when there is no block)."""
        return next(iter(self._data.values())).shape[0] if self._data else 0

    def map(self, function: Callable[[Tensor], Tensor]) -> Blocks:
        """Return ``function`` applied to every tensor."""
        return Blocks({n: function(t) for n, t in self._data.items()})

    def to(self, *args: object, **kwargs: object) -> Blocks:
        """Move every tensor as ``Tensor.to`` does; a real dtype leaves complex blocks complex of that precision."""
        dtype = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)), None)
        if dtype is None:
            return self.map(lambda t: t.to(*args, **kwargs))  # type: ignore[call-overload]
        rest = [a for a in args if not isinstance(a, torch.dtype)]
        named = {k: v for k, v in kwargs.items() if k != "dtype"}
        return self.map(lambda t: t.to(*rest, dtype=dtype.to_complex() if t.is_complex() else dtype, **named))  # type: ignore[call-overload]

    def select(self, names: Iterable[str]) -> Blocks:
        """Return the named blocks, in the given order."""
        return Blocks({n: self._data[n] for n in names})

    def sample(self, index: int) -> Blocks:
        """Return sample ``index`` as a batch of one."""
        return self.map(lambda t: t[index : index + 1])

    def inner(self, other: Blocks) -> Tensor:
        r"""Return the real inner product per sample, ``Re sum conj(a) b``, of shape ``(B,)``."""
        self._match(other)
        total = torch.zeros(())
        for name, a in self._data.items():
            part = (a.conj() * other[name]).real if a.is_complex() else a * other[name].to(a.dtype)
            total = total.to(part.device) + part.flatten(1).sum(1)
        return total

    def norm(self) -> Tensor:
        """Return the Euclidean norm per sample, of shape ``(B,)``."""
        return self.inner(self).sqrt()

    def _match(self, other: Blocks) -> None:
        if tuple(self) != tuple(other):
            raise ValueError(f"blocks: expected names {list(self)}, got {list(other)}")

    def _zip(self, other: Blocks | float | Tensor, function: Callable[[Tensor, Tensor | float], Tensor]) -> Blocks:
        if isinstance(other, Blocks):
            self._match(other)
            return Blocks({n: function(t, other[n]) for n, t in self._data.items()})
        return self.map(lambda t: function(t, _expand(other, t)))

    def __add__(self, other: Blocks) -> Blocks:
        return self._zip(other, torch.add)

    def __sub__(self, other: Blocks) -> Blocks:
        return self._zip(other, torch.sub)

    def __mul__(self, scale: float | Tensor | Blocks) -> Blocks:
        return self._zip(scale, torch.mul)

    __rmul__ = __mul__

    def __truediv__(self, scale: float | Tensor | Blocks) -> Blocks:
        return self._zip(scale, torch.div)

    def __neg__(self) -> Blocks:
        return self.map(torch.neg)


def _expand(scale: float | Tensor, like: Tensor) -> float | Tensor:
    """Give a per-sample scale of shape ``(B,)`` the trailing axes of ``like``."""
    if isinstance(scale, Tensor) and scale.ndim == 1:
        return scale.reshape(-1, *[1] * (like.ndim - 1))
    return scale
