"""What becomes of metrics in records: scores that compare, and how honest posterior samples are."""

import pytest
import torch

from multirecon.metrics import IDEAL, METRICS, UNDIRECTED, evaluate_samples, kid, kid_difference, metric_score
from multirecon.space import ImageSpace, Modality

SPACE = ImageSpace([Modality("ct", unit="1/cm", scale=0.2)], (16, 16), (2.0, 2.0))


@pytest.mark.parametrize(
    ("name", "worse", "better"),
    [("psnr", 20.0, 21.0), ("psnr@brain", 20.0, 21.0), ("mae", 2.0, 1.0), ("nrmse", 0.2, 0.1), ("residual", 0.2, 0.1),
     ("crc@lesion", 0.5, 0.9), ("crc@lesion", 1.5, 1.1), ("hfer", 0.2, 1.1), ("bias", -3.0, 1.0), ("crps", 2.0, 1.0),
     ("coverage80", 1.0, 0.7)],
)  # fmt: skip
def test_a_larger_score_is_better(name, worse, better):
    assert metric_score(name, better) > metric_score(name, worse)


def test_metrics_without_a_direction_have_a_best_value():
    assert frozenset(IDEAL) == UNDIRECTED
    assert {"bias", "hfer", "tvz", "crc"} == UNDIRECTED & set(METRICS)
    assert IDEAL["coverage95"] == 0.95


def test_samples_are_judged_where_there_is_something():
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., 4:12, 4:12] = 0.2
    inside = truth[0, 0] > 0
    centre = 0.2 + 0.01 * torch.randn(truth.shape, generator=generator)
    noise = 0.01 * torch.randn((39, *truth.shape), generator=generator)
    samples = torch.where(inside, centre + noise, 0.0)  # truth and samples lie around one centre
    honest = torch.where(inside, centre + 0.01 * torch.randn(truth.shape, generator=generator), 0.0)
    values = evaluate_samples(
        samples, honest, SPACE, targets=["ct"], regions={"brain": inside, "none": inside & ~inside}
    )
    ct = values["ct"]
    assert set(ct) == {f"{n}{s}" for n in ("crps", "coverage50", "coverage80", "coverage95") for s in ("", "@brain")}
    for level in (50, 80, 95):
        assert ct[f"coverage{level}@brain"] == pytest.approx(level / 100, abs=0.15)
        assert ct[f"coverage{level}"] == ct[f"coverage{level}@brain"]  # air is covered by all and counts for nothing
    assert 20 < ct["crps"] < 60  # HU: 0.01 1/cm is 52 HU, of which an honest forecast scores about 0.56
    narrow = torch.where(inside, centre + 0.1 * noise, 0.0)
    assert evaluate_samples(narrow, honest, SPACE, targets=["ct"])["ct"]["coverage80"] < 0.3


def test_levels_that_few_samples_cannot_support_are_left_out():
    samples = torch.rand(4, 1, 1, 16, 16)
    found = evaluate_samples(samples, torch.rand(1, 1, 16, 16) + 0.1, SPACE, targets=["ct"])["ct"]
    assert set(found) == {"crps", "coverage50"}


def test_a_difference_of_kernel_distances_is_paired():
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(24, 64, generator=generator)
    near, far = truth + 0.1 * torch.randn(24, 64, generator=generator), truth + 1.0
    groups = [i // 8 for i in range(24)]
    found = kid_difference(far, near, truth, groups=groups)
    assert found.value == pytest.approx(kid(far, truth, bootstrap=0).value - kid(near, truth, bootstrap=0).value)
    assert found.low <= found.value <= found.high
    assert found.low > 0
    back = kid_difference(near, far, truth, groups=groups)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert kid_difference(far, near, truth, groups=[0] * 24).low is None
    same = kid_difference(near, near, truth, groups=groups)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="one shape"):
        kid_difference(far[:5], near, truth, groups=groups)


def test_resamples_of_one_image_leave_the_interval_finite():
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(3, 64, generator=generator), torch.randn(3, 64, generator=generator)
    found = kid(a, b, groups_a=[0, 1, 2], groups_b=[0, 1, 2])
    assert torch.tensor([found.low, found.high]).isfinite().all()
