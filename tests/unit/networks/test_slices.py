"""A two-dimensional network on volumes."""

import torch

from multirecon.networks.slices import SliceNetwork
from multirecon.networks.unet import UNet


def test_every_slice_is_one_image(generator):
    torch.manual_seed(0)
    flat = UNet(2, 2, out_channels=2, channels=[8, 8], norm_num_groups=4, middle_attention=False).eval()
    for parameter in flat.parameters():  # blocks that start at zero would hide the time
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    volume = torch.randn(2, 2, 8, 8, 3, generator=generator)
    time = torch.tensor([10.0, 700.0])
    out = SliceNetwork(flat)(volume, time)
    for b in range(2):
        for k in range(3):
            expected = flat(volume[b : b + 1, ..., k], time[b : b + 1])
            torch.testing.assert_close(out[b : b + 1, ..., k], expected, rtol=1e-4, atol=1e-5)
    zero = SliceNetwork(flat)(volume)
    torch.testing.assert_close(zero, SliceNetwork(flat)(volume, torch.zeros(())))
    assert not torch.allclose(zero, out)


def test_it_scripts(generator):
    flat = UNet(2, 1, out_channels=1, channels=[8, 8], norm_num_groups=4, middle_attention=False).eval()
    torch.nn.init.normal_(flat.head.weight, std=0.1)
    net = SliceNetwork(flat)
    volume = torch.randn(1, 1, 8, 8, 2, generator=generator)
    torch.testing.assert_close(torch.jit.script(net)(volume, torch.ones(1)), net(volume, torch.ones(1)))
