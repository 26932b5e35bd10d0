"""MINet, point by point: sizes, attention, and what reaches what."""

import pytest
import torch
from torch import nn

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage
from multirecon.space import ImageSpace

SPACE = ImageSpace(["flair", "t1"], (16, 16), (2.0, 2.0))


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def net(minet):
    return minet.MINet(16, groups=2, blocks=1)


@pytest.fixture
def images(generator):
    return torch.randn(2, 2, 16, 16, generator=generator)


@pytest.mark.parametrize(("groups", "blocks", "size"),
                         [(6, 6, 6_563_549), (4, 4, 3_274_429), (3, 3, 2_076_485), (2, 2, 1_176_285)])  # fmt: skip
def test_published_sizes(minet, groups, blocks, size):
    with torch.device("meta"):
        assert count(minet.MINet(64, groups=groups, blocks=blocks)) == size


def test_super_resolution_form(minet):
    with torch.device("meta"):
        assert count(minet.MINet(64, scale=2)) == 6_748_189
    small = minet.MINet(16, groups=1, blocks=1, scale=2)
    target, reference = small.pair(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 64, 64))
    assert target.shape == reference.shape == (1, 1, 64, 64)
    image = torch.randn(1, 2, 16, 16)
    halved = nn.functional.avg_pool2d(image[:, :1], 2)
    torch.testing.assert_close(small(image), torch.cat(small.pair(halved, image[:, 1:]), dim=1))
    enlarged = halved.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(small(torch.cat([enlarged, image[:, 1:]], 1)), small(image))


def test_parts_of_the_published_size(minet):
    with torch.device("meta"):
        net = minet.MINet(64)
    assert count(net.target_head) == count(net.reference_head) == 640
    assert count(net.target_body) == count(net.reference_body) == 2_938_192
    assert count(net.target_body[0]) == 483_544
    assert count(net.target_body[0].body[0]) == 74_436
    assert (count(net.memory), count(net.target_merge), count(net.reference_merge)) == (516_160, 73_792, 36_928)
    assert count(net.fusion) == 57_792
    assert (count(net.target_tail), count(net.target_attention), count(net.layer_attention)) == (577, 29, 1)


def test_stages_and_fusions(minet):
    for groups in (1, 3):
        net = minet.MINet(16, groups=groups, blocks=1)
        assert len(net.target_body) == len(net.reference_body) == len(net.fusion) == groups + 1
        assert all((f.in_channels, f.out_channels, f.kernel_size) == (32, 16, (1, 1)) for f in net.fusion)
        assert isinstance(net.target_body[-1], nn.Conv2d)
        assert net.memory.in_channels == 2 * (groups + 1) * 16


def test_information_flows_from_reference_to_target_alone(net, images, generator):
    other_target, other_reference = images.clone(), images.clone()
    other_target[:, 0] = torch.randn(2, 16, 16, generator=generator)
    other_reference[:, 1] = torch.randn(2, 16, 16, generator=generator)
    with torch.no_grad():
        for gamma in (net.layer_attention.gamma, net.target_attention.gamma, net.reference_attention.gamma):
            gamma.fill_(0.5)
        result = net(images)
        assert torch.equal(net(other_target)[:, 1], result[:, 1])
        assert float((net(other_target)[:, 0] - result[:, 0]).abs().max()) > 1e-3
        assert float((net(other_reference)[:, 0] - result[:, 0]).abs().max()) > 1e-3


def test_attentions_start_as_identities(minet, net, generator):
    memory, z = torch.randn(2, 6, 4, 5, 5, generator=generator), torch.randn(2, 4, 5, 5, generator=generator)
    assert torch.equal(net.layer_attention(memory), memory.flatten(1, 2))
    assert torch.equal(net.target_attention(z), z)
    gammas = [p for n, p in net.named_parameters() if n.endswith("gamma")]
    assert len(gammas) == 3
    assert all(p.item() == 0 for p in gammas)


def test_layer_attention_is_the_formula(minet, generator):
    attention = minet.LayerAttention()
    with torch.no_grad():
        attention.gamma.fill_(0.7)
    memory = 0.3 * torch.randn(2, 5, 2, 3, 3, generator=generator)
    expected = []
    for sample in memory:
        X = sample.flatten(1)
        E = X @ X.T
        shifted = E.max(dim=1, keepdim=True).values - E
        B = shifted.exp() / shifted.exp().sum(1, keepdim=True)
        # the least similar stage weighs most, unlike in a softmax of the products themselves
        assert torch.equal(B.argmax(1), E.argmin(1))
        assert not torch.equal(B.argmax(1), E.argmax(1))
        expected.append((0.7 * B @ X + X).reshape(sample.shape))
    torch.testing.assert_close(attention(memory), torch.stack(expected).flatten(1, 2))


