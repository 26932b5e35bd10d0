"""Joint reconstruction with one latent a patch: what the alternating minimisation and its ADMM variant promise."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from synthetic_head import FIELD_MM, fine_maps

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage, ParallelCT, PETScan
from multirecon.likelihoods import gaussian_approximation
from multirecon.networks.vae import MultiBranchVAE, SeparateVAE
from multirecon.priors import IntensityScaling
from multirecon.priors.patches import PatchGrid
from multirecon.reconstruction import Tuning
from multirecon.reconstruction.latent import LatentADMM, LatentReconstruction
from multirecon.solvers import mlem, separable_surrogate
from multirecon.space import ImageSpace, Modality

N = 32
TINY = {"patch": 16, "channels": (4, 8), "dense": 16, "latent": 6}
SPACES = {
    "ct": ImageSpace(
        [Modality("ct", unit="1/cm", scale=0.2), Modality("pet_fdg", scale=0.6)], (N, N), (FIELD_MM / N,) * 2
    ),
    "t1": ImageSpace(["t1", Modality("pet_fdg", scale=0.6)], (N, N), (FIELD_MM / N,) * 2),
}
KNOTS = {"ct": [[-1000.0, -1.0], [1000.0, 1.0]]}


@cache
def scan(guide="ct", *, kind="measured", counts=20.0):
    """PET beside CT or T1 of the synthetic head; the guide is measured, a clean image, or not measured."""
    maps = fine_maps(2 * N)
    measured = {"ct": ParallelCT(24, photons=1e4), "t1": CartesianMR(2, sigma=0.02)}[guide]
    scans = {"pet_fdg": PETScan(counts, views=24, attenuation="known")}
    if kind != "missing":
        scans = {guide: CleanImage() if kind == "clean" else measured, **scans}
    acquisition = Acquisition(SPACES[guide], scans, key="latent", oversample=2)
    return acquisition({n: maps[n] for n in (guide, "pet_fdg", "attenuation")}, ["head"])


def scaling(guide):
    return IntensityScaling(SPACES[guide], knots=KNOTS if guide == "ct" else None)


def method(guide="ct", *, weight=30.0, balance=1.0, cls=LatentReconstruction, **options):
    settings = {"outer": 4, "inner": 2, "latent_iterations": 3, "first_latent_iterations": 6, "stride": 8,
                **options}  # fmt: skip
    tuning = Tuning({"weight": weight, "balance": balance})
    return cls(SPACES[guide], scaling=scaling(guide), tuning=tuning, **settings)


def network(**options):
    torch.manual_seed(0)
    return MultiBranchVAE(**{**TINY, **options}).eval()


def run(reconstructor, measurement, net, **options):
    return reconstructor(measurement, net, **options).as_tensor()


@pytest.mark.parametrize(("guide", "accelerate"), [("ct", True), ("ct", False), ("t1", True)])
@pytest.mark.parametrize("kind", [MultiBranchVAE, SeparateVAE])
def test_objective_never_rises(guide, accelerate, kind):
    """Checklist 4: it is logged before the first and after every iteration."""
    torch.manual_seed(0)
    log = []
    run(method(guide, accelerate=accelerate, outer=6, observer=log.append, balance=0.7), scan(guide), kind(**TINY))
    values = [float(entry["objective"]) for entry in log]
    assert len(values) == 7
    assert all(b <= a + 1e-7 * abs(a) for a, b in pairwise(values)), values
    assert values[-1] < 0.95 * values[0]


def test_objective_is_the_stated_cost():
    """The observer's number, computed again from image and latents by the formula."""
    m, net, log = scan(), network(), []
    run(method(observer=log.append, weight=7.0, balance=0.5, alpha=2.0, outer=2), m, net)
    last, grid = log[-1], PatchGrid((N, N), patch=16, stride=8)
    x, z = last["image"], last["latents"]
    d, noise = gaussian_approximation(m.likelihood["ct"], m.y["ct"])
    data = noise.nll(m.operator["ct"](x[:, :1]), d) + m.likelihood["pet_fdg"].nll(
        m.operator["pet_fdg"](x[:, 1:]), m.y["pet_fdg"]
    )
    decoded = net.decode(z[0])
    distance = 7.0 / 2 * (decoded - grid.extract(scaling("ct")(x))[0]).square().sum()
    expected = 0.5 * (data + distance / 4) + 2.0 / 4 * 0.5 * z.square().sum()
    assert float(last["objective"]) == pytest.approx(expected.item(), rel=1e-5)
    assert float(last["data"]) == pytest.approx(0.5 * data.item(), rel=1e-5)


def test_without_a_weight_the_steps_are_mlem_and_weighted_least_squares():
    """Checklist 4: beta = 0."""
    m = scan()
    plain = method(weight=0.0, outer=5, inner=3, accelerate=False, tolerance=0.0)
    result = run(plain, m, network())
    start = plain.start(m, plain.blocks(m))
    em = mlem(m.operator["pet_fdg"], m.likelihood["pet_fdg"], m.y["pet_fdg"], x0=start[:, 1:], iterations=15)
    torch.testing.assert_close(result[:, 1:], em, rtol=1e-5, atol=1e-6)
    d, noise = gaussian_approximation(m.likelihood["ct"], m.y["ct"])
    wls = separable_surrogate(m.operator["ct"], noise, d, x0=start[:, :1], iterations=15)
    torch.testing.assert_close(result[:, :1], wls, rtol=1e-5, atol=1e-7)


