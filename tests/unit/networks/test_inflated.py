"""A network of slices made into one of volumes."""

import pytest
import torch

from multirecon.networks.inflated import InflatedUNet, SliceMixing
from multirecon.networks.slices import SliceNetwork
from multirecon.networks.unet import UNet

SIZE = {"channels": [8, 16], "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 8}
FORMS = [{"skip": "add", "resblock_updown": False}, {"skip": "concat", "resblock_updown": True}]


def drawn(net, generator):
    for parameter in net.parameters():  # blocks that start at zero would hide the rest
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return net.eval()


@pytest.mark.parametrize("form", FORMS, ids=["add", "concat"])
def test_with_the_weights_of_slices_it_is_that_network_on_every_slice(form, generator):
    flat = drawn(SliceNetwork(UNet(2, 2, out_channels=2, **SIZE, **form)), generator)
    net = drawn(InflatedUNet(2, out_channels=2, **SIZE, **form), generator)
    volume, time = torch.randn(2, 2, 8, 8, 5, generator=generator), torch.tensor([10.0, 700.0])
    assert not torch.allclose(net(volume, time), flat(volume, time), atol=1e-2)
    net.load_state_dict(flat.state_dict())
    torch.testing.assert_close(net(volume, time), flat(volume, time), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(volume), flat(volume), rtol=1e-4, atol=1e-5)


def test_its_own_weights_come_back_and_others_are_refused(generator):
    first, second = (drawn(InflatedUNet(1, out_channels=1, **SIZE), generator) for _ in range(2))
    second.load_state_dict(first.state_dict())
    volume = torch.randn(1, 1, 8, 8, 3, generator=generator)
    assert torch.equal(first(volume), second(volume))
    other = SliceNetwork(UNet(2, 1, out_channels=1, **{**SIZE, "channels": [8, 24]}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        second.load_state_dict(other.state_dict())


def test_a_slice_sees_its_neighbours_and_no_other_volume(generator):
    net = drawn(InflatedUNet(1, out_channels=1, **SIZE), generator)
    volume = torch.randn(2, 1, 8, 8, 5, generator=generator)
    changed = volume.clone()
    changed[1, ..., 2] += 1.0
    before, after = net(volume), net(changed)
    assert torch.equal(before[0], after[0])
    assert (before[1, ..., 1] - after[1, ..., 1]).abs().max() > 1e-3


def test_mixing_is_a_convolution_across_slices(generator):
    mixing = SliceMixing(4, 8, norm_num_groups=4)
    slices, embedding = torch.randn(6, 4, 3, 3, generator=generator), torch.randn(2, 8, generator=generator)
    assert torch.equal(mixing(slices, embedding), slices)
    torch.nn.init.dirac_(mixing.conv.weight[:, :, :, 0].data)
    normed = mixing.norm(slices.unflatten(0, (2, 3)).transpose(1, 2))
    scale, shift = mixing.embedding(torch.nn.functional.silu(embedding))[:, :, None, None, None].chunk(2, 1)
    expected = torch.nn.functional.silu(normed * (1 + scale) + shift).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(mixing(slices, embedding) - slices, expected)


@pytest.mark.parametrize("form", FORMS, ids=["add", "concat"])
def test_it_scripts(form, generator):
    net = drawn(InflatedUNet(1, out_channels=1, **SIZE, **form), generator)
    volume = torch.randn(1, 1, 8, 8, 3, generator=generator)
    torch.testing.assert_close(torch.jit.script(net)(volume, torch.ones(1)), net(volume, torch.ones(1)))


def test_a_plane_of_odd_size_is_refused():
    with pytest.raises(ValueError, match="divisible by 2"):
        InflatedUNet(1, out_channels=1, **SIZE)(torch.zeros(1, 1, 7, 8, 3))
