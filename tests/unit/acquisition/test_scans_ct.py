import pytest
import torch
from synthetic_head import fine_maps, pearson

from multirecon.acquisition import Acquisition, CleanImage, FanCT, InverseCrime, Misregistered, ParallelCT, block_mean
from multirecon.acquisition.ct import covering_bins, rays_per_bin
from multirecon.acquisition.misregistration import move
from multirecon.acquisition.smooth import blur_bins, smooth_field, wrongly_known
from multirecon.operators import FanBeam
from multirecon.space import ImageSpace, Modality

SPACE = ImageSpace([Modality("ct", unit="1/cm", scale=0.2)], (48, 48), (5.0, 5.0))
FINE = {"ct": fine_maps(96)["ct"]}
TRUTH = block_mean(FINE["ct"], 2)


def measure(scan, key="t"):
    return Acquisition(SPACE, {"ct": scan}, key=key, oversample=2)(FINE, ["a"])


def test_scatter_is_no_scaled_primary_and_only_nearly_known():
    plain = measure(ParallelCT(24, photons=1e6))
    exact = measure(ParallelCT(24, photons=1e6, scatter_ratio=0.1))
    near = measure(ParallelCT(24, photons=1e6, scatter_ratio=0.1, scatter_error=0.2))
    scatter = exact.likelihood["ct"].scatter
    assert torch.equal(exact.y["ct"], near.y["ct"])
    primary = 1e6 * torch.exp(-exact.operator["ct"](TRUTH))
    behind = primary < 0.99e6
    assert float(scatter.mean() / primary[behind].mean()) == pytest.approx(0.1, rel=0.1)
    # the ratio to the primary is far from constant, and the field is smooth along the detector
    ratio = (scatter / primary)[behind]
    assert float(ratio.max() / ratio.min()) > 3
    assert float(scatter.diff(dim=-1).abs().max() / scatter.max()) < 0.1
    assert float(exact.y["ct"].sum() - plain.y["ct"].sum()) == pytest.approx(float(scatter.sum()), rel=0.05)
    relative = torch.log(near.likelihood["ct"].scatter / scatter)
    assert float(relative.square().mean().sqrt()) == pytest.approx(0.2, rel=1e-3)


def test_detector_blur_is_in_the_data_only():
    sharp, blurred = (measure(ParallelCT(24, photons=1e8, detector_fwhm_mm=w)) for w in (0.0, 8.0))
    assert pearson(blurred, TRUTH, "ct")[0] > 1.5 * pearson(sharp, TRUTH, "ct")[0]
    # the blur keeps the counts
    assert float(blurred.y["ct"].sum() / sharp.y["ct"].sum()) == pytest.approx(1, abs=1e-3)


def test_low_dose_data_are_noisier_counts():
    for photons in (1e3, 1e5):
        ideal = measure(InverseCrime(ParallelCT(48, photons=photons)))
        assert pearson(ideal, TRUTH, "ct")[0] == pytest.approx(1, abs=0.15)
        assert float(ideal.y["ct"].max()) < 1.5 * photons


def test_fan_beam_covers_the_grid_and_sees_the_same_object():
    measurement = measure(FanCT(36, source_mm=570.0, detector_mm=470.0, photons=1e8))
    operator = measurement.operator["ct"]
    assert isinstance(operator, FanBeam)
    y = measurement.y["ct"]
    assert y.shape[-2:] == (36, operator.geometry.bins)
    assert float(y[..., 0].min()) > 0.999e8  # the outermost rays miss the head
    line = -torch.log(y / 1e8)
    model = operator(TRUTH)
    assert float((line - model).norm() / model.norm()) < 0.05
    # opposite rays meet: view 0 and the mirrored ray half a turn away integrate to the same mass
    assert float(line[0, 0, 0].sum() / line[0, 0, 18].sum()) == pytest.approx(1, rel=0.02)
    curved = measure(FanCT(36, source_mm=570.0, detector_mm=470.0, curved=True, bins=90, bin_spacing_mm=8.0))
    assert curved.y["ct"].shape[-1] == 90
    with pytest.raises(ValueError, match="source_mm: expected a source beyond the corner"):
        measure(FanCT(36, source_mm=100.0, detector_mm=470.0))


