"""What the report says beyond leaderboards: sweeps, likeness of sets, bias and spread, posterior samples, costs."""

import csv
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from harness.sample_run import METHODS, SampleTask, claims, truth_and_regions, write_run
from harness.test_report import EVIL, Page

from multirecon.harness import charts
from multirecon.harness.claims import parse_claim
from multirecon.harness.ensembles import ensemble_rows
from multirecon.harness.hypotheses import Run
from multirecon.harness.leaderboard import boards, select
from multirecon.harness.merging import merge_folders
from multirecon.harness.populations import Populations
from multirecon.harness.records import OK, read_records
from multirecon.harness.report import write_report
from multirecon.harness.side_files import encode, load_features, load_regions, save_features
from multirecon.harness.sweeps import find_sweeps, read_points
from multirecon.harness.tables import best, column_label, direction
from multirecon.harness.task_notes import read_tasks
from multirecon.harness.workspace import save_zoom, zoom_of
from multirecon.space import ImageSpace, Modality

PSNR = ("t1", "psnr")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def files(run):
    return write_report([run], run / "report", claims=[parse_claim(c) for c in claims()])


@pytest.fixture(scope="module")
def selection(run):
    return select(read_records(run / "records.jsonl")[0])


def rows_of(file):
    return list(csv.DictReader(io.StringIO(file.read_text())))


def svgs(html):
    import base64

    return [base64.b64decode(code).decode() for code in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)]


def test_every_part_is_on_the_page(files):
    page = Page(files["html"].read_text())
    text = " ".join(" ".join(page.text).split())
    for part in ("Overview", "Claims", "Sweeps", "disc_x2", "Acceleration", "KID-phantomnet64 ↓", "needs 65 images",
                 "Bias and spread of T1 over noise", "Posterior samples", "T1 80 % coverage → 0.8", "Inside regions",
                 "T1 contrast recovery in lesion → 1", "Agreement with the data", "HF energy ratio → 1", "PSNR (dB) ↑",
                 "difference to sense (PSNR (dB))", "timeout: no result within 5 s"):  # fmt: skip
        assert part in text, part
    markdown = files["markdown"].read_text()
    for part in ("## Overview", "## Claims", "### Acceleration", "### Posterior samples", "KID-phantomnet64"):
        assert part in markdown, part


def test_verdicts_of_the_sample_claims(files):
    verdicts = {row["claim"]: row["verdict"] for row in rows_of(files["claims"])}
    assert verdicts == {"T1": "holds", "T2": "fails", "T3": "not tested", "T4": "holds", "T5": "holds"}


def test_a_sweep_is_the_boards_lined_up(run, selection, files):
    tasks = read_tasks(run)
    tables = boards(selection, targets={n: i.targets for n, i in tasks.items()})
    (sweep,) = find_sweeps(tables, {n: i.sweeps for n, i in tasks.items()}, selection.order)
    assert (sweep.name, sweep.label, sweep.scale) == ("rate", "Acceleration", "linear")
    assert sweep.tasks == ((2.0, "disc_x2"), (4.0, "disc_x4"), (8.0, "disc_x8"))
    assert sweep.methods == tuple(METHODS)
    for board in tables:
        for row in board.rows:
            if row.values:
                value = next(v for v, t in sweep.tasks if t == board.task)
                assert dict(sweep.values[row.method, PSNR])[value] == row.values[PSNR]
    found = [r for r in rows_of(files["sweeps"]) if (r["method"], r["metric"]) == ("tv", "psnr")]
    assert [float(r["value"]) for r in found] == [2.0, 4.0, 8.0]
    assert float(found[0]["mean"]) > float(found[2]["mean"])
    assert find_sweeps(tables[:1], {n: i.sweeps for n, i in tasks.items()}, selection.order) == []


