import pytest
import torch
from synthetic_head import fine_maps

from multirecon.acquisition import Acquisition, CartesianMR, block_mean
from multirecon.engines import PrepareMeasurement
from multirecon.operators import calibration_size
from multirecon.space import ImageSpace

SPACE = ImageSpace(["flair"], (48, 48), (5.0, 5.0))


def measure(scan, ids=("a",), key="t", oversample=2, soft=False):
    fine = fine_maps(48 * oversample, soft=soft)["flair"].expand(len(ids), -1, -1, -1)
    return Acquisition(SPACE, {"flair": scan}, key=key, oversample=oversample)({"flair": fine}, list(ids)), block_mean(
        fine, oversample
    )


def test_estimated_maps_come_from_the_noisy_calibration_lines_alone():
    scan = CartesianMR(4, sigma=0.01, center_lines=24, maps="estimated")
    measurement, truth = measure(scan, soft=True)
    exact, _ = measure(CartesianMR(4, sigma=0.01, center_lines=24), soft=True)
    y = measurement.y["flair"]
    assert torch.equal(y, exact.y["flair"])  # the data are the same, only the model differs
    maps = measurement.operator["flair"].maps[0]
    head = truth[0, 0] > 0.2
    assert torch.allclose(maps.abs().square().sum(0)[head], torch.ones(()), atol=1e-3)
    true = exact.operator["flair"].maps[0]
    # maps and phase agree inside the head, and not exactly
    error = (maps - true)[:, head].norm() / true[:, head].norm()
    assert 1e-3 < error < 0.1
    # other data outside the calibration block change nothing: k-space is noisy, the maps know only the centre
    louder, _ = measure(CartesianMR(2, sigma=0.01, center_lines=24, maps="estimated"), soft=True)
    assert louder.operator["flair"].maps.shape == measurement.operator["flair"].maps.shape
    noisier, _ = measure(CartesianMR(4, sigma=0.1, center_lines=24, maps="estimated"), soft=True)
    worse = (noisier.operator["flair"].maps[0] - true)[:, head].norm() / true[:, head].norm()
    assert worse > 1.5 * error


def test_estimated_maps_need_calibration_lines():
    with pytest.raises(ValueError, match="center_lines: expected at least 12 to estimate maps from"):
        CartesianMR(4, maps="estimated")
    with pytest.raises(ValueError, match="maps: expected one of"):
        CartesianMR(4, maps="guessed")


def test_poisson_disc_rate_and_centre():
    measurement, _ = measure(CartesianMR(3, coils=12, center_lines=16, pattern="poisson_disc"), ids=("a", "b"))
    masks = measurement.operator["flair"].mask
    assert masks.shape == (2, 48, 48)
    assert not torch.equal(masks[0], masks[1])
    for mask in masks:
        assert int(mask.sum()) == 48 * 48 // 3
        assert min(calibration_size(mask)) >= 16
    assert measurement.y["flair"].shape[1] == 12


def test_ranges_are_drawn_for_every_sample_and_join_in_a_batch():
    ids = [f"s{i}" for i in range(24)]
    scan = CartesianMR([2, 4], sigma=[0.01, 0.05], center_lines=[0, 8])
    measurement, truth = measure(scan, ids)
    operator, likelihood = measurement.operator["flair"], measurement.likelihood["flair"]
    assert operator.mask.shape == (24, 48, 48)
    lines = {int(mask[0].sum()) for mask in operator.mask}
    assert lines == {24, 12, 28, 18}
    sigma = likelihood.sigma.flatten()
    assert set(sigma.tolist()) == {torch.tensor(0.01).item(), torch.tensor(0.05).item()}
    assert 4 <= int((sigma < 0.03).sum()) <= 20
    # every sample carries its own noise level
    residual = (measurement.y["flair"] - operator(truth)).abs()
    for index in range(24):
        outer = operator.mask[index].bool() & (torch.arange(48)[:, None] < 4)  # readout ends: hardly any signal
        noise = float(residual[index][:, outer].square().mean().div(2).sqrt())
        assert noise == pytest.approx(float(sigma[index]), rel=0.3, abs=0.005)
    one = measurement.samples(3, 4)
    alone, _ = measure(scan, ["s3"])
    assert one.fingerprint() == alone.fingerprint()
    assert torch.allclose(one.data_fidelity(truth[:1]), alone.data_fidelity(truth[:1]))


def test_training_draws_new_settings_at_every_call():
    acquisition = Acquisition(SPACE, {"flair": CartesianMR([2, 3, 4, 6])}, key="t", oversample=2)
    fine = fine_maps(96)["flair"]
    batch = {"image": block_mean(fine, 2), "fine": fine, "id": ["a"]}
    prepare = PrepareMeasurement(acquisition, vary=True)
    rates = {float(prepare(batch)[0].operator["flair"].mask.mean()) for _ in range(16)}
    assert len(rates) == 4


def test_a_single_value_in_a_list_is_that_value():
    assert measure(CartesianMR([4], sigma=[0.01]))[0].fingerprint() == measure(CartesianMR(4))[0].fingerprint()
    for bad in ([], [-1]):
        with pytest.raises(ValueError, match="acceleration: expected a number >= 0 or a list"):
            CartesianMR(bad)


def test_random_columns_differ_within_a_batch():
    measurement, _ = measure(CartesianMR(4, pattern="random", center_lines=8), ids=("a", "b"))
    masks = measurement.operator["flair"].mask
    assert masks.shape == (2, 48, 48)
    assert not torch.equal(masks[0], masks[1])


def test_what_a_scan_says_of_itself():
    assert CartesianMR(4).describe() == "4x equispaced k-space, 8 coils, noise 0.01, true maps"
    assert CartesianMR(4).mismatch() == ()
    scan = CartesianMR([3, 6], center_lines=24, maps="estimated", pattern="poisson_disc", coils=12)
    assert scan.describe() == "3/6x poisson-disc k-space, 24 centre lines, 12 coils, noise 0.01, estimated maps"
    assert scan.mismatch() == ("maps and phase from the calibration lines",)


def test_maps_and_radius_from_lists():
    """Estimated maps are drawn where the calibration lines drawn allow them; a single choice draws nothing."""
    scan = CartesianMR(4, center_lines=[0, 24], maps=["true", "estimated"], radius=[1.3, 1.7])
    measurement, _ = measure(scan, ids=[f"s{i}" for i in range(24)], soft=True)
    operator = measurement.operator["flair"]
    # true birdcage maps cover the whole grid, estimated ones the support alone
    estimated = [bool((maps == 0).all(0).any()) for maps in operator.maps]
    lines = [min(calibration_size(mask)) for mask in operator.mask]
    assert {e for e, n in zip(estimated, lines, strict=True) if n >= 24} == {True, False}
    assert not any(e for e, n in zip(estimated, lines, strict=True) if n < 12)
    alone, _ = measure(CartesianMR(4, center_lines=24, maps=["true"], radius=[1.5]))
    plain, _ = measure(CartesianMR(4, center_lines=24))
    assert alone.fingerprint() == plain.fingerprint()
    assert "true/estimated maps" in scan.describe()
    assert scan.mismatch()
