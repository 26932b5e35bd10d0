"""A prior under deepinv's samplers: the conversion of range and noise level, and agreement with our own sampler."""

import pytest
import torch
from deepinv.optim import L2
from deepinv.sampling import DiffPIR

from multirecon.interop.deepinv import as_physics
from multirecon.interop.deepinv_prior import PriorDenoiser
from multirecon.operators import Identity
from multirecon.priors import DiffusionPrior, NoiseSchedule, Parametrisation
from multirecon.space import ImageSpace

SHAPE = (8, 8)
MEAN, STD = (0.1, -0.2), (0.5, 0.3)


class Zero(torch.nn.Module):
    """With preconditioning the answer 0 is the posterior mean under independent Gaussian pixels."""

    def forward(self, image, timestep=None):
        return torch.zeros_like(image)


def prior():
    kind = Parametrisation("preconditioned", mean=MEAN, std=STD)
    return DiffusionPrior(
        ImageSpace(["t1", "flair"], SHAPE, (1.0, 1.0)), NoiseSchedule.cosine(), parametrisation=kind, clamp=None
    )


@pytest.mark.parametrize("level", [0.2, torch.tensor(0.2), torch.tensor([0.2, 0.2]), torch.full((2, 1, 1, 1), 0.2)])
def test_it_is_the_posterior_mean_in_the_range_of_deepinv(level):
    x = torch.rand(2, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    found = PriorDenoiser(prior(), Zero())(x, level)
    for channel, (m, d) in enumerate(zip(MEAN, STD, strict=True)):
        mean, std = (1 + m) / 2, d / 2  # in [0, 1]
        shrink = std**2 / (std**2 + 0.2**2)
        torch.testing.assert_close(found[:, channel], mean + shrink * (x[:, channel] - mean))


def test_deepinv_restores_with_it():
    truth = torch.full((1, 2, *SHAPE), 0.6)
    physics = as_physics(Identity((2, *SHAPE)))
    generator = torch.Generator().manual_seed(1)
    y = physics.A(truth) + 0.05 * torch.randn(1, 2 * 64, generator=generator)
    torch.manual_seed(0)
    x = DiffPIR(PriorDenoiser(prior(), Zero()), L2(), sigma=0.05, max_iter=20)(y, physics)
    assert (x - truth).square().mean().sqrt() < 0.12  # a sample of the prior is 0.2 away


def test_gradient_flows_through_it():
    x = torch.rand(1, 2, *SHAPE).requires_grad_()
    PriorDenoiser(prior(), Zero())(x, 0.3).sum().backward()
    assert x.grad is not None
    assert bool((x.grad > 0).all())
