"""The linear-operator contract and its algebra."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..batching import join_modules

__all__ = ["AdjointOperator", "ComposedOperator", "LinearOperator", "ScaledOperator", "SumOperator"]


class LinearOperator(nn.Module):
    r"""A linear map ``A`` with its exact adjoint.

    The inner product is real, ``<a, b> = Re sum conj(a) b``, so that a real image may have complex data; then
    ``adjoint`` returns ``Re(A^H y)`` and ``<A x, y> = <x, A^H y>`` holds exactly. Tensors carry a leading batch axis
    that the shapes below leave out. A subclass writes ``forward``, ``adjoint`` and ``arguments`` and sets ``kind``; it
    is differentiable twice through autograd, for any batch size, on any device.

    Args:
        domain_shape: shape of one image ``(C, *spatial)``.
        range_shape: shape of one datum.
        domain_dtype: real or complex dtype of images.
        range_dtype: real or complex dtype of data.

    Attributes:
        kind: the name under which the operator is stored in a measurement file.
    """

    kind: ClassVar[str] = ""

    def __init__(
        self,
        domain_shape: Sequence[int],
        range_shape: Sequence[int],
        *,
        domain_dtype: torch.dtype = torch.float32,
        range_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.domain_shape = tuple(int(n) for n in domain_shape)
        self.range_shape = tuple(int(n) for n in range_shape)
        self.domain_dtype = domain_dtype
        self.range_dtype = range_dtype
        self._norm: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A x`` of shape ``(B, *range_shape)`` for ``x`` of shape ``(B, *domain_shape)``."""
        raise NotImplementedError

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``A^H y`` of shape ``(B, *domain_shape)`` for ``y`` of shape ``(B, *range_shape)``."""
        raise NotImplementedError

    def gram(self, x: Tensor) -> Tensor:
        """Return ``A^H A x``; subclasses override it where a shorter form exists."""
        return self.adjoint(self(x))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return the minimum-norm least-squares solution where a closed form exists.

        Raises:
            NotImplementedError: where there is none; use ``multirecon.solvers.least_squares`` then.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed-form pseudo-inverse; use solvers.least_squares")

    def samples(self, start: int, stop: int) -> LinearOperator:
        """Return the operator of samples ``start .. stop - 1``; one without per-sample tensors returns itself."""
        return self

    def join(self, operators: Sequence[LinearOperator]) -> LinearOperator:
        """Return one operator for the batch made of each given operator's single sample.

        The generic form rebuilds the class from its ``arguments()``: tensors that differ are stacked along their batch
        axis, everything else must be equal.

        Raises:
            ValueError: if the operators differ in anything but their per-sample tensors.
        """
        return join_modules(operators)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments (plain values, tensors, operators) from which the operator is rebuilt."""
        raise NotImplementedError(f"{type(self).__name__} cannot be stored: it defines no arguments()")

    def norm(self) -> float:
        """Return the spectral norm (the largest over the samples of an operator with per-sample tensors; cached)."""
        if self._norm is None:
            self._norm = float(self.norms().max())
        return self._norm

    @torch.no_grad()
    def norms(self, batch: int = 1, *, iterations: int = 60, tolerance: float = 1e-4) -> Tensor:
        """Return the spectral norm for every sample, ``(B,)``, by power iteration on ``A^H A`` from a fixed start.

        Every sample stops by itself, so that a batch gives what its samples give one by one.

        Args:
            batch: number of samples; an operator with per-sample tensors gives one norm for each of them.
            iterations: bound on the products.
            tolerance: relative change of the squared norm at which a sample stops.
        """
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(1, *self.domain_shape, generator=generator, dtype=self.domain_dtype)
        x = start.to(self._reference_tensor().device).expand(batch, *start.shape[1:])
        value: Tensor | None = None
        for _ in range(iterations):
            x = self.gram(x / _sample_norm(x).clamp_min(torch.finfo(torch.float32).tiny))
            new = _sample_norm(x).flatten()
            if value is None or value.shape != new.shape:
                value, active = new, torch.ones_like(new, dtype=torch.bool)
                continue
            moved = (new - value).abs() > tolerance * new
            value = torch.where(active, new, value)
            active = active & moved
            if not bool(active.any()):
                break
        return torch.zeros(batch) if value is None else value.sqrt()

    def _reference_tensor(self) -> Tensor:
        for tensor in (*self.buffers(), *self.parameters()):
            return tensor
        return torch.empty(0)

    def _apply(self, fn: Any, recurse: bool = True) -> LinearOperator:
        # Module.to(float64) would drop the imaginary part of complex buffers: show it their real view instead.
        complex_names = [n for n, b in self._buffers.items() if b is not None and b.is_complex()]
        for name in complex_names:
            self._buffers[name] = torch.view_as_real(self._buffers[name])  # type: ignore[arg-type]
        super()._apply(fn, recurse)
        for name in complex_names:
            self._buffers[name] = torch.view_as_complex(self._buffers[name].contiguous())  # type: ignore[union-attr]
        real = fn(torch.empty(0, dtype=self.domain_dtype.to_real())).dtype
        if real in (torch.float32, torch.float64):
            self.domain_dtype = real.to_complex() if self.domain_dtype.is_complex else real
            self.range_dtype = real.to_complex() if self.range_dtype.is_complex else real
        return self

    def check_domain(self, x: Tensor) -> Tensor:
        """Return ``x`` if its shape is ``(B, *domain_shape)``, else raise ValueError."""
        if tuple(x.shape[1:]) != self.domain_shape:
            expected = ", ".join(map(str, self.domain_shape))
            raise ValueError(f"x of {type(self).__name__}: expected shape (B, {expected}), got {tuple(x.shape)}")
        return x

    def check_range(self, y: Tensor) -> Tensor:
        """Return ``y`` if its shape is ``(B, *range_shape)``, else raise ValueError."""
        if tuple(y.shape[1:]) != self.range_shape:
            expected = ", ".join(map(str, self.range_shape))
            raise ValueError(f"y of {type(self).__name__}: expected shape (B, {expected}), got {tuple(y.shape)}")
        return y

    @property
    def H(self) -> LinearOperator:
        """The adjoint as an operator."""
        return AdjointOperator(self)

    def __matmul__(self, other: LinearOperator) -> ComposedOperator:
        return ComposedOperator([self, other])

    def __add__(self, other: LinearOperator) -> SumOperator:
        return SumOperator([self, other])

    def __mul__(self, scale: float) -> ScaledOperator:
        return ScaledOperator(self, scale)

    __rmul__ = __mul__

    def extra_repr(self) -> str:
        """Show the shapes in ``repr``."""
        return f"{self.domain_shape} -> {self.range_shape}"


