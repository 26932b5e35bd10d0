"""PET reconstructors: what EM promises, seen through them; units, dimensions, guides and what they refuse."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from synthetic_head import FIELD_MM, fine_maps

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage, PETScan, block_mean
from multirecon.blocks import Blocks
from multirecon.bundle import load
from multirecon.likelihoods import BlockLikelihood, Gaussian, Poisson
from multirecon.measurement import Measurement
from multirecon.networks.classical import GaussianSmoothing, RegularisationWeight
from multirecon.operators import BlockDiagonal, Identity, PETProjector, PETProjector3D
from multirecon.reconstruction import Tuning
from multirecon.reconstruction.em import OSEM, PenalisedLikelihood, guide_image
from multirecon.solvers import mlem
from multirecon.space import ImageSpace, Modality

N, PIXEL = 32, 6.0
HEAD = 48
HEAD_SPACE = ImageSpace(["t1", Modality("pet_fdg", scale=0.6)], (HEAD, HEAD), (FIELD_MM / HEAD,) * 2)


def osem(*, subsets=6, **settings):
    return OSEM(tuning=Tuning({"iterations": 4, "fwhm_mm": 0.0, "smoothness": 60.0, **settings}), subsets=subsets)


def penalised(guidance="none", *, passes=10, **settings):
    parameters = {"weight": 0.5, "gamma": 2.0, "share": 0.5, "edge": 0.05, "smoothness": 60.0, **settings}
    return PenalisedLikelihood(tuning=Tuning(parameters), guidance=guidance, iterations=passes)


def disc(radius=0.6, shape=(N, N)):
    axes = [(torch.arange(n) - (n - 1) / 2) / (n / 2) for n in shape]
    inside = ((axes[0][:, None] ** 2 + axes[1][None] ** 2).sqrt() < radius).float()
    return inside[None, None]


def counted(operator, activity, *, unit=1.0, noise=None):
    """Measurement of an activity in kBq/mL (times `unit`) with a background as large as the mean of the trues."""
    trues = operator(unit * activity)
    likelihood = Poisson(trues.mean() * torch.ones(1, *operator.range_shape))
    expected = likelihood.mean(trues)
    y = expected if noise is None else torch.poisson(expected, generator=noise)
    shape = operator.domain_shape[1:]
    spacing = (PIXEL,) * len(shape)
    space = ImageSpace([Modality("pet_fdg", scale=5.0 * unit)], shape, spacing)
    return Measurement(
        Blocks({"pet_fdg": y}), BlockDiagonal(space, {"pet_fdg": operator}), BlockLikelihood({"pet_fdg": likelihood})
    )


def projector(efficiency=20.0, **options):
    mu = 0.096 * disc(0.7)[0, 0]
    return PETProjector((N, N), (PIXEL, PIXEL), views=36, bins=47, attenuation=mu, efficiency=efficiency, **options)


@cache
def scan(seed=0, *, clean=False, counts=20.0):
    """PET and T1 of the synthetic head, with a lesion that PET alone sees; measurement, truth and lesion's mask."""
    maps = fine_maps(2 * HEAD)
    place = (torch.arange(2 * HEAD) + 0.5) * FIELD_MM / (2 * HEAD) - FIELD_MM / 2
    spot = (((place[:, None] + 35) ** 2 + (place + 35) ** 2).sqrt() < 12)[None, None]
    pet = torch.where(spot, 1.6, maps["pet_fdg"])
    fine = {"t1": maps["t1"], "pet_fdg": pet, "attenuation": maps["attenuation"]}
    t1 = CleanImage() if clean else CartesianMR(2, sigma=0.01)
    scans = {"t1": t1, "pet_fdg": PETScan(counts, views=60, attenuation="known")}
    m = Acquisition(HEAD_SPACE, scans, key=f"em-{seed}", oversample=2)(fine, ["head"])
    return m, block_mean(pet, 2), block_mean(spot.float(), 2) > 0.99


def rmse(image, truth):
    return float((image - truth).square().mean().sqrt())


def pet_of(measurement, reconstructor, network=None):
    return reconstructor(measurement, network)[:, 1:].as_tensor()


