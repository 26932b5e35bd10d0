"""Metrics of volumes seen from the side."""

import math

import pytest
import torch

from multirecon.metrics import evaluate_image, psnr, reslice_psnr, through_plane_variation
from multirecon.space import ImageSpace, Modality


def ramp(depth=6):
    return torch.arange(1.0, depth + 1).expand(1, 1, 8, 10, depth).clone() / depth


def test_variation_of_known_volumes():
    truth = ramp()
    flicker = torch.tensor([0.5, -0.5] * 3) / 6
    assert through_plane_variation(0.5 * truth, truth).item() == pytest.approx(0.5)
    assert through_plane_variation(truth + 1, truth).item() == pytest.approx(1.0)
    # steps of 1 become 0, 2, 0, 2, 0: the sum falls to 4 of 5
    assert through_plane_variation(truth + flicker, truth).item() == pytest.approx(0.8)
    assert through_plane_variation(truth + 4 * flicker, truth).item() == pytest.approx((3 * 3 + 2 * 5) / 5)


def test_variation_counts_pairs_inside_the_mask():
    truth, pred = ramp(), ramp()
    pred[..., 3:] += 5.0
    mask = torch.zeros(8, 10, 6, dtype=torch.bool)
    mask[..., 3:] = True
    assert through_plane_variation(pred, truth, mask=mask).item() == pytest.approx(1.0)
    assert through_plane_variation(pred, truth).item() > 5
    mask[..., 4:] = False  # one slice has no neighbour
    assert math.isnan(through_plane_variation(pred, truth, mask=mask).item())


def test_a_lost_sagittal_slice_shows_from_the_side_alone():
    truth = torch.ones(1, 1, 8, 10, 6)
    even, lost = truth + 0.1, truth.clone()
    lost[:, :, 2] += 0.1 * math.sqrt(8)  # the same mean square error
    whole = psnr(even, truth, data_range=1.0).item()
    assert psnr(lost, truth, data_range=1.0).item() == pytest.approx(whole, abs=1e-4)
    for plane in ("axial", "coronal"):
        assert reslice_psnr(lost, truth, plane=plane, data_range=1.0).item() == pytest.approx(whole, abs=1e-4)
    noise = torch.full_like(truth, 1e-3)
    one = reslice_psnr(lost + noise, truth, plane="sagittal", data_range=1.0).item()
    assert one == pytest.approx((7 * 60 + 20 - 10 * math.log10(8)) / 8, abs=0.1)


def test_slices_of_air_are_left_out():
    truth = torch.zeros(1, 1, 8, 10, 6)
    truth[:, :, 2:6] = 1.0
    pred = truth + 0.1
    pred[:, :, :2] = 0.0  # perfect where there is nothing
    assert reslice_psnr(pred, truth, plane="sagittal", data_range=1.0).item() == pytest.approx(20.0, abs=1e-4)


def test_a_record_has_them_where_they_exist():
    space = ImageSpace([Modality("pet_fdg", scale=0.6)], (8, 10, 6), (2.0, 2.0, 2.0))
    truth = ramp()
    thin = torch.zeros(8, 10, 6, dtype=torch.bool)
    thin[..., 2] = True
    found = evaluate_image(
        truth + 0.1, truth, space, targets=["pet_fdg"], metrics=["tvz", "psnr_axial", "psnr_sagittal"],
        regions={"thin": thin},
    )["pet_fdg"]  # fmt: skip
    assert found["tvz"] == pytest.approx(1.0)
    assert {"psnr_axial@thin", "psnr_sagittal@thin"} < set(found)
    assert "tvz@thin" not in found


def test_slices_and_unknown_planes_are_refused():
    flat = torch.ones(1, 1, 8, 8)
    with pytest.raises(ValueError, match="volumes"):
        through_plane_variation(flat, flat)
    with pytest.raises(ValueError, match="two slices"):
        through_plane_variation(ramp(1), ramp(1))
    with pytest.raises(ValueError, match="plane"):
        reslice_psnr(ramp(), ramp(), plane="oblique", data_range=1.0)
