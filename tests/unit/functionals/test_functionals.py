"""Functionals: adjoints, values, gradients, proximal maps against exact solutions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from multirecon.functionals import (
    L1,
    AnalysisFunctional,
    DirectionalTotalVariation,
    Functional,
    JointTotalVariation,
    NonNegativity,
    NuclearTotalVariation,
    ParallelLevelSets,
    Quadratic,
    RelativeDifference,
    TotalVariation,
    bowsher_weights,
    divergence_adjoint,
    gradient,
    gradient_norm,
    half_neighbourhood,
)


def _image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _guide(*shape: int) -> torch.Tensor:
    return _image(*shape, seed=11)


FAMILY: dict[str, Callable[..., AnalysisFunctional]] = {
    "isotropic": TotalVariation,
    "anisotropic": lambda *a, **k: TotalVariation(*a, isotropic=False, **k),
    "joint": JointTotalVariation,
    "nuclear": NuclearTotalVariation,
    "directional": lambda *a, **k: DirectionalTotalVariation(*a, guide=_guide(1, 1, 5, 6), edge=0.5, **k),
    "level sets": lambda *a, **k: ParallelLevelSets(*a, guide=_guide(1, 1, 5, 6), edge=0.5, **k),
}


@pytest.mark.parametrize("shape", [(5, 6), (1, 4), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradient_has_its_exact_adjoint_and_norm_bound(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    spacing = (1.0, 2.0, 0.5)[: len(shape)]
    x = _image(2, 3, *shape, dtype=dtype)
    p = _image(2, 3, len(shape), *shape, seed=1, dtype=dtype)
    left = (gradient(x, spacing).conj() * p).real.sum()
    right = (x.conj() * divergence_adjoint(p, spacing)).real.sum()
    assert abs(left - right) < 1e-12 * p.norm() * x.norm()
    for _ in range(50):
        x = divergence_adjoint(gradient(x / x.norm(), spacing), spacing)
    assert x.norm().sqrt() <= gradient_norm(spacing) * (1 + 1e-12)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_transform_has_its_exact_adjoint(name: str, dtype: torch.dtype) -> None:
    functional = FAMILY[name](channel_weights=[1.0, 0.3, 2.0])
    x = _image(2, 3, 5, 6, dtype=dtype)
    p = torch.randn_like(functional.analyse(x))
    left = (functional.analyse(x).conj() * p).real.sum()
    right = (x.conj() * functional.synthesise(p)).real.sum()
    assert abs(left - right) < 1e-12 * p.norm() * x.norm()
    assert functional.analyse(x).norm() <= functional.analysis_norm(x) * x.norm()


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_projection_is_dual_to_the_magnitude(name: str, channels: int) -> None:
    """sup over the dual ball of <q, g> is the magnitude, and projections are idempotent and non-expansive."""
    functional = FAMILY[name]()
    g = _image(2, channels, 2, 5, 6)
    one = torch.ones((), dtype=torch.float64)
    best = functional.project(1e6 * g, one)
    assert torch.allclose((best * g).flatten(1).sum(1), functional.magnitude(g), rtol=1e-5)
    assert torch.allclose(functional.project(best, one), best, atol=1e-10)
    other = _image(2, channels, 2, 5, 6, seed=5)
    assert (functional.project(other, one) - functional.project(g, one)).norm() <= (other - g).norm()
    inside = functional.project(other, one)
    assert ((inside * g).flatten(1).sum(1) <= functional.magnitude(g) + 1e-9).all()
    assert torch.equal(functional.project(torch.zeros_like(g), one), torch.zeros_like(g))


@pytest.mark.parametrize(("channels", "dims"), [(1, 2), (2, 2), (3, 2), (2, 3), (3, 3), (5, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_nuclear_projection_agrees_with_a_singular_value_decomposition(
    channels: int, dims: int, dtype: torch.dtype
) -> None:
    p = _image(2, channels, dims, 3, 4, dtype=dtype)
    jacobians = p.movedim((1, 2), (-2, -1))
    u, s, vh = torch.linalg.svd(jacobians, full_matrices=False)
    expected = (u * s.clamp_max(0.7)[..., None, :].to(dtype) @ vh).movedim((-2, -1), (1, 2))
    functional = NuclearTotalVariation()
    assert torch.allclose(functional.project(p, torch.tensor(0.7, dtype=torch.float64)), expected, atol=1e-10)
    assert torch.allclose(functional.magnitude(p), s.flatten(1).sum(1), rtol=1e-6)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_prox_carries_a_certificate(name: str, smoothing: float, nonnegative: bool) -> None:
    """Recompute primal and dual objectives outside the class: the gap must close and the dual be feasible."""
    weight, step = 0.6, 0.5
    functional = FAMILY[name](weight, smoothing=smoothing, nonnegative=nonnegative, tolerance=1e-6, max_iterations=5000)
    x = _image(2, 2, 5, 6)
    result = functional.denoise(x, step)
    u, p, radius = result.x, result.dual, weight * step
    primal = ((u - x) ** 2).flatten(1).sum(1) / 2 + step * functional.value(u)
    shifted = x - functional.synthesise(p)
    inner = shifted.clamp_min(0) if nonnegative else shifted
    dual = ((x**2) - inner**2).flatten(1).sum(1) / 2 - smoothing / (2 * radius) * (p**2).flatten(1).sum(1)
    assert (primal - dual).abs().max() <= 1.01e-6 * primal.max()
    assert torch.allclose(functional.project(p, torch.tensor(radius, dtype=torch.float64)), p, atol=1e-12)
    assert (result.gap <= 1e-6).all()
    assert not nonnegative or (u >= 0).all()
    again = functional.denoise(x, step, dual=p)
    assert again.iterations == 0


def test_anisotropic_prox_agrees_with_an_exact_box_constrained_solution() -> None:
    x = _image(1, 1, 3, 4)
    functional = TotalVariation(0.4, isotropic=False, tolerance=1e-12, max_iterations=20000)
    basis = torch.eye(24, dtype=torch.float64).reshape(24, 1, 2, 3, 4)
    matrix = functional.synthesise(basis).reshape(24, 12).T.numpy()
    keep = np.abs(matrix).sum(0) > 0
    solution = lsq_linear(matrix[:, keep], x.flatten().numpy(), bounds=(-0.4, 0.4), method="bvls", tol=1e-14)
    expected = x.flatten().numpy() - matrix[:, keep] @ solution.x
    assert np.allclose(functional.prox(x).flatten().numpy(), expected, atol=1e-5)


def test_prox_fixed_points_and_limits() -> None:
    functional = TotalVariation(1.0, tolerance=1e-8, max_iterations=20000)
    constant = torch.full((1, 1, 6, 7), 3.0)
    assert torch.equal(functional.prox(constant, 0.5), constant)
    x = _image(1, 1, 6, 7)
    assert torch.equal(functional.prox(x, 0.0), x)
    assert torch.allclose(functional.prox(x, 1e4), x.mean().expand_as(x), atol=1e-3)
    two = torch.tensor([[[[0.0, 4.0]]]])
    assert torch.allclose(functional.prox(two, 1.0), torch.tensor([[[[1.0, 3.0]]]]), atol=1e-3)


def test_prox_of_a_batch_equals_its_samples_and_steps_may_differ() -> None:
    functional = JointTotalVariation(torch.tensor([0.2, 1.5]), tolerance=1e-3)
    x = _image(2, 2, 8, 8, dtype=torch.float32)
    steps = torch.tensor([0.1, 0.7])
    both = functional.prox(x, steps)
    for i in range(2):
        alone = JointTotalVariation(functional.weight[i].item(), tolerance=1e-3).prox(x[i : i + 1], steps[i].item())
        assert torch.allclose(alone[0], both[i], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_prox_reaches_its_gap_in_single_precision(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 1, 32, 32, dtype=dtype)
    x[..., 8:20, 10:25] = 1.0
    noisy = x + 0.1 * _image(1, 1, 32, 32, dtype=dtype)
    result = TotalVariation(0.15).denoise(noisy)
    assert result.gap.item() < 1e-4
    assert (result.x - x).norm() < 0.5 * (noisy - x).norm()


SMOOTH: dict[str, tuple[Functional, bool]] = {
    "huber": (TotalVariation(0.7, smoothing=0.4), False),
    "huber joint": (JointTotalVariation(0.7, smoothing=0.4, channel_weights=[1.0, 0.2]), False),
    "huber nuclear": (NuclearTotalVariation(0.7, smoothing=0.4), False),
    "huber level sets": (ParallelLevelSets(0.7, smoothing=0.4, guide=_guide(1, 1, 5, 6), edge=0.3), False),
    "quadratic": (Quadratic(0.7, anchor=_image(1, 2, 5, 6, seed=3), diagonal=_image(1, 2, 5, 6, seed=4).abs()), False),
    "relative difference": (RelativeDifference(0.7, gamma=2.0, eps=0.1, spacing=(1.0, 2.0)), True),
    "bowsher": (RelativeDifference(0.7, eps=0.1, pair_weights=bowsher_weights(_guide(1, 1, 5, 6))), True),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    functional, positive = SMOOTH[name]
    x = _image(2, 2, 5, 6)
    x = x.abs() + 0.1 if positive else x
    direction = _image(2, 2, 5, 6, seed=8)
    step = 1e-6
    central = (functional.value(x + step * direction) - functional.value(x - step * direction)) / (2 * step)
    assert torch.allclose(central, (functional.grad(x) * direction).flatten(1).sum(1), rtol=1e-6, atol=1e-7)


def test_relative_difference_curvature_bounds_its_hessian() -> None:
    functional = RelativeDifference(0.7, gamma=2.0, eps=0.1)
    x = _image(1, 1, 3, 4).abs() + 0.1
    hessian = torch.autograd.functional.hessian(lambda v: functional.value(v.reshape(1, 1, 3, 4)).sum(), x.flatten())
    bound = torch.diag(functional.curvature(x).flatten())
    assert torch.linalg.eigvalsh(bound - hessian).min() > -1e-9
    assert torch.linalg.eigvalsh(hessian).min() > -1e-9  # convex


def test_huber_tends_to_the_norm_and_needs_smoothing_for_a_gradient() -> None:
    x = _image(1, 2, 5, 6)
    for make in FAMILY.values():
        exact = make(1.0).value(x)
        assert torch.allclose(make(1.0, smoothing=1e-7).value(x), exact, rtol=1e-5)
        assert (make(1.0, smoothing=0.3).value(x) < exact).all()
        with pytest.raises(NotImplementedError):
            make(1.0).grad(x)


def test_penalties_rank_edges_as_they_should() -> None:
    shared = torch.zeros(1, 2, 8, 8)
    shared[:, :, :, 4:] = 1.0
    apart = torch.zeros(1, 2, 8, 8)
    apart[:, 0, :, 2:] = 1.0
    apart[:, 1, :, 6:] = 1.0
    flipped = shared * torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
    for functional in (JointTotalVariation(), NuclearTotalVariation()):
        assert functional.value(shared).item() == pytest.approx(8 * 2**0.5, rel=1e-5)
        assert functional.value(apart).item() == pytest.approx(16.0, rel=1e-5)
        assert functional.value(flipped).item() == pytest.approx(8 * 2**0.5, rel=1e-5)
    assert TotalVariation().value(shared) == TotalVariation().value(apart)
    guide = shared[:, :1]
    guided = DirectionalTotalVariation(guide=guide, edge=1e-3)
    assert guided.value(shared).item() < 1e-2
    assert guided.value(apart).item() == pytest.approx(16.0, rel=1e-5)
    assert ParallelLevelSets(guide=torch.zeros(1, 1, 8, 8), edge=1.0).value(apart).item() == pytest.approx(16.0)


def test_three_dimensions_with_spacing() -> None:
    ramp = torch.arange(6.0).reshape(1, 1, 1, 1, 6).expand(1, 1, 3, 4, 6)
    assert TotalVariation(spacing=(1.0, 1.0, 2.0)).value(ramp).item() == pytest.approx(3 * 4 * 5 / 2)
    assert NuclearTotalVariation(spacing=(1.0, 1.0, 2.0)).value(ramp).item() == pytest.approx(30.0)
    noisy = ramp + 0.1 * _image(1, 1, 3, 4, 6, dtype=torch.float32)
    assert NuclearTotalVariation(0.1).denoise(noisy).gap.item() < 1e-4


def test_l1_with_an_orthonormal_transform_and_complex_images() -> None:
    class Fourier:
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft2(x, norm="ortho")

        def adjoint(self, y: torch.Tensor) -> torch.Tensor:
            return torch.fft.ifft2(y, norm="ortho")

    functional = L1(0.5, transform=Fourier())
    x = _image(2, 1, 4, 4, dtype=torch.complex128)
    u = functional.prox(x, 2.0)
    c, d = torch.fft.fft2(x, norm="ortho"), torch.fft.fft2(u, norm="ortho")
    assert torch.allclose(d.abs(), (c.abs() - 1).clamp_min(0), atol=1e-12)
    assert torch.allclose(functional.value(x), 0.5 * c.abs().flatten(1).sum(1))
    assert torch.equal(L1(1.0).prox(torch.zeros(1, 1, 2, 2)), torch.zeros(1, 1, 2, 2))


def test_closed_form_proximal_maps_are_minimisers() -> None:
    x = _image(2, 2, 5, 6)
    for functional in (SMOOTH["quadratic"][0], L1(0.4), NonNegativity()):
        u = functional.prox(x, 0.8)
        best = ((u - x) ** 2).flatten(1).sum(1) / 2 + 0.8 * functional.value(u)
        for seed in range(5):
            v = functional.prox(u + 0.01 * _image(2, 2, 5, 6, seed=seed), 0.0)  # stays feasible
            other = ((v - x) ** 2).flatten(1).sum(1) / 2 + 0.8 * functional.value(v)
            assert (other >= best).all()


def test_bowsher_keeps_the_most_similar_neighbours() -> None:
    guide = torch.zeros(1, 1, 6, 6)
    guide[..., 3:] = 10.0
    guide = guide + 1e-3 * torch.arange(36.0).reshape(1, 1, 6, 6)
    weights = bowsher_weights(guide, neighbours=3)
    across = [i for i, o in enumerate(half_neighbourhood(2)) if o[1] != 0]
    assert weights.shape == (4, 1, 1, 6, 6)
    assert set(weights.unique().tolist()) <= {0.0, 0.5, 1.0}
    for index in across:  # no pair reaches over the edge of the guide (columns 2 | 3)
        step = half_neighbourhood(2)[index][1]
        column = 2 if step == 1 else 3
        assert weights[index, 0, 0, :, column].abs().max() == 0
    # every voxel spends its three votes, each worth one half
    assert weights.sum().item() == pytest.approx(36 * 3 / 2)


def test_bad_arguments_are_named() -> None:
    x = torch.zeros(1, 2, 4, 4)
    for match, call in {
        "weight": lambda: TotalVariation(-1.0),
        "smoothing": lambda: TotalVariation(smoothing=-1.0),
        "spacing": lambda: TotalVariation(spacing=(1.0,)).value(x),
        "channel_weights": lambda: TotalVariation(channel_weights=[1.0]).value(x),
        "edge": lambda: DirectionalTotalVariation(guide=x, edge=0.0),
        "guide": lambda: DirectionalTotalVariation(guide=x[0], edge=1.0),
        "gamma, eps": lambda: RelativeDifference(eps=0.0),
        "neighbours": lambda: bowsher_weights(x, neighbours=9),
        "diagonal": lambda: Quadratic(diagonal=-x - 1),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