def test_memory_holds_target_features_before_the_fusion(net, images):
    before, references, seen = [], [], []
    for stage in net.target_body:
        stage.register_forward_hook(lambda module, inputs, output: before.append(output))
    for stage in net.reference_body:
        stage.register_forward_hook(lambda module, inputs, output: references.append(output))
    net.layer_attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(images)
    assert torch.equal(seen[0], torch.stack([*references, *before], dim=1))


def test_next_stage_sees_the_fused_target(net, images):
    before, references, inputs_of_next = [], [], []
    net.target_body[0].register_forward_hook(lambda module, inputs, output: before.append(output))
    net.reference_body[0].register_forward_hook(lambda module, inputs, output: references.append(output))
    net.target_body[1].register_forward_pre_hook(lambda module, inputs: inputs_of_next.append(inputs[0]))
    net(images)
    fused = before[0] + net.fusion[0](torch.cat([references[0], before[0]], dim=1))
    torch.testing.assert_close(inputs_of_next[0], fused)


def test_channel_spatial_attention_is_one_kernel(net, generator):
    attention = net.target_attention
    assert [tuple(p.shape) for p in attention.conv.parameters()] == [(1, 1, 3, 3, 3), (1,)]
    with torch.no_grad():
        attention.gamma.fill_(0.4)
    z = torch.randn(1, 4, 5, 5, generator=generator)
    weights = torch.sigmoid(attention.conv(z[None])[0])
    torch.testing.assert_close(attention(z), z + 0.4 * weights * z)


def test_no_batch_or_instance_normalisation(net):
    kinds = {type(m).__name__ for m in net.modules() if not list(m.children())}
    assert kinds == {"Conv2d", "Conv3d", "ReLU", "Sigmoid", "AdaptiveAvgPool2d", "Identity", "LayerAttention"}


def test_widths(minet):
    assert minet.MINet(32, groups=1, blocks=1)(torch.zeros(1, 2, 7, 9)).shape == (1, 2, 7, 9)
    with pytest.raises(ValueError, match="features, groups, blocks"):
        minet.MINet(24)
    with pytest.raises(ValueError, match="scale"):
        minet.MINet(16, scale=3)


class Echo(nn.Module):
    """Gives back what it was handed."""

    def __init__(self):
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(()))

    def forward(self, image):
        self.seen = image
        return image + self.parameter


@pytest.fixture
def measurement(generator):
    fine = torch.rand(2, 2, 16, 16, generator=generator)
    fine[0, :, 3, 3] = 30.0  # beyond six standard deviations
    scans = {"flair": CartesianMR(2, coils=4), "t1": CleanImage()}
    return Acquisition(SPACE, scans)({"flair": fine[:, :1], "t1": fine[:, 1:]}, ["a", "b"])


def test_each_slice_is_normalised_by_the_image_handed_in(minet, measurement):
    echo = Echo()
    back = measurement.back_projection()
    result = minet.MINetReconstructor(space=SPACE)(measurement, echo.train()).as_tensor()
    mean, std = back.mean((2, 3), keepdim=True), back.std((2, 3), keepdim=True)
    torch.testing.assert_close(echo.seen, ((back - mean) / std).clamp(-6, 6), rtol=1e-4, atol=1e-4)
    assert float(echo.seen.abs().max()) == 6.0
    torch.testing.assert_close(result[1], back[1], rtol=1e-4, atol=1e-4)


def test_training_sees_both_outputs_and_evaluation_the_clean_reference(minet, measurement):
    reconstructor, echo = minet.MINetReconstructor(space=SPACE), Echo()
    with torch.no_grad():
        echo.parameter.fill_(1.0)
    trained = reconstructor(measurement, echo.train())
    assert trained.requires_grad
    assert not torch.allclose(trained.as_tensor()[:, 1:], measurement.y["t1"])
    result = reconstructor(measurement, echo.eval())
    assert not result.requires_grad
    assert torch.equal(result.as_tensor()[:, 1:], measurement.y["t1"])
    assert torch.equal(result.as_tensor()[:, :1], trained.detach().as_tensor()[:, :1])


def test_says_what_it_cannot_take(minet, measurement):
    reconstructor = minet.MINetReconstructor(space=SPACE)
    with pytest.raises(ValueError, match="'t1': expected an operator of kind 'identity', got no measurement"):
        reconstructor(measurement.restrict(["flair"]), Echo())
    with pytest.raises(ValueError, match="network: expected"):
        reconstructor(measurement, None)
    with pytest.raises(ValueError, match="space: expected two modalities"):
        minet.MINetReconstructor(space=SPACE.select(["t1"]))
