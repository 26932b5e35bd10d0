"""Plug-and-play ADMM: what theory promises for a firmly nonexpansive denoiser, on small Poisson problems."""

import csv

import pytest
import torch
from unit.solvers.dense import Dense, nonnegative

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian, Poisson
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Identity, PETProjector, PETProjector3D
from multirecon.reconstruction import PlugAndPlayADMM, Tuning
from multirecon.reconstruction.plug_and_play import (
    fixed_point_error,
    gradient_noise,
    mean_activity,
    plug_and_play,
    slicewise,
)
from multirecon.solvers import admm
from multirecon.solvers.data_steps import NewtonStep
from multirecon.solvers.em_engine import TorchEM, anchored_em
from multirecon.solvers.terms import DataTerm
from multirecon.space import ImageSpace, Modality

SHAPE, DATA = (1, 4, 4), (1, 8, 6)
PIXELS = 16
RHO = torch.tensor([1.5, 1.5], dtype=torch.float64)
SCALE = torch.tensor([2.0, 2.5], dtype=torch.float64)


@pytest.fixture(scope="module")
def scan():
    """Two small Poisson scans in float64."""
    operator = Dense(nonnegative(48, PIXELS), SHAPE, DATA)
    generator = torch.Generator().manual_seed(1)
    truth = 2 + 2 * torch.rand(2, *SHAPE, generator=generator, dtype=torch.float64)
    likelihood = Poisson(0.5 * torch.ones(1, *DATA, dtype=torch.float64))
    return operator, likelihood, likelihood.sample(operator(truth), generator)


def resolvent(strength=0.05):
    """``D = (Id + M)^-1`` of a monotone ``M`` that is no gradient: firmly nonexpansive, and no proximal map."""
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(PIXELS, PIXELS, generator=generator, dtype=torch.float64) for _ in range(2))
    inverse = torch.linalg.inv(torch.eye(PIXELS, dtype=torch.float64) + strength * (a @ a.T / PIXELS + (b - b.T)))

    def denoise(x):
        return ((x.flatten(1) + 0.2) @ inverse.T).reshape(x.shape)

    return denoise


def run(scan, denoiser=None, start=None, engine=None, **options):
    begin = torch.ones(2, *SHAPE, dtype=torch.float64) if start is None else start
    settings = {"iterations": 80, "inner_iterations": 150, "inner_tolerance": 1e-10, **options}
    return plug_and_play(engine or TorchEM(*scan), denoiser or resolvent(), begin, scale=SCALE, rho=RHO, **settings)


def test_data_step_is_solved_to_the_stated_tolerance(scan):
    engine = TorchEM(*scan)
    anchor = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rho = RHO.reshape(-1, 1, 1, 1)
    found = {}
    for tolerance in (1e-3, 1e-6, 1e-10):
        x, count, residual = anchored_em(engine, anchor=anchor, rho=rho, x0=torch.ones_like(anchor), iterations=10**4,
                                         tolerance=tolerance)  # fmt: skip
        found[tolerance] = x, count
        assert float(residual.max()) <= tolerance
        operator, likelihood, y = scan
        gradient = operator.adjoint(likelihood.grad(operator(x), y)) + rho * (x - anchor)
        stationary = torch.linalg.vector_norm((x - (x - gradient / rho).clamp_min(0)).flatten(1), dim=1)
        assert float((stationary / torch.linalg.vector_norm(x.flatten(1), dim=1)).max()) <= tolerance * (1 + 1e-6)
    assert found[1e-3][1] < found[1e-6][1] < found[1e-10][1]
    assert float((found[1e-6][0] - found[1e-10][0]).abs().max()) < 1e-4


def test_residual_of_w_never_grows_and_vanishes(scan):
    """Absolute residuals of 500 iterations, sample by sample, from the first one on."""
    arguments, denoise = [], resolvent()

    def watched(x):
        arguments.append(x)
        return denoise(x)

    result = run(scan, watched, iterations=500)
    ws = torch.stack(arguments[:501]) * SCALE.reshape(-1, 1, 1, 1)
    steps = torch.linalg.vector_norm((ws[1:] - ws[:-1]).flatten(2), dim=2)
    sizes = torch.linalg.vector_norm(ws[1:].flatten(2), dim=2)
    torch.testing.assert_close(steps / sizes, result.residuals, rtol=1e-5, atol=1e-12)
    significant = steps[:-1] > 1e-8  # below it rounding and the tolerance of the data step show
    assert bool((steps[1:] <= steps[:-1] * (1 + 1e-6))[significant].all())
    assert int(significant.sum()) > 30
    assert float(result.residuals[-1].max()) < 1e-8


