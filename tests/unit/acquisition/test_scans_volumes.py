"""Scans of volumes: closed forms, agreement with the 2D scans, noise and what the model does not know."""

import pytest
import torch
from synthetic_head import fine_maps, pearson

from multirecon.acquisition import Acquisition, CleanImage, InverseCrime, ParallelCT, PETScan, PETScan3D, StackedCT
from multirecon.acquisition.base import block_mean
from multirecon.acquisition.volumes import _planes, _rings
from multirecon.operators import PETProjector3D
from multirecon.space import ImageSpace, Modality

SIZE, DEPTH, SPACING = 24, 5, 10.0
MODALITIES = [Modality("ct", unit="1/cm"), "pet_fdg"]
SPACE = ImageSpace(MODALITIES, (SIZE, SIZE, DEPTH), (SPACING,) * 3)
PLANE = ImageSpace(MODALITIES, (SIZE, SIZE), (SPACING,) * 2)
FLAT = {name: fine_maps(2 * SIZE)[name] for name in ("ct", "pet_fdg", "attenuation")}


def volume(images, shift=0):
    """The 2D maps repeated along the axis, each fine slice moved by `shift` pixels beside the one below."""
    return {n: torch.stack([x.roll(shift * k, -1) for k in range(2 * DEPTH)], -1) for n, x in images.items()}


STRAIGHT, SLANTED = volume(FLAT), volume(FLAT, 1)
QUIET = {"scatter_fraction": 0.0, "randoms_fraction": 0.0, "background_error": 0.0, "efficiency_spread": 0.0}
SCANNER = {"radius_mm": 300.0, "max_difference": 2, "views": 20}


def measure(scans, fine=SLANTED, space=SPACE, key="t"):
    return Acquisition(space, scans, key=key, oversample=2)(fine, ["a"])


def truth(fine=SLANTED):
    return torch.cat([block_mean(fine[n], 2) for n in ("ct", "pet_fdg")], dim=1)


def test_direct_planes_of_an_even_cylinder_are_the_2d_scan():
    quiet = {**QUIET, "counts": 1e6, "psf_fwhm_mm": 0.0, "model_psf_fwhm_mm": 0.0}
    solid = measure({"pet_fdg": PETScan3D(**quiet, **{**SCANNER, "max_difference": 0})}, STRAIGHT)
    flat = measure({"pet_fdg": PETScan(**quiet, views=20)}, FLAT, PLANE)
    shape = lambda y: y / y.sum()  # noqa: E731
    assert solid.y["pet_fdg"].shape == (1, 1, DEPTH, 20, flat.y["pet_fdg"].shape[-1])
    for k in range(DEPTH):
        # a crystal averages pairs of its halves: half of them are oblique by one fine ring, far less than a bin
        difference = shape(solid.y["pet_fdg"][:, :, k]) - shape(flat.y["pet_fdg"])
        assert float(difference.abs().sum()) < 5e-3
    expected = flat.operator["pet_fdg"].attenuation
    assert torch.allclose(solid.operator["pet_fdg"].attenuation, expected[..., None].expand(-1, -1, -1, -1, DEPTH))


def test_planes_are_those_of_the_operator():
    for rings, last in ((5, 0), (5, 2), (5, 4), (1, 0)):
        shape, spacing = (8, 8, rings), (4.0, 4.0, 5.0)
        scanner = {"rings": rings, "ring_spacing_mm": 5.0, "radius_mm": 80.0, "max_difference": last}
        assert PETProjector3D(shape, spacing, views=4, bins=12, **scanner).planes == _planes(rings, last)
        assert _rings(len(_planes(rings, last)), last) == rings


def test_every_plane_sees_what_its_model_says_and_not_what_its_mirror_image_does():
    steep = volume(FLAT, 2)
    narrow = {"radius_mm": 175.0, "max_difference": 4, "views": 20}
    settings = {**QUIET, "psf_fwhm_mm": 12.0, "model_psf_fwhm_mm": 12.0}
    measurement = measure({"pet_fdg": PETScan3D(1e6, **settings, **narrow)}, steep)
    with torch.no_grad():
        mean = measurement.operator["pet_fdg"](truth(steep)[:, 1:])[0, 0]
    y, pairs = measurement.y["pet_fdg"][0, 0], _planes(DEPTH, 4)
    distance = lambda a: (a - mean).flatten(1).norm(dim=1) / mean.flatten(1).norm(dim=1)  # noqa: E731
    error, swapped = distance(y), distance(y[[pairs.index((high, low)) for low, high in pairs]])
    assert float(error.max()) < 0.1  # the coarse grid
    oblique = [i for i, (low, high) in enumerate(pairs) if abs(low - high) > 2]
    assert bool((swapped[oblique] > 2 * error[oblique]).all())


def test_counts_are_those_asked_for():
    scan = PETScan3D(8.0, **SCANNER)
    y = measure({"pet_fdg": scan}).y["pet_fdg"]
    emitting = block_mean(SLANTED["pet_fdg"], 2) > 0.01 * SLANTED["pet_fdg"].max()
    expected = 8.0 * float(emitting.sum()) * 1.6
    assert abs(float(y.sum()) - expected) < 5 * expected**0.5
    assert torch.equal(y, y.round())


