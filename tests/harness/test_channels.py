"""Energies and materials one by one: in the records of a run, and on the page."""

import pytest
import torch

from multirecon import tasks
from multirecon.blocks import Blocks
from multirecon.harness.leaderboard import boards, select
from multirecon.harness.questions import Answerable, places
from multirecon.harness.records import OK, Record, RecordFile, read_records
from multirecon.harness.report import write_report
from multirecon.harness.runner import describe_task, measure_result
from multirecon.harness.sections import columns_of
from multirecon.harness.workspace import write_json
from multirecon.likelihoods import BlockLikelihood, Gaussian
from multirecon.measurement import Measurement
from multirecon.metrics import evaluate_image
from multirecon.operators import BlockDiagonal, Identity
from multirecon.space import ImageSpace, Modality

SIZE = 16
KEYS = ["materials:water", "materials:bone", "materials:iodine"]


class Densities:
    name, description, targets, metrics, repeats = "densities", "three materials", ("materials",), ("psnr", "ssim"), 1
    space = ImageSpace([Modality("materials", channels=3, unit="g/cm^3")], (SIZE, SIZE), (2.0, 2.0))
    channels = {"materials": ("water", "bone", "iodine")}  # noqa: RUF012


@pytest.fixture(scope="module")
def ready():
    truth = torch.zeros(1, 3, SIZE, SIZE)
    truth[:, 0, 2:14, 2:14] = 1.0
    truth[:, 1, 2:14, 2:4] = 0.5
    truth[:, 2, 8:10, 8:10] = 4e-3
    data = Measurement(
        Blocks({"materials": truth}),
        BlockDiagonal(Densities.space, {"materials": Identity((3, SIZE, SIZE))}),
        BlockLikelihood({"materials": Gaussian(0.1)}),
    )
    contrast = {"vessel": (truth[0, 2] > 0).float()[None], "insert_5": torch.zeros(1, SIZE, SIZE)}
    return Answerable(None, "f", data, truth, {}, {}, places({"contrast": contrast}))


def test_a_record_holds_every_material_and_the_whole_as_before(ready):
    stack = (ready.truth[0] + 1e-3).numpy()
    metrics = measure_result(stack, Densities(), ready)
    assert list(metrics) == ["materials", *KEYS]
    whole = evaluate_image(torch.from_numpy(stack)[None], ready.truth, Densities.space, targets=["materials"],
                           metrics=Densities.metrics)["materials"]  # fmt: skip
    assert {k: metrics["materials"][k] for k in whole} == whole
    assert metrics["materials:iodine"]["bias@vessel"] == pytest.approx(1.0, rel=1e-3)
    assert "bias@insert_5" not in metrics["materials:iodine"]
    assert not any("vessel" in key for key in metrics["materials"])


def test_the_report_has_a_table_for_every_material(ready, tmp_path):
    file = RecordFile(tmp_path / "records.jsonl")
    for method, error in (("good", 1e-3), ("bad", 5e-3)):
        metrics = measure_result((ready.truth[0] + error).numpy(), Densities(), ready)
        file.append(Record(task="densities", bundle=method, sample="a/0/0", anatomy="a", status=OK, fingerprint="f",
                           metrics=metrics))  # fmt: skip
    write_json(tmp_path / "tasks" / "densities.json", describe_task(Densities()))
    (board,) = boards(select(read_records(file.path)[0]), targets={"densities": ("materials",)})
    assert [c for c in columns_of(board, "quality")] == [("materials", "psnr"), ("materials", "ssim")]  # noqa: C416
    assert {c[0] for c in columns_of(board, "channels")} == set(KEYS)
    assert board.rows[0].method == "good"
    written = write_report([tmp_path], tmp_path / "report")
    page = written["markdown"].read_text()
    for label in ("water", "bone", "iodine"):
        assert f"MATERIALS: {label}" in page
    assert "RMSE (mg/mL) in vessel" in page
    assert "crosstalk of bone (mg/g)" in page
    assert "materials:iodine: data range 10 mg/mL" in written["html"].read_text()


@pytest.mark.parametrize(
    ("name", "channels"),
    [("materials_lowdose", {"materials": ("water", "bone")}), ("dect_sparse", {}), ("ct_sparse60", {}),
     ("materials_iodine", {"materials": ("water", "bone", "iodine")}),
     ("spectralct_lowdose", {"ct_bins": ("44 keV", "64 keV", "92 keV")})],
)  # fmt: skip
def test_tasks_name_their_channels(name, channels):
    assert tasks.load(name).channels == channels