def test_fixed_point_equation_holds_at_the_end(scan):
    result = run(scan)
    assert float(result.error.max()) < 1e-7
    assert bool((result.x >= 0).all())
    # and does not at an image that is no solution
    other = fixed_point_error(TorchEM(*scan), resolvent(), 1.3 * result.x, w=1.3 * result.w, scale=SCALE, rho=RHO)
    assert float(other.min()) > 1e-2


def test_every_start_leads_to_the_same_image(scan):
    generator = torch.Generator().manual_seed(4)
    starts = [10 * torch.ones(2, *SHAPE, dtype=torch.float64),
              3 * torch.rand(2, *SHAPE, generator=generator, dtype=torch.float64)]  # fmt: skip
    expected = run(scan).x
    for start in starts:
        torch.testing.assert_close(run(scan, start=start).x, expected, rtol=1e-6, atol=1e-7)


def test_a_denoiser_that_expands_does_not_converge(scan):
    """The negative control in miniature: ``|J_Q| > 1`` and the residual stalls."""
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(PIXELS, PIXELS, generator=generator, dtype=torch.float64)

    def rotate(x):  # D = (Id + N) / 2 with an N that stretches by 2
        flat = x.flatten(1)
        return (0.5 * flat + flat @ torch.linalg.qr(a).Q).reshape(x.shape)

    assert float(run(scan, rotate, iterations=80).residuals[-1].max()) > 1e-3


def test_it_is_admm(scan):
    """Same images as the generic solver with the same data step: the dual variable is there."""
    operator, likelihood, y = scan
    denoise, engine = resolvent(), TorchEM(*scan)
    strength = (RHO / SCALE**2).reshape(-1, 1, 1, 1)
    c = SCALE.reshape(-1, 1, 1, 1)

    def data_step(anchor, warm):
        return anchored_em(engine, anchor=anchor, rho=strength, x0=warm.clamp_min(1e-9), iterations=150,
                           tolerance=1e-10)[0]  # fmt: skip

    start = torch.ones(2, *SHAPE, dtype=torch.float64)
    # u = w - v belongs to w = start: so that the first step is the same, begin behind the first prior step
    v = c * denoise(start / c)
    generic = admm(operator, likelihood, y, lambda x, _: c * denoise(x / c), rho=RHO, iterations=7, tolerance=-1.0,
                   start=_state(v, start), data_step=data_step)  # fmt: skip
    ours = run(scan, start=start, iterations=7)
    torch.testing.assert_close(ours.x, generic.data_x, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ours.w - c * denoise(ours.w / c), generic.u, rtol=1e-6, atol=1e-8)


def _state(v, start):
    from multirecon.solvers import ADMMResult

    nothing = torch.full((2,), torch.inf, dtype=torch.float64)
    return ADMMResult(v, start, start - v, nothing, nothing, 0)


def test_stops_at_the_tolerance(scan):
    result = run(scan, tolerance=1e-4)
    assert float(result.residuals[-1].max()) <= 1e-4 < float(result.residuals[-2].max())
    assert len(result.residuals) == len(result.inner) < 80


def test_noise_of_the_gradient_is_estimated_without_the_truth():
    operator = PETProjector((16, 16), (5.0, 5.0), views=12, bins=24, efficiency=3.0)
    image = torch.zeros(1, 1, 16, 16)
    image[..., 4:12, 5:11] = 1.0
    likelihood = Poisson(torch.full((1, 1, 12, 24), 3.0))
    draws = [likelihood.sample(operator(image), torch.Generator().manual_seed(k)) for k in range(300)]
    slopes = torch.cat([operator.adjoint(likelihood.grad(operator(image), y)) for y in draws])
    expected = float(slopes[:, image[0] > 0].square().mean().sqrt())
    got = gradient_noise(DataTerm(operator, likelihood, draws[0]), image, probes=64)
    assert float(got) == pytest.approx(expected, rel=0.1)


