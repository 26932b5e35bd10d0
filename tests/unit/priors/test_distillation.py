"""Consistency distillation: what a student is taught is the end of the teacher's trajectory."""

import pytest
import torch
from torch import nn

from multirecon.priors import DiffusionPrior, HaarDomain, NoiseSchedule, Parametrisation
from multirecon.priors.distillation import PrepareConsistency, frozen_copy
from multirecon.space import ImageSpace

SHAPE, MEAN, STD = (8, 8), -0.3, 0.4
SPACE = ImageSpace(["t1"], SHAPE, (1.0, 1.0))


def prior_of(domain=None, kind="preconditioned"):
    bands = 1 if domain is None else 4
    # a constant mean has one band: the lowest, whose gain the domain takes back
    given = {"mean": [MEAN] + [0.0] * (bands - 1), "std": [STD / 2 if bands > 1 else STD] + [STD] * (bands - 1)}
    made = Parametrisation(kind, **(given if kind == "preconditioned" else {}))
    return DiffusionPrior(SPACE, NoiseSchedule.cosine(1000), domain=domain, clamp=None, parametrisation=made)


class Zero(nn.Module):
    """For a Gaussian prior of mean m and standard deviation d the preconditioned zero is the exact posterior mean."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.grads = []

    def forward(self, image, timestep=None):
        self.grads.append(torch.is_grad_enabled())
        return self.weight * image


class Flow(Zero):
    """The end of the probability flow of that prior: m + (z - m) d / sqrt(d^2 + s^2)."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, image, timestep=None):
        sigma = self.prior.schedule.sigma(timestep.double()).to(image)
        gain = self.prior.domain.gain(4).to(image)
        noise = (sigma[:, None] * gain[None])[..., None, None]
        d = self.prior.parametrisation.std.to(image)[None, :, None, None]
        total = (noise**2 + d**2).sqrt()
        # D = m + total * image * (d / total) wanted; D = m + (d/total)^2 total image + (noise d / total) F
        return super().forward(image) + (d - d**2 / total) * image * total / (noise * d)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return {"image": (MEAN + STD * torch.randn(16, 1, *SHAPE, generator=generator) + 1) / 2}


@pytest.mark.parametrize("domain", [None, HaarDomain()], ids=["pixels", "haar"])
def test_the_end_of_the_trajectory_is_what_a_student_is_taught_to_keep(batch, domain):
    """The exact flow is a fixed point, the better the finer the teacher's steps; the posterior mean is none."""
    prior, errors = prior_of(domain), {}
    for intervals in (20, 200):
        student = Flow(prior)
        prepare = PrepareConsistency(prior, teacher=Zero(), student=student, intervals=intervals, units="unit")
        image, target, (time,), _ = prepare(batch)
        errors[intervals] = float((student(image, time) - target).detach().abs().mean())
    # 200 instead of 20 steps: a tenth of the error of a first-order step, and each step is a tenth of the way
    assert errors[200] < errors[20] / 20, errors
    assert errors[200] < 2e-3
    prepare = PrepareConsistency(prior, teacher=Zero(), student=Zero(), intervals=200, units="unit")
    _, target, _, _ = prepare(batch)
    assert float(target.abs().mean()) > 5 * errors[200]


def test_a_student_learns_the_flow():
    """Trained from the teacher, a student of one number a level comes close to the closed form everywhere."""
    prior, intervals = prior_of(), 8
    levels = prior.schedule.sigma(prior.schedule.kept_steps(intervals + 1).double())

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.zeros(intervals + 1))

        def forward(self, image, timestep=None):
            return self.slope[(timestep / 999 * intervals).round().long()][:, None, None, None] * image

    student = Table()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    prepare = PrepareConsistency(prior, teacher=Zero(), student=student, intervals=intervals, units="unit")
    generator = torch.Generator().manual_seed(1)
    for step in range(400):
        prepare.step = step
        data = {"image": (MEAN + STD * torch.randn(32, 1, *SHAPE, generator=generator) + 1) / 2}
        image, target, (time,), _ = prepare(data)
        optimizer.zero_grad()
        (student(image, time) - target).square().mean().backward()
        optimizer.step()
    # the teacher's own trajectory: products of its DDIM steps from each level to the lowest
    slope, steps = 1.0, [1.0]
    for low, high in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        shrink = STD**2 / (STD**2 + high**2)
        slope = slope * (shrink + low / high * (1 - shrink))
        steps.append(slope)
    lowest = STD**2 / (STD**2 + float(levels[0]) ** 2)
    z = torch.ones(1, 1, *SHAPE)
    for level, slope in list(zip(levels.tolist(), steps, strict=True))[1:]:
        said = prior.denoiser(student)(MEAN + level * z, level)
        assert float((said - MEAN).detach().mean()) == pytest.approx(lowest * slope * level, rel=0.05), level


def test_targets_carry_no_gradient_and_the_student_stays_as_it_was(batch):
    prior = prior_of()
    teacher, student = Zero(), Zero().train()
    image, target, (time,), _ = PrepareConsistency(prior, teacher=teacher, student=student, units="unit")(batch)
    assert not target.requires_grad
    assert not any(teacher.grads + student.grads)
    assert student.training
    assert image.shape == target.shape == (16, 1, *SHAPE)
    assert time.shape == (16,)
    # upper ends of the 24 intervals, one drawn in each of 16 equal parts: neighbours may share one, no part is left out
    assert len(time.round().unique()) >= 12
    assert time.min() > 0


def test_noise_follows_the_step(batch):
    prepare = PrepareConsistency(prior_of(), teacher=Zero(), student=Zero(), units="unit")
    first = prepare(batch)[0]
    assert torch.equal(prepare(batch)[0], first)
    prepare.step = 1
    assert not torch.equal(prepare(batch)[0], first)


def test_frozen_copy_is_one():
    network = nn.Linear(2, 2)
    state = {name: torch.ones_like(value) for name, value in network.state_dict().items()}
    before = network.weight.clone()
    copy = frozen_copy(network, state)
    assert torch.equal(network.weight, before)
    assert torch.equal(copy.weight, torch.ones(2, 2))
    assert not copy.training
    assert not any(p.requires_grad for p in copy.parameters())
    with pytest.raises(RuntimeError, match="bias"):
        frozen_copy(network, {"weight": torch.ones(2, 2)})


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="intervals"):
        PrepareConsistency(prior_of(), teacher=Zero(), student=Zero(), intervals=1)
    with pytest.raises(ValueError, match="preconditioned"):
        PrepareConsistency(prior_of(kind="epsilon"), teacher=Zero(), student=Zero())
