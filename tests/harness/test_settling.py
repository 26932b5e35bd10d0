"""When an iterative method is done: on sequences with a known answer, and through the harness."""

import json

import pytest
import torch
from harness.fake_task import FakeTask

from multirecon.harness.methods import select_methods
from multirecon.harness.records import Record
from multirecon.harness.runner import evaluate
from multirecon.harness.settling import Settling, settling

ITERATIVE = """
def reconstruct(measurement):
    return measurement.back_projection()

class Iterative(Method):
    def __call__(self, inputs, network=None, *args, callback=None, **kwargs):
        result = measurement = inputs.back_projection()
        for k in range(1, 21):
            result = measurement * (1 - 0.5 ** k)
            if callback is not None:
                callback(k, result)
        return result
"""


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0], 0), ([0.0, 1.0], 1), ([1.0, 1.0, 1.0], 0), ([0.5, 1.0005, 1.0, 1.0], 1), ([1.0, 0.5, 1.0], 2)],
)
def test_the_first_image_after_which_all_are_close(values, expected):
    assert settling([torch.full((1, 1, 2, 2), v) for v in values]) == expected


def test_blocks_solved_one_after_another_are_added_and_keeping_iterates_costs_no_time():
    now = [0.0]

    def clock():
        now[0] += 10.0  # every look at the clock takes long
        return now[0]

    report = Settling(clock)
    for values in ((0.0, 0.9, 1.0, 1.0), (2.0, 2.0)):
        for k, value in enumerate(values, start=1):
            now[0] += 1.0
            report(k, torch.full((1, 1, 2, 2), value))
    found = report.result()
    assert found["iterations"] == 6
    assert found["settling_iterations"] == 3 + 1
    # from one iterate to the next: one second of work and the clock's own ten; four iterations count
    assert found["settling_seconds"] == pytest.approx(4 * 11.0)
    assert Settling().result() == {}


def test_the_harness_records_it_where_asked(make_bundle, tmp_path):
    root = make_bundle("iterative", ITERATIVE)
    file = root / "configs" / "inference.json"
    file.write_text(file.read_text().replace("iterative.Method", "iterative.Iterative"))
    make_bundle("direct")
    methods = select_methods([], tmp_path / "bundles")
    evaluate([FakeTask(count=1)], methods, tmp_path / "out", settling=True, progress=False)
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    found = {r.bundle: r for r in map(Record.from_line, lines)}
    assert {r.status for r in found.values()} == {"ok"}
    assert found["direct"].settling == {}
    # 0.5 ** k <= 1e-3 (1 - 0.5 ** 20) from k = 10 on
    assert found["iterative"].settling["settling_iterations"] == 10
    assert found["iterative"].settling["iterations"] == 20
    assert 0 < found["iterative"].settling["settling_seconds"] < found["iterative"].seconds + 5


def test_records_without_or_with_bad_numbers():
    values = {"task": "t", "bundle": "b", "sample": "s", "fingerprint": "f", "status": "ok"}
    assert Record.from_line(json.dumps(values)).settling == {}
    with pytest.raises(ValueError, match="settling: expected an object of numbers"):
        Record.from_line(json.dumps({**values, "settling": {"iterations": "many"}}))
