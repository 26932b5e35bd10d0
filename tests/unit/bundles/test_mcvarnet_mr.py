"""MC-VarNet, point by point: sizes, equations, and what reaches what."""

import pytest
import torch
from torch import nn

SCALARS = ("mu", "gamma_x", "weight_x", "gamma_c", "alpha", "beta")
TRANSFORMS = ("encode_x", "decode_x", "encode_c", "decode_c", "transform_c")
UNETS = ("start_x", "start_c", "prior_x", "prior_c", "prior_u")


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def images(generator):
    return torch.rand(2, 2, 16, 16, generator=generator)


def test_published_sizes(mcvarnet):
    whole = mcvarnet.MCVarNet(32, unused_layers=True)
    assert [count(getattr(whole, name)) for name in UNETS] == [258_887] * 5
    assert [count(getattr(whole, name)) for name in TRANSFORMS] == [18_496] * 5
    # the published object keeps its scalars out of the parameters
    assert count(whole) - sum(getattr(whole, s).numel() for s in SCALARS) == 1_387_493
    assert sum(getattr(whole, s).numel() for s in SCALARS) == 24
    assert count(mcvarnet.MCVarNet(16, unused_layers=True)) == 348_165 + 24
    assert count(mcvarnet.MCVarNet(8, unused_layers=True)) == 87_701 + 24


def test_sizes_without_what_is_never_used(mcvarnet):
    net = mcvarnet.MCVarNet(32)
    assert [count(getattr(net, name)) for name in UNETS] == [249_638] * 5
    # 4 each of mu, gamma_x, weight_x, 3 each of gamma_c, alpha, 2 of beta
    assert count(net) == 1_387_493 - 5 * (9_248 + 1) - 289 + 20


def test_networks_are_shared_by_the_iterations(mcvarnet):
    def shared(iterations):
        net = mcvarnet.MCVarNet(8, iterations=iterations)
        return count(net) - sum(getattr(net, s).numel() for s in SCALARS)

    assert sum(isinstance(m, mcvarnet.ResidualUNet) for m in mcvarnet.MCVarNet(8).modules()) == 5
    assert len({shared(k) for k in (1, 2, 4, 7)}) == 1


def test_every_parameter_of_the_default_network_is_used(mcvarnet, images):
    net = mcvarnet.MCVarNet(8, learned_data_step=True)
    net(images).square().sum().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert unused == ["data_step"]  # forward has no data
    idle = {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None and not p.grad.abs().any()}
    assert idle == set()


def test_unet_with_zero_weights_is_the_identity(mcvarnet, generator):
    net = mcvarnet.ResidualUNet(8)
    z = torch.randn(1, 8, 12, 20, generator=generator)
    assert not torch.allclose(net(z), z)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(net(z), z)


def test_scalars_are_trained_and_stored(mcvarnet):
    net = mcvarnet.MCVarNet(8)
    names = dict(net.named_parameters())
    assert set(SCALARS) <= set(names)
    assert set(SCALARS) <= set(net.state_dict())
    assert names["mu"].tolist() == pytest.approx([0.1] * 4)
    assert all((names[s] == 1).all() for s in SCALARS[1:])
    frozen = mcvarnet.MCVarNet(8, learned_scalars=False)
    assert not any(getattr(frozen, s).requires_grad for s in SCALARS)
    assert net.data_step.tolist() == [1.0] * 4
    assert "data_step" not in net.state_dict()
    assert "data_step" in mcvarnet.MCVarNet(8, learned_data_step=True).state_dict()


def test_start(mcvarnet, images):
    net = mcvarnet.MCVarNet(8)
    first = []
    net.start_x.encoder_1.body[0].register_forward_pre_hook(lambda module, inputs: first.append(inputs[0]))
    x, c, u, P, Q, y = net.start(images[:, :1], images[:, 1:])
    torch.testing.assert_close(c + u, images[:, 1:].expand(-1, 8, -1, -1))
    assert torch.equal(y, images[:, 1:].expand(-1, 8, -1, -1))
    assert torch.equal(P, c)
    assert torch.equal(Q, u)
    # no learned stem: what the first convolution sees is the image, repeated
    assert torch.equal(first[0], images[:, :1].expand(-1, 8, -1, -1))
    assert x.shape == c.shape


