"""Unconditional samples of a prior."""

import pytest
import torch

from multirecon.priors import DiffusionPrior, NoiseSchedule, Parametrisation, generate
from multirecon.space import ImageSpace

SPACE = ImageSpace(["t1"], (4, 4), (1.0, 1.0))
MEAN, STD = 0.2, 0.3


class Nothing(torch.nn.Module):
    """With the preconditioned form a network that answers zero is the exact denoiser of a Gaussian prior."""

    def forward(self, image, timestep=None):
        return torch.zeros_like(image)


def prior():
    form = Parametrisation("preconditioned", mean=[MEAN], std=[STD])
    return DiffusionPrior(SPACE, NoiseSchedule.cosine(num_timesteps=1000), parametrisation=form, clamp=None)


@pytest.mark.parametrize(("eta", "steps"), [(1.0, 1000), (0.0, 100)])
def test_samples_have_the_moments_of_a_gaussian_prior(eta, steps):
    samples = generate(prior(), Nothing(), 256, steps=steps, eta=eta, batch_size=256)
    values = prior().scaling(samples)
    # 4096 independent values: standard errors of mean and spread are 1.6 % and 1.1 % of the spread
    assert abs(float(values.mean()) - MEAN) < 0.06 * STD
    assert abs(float(values.std()) / STD - 1) < 0.05


def test_a_sample_depends_on_seed_and_number_alone():
    few = generate(prior(), Nothing(), 3, steps=5, batch_size=2, seed=7)
    many = generate(prior(), Nothing(), 5, steps=5, batch_size=5, seed=7)
    assert few.shape == (3, 1, 4, 4)
    assert torch.equal(few, many[:3])
    assert not torch.equal(few, generate(prior(), Nothing(), 3, steps=5, seed=8))


@pytest.mark.parametrize("name", ["count", "steps", "batch_size"])
def test_bad_settings(name):
    with pytest.raises(ValueError, match=name):
        generate(prior(), Nothing(), **{"count": 1, name: 0})