def test_pet_step_is_the_closed_form():
    """Checklist 3: e = x A^T (y / ybar) with attenuation and background, q = v - s / rho, the positive root."""
    m = scan()
    one = method(inner=1)
    block = next(b for b in one.blocks(m) if b.name == "pet_fdg")
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.rand(1, 1, N, N, generator=generator) + 0.1 for _ in range(2))
    rho = 50.0 * (1 + torch.rand(N, N, generator=generator))
    A, y, likelihood = m.operator["pet_fdg"], m.y["pet_fdg"], m.likelihood["pet_fdg"]
    assert float(likelihood.background.min()) > 0
    e = x * A.adjoint(y / (A(x) + likelihood.background))
    q = v - A.adjoint(torch.ones_like(y)) / rho
    expected = (q + (q**2 + 4 * e / rho).sqrt()) / 2
    torch.testing.assert_close(one.image_step(block, x, v, rho), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_large_weight_gives_the_projected_decoder_output(accelerate):
    m, net, log = scan(), network(), []
    run(method(weight=1e9, observer=log.append, accelerate=accelerate, outer=3), m, net)
    grid = PatchGrid((N, N), patch=16, stride=8)
    decoded = grid.aggregate(net.decode(log[-1]["latents"].flatten(0, 1))[None].detach())
    made = scaling("ct").inverse(decoded).clamp_min(0)
    torch.testing.assert_close(log[-1]["image"], made, rtol=1e-3, atol=1e-4)


def test_the_penalty_is_a_distance_to_the_range_minimised_over_the_latent():
    """Checklist 2: more latent steps bring the decoder closer to the images, and images follow the decoder."""
    m, net = scan(), network()
    penalties = []
    for steps in (0, 3, 30):
        log = []
        run(method(outer=1, first_latent_iterations=steps, observer=log.append), m, net)
        penalties.append(float(log[-1]["penalty"]))
    assert penalties[0] > penalties[1] > penalties[2]


def test_gradient_of_the_latent_step():
    m, net = scan(), network().double()
    one = method()
    blocks = one.blocks(m)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    patches = torch.randn(3, 2, 16, 16, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: one._misfit(net, blocks, v, patches, 4.0), (z,))


@pytest.mark.parametrize("cls", [LatentReconstruction, LatentADMM])
def test_a_clean_modality_stays_and_speaks_through_the_latent(cls):
    m, net = scan(kind="clean"), network()
    result = run(method(cls=cls), m, net)
    assert torch.equal(result[:, :1], m.y["ct"])
    deaf = method(cls=cls)
    blocks = deaf.blocks

    def without_guide(measurement):
        found = blocks(measurement)
        found[0].weight = 0.0
        return found

    deaf.blocks = without_guide
    assert not torch.allclose(run(deaf, m, net)[:, 1:], result[:, 1:], atol=1e-4)


@pytest.mark.parametrize("net", [{}, {"fusion": "poe"}, {"fusion": "mmjsd"}])
def test_a_missing_modality_comes_out_of_the_latent(net):
    """Checklist 8: eta = 0 for CT; its image is what the latents of the PET patches decode to."""
    m, vae, log = scan(kind="missing"), network(**net), []
    result = run(method(observer=log.append), m, vae)
    grid = PatchGrid((N, N), patch=16, stride=8)
    decoded = grid.aggregate(vae.decode(log[-1]["latents"].flatten(0, 1))[None].detach())
    torch.testing.assert_close(log[-1]["image"][:, :1], scaling("ct").inverse(decoded)[:, :1])
    assert result.shape == (1, 2, N, N)
    assert float(result[:, :1].std()) > 0


def test_random_origins_come_from_the_generator():
    m, net = scan(), network()
    one, same, other = (
        run(method(random_origin=True, outer=2), m, net, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_images_are_not_negative_and_repeatable():
    m, net = scan(), network()
    one, two = run(method(), m, net), run(method(), m, net)
    assert torch.equal(one, two)
    assert (one >= 0).all()


def test_iteration_stops_when_the_image_rests():
    log = []
    run(method(tolerance=0.5, outer=9, observer=log.append), scan(), network())
    assert log[-1]["iteration"] < 9
    assert float(log[-1]["change"]) < 0.5


def test_admm_brings_images_and_decoder_together():
    log = []
    result = run(method(cls=LatentADMM, outer=20, inner=3, weight=1e5, observer=log.append), scan(),
                 network())  # fmt: skip
    residuals = [float(entry["residual"]) for entry in log]
    assert residuals[-1] < 0.5 * max(residuals)
    assert torch.isfinite(result).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="affine map of every modality"):
        LatentReconstruction(
            SPACES["ct"], scaling=IntensityScaling(SPACES["ct"]), tuning=Tuning({"weight": 1, "balance": 1})
        )
    with pytest.raises(ValueError, match="expected a patch autoencoder"):
        method()(scan(), torch.nn.Identity())
    with pytest.raises(ValueError, match="stride, outer"):
        method(outer=0)
    with pytest.raises(ValueError, match="latent_start"):
        method(latent_start="zeros")
