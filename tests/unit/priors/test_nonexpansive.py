"""The Jacobian of a denoiser's reflection: norms, worst pairs, and a loss that brings them down."""

from itertools import pairwise

import pytest
import torch
from deepinv.loss.regularisers import FNEJacobianSpectralNorm
from torch import nn

from multirecon.networks.dncnn import DnCNN
from multirecon.priors.nonexpansive import (
    NonexpansiveLoss,
    ascend_ratio,
    jacobian_norms,
    krylov_norms,
    lipschitz_ratios,
    reflection,
)


def small_network(seed=0, gain=1.0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.Softplus(4.0), nn.Conv2d(6, 1, 3, padding=1)]
    network = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(gain)
    return network


def images(count=3, seed=1, side=6):
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_norms(function, points):
    jacobians = [torch.autograd.functional.jacobian(function, p[None])[0, :, :, :, 0] for p in points]
    return torch.stack([torch.linalg.matrix_norm(j.reshape(p.numel(), p.numel()), ord=2)
                        for j, p in zip(jacobians, points, strict=True)])  # fmt: skip


def test_power_iteration_finds_the_largest_singular_value():
    Q = reflection(small_network(gain=2.0))
    norms, vectors = jacobian_norms(Q, images(), iterations=500)
    torch.testing.assert_close(norms, dense_norms(Q, images()), rtol=1e-4, atol=0)
    assert torch.linalg.vector_norm(vectors.flatten(1), dim=1) == pytest.approx([1.0] * 3)


def test_norms_grow_with_the_iterations_and_never_exceed_the_truth():
    Q = reflection(small_network(gain=2.0))
    found = [jacobian_norms(Q, images(), iterations=k)[0] for k in (1, 3, 10, 40)]
    assert all(bool((b >= a - 1e-12).all()) for a, b in pairwise(found))
    assert bool((found[-1] <= dense_norms(Q, images()) * (1 + 1e-9)).all())


def test_bidiagonalisation_finds_it_with_fewer_products_and_is_never_below_power_iteration():
    Q = reflection(small_network(gain=2.0))
    exact = dense_norms(Q, images())
    torch.testing.assert_close(krylov_norms(Q, images(), tolerance=1e-9), exact, rtol=1e-8, atol=0)
    for k in (2, 5, 10):
        found = krylov_norms(Q, images(), iterations=k, tolerance=0.0)
        assert bool((found <= exact * (1 + 1e-9)).all())
        assert bool((found >= jacobian_norms(Q, images(), iterations=k)[0] * (1 - 1e-9)).all())
    # stopped by its residual, it lies within that of a singular value
    loose = krylov_norms(Q, images(), tolerance=1e-2)
    assert bool(((loose / exact - 1).abs() <= 1e-2).all())


def test_bidiagonalisation_of_the_identity_ends_at_once():
    assert krylov_norms(lambda x: 2.0 * x, images()).tolist() == pytest.approx([2.0] * 3)


def test_it_agrees_with_deepinv():
    network, points = small_network(gain=2.0), images()
    theirs = FNEJacobianSpectralNorm(max_iter=500, tol=1e-12, eval_mode=True, reduction="max")(points, points, network)
    ours, _ = jacobian_norms(reflection(network), points, iterations=500)
    assert float(ours.max()) == pytest.approx(float(theirs.detach()), rel=1e-5)


