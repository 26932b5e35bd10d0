"""Trust maps from the run to the report."""

import base64
import re

import numpy as np
from harness.fake_task import FakeTask
from harness.test_runner import InThisProcess

from multirecon.harness.methods import find_methods
from multirecon.harness.records import RecordFile
from multirecon.harness.report import write_report
from multirecon.harness.runner import evaluate
from multirecon.harness.trust_panels import TRUST_CAPTION, trust_figure, trust_slices
from multirecon.harness.workspace import save_image, trust_file


def test_shown_samples_get_a_map_and_the_report_shows_it(tmp_path, make_bundle, monkeypatch):
    monkeypatch.setattr("multirecon.harness.runner.Worker", InThisProcess)
    make_bundle("honest")
    output, task = tmp_path / "out", FakeTask(count=2)
    evaluate([task], find_methods(tmp_path / "bundles"), output, progress=False)
    records = RecordFile(output / "records.jsonl").records()
    maps = trust_slices([output], records[:1], task.space, "t1")
    assert maps["honest"].shape == (16, 16)
    # noise of 0.1 against a contrast of 0.3: every singular value is 1
    np.testing.assert_allclose(np.median(maps["honest"]), 0.9**2 / (0.9**2 + 0.1**2), atol=1e-3)
    text = write_report([output], tmp_path / "report")["html"].read_text()
    assert text.count(f"<figcaption>Sample {records[0].sample}, T1: {TRUST_CAPTION}") == 1
    image = re.search(rf'<img alt="[^"]*{re.escape(TRUST_CAPTION)}" src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(image[1])[1:4] == b"PNG"


def test_maps_of_another_grid_and_none_at_all_are_left_out(tmp_path, make_bundle, monkeypatch):
    monkeypatch.setattr("multirecon.harness.runner.Worker", InThisProcess)
    make_bundle("honest")
    output, task = tmp_path / "out", FakeTask(count=1)
    evaluate([task], find_methods(tmp_path / "bundles"), output, progress=False)
    records = RecordFile(output / "records.jsonl").records()
    save_image(trust_file(output, records[0]), np.ones((1, 8, 8)))
    assert trust_slices([output], records, task.space, "t1") == {}
    assert trust_figure({}) is None
