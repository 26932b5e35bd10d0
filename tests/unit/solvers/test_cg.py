"""Conjugate gradients against direct solutions."""

from __future__ import annotations

import pytest
import torch
from unit.solvers.dense import Dense

from multirecon.blocks import Blocks
from multirecon.operators import BlockDiagonal, Diagonal, Identity
from multirecon.solvers import conjugate_gradient, least_squares
from multirecon.space import ImageSpace


def _spd(n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n + 5, n, generator=g, dtype=dtype)
    return a.mH @ a


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32, torch.complex64])
def test_reaches_the_direct_solution(dtype: torch.dtype) -> None:
    m = _spd(20, dtype)
    b = torch.randn(3, 20, generator=torch.Generator().manual_seed(1), dtype=dtype)
    expected = torch.linalg.solve(m + 0.5 * torch.eye(20, dtype=dtype), b.T).T
    result = conjugate_gradient(lambda x: x @ m.T, b, damping=0.5, max_iterations=200, tolerance=1e-7)
    bound = 1e-5 if dtype in (torch.float64, torch.complex128) else 2e-4
    assert (result.x - expected).norm() / expected.norm() < bound
    assert (result.residual <= 1e-7).all()


def test_samples_stop_on_their_own_and_batch_equals_loop() -> None:
    # An elementwise matrix, whose products round alike in any batch: the comparison below is then exact.
    d = torch.linspace(1, 50, 30)
    b = torch.randn(2, 30, generator=torch.Generator().manual_seed(2))
    b[0] = torch.eye(30)[3]  # an eigenvector needs one step
    seen: list[torch.Tensor] = []
    both = conjugate_gradient(lambda x: x * d, b, tolerance=1e-3, callback=lambda i, x, info: seen.append(x.clone()))
    assert both.iterations[0] < both.iterations[1]
    for later in seen[int(both.iterations[0]) :]:
        assert torch.equal(later[0], both.x[0])
    for i in range(2):
        one = conjugate_gradient(lambda x: x * d, b[i : i + 1], tolerance=1e-3)
        assert one.iterations[0] == both.iterations[i]
        assert torch.equal(one.x[0], both.x[i])


def test_zero_right_hand_side_zero_tolerance_and_zero_matrix_stay_finite() -> None:
    m = _spd(6, torch.float32)
    b = torch.stack([torch.zeros(6), torch.ones(6)])
    result = conjugate_gradient(lambda x: x @ m.T, b, tolerance=0.0, max_iterations=500)
    assert torch.isfinite(result.x).all()
    assert torch.equal(result.x[0], torch.zeros(6))
    assert torch.allclose(result.x[1] @ m, torch.ones(6), atol=1e-3)
    nothing = conjugate_gradient(torch.zeros_like, b)
    assert torch.equal(nothing.x, torch.zeros_like(b))
    assert nothing.residual.tolist() == [0.0, 1.0]


