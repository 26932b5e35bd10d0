"""Public checks that every operator must pass: the dot test, linearity, the gram, gradients, batch against loop."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import LinearOperator

__all__ = ["check_operator", "dot_test", "random_data", "random_image"]


def random_image(operator: LinearOperator, batch: int = 2, *, seed: int = 0) -> Tensor:
    """Return standard normal images ``(batch, *domain_shape)`` in the operator's domain dtype and device."""
    return _random(operator, (batch, *operator.domain_shape), operator.domain_dtype, seed)


def random_data(operator: LinearOperator, batch: int = 2, *, seed: int = 1) -> Tensor:
    """Return standard normal data ``(batch, *range_shape)`` in the operator's range dtype and device."""
    return _random(operator, (batch, *operator.range_shape), operator.range_dtype, seed)


def _random(operator: LinearOperator, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    device = next((b.device for b in operator.buffers()), torch.device("cpu"))
    return torch.randn(shape, generator=generator, dtype=dtype).to(device)


def dot_test(operator: LinearOperator, *, batch: int = 2, seed: int = 0) -> float:
    r"""Return the relative adjoint error ``|<A x, y> - <x, A^H y>| / (|A x| |y|)``, the largest over the batch.

    The sums are taken in double precision, so the figure shows the operator's rounding only.

    Args:
        operator: the operator, in the precision and on the device to be tested.
        batch: number of random pairs.
        seed: seed of the random pairs.
    """
    x, y = random_image(operator, batch, seed=seed), random_data(operator, batch, seed=seed + 1)
    with torch.no_grad():
        ax, aty = operator(x), operator.adjoint(y)
    left, right = _inner(ax, y), _inner(x, aty)
    scale = (_inner(ax, ax) * _inner(y, y)).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return float(((left - right).abs() / scale).max())


def _inner(a: Tensor, b: Tensor) -> Tensor:
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    return (a.to(wide).conj() * b.to(wide)).real.flatten(1).sum(1)


def check_operator(
    operator: LinearOperator, *, tolerance: float, batch: int = 2, gradients: bool = True, batched: bool = True
) -> dict[str, float]:
    """Run the common battery and return every relative error; raise where one exceeds the tolerance.

    Args:
        operator: operator under test; call once with a float64 copy (tolerance 1e-12) and once in float32 (1e-5).
        tolerance: bound on every relative error.
        batch: batch size of the trials (use the operator's own where it holds per-sample tensors).
        gradients: also compare autograd's gradient of ``|A x|^2 / 2`` with ``A^H A x``, and differentiate it twice.
        batched: also compare a batch with a loop over its samples.

    Raises:
        AssertionError: naming the check that failed and its error.
    """
    x, x2 = random_image(operator, batch, seed=3), random_image(operator, batch, seed=4)
    errors = {"dot": dot_test(operator, batch=batch)}
    with torch.no_grad():
        ax = operator(x)
        if ax.dtype != operator.range_dtype or tuple(ax.shape) != (batch, *operator.range_shape):
            raise AssertionError(f"range: expected {operator.range_shape} {operator.range_dtype}, "
                                 f"got {tuple(ax.shape[1:])} {ax.dtype}")  # fmt: skip
        aty = operator.adjoint(ax)
        if aty.dtype != operator.domain_dtype or tuple(aty.shape) != (batch, *operator.domain_shape):
            raise AssertionError(f"domain: expected {operator.domain_shape} {operator.domain_dtype}, "
                                 f"got {tuple(aty.shape[1:])} {aty.dtype}")  # fmt: skip
        errors["linearity"] = _relative(operator(2 * x - 3 * x2), 2 * ax - 3 * operator(x2))
        errors["gram"] = _relative(operator.gram(x), aty)
        if batched:
            looped = torch.cat([operator(x[i : i + 1]) for i in range(batch)])
            errors["batch"] = _relative(ax, looped)
    if gradients:
        errors |= _gradient_errors(operator, x, x2)
    for name, error in errors.items():
        if not error <= tolerance:
            raise AssertionError(f"{type(operator).__name__}: {name} error {error:.3g} exceeds {tolerance:.3g}")
    return errors


def _gradient_errors(operator: LinearOperator, x: Tensor, direction: Tensor) -> dict[str, float]:
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        ax = operator(x)
        energy = 0.5 * (ax.abs() ** 2).sum()
        (gradient,) = torch.autograd.grad(energy, x, create_graph=True)
        (second,) = torch.autograd.grad((gradient * direction.conj()).real.sum(), x)
        y = random_data(operator, x.shape[0]).requires_grad_()
        (back,) = torch.autograd.grad(0.5 * (operator.adjoint(y).abs() ** 2).sum(), y)
    with torch.no_grad():
        return {
            "gradient": _relative(gradient, operator.gram(x)),
            "second derivative": _relative(second, operator.gram(direction)),
            "adjoint gradient": _relative(back, operator(operator.adjoint(y))),
        }


def _relative(a: Tensor, b: Tensor) -> float:
    scale = float(torch.linalg.vector_norm(b.detach()))
    return float(torch.linalg.vector_norm((a - b).detach())) / max(scale, torch.finfo(torch.float64).tiny)