def test_rays_lie_no_further_apart_than_fine_pixels():
    assert rays_per_bin(SPACE, 5.0, 2) == 2
    assert rays_per_bin(SPACE, 9.0, 2) == 4
    assert rays_per_bin(SPACE, 2.0, 2) == 2
    assert covering_bins(SPACE, 5.0) * 5.0 >= 48 * 5.0 * 2**0.5


def test_smooth_fields_are_smooth_and_of_unit_size(generator):
    field = smooth_field((40, 60), generator)
    assert float(field.square().mean()) == pytest.approx(1, abs=1e-4)
    assert abs(float(field.mean())) < 1e-4
    assert float(field.diff(dim=0).abs().max()) < 0.5
    expected = torch.ones(1, 1, 40, 60)
    assert wrongly_known(expected, 0.0, generator) is expected
    assert (wrongly_known(expected, 3.0, generator) > 0).all()


def test_blur_keeps_a_constant_and_the_sum_inside():
    flat = torch.ones(2, 3, 20)
    assert torch.allclose(blur_bins(flat, fwhm_mm=30.0, pitch_mm=2.0), flat)
    point = torch.zeros(1, 41)
    point[0, 20] = 1
    wide = blur_bins(point, fwhm_mm=8.0, pitch_mm=2.0)
    assert float(wide.sum()) == pytest.approx(1)
    half = wide[0] >= wide.max() / 2
    assert int(half.sum()) in (3, 4, 5)
    assert blur_bins(point, fwhm_mm=0.0, pitch_mm=2.0) is point


def test_move_shifts_by_whole_pixels_exactly():
    image = torch.rand(1, 2, 12, 10)
    moved = move(image, shift_mm=(4.0, -2.0), angle=0.0, spacing_mm=[2.0, 1.0])
    assert torch.allclose(moved[..., 2:, :-2], image[..., :-2, 2:], atol=1e-5)
    assert (moved[..., :2, :] == 0).all()
    quarter = move(image[..., :10, :], shift_mm=(0.0, 0.0), angle=torch.pi / 2, spacing_mm=[1.0, 1.0])
    # the object turned from axis 0 to axis 1: what lay on +axis 0 lies on +axis 1
    assert torch.allclose(quarter, image[..., :10, :].transpose(2, 3).flip(2), atol=1e-4)


def test_misregistered_scans_move_what_they_measure_only():
    measurement = Acquisition(SPACE, {"ct": Misregistered(CleanImage(), shift_mm=10.0)}, key="t", oversample=2)(
        FINE, ["a"]
    )
    y = measurement.y["ct"]
    assert measurement.clean == ("ct",)
    place = torch.arange(48) * 5.0

    def centre(image):
        weight = image[0, 0]
        return torch.stack([(weight.sum(1) * place).sum(), (weight.sum(0) * place).sum()]) / weight.sum()

    assert float((centre(y) - centre(TRUTH)).norm()) == pytest.approx(10.0, abs=0.2)
    turned = Acquisition(SPACE, {"ct": Misregistered(CleanImage(), shift_mm=0.0, rotation_deg=10.0)}, oversample=2)
    assert float((turned(FINE, ["a"]).y["ct"] - TRUTH).abs().max()) > 0.02
    with pytest.raises(ValueError, match="shift_mm, rotation_deg: expected >= 0"):
        Misregistered(CleanImage(), shift_mm=-1.0)


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="views, photons, scatter"):
        ParallelCT(0)
    with pytest.raises(ValueError, match="scatter_ratio"):
        ParallelCT(10, scatter_ratio=-0.1)