@pytest.mark.parametrize("entry", [{"name": "a", "label": "b"}, {"name": "a", "label": "b", "value": 0, "scale": "log"},
                                   {"name": "a", "label": "b", "value": 1, "scale": "cubic"}])  # fmt: skip
def test_bad_sweep_entries_are_refused(entry):
    with pytest.raises((ValueError, KeyError, TypeError)):
        read_points([entry])


def test_bias_and_spread_are_those_of_the_kept_realisations(run, selection):
    task = SampleTask("disc_x4", 4.0)
    board = next(b for b in boards(selection) if b.task == "disc_x4")
    found = ensemble_rows(board, selection.records, [run], task.space, ["t1"])
    assert {r.region for r in found} == {"brain", "lesion", "white_matter", "cortical_gm"}
    in_white = {r.method: r for r in found if r.region == "white_matter"}
    for method, noise in METHODS.items():
        level = noise * 2  # times the root of the rate
        row = in_white[method]
        assert (row.repeats, row.bias.anatomies, row.bias.samples) == (3, 3, 3)
        assert row.std.mean == pytest.approx(level / 0.5, rel=0.15)
        expected = (level**2 * (0.3**2 + 1 / (3 * 0.5**2))) ** 0.5  # shrinkage, and what three realisations leave
        assert row.bias.mean == pytest.approx(expected, rel=0.15)
    assert ensemble_rows(board, [r for r in selection.records if r.repeat == 0], [run], task.space, ["t1"]) == []


def test_likeness_of_sets_ranks_the_noisiest_last(run, selection, files):
    populations = Populations([run], selection)
    board = next(b for b in boards(selection) if b.task == "disc_x2")
    rows = populations.rows(board)
    assert [r.method for r in rows][-1] == "sense"
    assert {(r.kernel.name, r.kernel.counts, r.frechet, r.anatomies) for r in rows} == {
        ("KID-phantomnet64", (3, 3), None, 3)
    }
    first, second = Run("disc_x2", "sense"), Run("disc_x2", "unrolled")
    difference = populations.difference(first, second, "t1", "kid")
    values = {r.method: r.kernel.value for r in rows}
    assert difference.mean == pytest.approx(values["sense"] - values["unrolled"])
    assert difference.low > 0
    back = populations.difference(second, first, "t1", "kid")
    assert back.mean == pytest.approx(-difference.mean)
    assert populations.difference(first, Run("disc_x2", "nobody"), "t1", "kid") is None
    assert populations.difference(first, second, "ct", "kid") is None
    assert {r["distance"] for r in rows_of(files["populations"])} == {"KID-phantomnet64"}


def test_features_are_kept_and_joined(run, selection, tmp_path):
    record = next(r for r in selection.records if r.task == "disc_x4" and r.status == OK and r.repeat == 0)
    held = load_features([run], record)["t1"]
    assert held.shape == (1, 64)
    merge_folders([run], tmp_path / "all")
    assert np.array_equal(load_features([tmp_path / "all"], record)["t1"], held)
    assert set(load_regions([run], record)) == {"brain", "lesion", "white_matter", "cortical_gm"}
    path = next((run / "features").rglob("*.npz"))
    damaged = tmp_path / "damaged" / path.relative_to(run)
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(path.read_bytes()[:100])
    assert load_features([tmp_path / "damaged"], record) == {}


def test_features_only_where_the_encoder_means_something():
    image = np.random.default_rng(0).random((1, 48, 48)).astype(np.float32)
    fine = ImageSpace(["t1"], (48, 48), (1.875, 1.875))
    assert set(encode(image, fine, ["t1"])) == {"t1"}
    assert encode(image, ImageSpace(["t1"], (48, 48), (4.0, 4.0)), ["t1"]) == {}
    assert encode(image[:, :16, :16], ImageSpace(["t1"], (16, 16), (1.875, 1.875)), ["t1"]) == {}
    other = ImageSpace([Modality("ct_low", unit="1/cm", scale=0.25)], (48, 48), (1.875, 1.875))
    assert encode(image, other, ["ct_low"]) == {}
    volume = ImageSpace(["t1"], (48, 48, 3), (1.875, 1.875, 1.875))
    assert encode(np.stack([image] * 3, -1), volume, ["t1"])["t1"].shape == (3, 64)