def test_scale_is_the_mean_of_what_emits():
    image = torch.zeros(2, 1, 4, 4)
    image[0, 0, 1:3, 1:3] = 2.0
    image[1, 0, 0, 0], image[1, 0, 3, 3] = 5.0, 0.04
    assert mean_activity(image).tolist() == [2.0, 5.0]


class Shrink(torch.nn.Module):
    """Firmly nonexpansive: half the identity, half a mean of neighbours."""

    def forward(self, image, timestep=None):
        return 0.5 * image + 0.5 * torch.nn.functional.avg_pool2d(image, 3, 1, 1)


def emission(shape, operator, unit=1.0):
    activity = torch.zeros(2, 1, *shape)
    activity[:, :, 4:12, 5:11] = 2.0
    activity[1, :, 6:9] *= 1.5
    likelihood = Poisson(torch.full((1, *operator.range_shape), 2.0))
    y = likelihood.sample(operator(unit * activity), torch.Generator().manual_seed(0))
    space = ImageSpace([Modality("pet_fdg", scale=2.0)], shape, (5.0,) * len(shape))
    blocks = BlockDiagonal(space, {"pet_fdg": operator})
    return Measurement(Blocks({"pet_fdg": y}), blocks, BlockLikelihood({"pet_fdg": likelihood}))


def reconstructor(settings=None, **options):
    tuning = Tuning({"level": 0.2, "gain": 1.0, **(settings or {}), "smoothness": 60.0})
    return PlugAndPlayADMM(tuning=tuning, iterations=6, inner_iterations=4, **options)


def test_reconstructor_reports_runs_and_writes_their_history(tmp_path):
    m = emission((16, 16), PETProjector((16, 16), (5.0, 5.0), views=12, bins=24, efficiency=3.0))
    method = reconstructor(history=tmp_path / "run" / "history.csv")
    seen = []
    image = method(m, Shrink(), callback=lambda k, x: seen.append(k))
    assert seen == list(range(1, 7))
    assert method.runs["pet_fdg"].residuals.shape == (6, 2)
    torch.testing.assert_close(image.as_tensor(), method.runs["pet_fdg"].x)
    with (tmp_path / "run" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 7
    assert [float(r["fixed_point_error"]) for r in rows if r["fixed_point_error"]] == pytest.approx(
        method.runs["pet_fdg"].error.tolist(), rel=1e-5
    )


def test_newton_and_expectation_maximisation_lead_to_the_same_image(scan):
    """Whoever does the data step: same images, residuals and fixed-point error."""
    theirs, ours = run(scan), run(scan, engine=NewtonStep(DataTerm(*scan)))
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-6, atol=1e-7)
    assert float(ours.error.max()) < 1e-7
    assert float(ours.kkt.max()) <= 1e-10
    assert sum(ours.inner) < sum(theirs.inner) / 2


def test_tolerance_of_the_data_step_falls_so_that_errors_can_be_summed(scan):
    asked = []

    class Watched(NewtonStep):
        def proximal(self, anchor, rho, x0, *, iterations, tolerance):
            asked.append(tolerance)
            return super().proximal(anchor, rho, x0, iterations=iterations, tolerance=tolerance)

    run(scan, engine=Watched(DataTerm(*scan)), iterations=30, inner_tolerance=1e-5)
    assert asked[:10] == [1e-5] * 10
    assert asked[29] == pytest.approx(1e-5 / 3**1.1)


def test_gain_is_the_unit_in_which_the_denoiser_sees_the_image():
    """``D(g x) / g``, and the same weight of the data: a denoiser of degree one does not notice."""
    m = emission((16, 16), PETProjector((16, 16), (5.0, 5.0), views=12, bins=24, efficiency=3.0))
    one = reconstructor({"gain": 1.0})(m, Shrink())
    torch.testing.assert_close(reconstructor({"gain": 2.5})(m, Shrink()), one, rtol=1e-4, atol=1e-5)
    seen = []

    class Watched(Shrink):
        def forward(self, image, timestep=None):
            seen.append(float(mean_activity(image)[0]))
            return super().forward(image)

    reconstructor({"gain": 2.5})(m, Watched())
    assert seen[0] == pytest.approx(2.5, rel=1e-4)


class Beside(torch.nn.Module):
    """A mean of image and smoothed guide: firmly nonexpansive in the image, for every guide."""

    def forward(self, image, timestep=None):
        x, guide = image.chunk(2, dim=1)
        return 0.5 * x + 0.5 * torch.nn.functional.avg_pool2d(guide, 3, 1, 1)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3)])
