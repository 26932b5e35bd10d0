"""Energies and materials one by one: units, regions, and what leaks from one material into another."""

import math

import pytest
import torch

from multirecon.metrics import channel_range, crosstalk, evaluate_channels, evaluate_image, metric_score, metric_unit
from multirecon.space import ImageSpace, Modality

THREE = ("water", "bone", "iodine")
SPACE = ImageSpace([Modality("materials", channels=3, unit="g/cm^3")], (16, 16), (2.0, 2.0))


@pytest.fixture(scope="module")
def truth():
    x = torch.zeros(1, 3, 16, 16)
    x[:, 0, 2:14, 2:14] = 1.0
    x[:, 1, 2:14, 2:4] = 0.8
    x[:, 2, 6:9, 6:9] = 5e-3
    return x


def measured(pred, truth, **options):
    return evaluate_channels(pred, truth, SPACE, channels={"materials": THREE}, **options)


def test_bias_and_rmse_are_in_mg_per_ml_and_in_their_regions(truth):
    vessel = truth[0, 2] > 0
    pred = truth + torch.tensor([0.02, 0.0, 1e-3]).reshape(1, 3, 1, 1)
    pred[:, 2][:, vessel] -= 3e-3
    found = measured(pred, truth, places={"vessel": vessel, "insert_2": vessel & ~vessel})
    water, iodine = found["materials:water"], found["materials:iodine"]
    assert water["bias@head"] == pytest.approx(20, rel=1e-4)
    assert water["rmse@bone"] == pytest.approx(20, rel=1e-4)
    assert iodine["bias@vessel"] == pytest.approx(-2, rel=1e-4)
    assert iodine["bias@soft"] == pytest.approx(1, rel=1e-4)  # neither bone nor contrast agent
    assert iodine["rmse@head"] == pytest.approx(math.sqrt((135 + 9 * 4) / 144), rel=1e-4)
    assert not any("insert_2" in name for values in found.values() for name in values)
    assert iodine["psnr"] == pytest.approx(10 * math.log10(100 * 256 / (247 + 9 * 4)), rel=1e-4)
    assert metric_unit("rmse@vessel", "mg/mL") == metric_unit("bias", "mg/mL") == "mg/mL"
    assert metric_unit("crosstalk", "mg/mL") == "mg/g"


def test_crosstalk_is_the_slope_over_bone_and_no_offset(truth):
    bone = truth[:, 1:2]
    pred = truth + torch.cat([0.03 + 0.1 * bone, bone, 0.002 * bone], 1)
    found = measured(pred, truth)
    assert found["materials:water"]["crosstalk"] == pytest.approx(100, rel=1e-3)
    assert found["materials:iodine"]["crosstalk"] == pytest.approx(2, rel=1e-3)
    assert "crosstalk" not in found["materials:bone"]
    same = crosstalk(pred[:, :1], truth[:, :1], source=torch.ones_like(bone), mask=bone[0, 0] >= 0)
    assert bool(same.isnan())
    assert metric_score("crosstalk", -3.0) < metric_score("crosstalk", 1.0)


def test_energies_are_told_apart_and_the_whole_stays_what_it_was():
    space = ImageSpace([Modality("ct_bins", channels=2, unit="1/cm", scale=0.25)], (16, 16), (2.0, 2.0))
    true = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    pred = true.clone()
    pred[:, 1] += 0.01
    found = evaluate_channels(pred, true, space, channels={"ct_bins": ("44 keV", "92 keV")})
    assert math.isinf(found["ct_bins:44 keV"]["psnr"])
    assert found["ct_bins:92 keV"]["bias"] == pytest.approx(0.01, rel=1e-4)
    whole = evaluate_image(pred, true, space, targets=["ct_bins"])["ct_bins"]["psnr"]
    assert whole == pytest.approx(found["ct_bins:92 keV"]["psnr"] + 10 * math.log10(2), rel=1e-5)


def test_iodine_has_a_range_of_its_own():
    assert channel_range(SPACE["materials"], "iodine").data_range == 10.0
    assert channel_range(SPACE["materials"], "bone").data_range == 1000.0
    assert channel_range(Modality("ct_bins", channels=2, unit="1/cm", scale=0.25), "44 keV").unit == "1/cm"


def test_what_does_not_fit_is_named(truth):
    with pytest.raises(ValueError, match="channels of 'materials': expected 3 names, got"):
        evaluate_channels(truth, truth, SPACE, channels={"materials": THREE[:2]})