def test_warm_start_at_the_solution_costs_no_iteration() -> None:
    m = _spd(12, torch.float64)
    x = torch.randn(2, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    result = conjugate_gradient(lambda v: v @ m.T, x @ m.T, x0=x, tolerance=1e-9)
    assert result.iterations.tolist() == [0, 0]
    assert torch.equal(result.x, x)


def test_preconditioner_cuts_iterations_to_the_same_answer() -> None:
    d = torch.logspace(0, 4, 40, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(4), dtype=torch.float64))[0]
    m = d.sqrt()[:, None] * (torch.eye(40) + 0.1 * q @ q.T.roll(1, 0) + 0.1 * (q @ q.T.roll(1, 0)).T) * d.sqrt()
    b = torch.ones(1, 40, dtype=torch.float64)
    plain = conjugate_gradient(lambda x: x @ m, b, max_iterations=2000, tolerance=1e-9)
    better = conjugate_gradient(lambda x: x @ m, b, tolerance=1e-9, preconditioner=lambda r: r / m.diagonal())
    assert better.iterations[0] < plain.iterations[0] / 3
    assert torch.allclose(plain.x, better.x, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("implicit", [False, True])
def test_gradients_agree_with_the_exact_ones(implicit: bool) -> None:
    m = _spd(8, torch.float64)
    b = torch.randn(2, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    damping = torch.tensor([0.3, 1.0], dtype=torch.float64, requires_grad=True)
    x = conjugate_gradient(lambda v: v @ m.T, b, damping=damping, tolerance=0.0, max_iterations=40, implicit=implicit).x
    gb, gd = torch.autograd.grad((x**2).sum(), (b, damping))
    for i in range(2):
        shifted = m + damping[i].detach() * torch.eye(8)
        back = torch.linalg.solve(shifted, 2 * x[i].detach())
        assert torch.allclose(gb[i], back, rtol=1e-6)
        assert torch.allclose(gd[i], -(back @ x[i].detach()), rtol=1e-6)


def test_implicit_gradients_reach_parameters_of_the_matrix() -> None:
    g = torch.Generator().manual_seed(8)
    factor = torch.randn(12, 8, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 12, generator=g, dtype=torch.float64)
    gradients = []
    for implicit in (False, True):

        def normal(x: torch.Tensor) -> torch.Tensor:
            return x @ factor.T @ factor

        x = conjugate_gradient(normal, y @ factor, damping=0.1, tolerance=1e-14, max_iterations=60, implicit=implicit).x
        gradients.append(torch.autograd.grad((x**3).sum(), factor)[0])
    assert torch.allclose(*gradients, rtol=1e-6, atol=1e-8)


def test_least_squares_weighted_with_anchor_and_a_real_image_of_complex_data() -> None:
    g = torch.Generator().manual_seed(6)
    a = torch.randn(9, 6, generator=g, dtype=torch.complex128)
    operator = Dense(a, (1, 2, 3), real=True)
    y = torch.randn(2, 9, generator=g, dtype=torch.complex128)
    w = torch.rand(9, generator=g, dtype=torch.float64) + 0.1
    v = torch.randn(2, 1, 2, 3, generator=g, dtype=torch.float64)
    damping = torch.rand(1, 2, 3, generator=g, dtype=torch.float64)
    result = least_squares(operator, y, weight=w, damping=damping[None], anchor=v, tolerance=1e-12)
    normal = (a.mH @ (w[:, None] * a)).real + torch.diag(damping.flatten())
    rhs = (y * w @ a.conj()).real + damping.flatten() * v.flatten(1)
    assert torch.allclose(result.x.flatten(1), torch.linalg.solve(normal, rhs.T).T, rtol=1e-8)


def test_both_tikhonov_forms_agree_with_cg() -> None:
    g = torch.Generator().manual_seed(7)
    a = torch.randn(5, 12, generator=g, dtype=torch.float64)
    y = torch.randn(1, 5, generator=g, dtype=torch.float64)
    wide = a.T @ torch.linalg.solve(a @ a.T + 0.2 * torch.eye(5), y[0])
    tall = torch.linalg.solve(a.T @ a + 0.2 * torch.eye(12), a.T @ y[0])
    assert torch.allclose(wide, tall, rtol=1e-10, atol=1e-12)
    got = least_squares(Dense(a, (12,)), y, damping=0.2, tolerance=1e-12).x[0]
    assert (got - wide).norm() < 1e-9 * wide.norm()


def test_stack_with_a_missing_modality_keeps_its_anchor() -> None:
    space = ImageSpace(["t1", "ct", "pet_fdg"], (2, 2), (1.0, 1.0))
    operator = BlockDiagonal(space, {"t1": Identity((1, 2, 2)), "ct": Diagonal(2 * torch.ones(1, 2, 2))})
    y = Blocks({"t1": torch.ones(2, 1, 2, 2), "ct": 6 * torch.ones(2, 1, 2, 2)})
    anchor = 7 * torch.ones(2, 3, 2, 2)
    x = least_squares(operator, y, weight={"t1": 3.0, "ct": 0.25}, damping=1.0, anchor=anchor).x
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([(3 + 7) / 4, (3 + 7) / 2, 7.0]))
    with pytest.raises(ValueError, match="weight"):
        least_squares(operator, y, weight={"t1": 3.0})


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="x0"):
        conjugate_gradient(lambda x: x, torch.ones(1, 2), x0=torch.ones(2, 2))
    with pytest.raises(ValueError, match="damping"):
        conjugate_gradient(lambda x: x, torch.ones(1, 2), damping=-1.0)
    with pytest.raises(ValueError, match="tolerance"):
        conjugate_gradient(lambda x: x, torch.ones(1, 2), tolerance=-1.0)
