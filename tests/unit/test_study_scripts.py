"""Scripts that fill pages of studies: blocks, further tasks, methods with other weights, tables from records."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from multirecon import tasks
from multirecon.bundle import read_weights
from multirecon.harness.hypotheses import Evidence
from multirecon.harness.leaderboard import select
from multirecon.harness.records import Record
from multirecon.space import ImageSpace, Modality

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


def test_rivals_are_what_they_are_called(script):
    study = script("rivals_study")
    space = ImageSpace([Modality(n) for n in ("t1", "flair", "t2star", "pet_fdg")], (128, 128), [1.875, 1.875])
    images = torch.rand(2, 4, 128, 128, generator=torch.Generator().manual_seed(0))
    regression = study.made("regression", space).eval()
    other = images.clone()
    other[:, 3] = 0.0  # what is to be made is not looked at
    with torch.no_grad():
        assert torch.equal(regression(images)[:, :3], images[:, :3])
        assert torch.equal(regression(images)[:, 3], regression(other)[:, 3])
    for name in ("vae", "gan"):
        rival = study.made(name, space)
        assert rival.images(2).shape == images.shape
        assert torch.isfinite(rival.loss(images))
    gan = study.made("gan", space)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * 128 * 128, 1, bias=False))
    flat[1].weight.data.fill_(1 / 256)  # a gradient of norm one everywhere
    gan.critic = flat
    torch.manual_seed(0)
    expected = gan.images(2)
    torch.manual_seed(0)
    got = gan.critic_loss(images)
    torch.testing.assert_close(got, flat(expected).mean() - flat(images).mean(), rtol=1e-4, atol=1e-4)


def test_images_that_an_evaluation_kept_are_scored(script, tmp_path):
    study = script("rivals_study")
    task = study.tasks.load("pet_from_mr")
    folder = tmp_path / "images" / task.name
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for sample in ("09-0-57", "15-0-52"):
        truth = torch.rand(task.space.num_channels, 128, 128, generator=generator).numpy()
        np.save(folder / f"{sample}_truth_0.npy", truth)
        np.save(folder / f"{sample}_perfect_1.npy", truth)
        np.save(folder / f"{sample}_perfect_1.trust.npy", truth)
        np.save(folder / f"{sample}_half-mps_2.npy", truth / 2)
    found = study.recorded(tmp_path, task)
    assert set(found) == {"perfect", "half-mps"}
    assert found["perfect"]["ssim"] == pytest.approx(1.0)
    assert found["half-mps"]["hfer"] == pytest.approx(0.25, rel=1e-3)
    assert found["half-mps"]["slices"] == 2
