"""Metrics against closed forms and against scikit-image."""

import math

import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian
from multirecon.measurement import Measurement
from multirecon.metrics import (
    bias,
    data_residual,
    evaluate_image,
    mae,
    nrmse,
    psnr,
    reporting_range,
    ssim,
    ssim_map,
)
from multirecon.operators import BlockDiagonal, Identity
from multirecon.space import ImageSpace, Modality
from multirecon.units import attenuation_to_hu, hu_to_attenuation


@pytest.fixture
def pair(generator):
    truth = torch.rand(2, 1, 40, 32, generator=generator)
    return truth + 0.1 * torch.randn(truth.shape, generator=generator), truth


def test_psnr_of_a_constant_error_is_the_closed_form():
    truth = torch.zeros(3, 2, 12, 12)
    assert torch.allclose(psnr(truth + 0.1, truth, data_range=2.0), torch.full((3,), 20 * math.log10(20.0)).double())


def test_psnr_of_equal_images_is_infinite():
    assert psnr(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), data_range=1.0).item() == math.inf


def test_full_mask_gives_the_unmasked_values(pair):
    pred, truth = pair
    mask = torch.ones(40, 32, dtype=torch.bool)
    for metric in (nrmse, mae, bias):
        assert torch.allclose(metric(pred, truth), metric(pred, truth, mask=mask), rtol=1e-12)
    for metric in (psnr, ssim):
        assert torch.allclose(metric(pred, truth, data_range=1.0), metric(pred, truth, data_range=1.0, mask=mask))


def test_mask_sees_only_its_voxels():
    truth = torch.ones(1, 1, 16, 16)
    pred = truth.clone()
    pred[..., :8] += 0.5
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, :8] = True
    assert mae(pred, truth, mask=mask).item() == pytest.approx(0.5)
    assert mae(pred, truth, mask=~mask).item() == 0.0
    assert psnr(pred, truth, data_range=1.0, mask=mask).item() == pytest.approx(20 * math.log10(2.0))


@pytest.mark.parametrize("shape", [(1, 1, 40, 32), (1, 1, 16, 18, 14)])
@pytest.mark.parametrize("data_range", [1.0, 1000.0])
def test_ssim_equals_scikit_image(shape, data_range, generator):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    truth = data_range * torch.rand(shape, generator=generator)
    pred = truth + 0.1 * data_range * torch.randn(shape, generator=generator)
    expected = structural_similarity(
        truth[0, 0].double().numpy(),
        pred[0, 0].double().numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=data_range,
    )
    assert ssim(pred, truth, data_range=data_range).item() == pytest.approx(expected, abs=1e-5)


def test_ssim_is_the_mean_over_channels_and_one_for_equal_images(pair):
    pred, truth = pair
    both = ssim(pred.transpose(0, 1), truth.transpose(0, 1), data_range=1.0)
    assert both.item() == pytest.approx(ssim(pred, truth, data_range=1.0).mean().item(), abs=1e-6)
    assert ssim(truth, truth, data_range=1.0).tolist() == pytest.approx([1.0, 1.0])
    assert ssim_map(pred, truth, data_range=1.0).shape == (2, 1, 30, 22)


def test_bad_input_is_named(pair):
    pred, truth = pair
    with pytest.raises(ValueError, match="pred: expected"):
        psnr(pred[:1], truth, data_range=1.0)
    with pytest.raises(ValueError, match="data_range"):
        psnr(pred, truth, data_range=0.0)
    with pytest.raises(ValueError, match="empty mask"):
        mae(pred, truth, mask=torch.zeros(40, 32))
    with pytest.raises(ValueError, match="mask: expected shape"):
        mae(pred, truth, mask=torch.ones(8, 8))
    with pytest.raises(ValueError, match="at least 11"):
        ssim(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8), data_range=1.0)


def test_ct_is_stated_in_hounsfield_units():
    space = ImageSpace([Modality("ct", unit="1/cm", scale=0.2)], (16, 16), (1.0, 1.0))
    truth = torch.zeros(1, 1, 16, 16)
    values = evaluate_image(
        hu_to_attenuation(truth + 25), hu_to_attenuation(truth), space, targets=["ct"], metrics=["mae", "bias", "psnr"]
    )
    assert values["ct"]["mae"] == pytest.approx(25.0, rel=1e-4)
    assert values["ct"]["bias"] == pytest.approx(25.0, rel=1e-4)
    assert values["ct"]["psnr"] == pytest.approx(20 * math.log10(1000 / 25), abs=1e-3)
    stated = reporting_range(space["ct"])
    attenuation = torch.tensor([0.0, 0.1929, 0.4])
    assert torch.allclose(stated.gain * attenuation + stated.offset, attenuation_to_hu(attenuation))


def test_pet_is_stated_relative_to_its_scale():
    stated = reporting_range(Modality("pet_fdg", unit="kBq/mL", scale=20.0))
    assert stated.stack_range == 40.0
    assert reporting_range(Modality("bin_1", unit="1/cm", scale=0.3)).data_range == 0.3
    with pytest.raises(ValueError, match="1/cm"):
        reporting_range(Modality("ct", unit="1/mm"))


def test_regions_and_targets(generator):
    space = ImageSpace(["t1", "flair"], (16, 16), (1.0, 1.0))
    truth = torch.rand(1, 2, 16, 16, generator=generator)
    brain, lesion = torch.zeros(16, 16, dtype=torch.bool), torch.zeros(16, 16, dtype=torch.bool)
    brain[4:12, 4:12] = True
    values = evaluate_image(
        truth + 0.1, truth, space, targets=["flair"], metrics=["mae"], regions={"brain": brain, "lesion": lesion}
    )
    assert set(values) == {"flair"}
    assert values["flair"] == pytest.approx({"mae": 0.1, "mae@brain": 0.1}, rel=1e-5)
    with pytest.raises(ValueError, match="metrics: expected"):
        evaluate_image(truth, truth, space, targets=["flair"], metrics=["fid"])


def test_residual_of_the_data():
    space = ImageSpace(["t1", "t2"], (2, 2), (1.0, 1.0))
    y = torch.full((1, 1, 2, 2), 2.0)
    measurement = Measurement(
        Blocks({"t1": y}), BlockDiagonal(space, {"t1": Identity((1, 2, 2))}), BlockLikelihood({"t1": Gaussian(0.1)})
    )
    residual = data_residual(measurement, torch.full((1, 2, 2, 2), 1.5))
    assert list(residual) == ["t1"]
    assert residual["t1"].item() == pytest.approx(0.25)