def test_resolvent_of_a_monotone_operator_is_firmly_nonexpansive():
    """``D = (Id + M)^-1`` with ``M + M^T >= 0``, neither symmetric nor a proximal map: ``|J_Q| <= 1``."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(36, 36, generator=generator, dtype=torch.float64) for _ in range(2))
    D = torch.linalg.inv(torch.eye(36, dtype=torch.float64) + a @ a.T / 36 + (b - b.T))

    def denoise(x):
        return (x.flatten(1) @ D.T).reshape(x.shape)

    norms, _ = jacobian_norms(reflection(denoise), images(), iterations=300)
    assert float(norms.max()) <= 1 + 1e-9
    assert float(lipschitz_ratios(reflection(denoise), images(), images(seed=2)).max()) <= 1 + 1e-9


def test_ascent_reaches_the_worst_pair():
    """Of a linear map the worst ratio is its norm; of a network ascent climbs well above the pairs it starts from."""
    matrix = torch.diag(torch.linspace(0.1, 3.0, 36, dtype=torch.float64))

    def linear(x):
        return (x.flatten(1) @ matrix).reshape(x.shape)

    best, a, b = ascend_ratio(linear, images(), images(seed=2), steps=400, rate=0.1)
    assert best.tolist() == pytest.approx([3.0] * 3, rel=1e-2)
    torch.testing.assert_close(lipschitz_ratios(linear, a, b), best)
    Q = reflection(small_network(gain=3.0))
    start = lipschitz_ratios(Q, images(), images(seed=2))
    best, _, _ = ascend_ratio(Q, images(), images(seed=2), steps=100)
    assert bool((best > 1.2 * start).all())


def test_ascent_stays_within_its_radius():
    Q = reflection(small_network(gain=3.0))
    _, a, b = ascend_ratio(Q, images(), images(seed=2), steps=50, rate=0.5, radius=0.3)
    for end, start in ((a, images()), (b, images(seed=2))):
        assert float(torch.linalg.vector_norm((end - start).flatten(1), dim=1).max()) <= 0.3 + 1e-9


def test_the_gradient_of_the_penalty_is_that_of_the_squared_norm():
    network = small_network(gain=2.0)
    loss = NonexpansiveLoss(network, weight=1.0, margin=0.0, points=1, patch=6, iterations=600).double()
    target = torch.cat([images(1), images(1, seed=2)], dim=1)
    value = loss(target[:, :1], target)
    value.backward()
    parameter = network[0].weight
    index, step = (2, 0, 1, 1), 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter[index] += sign * step
            values.append(float(jacobian_norms(reflection(network), loss.points, iterations=600)[0][0] ** 2))
            parameter[index] -= sign * step
    assert float(parameter.grad[index]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-2)


def test_training_brings_the_norm_below_one_and_without_it_stays_above():
    def trained(weight):
        network = small_network(seed=3, gain=2.0).float()
        loss = NonexpansiveLoss(network, weight=weight, margin=0.1, points=2, patch=6, iterations=5)
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        clean = images(4).float()
        noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        for _ in range(300):
            optimizer.zero_grad()
            loss(network(noisy), torch.cat([clean, noisy], dim=1)).backward()
            optimizer.step()
        return float(jacobian_norms(reflection(network), noisy, iterations=50)[0].max())

    assert trained(3.0) < 1.05
    assert trained(0.0) > 1.1


def test_every_third_point_has_a_disc_that_no_image_has():
    clean = images(2, side=24).float()
    loss = NonexpansiveLoss(small_network().float(), points=1, patch=24, hot=2.5)
    heated = []
    for _ in range(6):
        loss(clean, torch.cat([clean, clean], dim=1))
        heated.append(bool((loss.points > 1.0).any()))
    assert heated == [False, False, True, False, False, True]


def test_points_lie_in_a_larger_field_empty_or_noisy():
    clean = 1 + images(2, side=8).float()
    loss = NonexpansiveLoss(small_network().float(), points=1, patch=8, canvas=20, air=0.1)
    around = []
    for _ in range(12):
        loss(clean, torch.cat([clean, clean], dim=1))
        assert loss.points.shape == loss.vectors.shape == (1, 1, 20, 20)
        inside = loss.points > 0.8
        assert int(inside.sum()) == 64
        around.append(float(loss.points[~inside].std()))
    assert min(around) == 0.0
    assert 0.0 < max(around) < 0.11


def test_a_guide_lies_in_the_field_where_its_image_lies():
    clean = 1 + images(2, side=8).float()
    network = DnCNN(3, 4, guides=1)
    loss = NonexpansiveLoss(network, points=2, patch=8, canvas=20, air=0.1, guides=1)
    for _ in range(6):
        loss(clean, torch.cat([clean, clean, clean], dim=1))
        assert loss.guides.shape == (2, 1, 20, 20)
        assert torch.equal(loss.guides > 0.8, loss.points > 0.8)
        assert int((loss.guides != 0).sum()) == 128


def test_the_state_of_the_loss_is_part_of_a_resumed_run():
    """Points and vectors are buffers: a copy goes on exactly like the original."""
    network = small_network().float()
    target = torch.cat([images(4), images(4, seed=2)], dim=1).float()
    one, other = (NonexpansiveLoss(network, points=2, patch=6) for _ in range(2))
    for _ in range(3):
        one(target[:, :1], target)
    other.load_state_dict(one.state_dict())
    assert float(one(target[:, :1], target)) == float(other(target[:, :1], target))
    assert "_network" not in "".join(one.state_dict())


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="weight, margin, points, iterations, hot: expected"):
        NonexpansiveLoss(small_network(), margin=1.0)
