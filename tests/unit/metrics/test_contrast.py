"""Lesion metrics against closed forms."""

import math

import pytest
import torch

from multirecon.metrics import contrast_recovery, contrast_to_noise, evaluate_image, surroundings
from multirecon.space import ImageSpace, Modality


@pytest.fixture
def lesion():
    mask = torch.zeros(24, 24, dtype=torch.bool)
    mask[10:14, 9:13] = True
    return mask


def disc(lesion, contrast, level=2.0):
    return level * (1 + contrast * lesion.float())[None, None]


def test_surroundings_is_a_shell_of_the_asked_width(lesion):
    shell = surroundings(lesion, gap=2, width=3)
    assert int(shell.sum()) == 14**2 - 8**2
    assert not (shell & lesion).any()


def test_surroundings_in_three_dimensions():
    mask = torch.zeros(11, 11, 11, dtype=torch.bool)
    mask[5, 5, 5] = True
    assert int(surroundings(mask, gap=1, width=1).sum()) == 5**3 - 3**3


@pytest.mark.parametrize("recovered", [0.0, 0.4, 1.0, 1.3, -0.5])
def test_contrast_recovery_is_the_share_that_comes_back(lesion, recovered):
    truth, pred = disc(lesion, 0.5), disc(lesion, 0.5 * recovered)
    found = contrast_recovery(pred, truth, lesion=lesion, background=surroundings(lesion))
    assert found.item() == pytest.approx(recovered, abs=1e-6)


def test_contrast_recovery_ignores_a_global_scale(lesion):
    found = contrast_recovery(
        7 * disc(lesion, -0.3), disc(lesion, -0.6), lesion=lesion, background=surroundings(lesion)
    )
    assert found.item() == pytest.approx(0.5, abs=1e-6)


def test_lesion_that_the_truth_does_not_show_has_no_recovery(lesion):
    shell = surroundings(lesion)
    assert contrast_recovery(disc(lesion, 1.0), disc(lesion, 0.01), lesion=lesion, background=shell).isnan().all()
    assert (
        contrast_recovery(disc(lesion, 1.0), torch.zeros(1, 1, 24, 24), lesion=lesion, background=shell).isnan().all()
    )


def test_samples_of_a_batch_are_separate(lesion):
    truth = disc(lesion, 0.5).expand(2, -1, -1, -1)
    pred = torch.cat([disc(lesion, 0.5), disc(lesion, 0.25)])
    found = contrast_recovery(pred, truth, lesion=lesion, background=surroundings(lesion))
    assert found.tolist() == pytest.approx([1.0, 0.5], abs=1e-6)


def test_contrast_to_noise_of_a_two_valued_background(lesion):
    image = torch.where(torch.arange(24)[None].expand(24, 24) % 2 == 0, 1.1, 0.9)[None, None].clone()
    image[..., lesion] = 1.6
    background = torch.zeros(24, 24, dtype=torch.bool)
    background[:, :8] = True
    found = contrast_to_noise(image, lesion=lesion, background=background)
    assert found.item() == pytest.approx(6.0, rel=1e-5)


def test_overlapping_and_empty_masks_are_refused(lesion):
    truth = disc(lesion, 0.5)
    with pytest.raises(ValueError, match="overlapping"):
        contrast_recovery(truth, truth, lesion=lesion, background=lesion)
    with pytest.raises(ValueError, match="empty"):
        contrast_to_noise(truth, lesion=lesion, background=torch.zeros_like(lesion))


@pytest.mark.parametrize(("unit", "offset"), [("1/cm", 0.0), ("HU", -1000.0)])
def test_evaluation_takes_lesion_metrics_in_lesions_only(lesion, unit, offset):
    space = ImageSpace([Modality("ct", unit=unit)], (24, 24), (2.0, 2.0))
    gain = 1000.0 if unit == "HU" else 1.0
    truth, pred = (gain * disc(lesion, c, 1.0) + offset for c in (0.4, 0.1))
    brain = torch.ones_like(lesion)
    found = evaluate_image(
        pred, truth, space, targets=["ct"], metrics=["nrmse", "crc", "cnr"],
        regions={"pet_lesion": lesion, "brain": brain},
    )["ct"]  # fmt: skip
    assert set(found) == {"nrmse", "nrmse@pet_lesion", "nrmse@brain", "crc@pet_lesion", "cnr@pet_lesion"}
    assert found["crc@pet_lesion"] == pytest.approx(0.25, abs=1e-5)
    assert found["cnr@pet_lesion"] > 1e4 or found["cnr@pet_lesion"] == math.inf


def test_evaluation_leaves_out_a_recovery_without_contrast(lesion):
    space = ImageSpace([Modality("t1")], (24, 24), (2.0, 2.0))
    flat = torch.ones(1, 1, 24, 24)
    found = evaluate_image(flat, flat, space, targets=["t1"], metrics=["mae", "crc"], regions={"lesion": lesion})
    assert found == {"t1": {"mae": 0.0, "mae@lesion": 0.0}}