def test_features_of_a_record_are_not_those_of_the_truth(run, selection, tmp_path):
    record = next(r for r in selection.records if r.status == OK and r.repeat == 0)
    truth, _ = truth_and_regions(0)
    save_features(tmp_path, record, truth.numpy(), SampleTask("x", 1.0).space, ["t1"], truth=True)
    assert load_features([tmp_path], record) == {}
    assert load_features([tmp_path], record, truth=True)["t1"].shape == (1, 64)


def test_charts_are_drawings_without_code(files):
    drawings = svgs(files["html"].read_text())
    assert len(drawings) == 1 + 3 + 1  # a sweep, costs of three tasks, bias and spread of the one with images
    for text in drawings:
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg")
        assert not [e.tag for e in root.iter() if e.tag.endswith(("script", "image", "foreignObject"))]
        assert "mathdefault" not in text


def test_a_chart_shows_any_name(selection):
    assert "\u202e" not in charts.plain_text(EVIL)
    board = next(b for b in boards(selection) if b.task == "disc_x2")
    evil = [
        type(r)(EVIL + str(i) + "\x00\ud800", r.values, ok=r.ok, seconds=r.seconds) for i, r in enumerate(board.rows)
    ]
    chart = charts.cost_chart(type(board)("t", "", board.columns, tuple(evil), 1, 1), PSNR, EVIL, [])
    assert not [e for e in ElementTree.fromstring(chart).iter() if e.tag.endswith("script")]
    empty = type(board)("t", "", board.columns, (), 0, 0)
    assert charts.cost_chart(empty, PSNR, "PSNR", []) is None


def test_heads_say_what_is_better(selection):
    assert [direction(m) for m in ("psnr", "mae", "crc@lesion", "coverage95", "residual")] == [
        "↑",
        "↓",
        "→ 1",
        "→ 0.95",
        "",
    ]
    assert (
        column_label(("pet_fdg", "mae@white_matter"), {"pet_fdg": "kBq/mL"}) == "PET FDG MAE (kBq/mL) in white matter"
    )
    board = next(b for b in boards(selection) if b.task == "disc_x2")
    assert best(board, PSNR) == {"unrolled"}
    assert best(board, ("t1", "hfer")) == {"unrolled"}  # 1.37: nearest to 1, not the largest
    assert best(board, ("t1", "residual")) == frozenset()


def test_a_sampler_is_judged_by_the_samples_it_draws(selection):
    drawn = [r for r in selection.records if r.bundle == "sampler"]
    assert all(0 <= r.metrics["t1"]["coverage80@brain"] <= 1 for r in drawn)
    assert "coverage95" not in drawn[0].metrics["t1"]  # nine samples cannot support it
    assert drawn[0].metrics["t1"]["crps@brain"] < 0.1
    assert torch.tensor([r.metrics["t1"]["crps"] for r in drawn]).isfinite().all()


def test_the_zoom_is_on_the_largest_lesion(tmp_path, selection):
    record, mask = selection.records[0], torch.zeros(48, 48, dtype=torch.bool)
    mask[2:4, 2:4] = mask[30:36, 20:25] = True
    save_zoom(tmp_path, record, {"lesion": mask, "brain": torch.ones(48, 48, dtype=torch.bool)})
    assert zoom_of([tmp_path], record) == (26, 40, 16, 29)
    corner = torch.zeros(48, 48, dtype=torch.bool)
    corner[0, 47] = True
    save_zoom(tmp_path, record, {"pet_lesion": corner})
    assert zoom_of([tmp_path], record) == (0, 5, 43, 48)