def _sample_norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1).reshape(-1, *[1] * (x.ndim - 1))


class AdjointOperator(LinearOperator):
    """The adjoint ``A^H`` of an operator ``A``."""

    kind = "adjoint"

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.range_shape, operator.domain_shape,
                         domain_dtype=operator.range_dtype, range_dtype=operator.domain_dtype)  # fmt: skip
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A^H x``."""
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``A y``."""
        return self.operator(y)

    @property
    def H(self) -> LinearOperator:
        """The original operator."""
        return self.operator

    def samples(self, start: int, stop: int) -> LinearOperator:
        """Return the adjoint of the samples' operator."""
        return AdjointOperator(self.operator.samples(start, stop))

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"operator": self.operator}


class ComposedOperator(LinearOperator):
    """The product ``A_1 A_2 ... A_n`` (the last factor acts first).

    Raises:
        ValueError: if the shapes of neighbouring factors disagree.
    """

    kind = "composed"

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        factors: list[Any] = []
        for operator in operators:
            factors.extend(operator.factor_list if isinstance(operator, ComposedOperator) else [operator])
        for left, right in itertools.pairwise(factors):
            if left.domain_shape != right.range_shape:
                raise ValueError(f"operators: expected {type(left).__name__}'s domain {left.domain_shape} to equal "
                                 f"{type(right).__name__}'s range {right.range_shape}")  # fmt: skip
        super().__init__(factors[-1].domain_shape, factors[0].range_shape,
                         domain_dtype=factors[-1].domain_dtype, range_dtype=factors[0].range_dtype)  # fmt: skip
        self.factors = nn.ModuleList(factors)

    @property
    def factor_list(self) -> list[Any]:
        """The factors, leftmost first."""
        return list(self.factors)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A_1 (A_2 (... x))``."""
        for factor in reversed(self.factors):
            x = factor(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``A_n^H (... (A_1^H y))``."""
        for factor in self.factors:
            y = factor.adjoint(y)  # type: ignore[operator]
        return y

    def samples(self, start: int, stop: int) -> LinearOperator:
        """Return the product of the factors' samples."""
        return ComposedOperator([f.samples(start, stop) for f in self.factors])  # type: ignore[operator]

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"operators": list(self.factors)}


class SumOperator(LinearOperator):
    """The sum ``A_1 + ... + A_n`` of operators of equal shapes."""

    kind = "sum"

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        first = operators[0]
        for other in operators[1:]:
            if (other.domain_shape, other.range_shape) != (first.domain_shape, first.range_shape):
                raise ValueError(f"operators: expected shapes {first.domain_shape} -> {first.range_shape}, "
                                 f"got {other.domain_shape} -> {other.range_shape}")  # fmt: skip
        super().__init__(first.domain_shape, first.range_shape,
                         domain_dtype=first.domain_dtype, range_dtype=first.range_dtype)  # fmt: skip
        self.terms = nn.ModuleList(operators)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``sum_i A_i x``."""
        return torch.stack([term(x) for term in self.terms]).sum(0)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``sum_i A_i^H y``."""
        return torch.stack([term.adjoint(y) for term in self.terms]).sum(0)  # type: ignore[operator]

    def samples(self, start: int, stop: int) -> LinearOperator:
        """Return the sum of the terms' samples."""
        return SumOperator([t.samples(start, stop) for t in self.terms])  # type: ignore[operator]

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"operators": list(self.terms)}


class ScaledOperator(LinearOperator):
    """The operator ``scale * A`` with a real scale."""

    kind = "scaled"

    def __init__(self, operator: LinearOperator, scale: float) -> None:
        super().__init__(operator.domain_shape, operator.range_shape,
                         domain_dtype=operator.domain_dtype, range_dtype=operator.range_dtype)  # fmt: skip
        self.operator = operator
        self.scale = float(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``scale * A x``."""
        return self.scale * self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``scale * A^H y``."""
        return self.scale * self.operator.adjoint(y)

    def samples(self, start: int, stop: int) -> LinearOperator:
        """Return the scaled operator of the samples."""
        return ScaledOperator(self.operator.samples(start, stop), self.scale)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {"operator": self.operator, "scale": self.scale}
