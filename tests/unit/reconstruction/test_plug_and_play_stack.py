"""Plug-and-play ADMM on a stack of transmission scans: what theory promises, with denoisers that are resolvents."""

import csv

import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian, TransmissionPoisson
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Identity, ParallelBeam
from multirecon.reconstruction import StackPlugAndPlayADMM, Tuning
from multirecon.reconstruction.plug_and_play import plug_and_play
from multirecon.solvers.data_steps import DataStep, NewtonStep
from multirecon.solvers.em_engine import TorchEM
from multirecon.solvers.terms import DataTerm
from multirecon.space import ImageSpace

SHAPE = (8, 8)
SPACE = ImageSpace([{"name": n, "unit": "1/cm", "scale": 0.25} for n in ("low", "high")], SHAPE, (10.0, 10.0))
SCALES = [0.4, 0.2]


class Resolvent(torch.nn.Module):
    """``(Id + M)^-1`` of a monotone ``M`` that mixes pixels and channels and is no gradient: firmly nonexpansive."""

    def __init__(self, strength=0.3):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        n = 2 * SHAPE[0] * SHAPE[1]
        a, b = (torch.randn(n, n, generator=generator, dtype=torch.float64) for _ in range(2))
        matrix = torch.linalg.inv(torch.eye(n, dtype=torch.float64) + strength * (a @ a.T / n + 0.2 * (b - b.T)))
        self.matrix = torch.nn.Parameter(matrix, requires_grad=False)

    def forward(self, image, timestep=None):
        flat = (image.flatten(1).double() + 0.2) @ self.matrix.T
        return flat.reshape(image.shape).to(image.dtype)


def scan(names=("low", "high"), dtype=torch.float32, photons=300.0, batch=1):
    beam = ParallelBeam(SHAPE, (10.0, 10.0), views=16, bins=12, bin_spacing_mm=10.0).to(dtype)
    generator = torch.Generator().manual_seed(0)
    truth = 0.05 + 0.15 * torch.rand(batch, 2, *SHAPE, generator=generator).to(dtype)
    likelihoods = {n: TransmissionPoisson(photons) for n in names}
    y = {
        n: likelihoods[n].sample(beam(truth[:, k : k + 1]), generator) for k, n in enumerate(SPACE.names) if n in names
    }
    operators = dict.fromkeys(names, beam)
    return truth, Measurement(Blocks(y), BlockDiagonal(SPACE, operators), BlockLikelihood(likelihoods))


def method(**options):
    settings = {"iterations": 40, "inner_iterations": 200, "tolerance": 0.0, "inner_tolerance": 1e-6, **options}
    return StackPlugAndPlayADMM(space=SPACE, scales=SCALES, tuning=Tuning({"level": 0.1}), **settings)


def test_a_data_step_is_the_minimiser_over_non_negative_images():
    truth, measurement = scan()
    step = NewtonStep(DataTerm(measurement.operator, measurement.likelihood, measurement.y))
    assert isinstance(step, DataStep)
    assert not isinstance(TorchEM.__new__(TorchEM), DataStep)
    anchor = truth - 0.15
    rho = torch.full((1, 1, 1, 1), 1e5)
    x, count, kkt = step.proximal(anchor, rho, truth, iterations=60, tolerance=1e-5)
    assert float(kkt.max()) <= 1e-5
    assert count <= 60
    assert float(x.min()) >= 0
    assert bool((x == 0).any())

    def objective(image):
        return measurement.data_fidelity(image) + 0.5 * (rho * (image - anchor) ** 2).flatten(1).sum(1)

    for seed in range(5):
        move = 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        assert float(objective((x + move).clamp_min(0))) > float(objective(x))


def test_steps_of_w_never_grow_and_the_fixed_point_equation_holds():
    _, measurement = scan()
    reconstructor = method(iterations=120)
    reconstructor(measurement, Resolvent())
    (run,) = reconstructor.runs
    # relative to |w|, which settles at once; below the sum steps are rounding
    residuals = run.residuals[5:, 0]
    assert bool((residuals[1:] <= residuals[:-1] * 1.001 + 1e-6).all())
    assert float(run.residuals[-1]) < 1e-4
    assert float(run.error) < 1e-3
    assert len(run.inner) == 120
    assert max(run.inner) < 200


def test_the_limit_does_not_depend_on_the_start():
    _, measurement = scan()
    reconstructor, network = method(), Resolvent()
    step, start, rho = reconstructor.prepare(measurement)
    limits = [
        plug_and_play(step, network, begin, scale=torch.tensor([SCALES]), rho=rho, iterations=150).x
        for begin in (start, torch.full_like(start, 0.02), start.flip(2))
    ]
    for other in limits[1:]:
        assert float((other - limits[0]).norm() / limits[0].norm()) < 0.01


def test_an_expansive_denoiser_is_seen():
    """The negative control: with a map that stretches, the residual does not fall."""
    _, measurement = scan()

    def expansive(image):
        return 1.6 * image - 0.6 * image.roll(1, dims=3)

    good, bad = method(iterations=60), method(iterations=60)
    good(measurement, Resolvent())
    bad(measurement, _Wrapped(expansive))
    assert float(bad.runs[0].residuals[-1]) > 20 * float(good.runs[0].residuals[-1])


class _Wrapped(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, image, timestep=None):
        return self.function(image)


def test_channels_without_data_follow_the_denoiser_and_are_not_handed_out():
    _, measurement = scan(names=("low",))
    reconstructor = method()
    result = reconstructor(measurement, Resolvent()).as_tensor()
    assert float(result[:, 0].std()) > 0
    assert float(result[:, 1].abs().max()) == 0
    assert float(reconstructor.runs[0].x[:, 1].abs().max()) > 0


def test_clean_channels_stay_as_they_are_and_help():
    truth, measurement = scan(names=("low",))
    y = Blocks({"low": measurement.y["low"], "high": truth[:, 1:]})
    operator = BlockDiagonal(SPACE, {"low": measurement.operator["low"], "high": Identity((1, *SHAPE))})
    clean = Measurement(y, operator, BlockLikelihood({"low": measurement.likelihood["low"], "high": Gaussian(0.0)}))
    result = method()(clean, Resolvent()).as_tensor()
    assert torch.equal(result[:, 1:], truth[:, 1:])
    alone = method()(measurement, Resolvent()).as_tensor()
    assert float((result[:, 0] - alone[:, 0]).abs().max()) > 1e-5


def test_the_level_follows_the_counts():
    """``rho`` keeps the disturbance ``grad f / rho`` at the same size, whatever the dose."""
    rhos = [float(method().prepare(scan(photons=p)[1])[2]) for p in (300.0, 30000.0)]
    assert rhos[1] / rhos[0] == pytest.approx(10, rel=0.15)


def test_history_is_written_and_numbers_out_of_range_are_named(tmp_path):
    _, measurement = scan(batch=2)
    reconstructor = method(iterations=2, history=tmp_path / "runs.csv")
    assert reconstructor(measurement, Resolvent()).shape == (2, 2, *SHAPE)
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3
    assert rows[0]["block"] == "low+high"
    with pytest.raises(ValueError, match="scales: expected 2 numbers > 0"):
        StackPlugAndPlayADMM(space=SPACE, scales=[1.0], tuning=Tuning({"level": 0.1}))
    with pytest.raises(ValueError, match="iterations"):
        method(iterations=0)
    with pytest.raises(ValueError, match="network"):
        method()(measurement, None)
