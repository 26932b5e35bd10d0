import pytest
import torch

from multirecon.networks.unet import Attention, ResidualBlock, UNet, timestep_embedding, unet_configuration

PUBLISHED = {
    "large": 552_816_389,
    "base": 138_291_077,
    "slim": 93_565_061,
    "gpu128": 105_199_749,
    "mid128": 26_004_805,
    "cpu": 3_706_725,
}
SMALL = {
    "out_channels": 3,
    "channels": (16, 32),
    "num_res_blocks": (1, 2),
    "norm_num_groups": 8,
    "num_head_channels": 16,
}
VARIANTS = {
    "published": {"attention_levels": (False, True)},
    "added skips": {"skip": "add", "scale_shift": False, "middle_attention": False},
    "convolutions between levels": {"resblock_updown": False, "attention_levels": (True, False)},
    "three dimensions": {"spatial_dims": 3, "attention_levels": (False, True)},
}


def small(seed=0, **changes):
    """A small network whose zero-started layers are filled, so that every path counts."""
    torch.manual_seed(seed)
    net = UNet(**{"spatial_dims": 2, "in_channels": 2, **SMALL, **changes}).eval()
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def image_for(net, batch=2, size=8):
    dims = 3 if isinstance(net.stem, torch.nn.Conv3d) else 2
    return torch.randn(batch, 2, *[size] * dims, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts(name, count):
    with torch.device("meta"):
        net = UNet(**unet_configuration(name))
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("name", ["cpu", "mid128"])
def test_untrained_network_returns_zero(name):
    net = UNet(**unet_configuration(name))
    assert torch.equal(net(torch.randn(1, 5, 32, 32), torch.tensor([5.0])), torch.zeros(1, 5, 32, 32))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_scripted_equals_eager(variant):
    net = small(**variant)
    scripted = torch.jit.script(net)
    image, time = image_for(net), torch.tensor([3.5, 800.0])
    assert net(image, time).std() > 0.01
    torch.testing.assert_close(scripted(image, time), net(image, time), rtol=0, atol=1e-6)
    torch.testing.assert_close(scripted(image), net(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_matters_and_gets_a_gradient(variant):
    net = small(**variant)
    net(image_for(net), torch.tensor([3.0, 400.0])).square().sum().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_time_is_per_sample_and_none_is_zero():
    net = small()
    image = image_for(net)
    both = net(image, torch.tensor([10.0, 500.0]))
    torch.testing.assert_close(both[:1], net(image[:1], torch.tensor([10.0])), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both[1:], net(image[1:], torch.tensor([500.0])), rtol=1e-5, atol=1e-6)
    assert (net(image, torch.tensor(10.0)) - net(image, torch.tensor(500.0))).abs().max() > 1e-3
    torch.testing.assert_close(net(image), net(image, torch.zeros(2)))


def test_bfloat16_autocast_is_close_and_trains():
    net = small(attention_levels=(False, True))
    image, time = image_for(net), torch.tensor([3.0, 400.0])
    exact = net(image, time)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(image, time)
    assert mixed.dtype == torch.bfloat16
    assert (mixed.float() - exact).norm() / exact.norm() < 0.05
    mixed.float().sum().backward()
    assert torch.isfinite(net.stem.weight.grad).all()


def test_channels_last_gives_the_same():
    net = small()
    image = image_for(net)
    expected = net(image, torch.tensor([3.0, 4.0])).detach()
    got = net.to(memory_format=torch.channels_last)(image, torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_learns_to_map_noise_to_a_fixed_image():
    torch.manual_seed(0)
    net = UNet(2, 1, **{**SMALL, "out_channels": 1})
    target = torch.rand(1, 1, 8, 8)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = (net(torch.randn(4, 1, 8, 8), torch.rand(4) * 999) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_attention_equals_the_formula():
    torch.manual_seed(0)
    layer = Attention(8, head_channels=4, norm_num_groups=2)
    for parameter in layer.parameters():
        parameter.data = torch.randn_like(parameter)
    image = torch.randn(1, 8, 2, 3)
    qkv = layer.qkv(layer.norm(image).flatten(2))[0]
    heads = []
    for head in range(2):
        q, k, v = (qkv[part * 8 + head * 4 :][:4] for part in range(3))
        weights = torch.softmax((q * 4**-0.25).T @ (k * 4**-0.25), dim=-1)
        heads.append(v @ weights.T)
    expected = image + layer.project(torch.cat(heads)[None]).reshape(image.shape)
    torch.testing.assert_close(layer(image), expected)


def test_residual_block_starts_as_its_skip_path():
    block = ResidualBlock(2, 8, out_channels=8, embedding_channels=4, norm_num_groups=2, resample="down")
    image = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(block(image, torch.randn(1, 4)), torch.nn.functional.avg_pool2d(image, 2))


def test_scale_shift_formula():
    torch.manual_seed(0)
    block = ResidualBlock(2, 8, out_channels=8, embedding_channels=4, norm_num_groups=2)
    block.conv2.weight.data.normal_()
    image, embedding = torch.randn(1, 8, 4, 4), torch.randn(1, 4)
    silu = torch.nn.functional.silu
    scale, shift = block.embedding(silu(embedding))[..., None, None].chunk(2, dim=1)
    hidden = block.norm2(block.conv1(silu(block.norm1(image)))) * (1 + scale) + shift
    torch.testing.assert_close(block(image, embedding), image + block.conv2(silu(hidden)))


def test_timestep_embedding():
    values = timestep_embedding(torch.tensor([0.0, 2.0]), 4)
    expected = torch.tensor([[1, 1, 0, 0], [torch.cos(torch.tensor(2.0)), 0, 0, 0]])
    expected[1, 1], expected[1, 2], expected[1, 3] = (
        torch.cos(torch.tensor(0.02)),
        torch.sin(torch.tensor(2.0)),
        torch.sin(torch.tensor(0.02)),
    )
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"spatial_dims": 4}, "spatial_dims"),
        ({"num_res_blocks": (1, 2, 3)}, "num_res_blocks"),
        ({"channels": (12, 32)}, "channels"),
        ({"skip": "both"}, "skip"),
        ({"num_head_channels": 5}, "num_head_channels"),
    ],
)
def test_wrong_arguments_are_named(changes, name):
    with pytest.raises(ValueError, match=name):
        UNet(**{"spatial_dims": 2, "in_channels": 2, **SMALL, **changes})


def test_image_of_wrong_size_and_unknown_configuration():
    with pytest.raises(ValueError, match="divisible by 2"):
        small()(torch.zeros(1, 2, 7, 8))
    with pytest.raises(ValueError, match="name"):
        unet_configuration("huge")
