"""Supervised training: batches that are a function of the step, exact row crops, losses, rates, gradients."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage
from multirecon.acquisition.base import block_mean
from multirecon.data.augmentation import augment
from multirecon.space import ImageSpace
from multirecon.training import AverageGradients, ChannelL1, ChannelMetric, CosineRate, PrepareTraining, crop_rows

SPACE = ImageSpace(["flair", "t1"], (16, 12), (2.0, 3.0))


def acquisition(**settings):
    settings = {"acceleration": [2, 3], "sigma": [0.005, 0.03], "center_lines": [0, 4], "coils": 4, **settings}
    return Acquisition(SPACE, {"flair": CartesianMR(**settings), "t1": CleanImage()}, key="training", oversample=2)


@pytest.fixture
def batch(generator):
    return {
        "image": torch.rand(2, 2, 32, 24, generator=generator),
        "brain": torch.ones(2, 1, 32, 24),
        "id": ["01/0/1", "02/0/1"],
    }


def test_truth_is_the_mean_of_the_fine_slice_and_the_reference_is_clean(batch):
    measurement, truth = PrepareTraining(acquisition())(batch)
    torch.testing.assert_close(truth, block_mean(batch["image"], 2))
    assert torch.equal(measurement.y["t1"], truth[:, 1:])
    assert measurement.y["flair"].shape == (2, 4, 16, 12)


def test_batch_is_a_function_of_seed_step_and_rank(batch):
    def prepared(step=0, **keys):
        prepare = PrepareTraining(acquisition(), augmentation=partial(augment, modalities=("flair", "t1")), **keys)
        prepare.step = step
        measurement, truth = prepare(batch)
        return measurement.fingerprint(), truth

    first, truth = prepared(step=3)
    again, same = prepared(step=3)
    assert first == again
    assert torch.equal(truth, same)
    for other in ({"step": 4}, {"step": 3, "seed": 1}, {"step": 3, "rank": 1}):
        different, changed = prepared(**other)
        assert different != first
        assert not torch.equal(changed, truth)


def test_samples_of_a_batch_differ_in_mask_noise_and_maps(batch):
    prepare = PrepareTraining(acquisition(radius=[1.3, 1.7]))
    same = {**batch, "image": batch["image"][:1].repeat(2, 1, 1, 1)}
    masks, levels, seen = set(), set(), []
    for step in range(6):
        prepare.step = step
        measurement, _ = prepare(same)
        operator = measurement.operator["flair"]
        masks |= {tuple(m[0].tolist()) for m in operator.mask.expand(2, -1, -1)}
        levels |= set(measurement.likelihood["flair"].sigma.flatten().tolist())
        seen += list(operator.maps.abs()[:, 0, 8, 0].expand(2).tolist())
    assert len(masks) == 4
    assert sorted(levels) == pytest.approx([0.005, 0.03])
    assert len({round(v, 2) for v in seen}) == 2


def test_coarse_brain_masks_and_fine_slices_under_their_own_name(batch):
    stripped = partial(augment, modalities=("flair", "t1"), settings=SimpleNamespace(**QUIET))
    brain = torch.zeros(2, 1, 16, 12)
    brain[:, :, 4:12] = 1
    given = {"image": torch.zeros(2, 2, 16, 12), "fine": batch["image"], "brain": brain, "id": batch["id"]}
    _, truth = PrepareTraining(acquisition(), augmentation=stripped)(given)
    assert float(truth[:, :, :4].abs().max()) == 0
    torch.testing.assert_close(truth[:, :, 5:11], block_mean(batch["image"], 2)[:, :, 5:11], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="image: expected the fine grid"):
        PrepareTraining(acquisition())({"image": torch.zeros(1, 2, 16, 12), "id": ["a"]})


QUIET = {"flip": 0.0, "rotation_deg": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "warp": 0.0, "gamma": 0.0,
         "gain": 0.0, "pet_gain": 0.0, "strip": 1.0}  # fmt: skip


@pytest.mark.parametrize(("start", "rows"), [(0, 8), (3, 8), (5, 11)])
def test_row_crop_is_exact(batch, generator, start, rows):
    measurement, truth = PrepareTraining(acquisition())(batch)
    cropped = crop_rows(measurement, start, rows)
    part = slice(start, start + rows)
    torch.testing.assert_close(cropped.back_projection(), measurement.back_projection()[:, :, part], rtol=0, atol=1e-5)
    x = torch.randn(2, 2, 16, 12, generator=generator)
    whole = measurement.operator["flair"].gram(x[:, :1])[:, :, part]
    torch.testing.assert_close(cropped.operator["flair"].gram(x[:, :1, part].contiguous()), whole, rtol=0, atol=1e-5)
    assert torch.equal(cropped.y["t1"], truth[:, 1:, part])
    corner = torch.tensor([float(start), 0, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(cropped.space.affine[:3, 3], (measurement.space.affine @ corner)[:3])


def test_row_crop_keeps_white_noise_white(generator):
    quiet = Acquisition(SPACE, {"flair": CartesianMR(1, sigma=0.02, phase=0), "t1": CleanImage()}, oversample=1)
    zero = torch.zeros(1, 1, 16, 12)
    data = torch.cat([crop_rows(quiet({"flair": zero, "t1": zero}, [f"{i}"]), 4, 8).y["flair"] for i in range(20)])
    parts = torch.view_as_real(data)
    assert float(parts.std()) == pytest.approx(0.02, rel=0.02)
    spread = parts.std(dim=(0, 1, 3, 4))  # each row of the shorter k-space
    assert float((spread / 0.02 - 1).abs().max()) < 0.1


def test_row_crop_refuses(batch):
    measurement, _ = PrepareTraining(acquisition(pattern="random", acceleration=2))(batch)
    crop_rows(measurement, 0, 8)
    with pytest.raises(ValueError, match="start, rows"):
        crop_rows(measurement, 12, 8)
    mixed, _ = PrepareTraining(acquisition(pattern="poisson_disc", acceleration=2))(batch)
    with pytest.raises(ValueError, match="block 'flair': expected a clean image or k-space of whole lines"):
        crop_rows(mixed, 0, 8)


def test_rows_are_cropped_around_the_middle(batch):
    prepare = PrepareTraining(acquisition(), rows=8)
    full = block_mean(batch["image"], 2)
    starts = set()
    for step in range(20):
        prepare.step = step
        measurement, truth = prepare(batch)
        assert measurement.space.shape == (8, 12)
        starts |= {s for s in range(9) if torch.allclose(truth, full[:, :, s : s + 8])}
    assert starts == {2, 3, 4, 5, 6}


def test_channel_l1():
    loss = ChannelL1([0.3, 0.7])
    prediction, target = torch.zeros(2, 2, 3, 3), torch.ones(2, 2, 3, 3)
    target[:, 1] = 2
    assert float(loss(prediction, target)) == pytest.approx(0.3 * 1 + 0.7 * 2)
    with pytest.raises(ValueError, match="expected 2 channels"):
        loss(prediction[:, :1], target[:, :1])
    with pytest.raises(ValueError, match="weights"):
        ChannelL1([0.0, 0.0])


def test_channel_metric(generator):
    pred, label = torch.rand(3, 2, 16, 16, generator=generator), torch.rand(3, 2, 16, 16, generator=generator)
    psnr, ssim = ChannelMetric("psnr", channel=1), ChannelMetric("ssim")
    for part in (slice(0, 2), slice(2, 3)):
        psnr.update((pred[part], label[part]))
        ssim.update((pred[part], pred[part]))
    expected = -10 * torch.log10((pred - label)[:, 1].square().mean((1, 2)))
    assert psnr.compute() == pytest.approx(float(expected.mean()), rel=1e-5)
    assert ssim.compute() == pytest.approx(1.0)
    psnr.reset()
    with pytest.raises(ValueError, match="at least one batch"):
        psnr.compute()
    with pytest.raises(ValueError, match="name"):
        ChannelMetric("mse")


def test_cosine_rate():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rate = CosineRate(optimizer, first=1e-4, last=1e-5, steps=100)
    assert rate.at(1) == pytest.approx(1e-4)
    assert rate.at(51) == pytest.approx(5.5e-5)
    assert rate.at(101) == rate.at(1000) == pytest.approx(1e-5)
    assert rate.at(26) == pytest.approx(1e-5 + 4.5e-5 * (1 + math.cos(math.pi / 4)))


def test_single_process_keeps_its_gradients():
    net = nn.Linear(2, 1)
    net(torch.ones(1, 2)).sum().backward()
    before = net.weight.grad.clone()
    AverageGradients(net)._average(None)
    assert torch.equal(net.weight.grad, before)