def test_likelihood_rises_with_every_iteration_of_one_subset(generator):
    m = counted(projector(2.0), 5 * disc(), noise=generator)
    seen = []
    osem(subsets=1, iterations=12)(m, callback=lambda k, x: seen.append((k, float(m.data_fidelity(x)))))
    assert [k for k, _ in seen] == list(range(1, 13))
    values = [v for _, v in seen]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(values))
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("reconstructor", [osem(iterations=12), penalised(weight=0.02)], ids=["osem", "penalised"])
@pytest.mark.parametrize("tof", [False, True], ids=["plain", "tof"])
def test_activity_of_a_disc_is_recovered_in_its_unit(reconstructor, tof):
    options = {"tof_bins": 9, "tof_spacing_mm": 30.0, "tof_fwhm_mm": 60.0} if tof else {"psf_fwhm_mm": 6.0}
    m = counted(projector(**options), 5 * disc())
    image = reconstructor(m).as_tensor()
    assert image[disc(0.45) == 1].mean().item() == pytest.approx(5.0, rel=0.01)
    assert image[disc(0.8) == 0].mean().item() < 0.05


@pytest.mark.parametrize("reconstructor", [osem(fwhm_mm=8.0), penalised()], ids=["osem", "penalised"])
def test_settings_do_not_depend_on_the_unit(reconstructor):
    small, large = (
        counted(projector(20.0 / unit), 5 * disc(), unit=unit, noise=torch.Generator().manual_seed(1))
        for unit in (1.0, 1000.0)
    )
    assert torch.equal(small.y["pet_fdg"], large.y["pet_fdg"])
    torch.testing.assert_close(reconstructor(large) / 1000, reconstructor(small), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reconstructor", [osem(iterations=12), penalised(weight=0.02)], ids=["osem", "penalised"])
def test_volumes_of_oblique_planes(reconstructor):
    shape = (24, 24, 4)
    operator = PETProjector3D(shape, (PIXEL,) * 3, views=24, bins=35, rings=4, ring_spacing_mm=PIXEL, radius_mm=300.0,
                              efficiency=20.0)  # fmt: skip
    activity = 5 * disc(shape=(24, 24))[..., None].expand(1, 1, *shape)
    image = reconstructor(counted(operator, activity)).as_tensor()
    assert image.shape == (1, 1, *shape)
    inside = (disc(0.4, (24, 24)) == 1)[..., None].expand_as(image)
    assert image[inside].mean().item() == pytest.approx(5.0, rel=0.02)


def test_width_of_the_filter_is_in_mm_whatever_the_voxel():
    """The second moment of a filtered point, in mm^2, on three grids; one of them a volume with thick slices."""
    for spacing in ((2.0, 2.0), (4.0, 4.0), (2.0, 2.0, 4.0)):
        point = torch.zeros(1, 1, *[41] * len(spacing))
        point[(0, 0, *[20] * len(spacing))] = 1.0
        image = GaussianSmoothing(1.0, radius=15).smooth(point, [10.0 / h for h in spacing])[0, 0].detach()
        assert float(image.sum()) == pytest.approx(1.0, abs=1e-5)
        for axis, h in enumerate(spacing):
            profile = image.movedim(axis, 0).flatten(1).sum(1)
            variance = float((profile * (h * (torch.arange(41.0) - 20)) ** 2).sum())
            assert 2.3548 * variance**0.5 == pytest.approx(10.0, rel=0.01)


def test_network_is_a_factor_of_the_settings(generator):
    m = counted(projector(1.0), 5 * disc(), noise=generator)
    pairs = (
        (osem(fwhm_mm=6.0), osem(fwhm_mm=12.0), GaussianSmoothing(2.0)),
        (penalised(weight=0.2), penalised(weight=0.8), RegularisationWeight(4.0)),
    )
    for plain, scaled, network in pairs:
        torch.testing.assert_close(plain(m, network.eval()), scaled(m), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(plain(m), scaled(m), rtol=1e-2)


def test_penalised_likelihood_is_converged(generator):
    """Ten passes are within 5 % of sixty, at 3 counts a bin, and a higher weight gives a smoother disc."""
    m = counted(projector(1.0), 5 * disc(), noise=generator)
    few, many = (penalised(passes=passes)(m).as_tensor() for passes in (10, 60))
    assert float((few - many).norm() / many.norm()) < 0.05
    rough, smooth = (penalised(weight=w)(m).as_tensor()[disc(0.45) == 1].std() for w in (0.05, 5.0))
    assert smooth < 0.2 * rough


@cache
def best(guidance, clean):
    """Error and contrast of the PET-only lesion over its true contrast: mean of two scans, at the better weight."""
    trials = []
    for weight in (0.6, 1.8):
        errors, contrasts = [], []
        for seed in range(2):
            m, truth, spot = scan(seed, clean=clean)
            image = pet_of(m, penalised(guidance, weight=weight))
            errors.append(rmse(image, truth))
            contrasts.append((float(image[spot].mean()) - 0.8) / (1.6 - 0.8))
        trials.append((sum(errors) / 2, sum(contrasts) / 2))
    return min(trials)


@pytest.mark.parametrize("clean", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["clean", "measured"])
@pytest.mark.parametrize("guidance", ["bowsher", "level_sets"])
def test_guide_helps_and_does_not_erase_what_it_does_not_show(guidance, clean):
    """The T1 shows every edge but that of one hot spot of 24 mm, which keeps at least 85 % of its contrast without."""
    (plain, without), (guided, contrast) = best("none", clean), best(guidance, clean)
    assert guided < 0.95 * plain
    assert contrast > max(0.4, 0.85 * without)


def test_bundles_beat_mlem_that_nobody_tuned():
    """Fifty iterations, no filter: what the equation alone gives."""
    m, truth, _ = scan(counts=5.0)
    noisy = mlem(m.operator["pet_fdg"], m.likelihood["pet_fdg"], m.y["pet_fdg"], iterations=50)
    for name in ("osem_pet", "map_pet"):
        workflow = load(name, device="$torch.device('cpu')")
        image = pet_of(m, workflow.inferer, workflow.parser.get_parsed_content("network").eval())
        assert rmse(image, truth) < 0.7 * rmse(noisy, truth)


def test_guide_is_the_first_that_is_named_and_clean_before_measured():
    image = torch.rand(1, 1, 8, 8)
    space = ImageSpace(["ct", "t1", "pet_fdg"], (8, 8), (PIXEL, PIXEL))
    operators = {n: Identity((1, 8, 8)) for n in ("ct", "t1")}
    y = Blocks(dict.fromkeys(operators, image))
    both = Measurement(y, BlockDiagonal(space, operators), BlockLikelihood({n: Gaussian(0.0) for n in operators}))
    others = {"ct": torch.zeros(1, 1, 8, 8), "t1": image}
    assert guide_image(both, others, penalised("bowsher").guides).max() == 1
    assert guide_image(both.restrict(["ct"]), others, penalised("bowsher").guides).max() == 0


def test_refusals_name_the_block_and_what_is_wrong():
    m = counted(projector(), 5 * disc())
    assert osem().capability.refusals(m, ["pet_fdg"]) == []
    assert "guide" in penalised("bowsher").capability.refusals(m)[0]
    gaussian = Measurement(m.y, m.operator, BlockLikelihood({"pet_fdg": Gaussian(1.0)}))
    assert "'poisson'" in osem().capability.refusals(gaussian)[0]
    space = ImageSpace(["t1"], (8, 8), (PIXEL, PIXEL))
    clean = Measurement(Blocks({"t1": torch.ones(1, 1, 8, 8)}), BlockDiagonal(space, {"t1": Identity((1, 8, 8))}),
                        BlockLikelihood({"t1": Gaussian(0.0)}))  # fmt: skip
    with pytest.raises(ValueError, match="at least one with an operator of"):
        osem()(clean)
    lacking = Tuning({"weight": 1.0, "smoothness": 60.0})
    for make in (
        lambda: PenalisedLikelihood(tuning=lacking),
        lambda: osem(subsets=0),
        lambda: penalised("photograph"),
        lambda: penalised(passes=0),
    ):
        with pytest.raises(ValueError, match="expected"):
            make()
    with pytest.raises(ValueError, match="network: expected GaussianSmoothing"):
        osem()(m, RegularisationWeight())