def test_a_guide_is_seen_and_not_reconstructed(shape):
    if len(shape) == 2:
        pet = PETProjector(shape, (5.0, 5.0), views=12, bins=24, efficiency=3.0)
    else:
        pet = PETProjector3D(shape, (5.0,) * 3, views=12, bins=24, rings=3, ring_spacing_mm=5.0, radius_mm=200.0,
                             efficiency=3.0)  # fmt: skip
    m = emission(shape, pet)
    space = ImageSpace(["t1", Modality("pet_fdg", scale=2.0)], shape, (5.0,) * len(shape))
    guide = torch.zeros(2, 1, *shape)
    guide[:, :, 4:12, 5:11] = 0.7
    beside = Measurement(
        Blocks({"t1": guide, "pet_fdg": m.y["pet_fdg"]}),
        BlockDiagonal(space, {"t1": Identity((1, *shape)), "pet_fdg": pet}),
        BlockLikelihood({"t1": Gaussian(0.0), "pet_fdg": m.likelihood["pet_fdg"]}),
    )
    method = reconstructor(guides=["t1"])
    image = method(beside, Beside())
    assert image.shape == (2, 2, *shape)
    torch.testing.assert_close(image[:, :1].as_tensor(), guide)
    assert float(method.runs["pet_fdg"].residuals[-1].max()) < float(method.runs["pet_fdg"].residuals[0].min())
    with pytest.raises(ValueError, match=r"guide: expected one of \['t1'\], got \['pet_fdg'\]"):
        method(m, Beside())


def test_unit_of_the_activity_does_not_matter():
    one, other = (emission((16, 16), PETProjector((16, 16), (5.0, 5.0), views=12, bins=24, efficiency=3.0 / u), unit=u)
                  for u in (1.0, 1000.0))  # fmt: skip
    torch.testing.assert_close(reconstructor()(other, Shrink()) / 1000, reconstructor()(one, Shrink()), rtol=1e-3,
                               atol=1e-4)  # fmt: skip


def test_volumes_are_denoised_slice_by_slice():
    operator = PETProjector3D((16, 16, 3), (5.0,) * 3, views=12, bins=24, rings=3, ring_spacing_mm=5.0, radius_mm=200.0,
                              efficiency=3.0)  # fmt: skip
    image = reconstructor()(emission((16, 16, 3), operator), Shrink())
    assert image.shape == (2, 1, 16, 16, 3)
    assert float(image.max()) > 1.0


def test_in_three_dimensions_the_guarantee_holds_slice_by_slice():
    """One iteration on the oblique likelihood of the volume: slice-wise ``D`` is as firmly nonexpansive as ``D``."""
    shape = (12, 12, 4)
    operator = PETProjector3D(shape, (5.0,) * 3, views=10, bins=18, rings=4, ring_spacing_mm=5.0, radius_mm=200.0,
                              max_difference=3, efficiency=3.0)  # fmt: skip
    m = emission(shape, operator)
    volumes = torch.randn(2, 2, 1, *shape, generator=torch.Generator().manual_seed(0))
    image, moved = (slicewise(Shrink())(v) for v in volumes)
    difference, change = (volumes[1] - volumes[0]).flatten(1), (moved - image).flatten(1)
    assert bool((change.square().sum(1) <= (change * difference).sum(1) * (1 + 1e-5)).all())
    method = PlugAndPlayADMM(tuning=Tuning({"level": 0.2, "gain": 1.0, "smoothness": 60.0}), iterations=60,
                             inner_iterations=200, inner_tolerance=1e-6)  # fmt: skip
    method(m, Shrink())
    run = method.runs["pet_fdg"]
    steps = run.residuals
    assert bool(((steps[1:] <= steps[:-1] * 1.001) | (steps[1:] < 1e-5)).all())
    assert float(steps[-1].max()) < 1e-4
    assert float(run.error.max()) < 1e-3
    assert run.worst_kkt <= 1e-5


def test_what_it_cannot_do_is_said():
    m = emission((16, 16), PETProjector((16, 16), (5.0, 5.0), views=12, bins=24))
    with pytest.raises(ValueError, match="network: expected the bundle's denoiser"):
        reconstructor()(m, None)
    with pytest.raises(ValueError, match="warm_start, inner_tolerance"):
        reconstructor(warm_start=0)
