"""`evaluate --samples N`: a method that can draw posterior samples is judged by them, in its own process."""

import pytest
from harness.fake_task import FakeTask

from multirecon.harness.commands import evaluate as command
from multirecon.harness.methods import find_methods
from multirecon.harness.records import FAILED, OK, read_records
from multirecon.harness.runner import evaluate
from multirecon.harness.side_files import load_regions

SAMPLER = """
def reconstruct(measurement):
    return measurement.back_projection()


def draw(self, measurement, network, num_samples, *, generator=None):
    mean = measurement.back_projection()
    return torch.stack([mean + 0.1 * torch.randn(mean.shape, generator=generator) for _ in range({count})])


Method.draw = draw
"""


def test_samples_are_drawn_judged_and_off_the_clock(tmp_path, make_bundle):
    make_bundle("honest")
    make_bundle("sampler", SAMPLER.format(count="num_samples"))
    make_bundle("short", SAMPLER.format(count="num_samples - 1"))
    methods = find_methods(tmp_path / "bundles")
    summary = evaluate([FakeTask(count=1, repeats=2)], methods, tmp_path / "out", samples=9, progress=False)
    assert summary.counts == {OK: 4, FAILED: 2}
    records = read_records(summary.records)[0]
    found = {(r.bundle, r.repeat): r for r in records}
    metrics = found["sampler", 0].metrics["t1"]
    assert {"crps", "coverage50@centre", "coverage80@centre", "psnr"} <= set(metrics)
    assert "coverage95@centre" not in metrics
    # the truth lies 0.1 off the data and the samples scatter by 0.1 around the data
    assert metrics["coverage80@centre"] == pytest.approx(0.8, abs=0.2)
    assert found["sampler", 1].metrics["t1"]["crps"] > 0
    assert not any(n.startswith(("crps", "coverage")) for n in found["honest", 0].metrics["t1"])
    assert "expected finite values of shape (9, 1, 1, 16, 16), got (8, 1, 1, 16, 16)" in found["short", 0].reason
    # both noise realisations of the shown sample are kept, with its regions
    assert set(load_regions([tmp_path / "out"], found["honest", 0])) == {"centre"}
    images = [p.name for p in (tmp_path / "out" / "images").rglob("*honest*.npy") if "trust" not in p.name]
    assert len(images) == 2


def test_one_sample_is_refused(tmp_path):
    with pytest.raises(ValueError, match="samples: expected 0 or at least 2, got 1"):
        command(tmp_path / "out", samples=1)
