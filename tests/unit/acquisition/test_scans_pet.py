import pytest
import torch
from synthetic_head import fine_maps, pearson

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage, InverseCrime, ParallelCT, PETScan, block_mean
from multirecon.acquisition.attenuation import attenuation_from_ct, class_map, least_squares_image
from multirecon.acquisition.base import ScanResult
from multirecon.likelihoods import Poisson
from multirecon.operators import PETProjector
from multirecon.space import ImageSpace, Modality

SPACE = ImageSpace(["t1", Modality("ct", unit="1/cm", scale=0.2), "pet_fdg"], (48, 48), (5.0, 5.0))
FINE = fine_maps(96)
TRUTH = block_mean(torch.cat([FINE[n] for n in SPACE.names], 1), 2)
MU = block_mean(FINE["attenuation"], 2)
HEAD = MU > 0.03
SHARED = {"views": 36, "efficiency_spread": 0.0}


def measure(scan, **others):
    return Acquisition(SPACE, {**others, "pet_fdg": scan}, key="t", oversample=2)(FINE, ["a"])


def ideal(**settings):
    """A scan whose only mismatch is the grid, unless a setting adds one."""
    return PETScan(**{"counts": 1e4, **SHARED, "model_psf_fwhm_mm": 5.0, "background_error": 0.0, **settings})


def test_trues_and_background_are_what_was_asked():
    scan = PETScan(50.0, views=60, scatter_fraction=0.4, randoms_fraction=0.2)
    measurement = measure(scan)
    y, b = measurement.y["pet_fdg"], measurement.likelihood["pet_fdg"].background
    assert isinstance(measurement.operator["pet_fdg"], PETProjector)
    assert isinstance(measurement.likelihood["pet_fdg"], Poisson)
    assert torch.equal(y, y.round())
    pixels = int((TRUTH[:, 2] > 0.01 * FINE["pet_fdg"].max()).sum())
    trues = 50.0 * pixels
    assert float(y.sum()) == pytest.approx(1.6 * trues, abs=5 * (1.6 * trues) ** 0.5)
    assert float(b.sum()) == pytest.approx(0.6 * trues, rel=0.05)
    # the model predicts the trues, too: scan time and calibration are known
    assert float(measurement.operator["pet_fdg"](TRUTH[:, 2:]).sum()) == pytest.approx(trues, rel=0.02)


def test_background_is_smooth_and_no_scaled_copy_of_the_trues():
    exact = measure(ideal(counts=10.0))
    trues = exact.operator["pet_fdg"](TRUTH[:, 2:])
    background = exact.likelihood["pet_fdg"].background
    inside = trues > 0.2 * trues.max()
    ratio = (background / trues)[inside]
    assert float(ratio.max() / ratio.min()) > 2
    assert float(background.diff(dim=-1).abs().max() / background.max()) < 0.1
    assert float(background.min()) > 0  # randoms are everywhere
    near = measure(ideal(counts=10.0, background_error=0.1))
    assert torch.equal(near.y["pet_fdg"], exact.y["pet_fdg"])
    error = torch.log(near.likelihood["pet_fdg"].background / background)
    assert float(error.square().mean().sqrt()) == pytest.approx(0.1, rel=1e-3)


def test_truth_explains_the_data_where_the_model_is_exact():
    value, count = pearson(measure(InverseCrime(PETScan(10.0, views=60))), TRUTH, "pet_fdg")
    assert abs(value - 1) < 6 * (2.5 / count) ** 0.5


@pytest.mark.parametrize(
    "mismatch",
    [{"model_psf_fwhm_mm": 0.0}, {"background_error": 0.1}, {"attenuation": "t1"}],
    ids=lambda m: next(iter(m)),
)
def test_every_stated_mismatch_shows(mismatch):
    base = pearson(measure(ideal(), t1=CleanImage()), TRUTH, "pet_fdg")[0]
    assert pearson(measure(ideal(**mismatch), t1=CleanImage()), TRUTH, "pet_fdg")[0] > 1.2 * base


def test_known_attenuation_is_the_true_map_of_the_methods_grid():
    assert torch.allclose(measure(ideal()).operator["pet_fdg"].attenuation, MU)


def test_attenuation_from_the_measured_ct():
    measured = measure(PETScan(5.0, attenuation="ct", **SHARED), ct=ParallelCT(60, photons=1e5))
    clean = measure(PETScan(5.0, attenuation="ct", **SHARED), ct=CleanImage())
    for measurement, bound in ((measured, 0.08), (clean, 0.08)):
        mu = measurement.operator["pet_fdg"].attenuation
        error = (mu - MU)[HEAD].abs().mean() / MU[HEAD].mean()
        assert 1e-4 < float(error) < bound
        assert abs(float(mu.sum() / MU.sum()) - 1) < 0.03
    assert not torch.equal(measured.operator["pet_fdg"].attenuation, clean.operator["pet_fdg"].attenuation)
    # noise of the CT reaches the map: it is not the truth that is used
    noisy = measure(PETScan(5.0, attenuation="ct", **SHARED), ct=ParallelCT(60, photons=3e2))
    worse = (noisy.operator["pet_fdg"].attenuation - MU)[HEAD].abs().mean()
    assert worse > 1.3 * (measured.operator["pet_fdg"].attenuation - MU)[HEAD].abs().mean()


