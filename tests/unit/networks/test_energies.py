"""U-Nets of the energies: one branch an energy, shift of the input, differentiability in the input."""

import pytest
import torch

from multirecon.networks.energies import EnergyUNets


def test_branches_are_separate_and_selected():
    net = EnergyUNets(3, channels=[4, 6], strides=[1])
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        every, some = net(image), net.at(image, [2, 0])
        assert torch.equal(some, every[:, [2, 0]])
        for parameter in net.branches[1].parameters():
            parameter.zero_()
        # without weights a branch is the identity
        assert torch.equal(net(image)[:, 1:2], image)
        assert torch.equal(net(image)[:, ::2], every[:, ::2])


def test_local_and_smooth():
    """No normalisation over the image: what is far away does not change a pixel; a derivative exists everywhere."""
    net = EnergyUNets(1, channels=[4, 6, 8], strides=[1, 2]).double()
    image = torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = image.clone()
    other[..., 64:, 64:] += 1.0
    with torch.no_grad():
        assert torch.equal(net(image)[..., :16, :16], net(other)[..., :16, :16])
        assert not torch.equal(net(image), net(other))
    small = image[..., :8, :8].clone().requires_grad_()
    assert torch.autograd.gradcheck(net, (small,))


def test_refusal():
    with pytest.raises(ValueError, match="energies: expected >= 1, got 0"):
        EnergyUNets(0)
