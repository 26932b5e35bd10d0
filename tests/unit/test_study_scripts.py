"""Scripts that fill pages of studies: blocks, further tasks, methods with other weights, tables from records."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from multirecon import tasks
from multirecon.bundle import read_weights
from multirecon.harness.hypotheses import Evidence
from multirecon.harness.leaderboard import select
from multirecon.harness.records import Record

CI = Path(__file__).resolve().parents[2] / "ci"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(CI))
    return importlib.import_module


def test_a_block_is_filled_and_the_text_around_it_stays(script, tmp_path):
    pages = script("study_pages")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- study one -->\nold\n<!-- end study -->\nb\n<!-- study two -->\n<!-- end study -->\n")
    text = pages.table(["x", "y"], [["1", "2"]])
    pages.fill(page, "one", text)
    pages.fill(page, "two", r"back\slash \1")
    assert page.read_text() == (
        "a\n<!-- study one -->\n| x | y |\n|---|---|\n| 1 | 2 |\n<!-- end study -->\nb\n"
        "<!-- study two -->\nback\\slash \\1\n<!-- end study -->\n"
    )
    with pytest.raises(ValueError, match="expected one block '<!-- study three -->'"):
        pages.fill(page, "three", "text")


def test_further_tasks_differ_in_one_number(script, tmp_path):
    study = script("mr_study")
    assert study.further_task("flair_x4_t1", tmp_path) is None
    quiet, plain = tasks.load(study.further_task("flair_x4_t1_noise05", tmp_path)), tasks.load("flair_x4_t1")
    assert quiet.acquisition.scans["flair"].sigma == (0.005,)
    assert plain.acquisition.scans["flair"].sigma == (0.01,)
    assert quiet.acquisition.key == plain.acquisition.key
    turned = tasks.load(study.further_task("flair_x4_t1_shift3_turn3", tmp_path)).acquisition.scans["t1"]
    assert (turned.shift_mm, turned.rotation_deg) == (3.0, 3.0)
    known = {*tasks.names(), "flair_x4_t1_noise05", "flair_x4_t1_shift3_turn3"}
    assert {name for sweep in study.SWEEPS.values() for name in sweep.tasks.values()} <= known


def test_a_method_with_other_weights_is_written_once(script, tmp_path):
    study = script("mr_study")
    shipped = read_weights(CI.parent / "bundles" / "mcvarnet_mr" / "models" / "model.pt")
    state = {name: torch.zeros_like(value) for name, value in shipped.items()}
    bundle = str(CI.parent / "bundles" / "mcvarnet_mr")
    folder = study.with_weights(bundle, "zero", state, tmp_path / "made")
    first = (folder / "models" / "model.pt").stat().st_mtime_ns
    assert folder == tmp_path / "made" / "mcvarnet_mr_zero"
    assert all(not value.any() for value in read_weights(folder / "models" / "model.pt").values())
    assert study.select_methods([str(folder)])[0].name == "mcvarnet_mr_zero"
    assert (
        study.with_weights(bundle, "zero", state, tmp_path / "made") / "models" / "model.pt"
    ).stat().st_mtime_ns == first


def result(task, method, psnr, anatomy="09"):
    bundle, _, variant = method.partition(":")
    return Record(task=task, bundle=bundle, variant=variant, sample=f"{anatomy}/0/1", anatomy=anatomy, fingerprint=task,
                  status="ok", metrics={"flair": {"psnr": psnr, "ssim": psnr / 100}})  # fmt: skip


def test_tables_of_a_sweep(script):
    study = script("mr_study")
    values = {"tv_petmrct:directional": (34.0, 33.0), "mcvarnet_mr": (33.0, 30.5)}
    records = [
        result(task, method, found[k] + (anatomy == "15"), anatomy)
        for method, found in values.items()
        for k, task in enumerate(("flair_x4_t1", "flair_x4_t1_shift3"))
        for anatomy in ("09", "15")
    ]
    # left out: a slice that one method of three has answered, and a method that lacks an anatomy
    alone = replace(result("flair_x4_t1", "mcvarnet_mr", 99.0), sample="09/0/2")
    third = [result("flair_x4_t1", "minet_mr", 20.0, a) for a in ("09", "15")]
    short = result("flair_x4_t1", "discdiff_mr:fast", 50.0)
    text = study.sweep_tables("misregistration", Evidence(select([*records, alone, *third, short])))
    assert "50.00" not in text
    assert "| `mcvarnet_mr` | 33.50 [33.00, 34.00] | – | – | 31.00 [30.50, 31.50] | – |" in text
    assert "| `mcvarnet_mr` | -1.00 [-1.00, -1.00] | – | – | -2.50 [-2.50, -2.50] | – |" in text  # to TV
    assert "| `mcvarnet_mr` | – | – | -2.50 [-2.50, -2.50] | – |" in text  # to its own result in register
    assert text.endswith("n = 2 anatomies, 2 slices a cell.")
    anew = [result("flair_x4_t1", "mcvarnet_mr_reinitialised", 20.0, a) for a in ("09", "15")]
    text = study.sweep_tables("reinitialised", Evidence(select([*records, *anew])))
    assert "| `mcvarnet_mr` | -13.50 [-14.00, -13.00] | – |" in text
    assert "minet_mr" not in text


def test_reference_rows_state_what_is_lost(script, tmp_path):
    control, study = script("reference_control"), script("mr_study")
    scores = {"as it is": [("09", 30.0, 0.9), ("15", 32.0, 0.9)], "zeros": [("09", 25.0, 0.8), ("15", 28.0, 0.6)]}
    assert control.row("as it is", scores) == "| as it is | 31.00 | 0.9000 | – |"
    assert control.row("zeros", scores) == "| zeros | 26.50 | 0.7000 | -4.50 [-5.00, -4.00] |"
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "mcvarnet_mr-flair_x4_t1.json").write_text(json.dumps({"content": "", "scores": scores}))
    assert "| `mcvarnet_mr` | flair_x4_t1 | zeros | 26.50 | 0.7000 | -4.50" in study.reference_table(tmp_path)


def test_the_overhead_bench_replays_the_very_calls(script):
    bench = script("bench_bundle_overhead")
    network = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2)

    def run():
        return network(network(x))

    expected = run()
    calls = bench.record(run, network)
    assert [name for name, *_ in calls] == ["forward", "forward"]
    torch.testing.assert_close(calls[1][3], expected)
    weight = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.zero_()
    torch.testing.assert_close(bench.from_recording(run, network, calls)(), expected)  # answers from the recording
    with torch.no_grad():
        network.weight.copy_(weight)
    torch.testing.assert_close(run(), expected)  # and everything is back in its place
    assert "forward" not in vars(network)


def spectral(task, method, anatomy, metrics):
    bundle, _, variant = method.partition(":")
    return Record(task=task, bundle=bundle, variant=variant, sample=f"{anatomy}/0/1", anatomy=anatomy, fingerprint=task,
                  status="ok", metrics=metrics, seconds=2.0, peak_mb=900.0)  # fmt: skip


def test_tables_of_energies_and_of_materials_by_place(script, tmp_path, capsys):
    study = script("spectral_study")
    records = []
    for method, better in (("tikhonov_petmrct", 0.0), ("dps_spectralct:hybrid", 3.0)):
        for anatomy, head in (("09", 1.0), ("15", 2.0)):
            bins = {f"ct_bins:{e} keV": {"psnr": 20 + head + better, "ssim": 0.9} for e in (44, 64, 92)}
            records.append(spectral("spectralct_iodine", method, anatomy, {"ct_bins": {"psnr": 20.0}, **bins}))
            of = {"psnr": 15 + head + better, "ssim": 0.5, "bias@head": -2 * head, "rmse@head": 4.0, "crosstalk": 7.0}
            rod = {"bias@insert_2": -1.5, "rmse@insert_2": 1.6} if anatomy == "09" else {}
            metrics = {f"materials:{m}": {**of, **rod} for m in ("water", "bone", "iodine")}
            records.append(spectral("materials_iodine", method, anatomy, {"materials": {"psnr": 20.0}, **metrics}))
    (tmp_path / "records.jsonl").write_text("".join(r.to_line() + "\n" for r in records))
    assert study.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "spectralct_iodine: 2 heads, 2 slices" in text
    cell = "24.50 [24.00, 25.00], 0.900"
    assert f"| `dps_spectralct:hybrid` | {cell} | {cell} | {cell} | 2.0 | 900 | 2 |" in text
    assert "| method | material | PSNR dB, SSIM | head | insert_2 | crosstalk | s | MiB | n |" in text
    assert "|  | iodine | 19.50 [19.00, 20.00], 0.500 | -3.0, 4.0 | -1.5, 1.6 | +7.0 |  |  |  |" in text
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- study materials_iodine -->\n<!-- end study -->\nb\n")
    assert study.main([str(tmp_path), "--tasks", "materials_iodine", "--page", str(page)]) == 0
    assert page.read_text().startswith("a\n<!-- study materials_iodine -->\n| method | material |")
    assert study.main([str(tmp_path), "--page", str(page)]) == 2  # a block for every task, or an error
    assert "expected one block" in capsys.readouterr().err


def test_counts_at_which_a_reference_has_an_error(script):
    """Straight lines over the logarithm of the counts; beyond the ends the end, and said to be so."""
    counts_of = script("dose_equivalence").counts_of
    line = [(2.5, 0.5), (5.0, 0.4), (10.0, 0.2)]
    assert counts_of(line, 0.3) == (pytest.approx(50**0.5), True)
    assert counts_of(line, 0.4) == (pytest.approx(5.0), True)
    assert counts_of(line, 0.6) == (2.5, False)
    assert counts_of(line, 0.1) == (10.0, False)


def test_bias_at_a_spread_lies_on_a_straight_line_or_nowhere(script):
    along = script("pnp_bias_std").along
    line = [(3.0, 10.0), (1.0, 30.0), (2.0, 20.0)]
    assert along(line, 1.5) == pytest.approx(25.0)
    assert along(line, 3.0) == pytest.approx(10.0)
    assert along(line, 3.1) is None