def test_attenuation_from_mr_has_three_classes_and_the_head():
    scan = CartesianMR(3, center_lines=24, maps="estimated")
    mu = measure(PETScan(5.0, attenuation="t1", **SHARED), t1=scan).operator["pet_fdg"].attenuation
    assert 2 <= len(mu.unique()) <= 3
    overlap = ((mu > 0) & HEAD).sum() / ((mu > 0) | HEAD).sum()
    assert float(overlap) > 0.9
    assert abs(float(mu.sum() / MU.sum()) - 1) < 0.1


def test_class_map_finds_the_skull_under_the_scalp():
    fine = fine_maps(128)
    mu = class_map(fine["t1"], spacing_mm=(1.875, 1.875))
    true = fine["attenuation"]
    skull = true > 0.11
    assert float((mu[skull] > 0.11).float().mean()) > 0.6
    brain = torch.zeros_like(skull)
    brain[..., 44:84, 44:84] = True
    assert float((mu[brain] > 0.11).float().mean()) == 0
    assert float(mu[..., :8, :].max()) == 0


def test_class_map_does_not_depend_on_the_scale_of_the_image():
    t1 = fine_maps(64)["t1"]
    assert torch.equal(class_map(t1, spacing_mm=(3.75, 3.75)), class_map(250 * t1, spacing_mm=(3.75, 3.75)))


def test_bilinear_conversion_of_a_clean_ct():
    flat = torch.full((1, 1, 16, 16), 0.1929)
    mu = attenuation_from_ct(flat, spacing_mm=(5.0, 5.0), fwhm_mm=0.0)
    assert torch.allclose(mu, torch.full_like(mu, 0.096))
    below = attenuation_from_ct(-0.01 * torch.ones(1, 1, 4, 4), spacing_mm=(5.0, 5.0))
    assert float(below.abs().max()) < 1e-8


def test_least_squares_image_solves_a_well_posed_problem():
    measurement = Acquisition(SPACE, {"t1": CartesianMR(1, sigma=1e-4)}, key="t", oversample=2)(FINE, ["a"])
    part = ScanResult(measurement.y["t1"], measurement.operator["t1"], measurement.likelihood["t1"])
    image = least_squares_image(part, iterations=10)
    assert float((image - TRUTH[:, :1]).norm() / TRUTH[:, :1].norm()) < 0.1


def test_what_is_lacking_is_named():
    with pytest.raises(ValueError, match="attenuation: expected 'known' or a modality scanned before 'pet_fdg'"):
        measure(PETScan(5.0, attenuation="ct", **SHARED))
    without = {n: t for n, t in FINE.items() if n != "attenuation"}
    with pytest.raises(ValueError, match="attenuation: expected the true 511 keV map"):
        Acquisition(SPACE, {"pet_fdg": ideal()}, oversample=2)(without, ["a"])
    with pytest.raises(ValueError, match="expected some activity"):
        Acquisition(SPACE, {"pet_fdg": ideal()}, oversample=2)(
            {**FINE, "pet_fdg": torch.zeros_like(FINE["pet_fdg"])}, ["a"]
        )
    with pytest.raises(ValueError, match="counts, views"):
        PETScan(0.0)
    with pytest.raises(ValueError, match="psf_fwhm_mm"):
        PETScan(5.0, psf_fwhm_mm=-1.0)
    hu = ImageSpace(["t1", Modality("ct", unit="HU"), "pet_fdg"], (48, 48), (5.0, 5.0))
    scans = {"ct": CleanImage(), "pet_fdg": ideal(attenuation="ct")}
    with pytest.raises(ValueError, match="expected CT images in 1/cm, got 'HU'"):
        Acquisition(hu, scans, oversample=2)(FINE, ["a"])


def test_batch_equals_its_samples():
    fine = {n: torch.cat([t, 0.5 * t]) for n, t in FINE.items()}
    acquisition = Acquisition(SPACE, {"pet_fdg": PETScan(5.0, views=20)}, key="t", oversample=2)
    both = acquisition(fine, ["a", "b"])
    one = acquisition({n: t[1:] for n, t in fine.items()}, ["b"])
    assert both.samples(1, 2).fingerprint() == one.fingerprint()
    x = torch.rand(2, 3, 48, 48)
    assert torch.allclose(both.data_fidelity(x)[1:], one.data_fidelity(x[1:]), rtol=1e-4)