def test_data_of_the_model_scatter_as_its_likelihood_says():
    for name, scan in (("pet_fdg", PETScan3D(10.0, **SCANNER)), ("ct", StackedCT(ParallelCT(30, photons=1e4)))):
        value, count = pearson(measure({name: InverseCrime(scan)}), truth(), name)
        assert abs(value - 1) < 6 * (2.5 / count) ** 0.5


@pytest.mark.parametrize(
    "mismatch", [{"model_psf_fwhm_mm": 0.0}, {"background_error": 0.3}], ids=lambda m: next(iter(m))
)
def test_every_stated_mismatch_shows(mismatch):
    settings = {
        **QUIET,
        "scatter_fraction": 0.3,
        "randoms_fraction": 0.3,
        "psf_fwhm_mm": 12.0,
        "model_psf_fwhm_mm": 12.0,
    }
    base, other = (
        pearson(measure({"pet_fdg": PETScan3D(2e3, **{**settings, **change}, **SCANNER)}), truth(), "pet_fdg")[0]
        for change in ({}, mismatch)
    )
    assert other > 1.1 * base


def test_background_is_smooth_and_no_scaled_emission():
    measurement = measure({"pet_fdg": PETScan3D(1e4, **SCANNER)})
    background = measurement.likelihood["pet_fdg"].background[0, 0]
    efficiency = measurement.operator["pet_fdg"].efficiency[0, 0]
    smooth = background / efficiency
    trues = measurement.y["pet_fdg"][0, 0] - background
    assert float((smooth[:, :, 1:] - smooth[:, :, :-1]).abs().max()) < 0.12 * float(smooth.mean())
    assert float((smooth[1:DEPTH] - smooth[: DEPTH - 1]).abs().max()) < 0.12 * float(smooth.mean())
    assert float(torch.corrcoef(torch.stack([background.flatten(), trues.flatten()]))[0, 1]) < 0.95


def test_attenuation_from_the_measured_stack():
    scans = {"ct": StackedCT(ParallelCT(60, photons=1e5)), "pet_fdg": PETScan3D(5.0, attenuation="ct", **SCANNER)}
    mu = measure(scans).operator["pet_fdg"].attenuation
    true = block_mean(SLANTED["attenuation"], 2)
    assert mu.shape == true.shape
    assert 1e-4 < float((mu - true).abs().mean() / true.mean()) < 0.2
    assert abs(float(mu.sum() / true.sum()) - 1) < 0.03
    assert not torch.equal(mu, measure({**scans, "ct": CleanImage()}).operator["pet_fdg"].attenuation)


def test_stack_of_equal_slices_is_the_2d_scan():
    scan = ParallelCT(30, photons=1e9, detector_fwhm_mm=2.0)
    solid, flat = measure({"ct": StackedCT(scan)}, STRAIGHT), measure({"ct": scan}, FLAT, PLANE)
    assert solid.y["ct"].shape == (1, 1, DEPTH, *flat.y["ct"].shape[2:])
    for k in range(DEPTH):
        assert torch.allclose(solid.y["ct"][:, :, k], flat.y["ct"], rtol=2e-3)
    x = truth(STRAIGHT)[:, :1]
    assert torch.allclose(solid.operator["ct"](x)[:, :, 1], flat.operator["ct"](x[..., 1]), rtol=1e-4, atol=1e-5)


def test_a_thick_slice_averages_intensities():
    scan, space = ParallelCT(12, photons=1e9), ImageSpace(MODALITIES, (SIZE, SIZE, 1), (SPACING,) * 3)
    pair = torch.stack([FLAT["ct"], FLAT["ct"].roll(6, -1)], -1)
    thick = measure({"ct": StackedCT(scan)}, {"ct": pair}, space).y["ct"][:, :, 0]
    thin = [measure({"ct": scan}, {"ct": pair[..., k]}, PLANE).y["ct"] for k in range(2)]
    assert torch.allclose(thick, (thin[0] + thin[1]) / 2, rtol=3e-3)
    of_integrals = 1e9 * torch.exp((torch.log(thin[0] / 1e9) + torch.log(thin[1] / 1e9)) / 2)
    assert float((thick / of_integrals).max()) > 1.1


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="attenuation: expected 'known' or 'ct' in 3D, got 't1'"):
        PETScan3D(5.0, attenuation="t1", **SCANNER)
    with pytest.raises(ValueError, match="max_difference, radius_mm"):
        PETScan3D(5.0, radius_mm=0.0, max_difference=1)
    with pytest.raises(ValueError, match="more than 5 slices"):
        measure({"pet_fdg": PETScan3D(5.0, radius_mm=300.0, max_difference=5)})
    for name, scan in (("ct", StackedCT(ParallelCT(10))), ("pet_fdg", PETScan3D(5.0, **SCANNER))):
        with pytest.raises(ValueError, match=r"space: expected a volume \(H, W, D\)"):
            measure({name: scan}, FLAT, PLANE)