def test_update_of_the_unique_part(mcvarnet, generator):
    net = mcvarnet.MCVarNet(8)
    state = [torch.randn(1, 8, 8, 8, generator=generator) for _ in range(6)]
    _, c, _, _, Q, y = state
    torch.testing.assert_close(net.step(0, state, state[0])[2], (y + Q - c) / 2)
    with torch.no_grad():
        net.beta.fill_(3.0)
    torch.testing.assert_close(net.step(0, state, state[0])[2], (y + 3 * Q - c) / 4)


def test_iterations_equal_the_equations(mcvarnet, images):
    """Written out once more, everything computed, with a data consistency that changes the target."""
    net = mcvarnet.MCVarNet(8)
    with torch.no_grad():
        for s in SCALARS:
            getattr(net, s).add_(torch.rand(getattr(net, s).shape))
    scalar = {s: [*getattr(net, s), *[torch.ones(())] * 4] for s in SCALARS}

    def consistent(x):
        return 0.7 * x + 0.1

    y = images[:, 1:].expand(-1, 8, -1, -1)
    x, c = net.start_x(images[:, :1].expand(-1, 8, -1, -1)), net.start_c(y)
    u = y - c
    P, Q = c, u
    for k in range(4):
        gap = net.decode_x(net.encode_x(x) - net.encode_c(c))
        change = scalar["gamma_x"][k] * gap + scalar["weight_x"][k] * net.prior_x(x)
        new_x = consistent(x) - scalar["mu"][k] * change
        common = scalar["gamma_c"][k] * net.decode_c(net.encode_x(x)) + scalar["alpha"][k] * P
        new_c = net.transform_c(y - u + common)
        new_u = (y + scalar["beta"][k] * Q - c) / (1 + scalar["beta"][k])
        x, c, u = new_x, new_c, new_u
        P, Q = net.prior_c(c), net.prior_u(u)
    state = net.start(images[:, :1], images[:, 1:])
    for k in range(4):
        state = net.step(k, state, consistent(state[0]))
    torch.testing.assert_close(net.finish(state), net.image(x), rtol=1e-4, atol=1e-4)


def test_one_iteration_leaves_modules_alone(mcvarnet, images):
    net = mcvarnet.MCVarNet(8, iterations=1)
    net(images).square().sum().backward()
    reached = {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().any()}
    assert reached.isdisjoint({"transform_c", "prior_c", "prior_u", "decode_c"})
    assert {"start_x", "start_c", "prior_x", "encode_x", "decode_x", "encode_c", "image"} <= reached


def test_unique_part_does_not_reach_the_target_in_its_iteration(mcvarnet, generator):
    net = mcvarnet.MCVarNet(8)
    state = [torch.randn(1, 8, 8, 8, generator=generator) for _ in range(6)]
    other = [*state]
    other[2] = torch.randn(1, 8, 8, 8, generator=generator)
    first, second = net.step(1, state, state[0]), net.step(1, other, other[0])
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])  # it does in the next one, through c


def test_no_normalisation(mcvarnet):
    kinds = {type(m).__name__ for m in mcvarnet.MCVarNet(8).modules() if not list(m.children())}
    assert kinds == {"Conv2d", "ConvTranspose2d", "PReLU", "ReLU"}


def test_convolutions_start_xavier_normal(mcvarnet):
    net = mcvarnet.MCVarNet(32)
    weight = net.prior_x.encoder_1.body[0].weight
    assert float(weight.detach().std()) == pytest.approx((2 / (2 * 9 * 32)) ** 0.5, rel=0.05)


def test_refuses(mcvarnet):
    with pytest.raises(ValueError, match="features, iterations"):
        mcvarnet.MCVarNet(0)
