"""The choice of a method: similar tasks, recorded results, budget, and the reasons in words."""

import math

import pytest
import torch

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage, ParallelCT
from multirecon.bundle.folder import Bundle
from multirecon.harness.acquisitions import acquisition_distance, acquisition_text, describe_acquisition
from multirecon.harness.leaderboard import Row
from multirecon.harness.methods import Method
from multirecon.harness.selection import RecordedTask, choose, read_leaderboard
from multirecon.harness.statistics import Interval
from multirecon.space import ImageSpace, Modality

SPACE = ImageSpace(["flair", "t1", Modality("ct", scale=0.2)], (16, 16), (8.0, 8.0))


def measure(scans, names=("flair",)):
    space = SPACE.select(names)
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return Acquisition(space, scans, key="k")({n: 0.2 * image if n == "ct" else image for n in names}, ["a", "b"])


X2, X4 = (describe_acquisition(measure({"flair": CartesianMR(r, coils=2)})) for r in (2, 4))
X4_T1 = describe_acquisition(measure({"flair": CartesianMR(4, coils=2), "t1": CleanImage()}, ("flair", "t1")))
CT = describe_acquisition(measure({"ct": ParallelCT(20)}, ("ct",)))


def distance(mine, other, targets=("flair",), theirs=("flair",)):
    found = acquisition_distance(mine, other, targets, theirs)
    return None if found is None else found[0]


def test_distances_count_doublings():
    assert distance(X4, X4) == 0
    assert distance(X4, X2) == distance(X2, X4) == pytest.approx(1, abs=0.4)  # the noise relative to the data differs
    assert distance(X4, X4_T1) == pytest.approx(0.5)
    assert distance(X4, CT) is None
    t2 = {**X4, "blocks": {"t2": X4["blocks"]["flair"]}}
    assert acquisition_distance(t2, X4, ["t2"], ["flair"]) == (1.0, {"t2": "flair"})
    assert distance(X4, X4, theirs=()) is None  # the task does not evaluate it
    noisier = {**X4, "blocks": {"flair": {**X4["blocks"]["flair"], "noise": 4 * X4["blocks"]["flair"]["noise"]}}}
    assert distance(X4, noisier) == pytest.approx(1.0)
    fan = {**CT, "blocks": {"ct": {**CT["blocks"]["ct"], "operator": "fan_beam"}}}
    assert distance(CT, fan, ["ct"], ["ct"]) == 2.0


def test_synthesis_needs_a_missing_modality():
    m = describe_acquisition(measure({"t1": CleanImage()}, ("flair", "t1")))
    assert m == {"blocks": {}, "clean": ["t1"], "missing": ["flair"]}
    assert distance(m, m) == 0
    assert distance(m, X4_T1) is None


def test_descriptions_hold_what_was_simulated():
    block = X4["blocks"]["flair"]
    assert (block["operator"], block["likelihood"], block["sampling"]) == ("masked_fourier", "gaussian", 0.25)
    assert CT["blocks"]["ct"]["sampling"] > 1
    assert 1e5**-0.5 < CT["blocks"]["ct"]["noise"] < 1e4**-0.5
    assert "25% of k-space" in acquisition_text(X4_T1)
    assert acquisition_text(X4_T1).endswith("clean t1")


def method(tmp_path, name):
    root = tmp_path / name
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "metadata.json").write_text('{"version": "1.0.0"}')
    return Method(Bundle(root))


def row(name, psnr, seconds=1.0, failed=0, modality="flair"):
    return Row(name, {(modality, "psnr"): Interval(psnr, None, None, 1, 4)}, ok=4, failed=failed, seconds=seconds)


def board(name, acquisition, rows, voxels=256, targets=("flair",)):
    return RecordedTask(name, targets, acquisition, voxels, {r.method: r for r in rows}, {})


@pytest.fixture
def methods(tmp_path):
    return [method(tmp_path, name) for name in ("a", "b", "c", "d")]


@pytest.fixture
def tasks():
    near = [row("a", 30.0), row("b", 31.0, seconds=50.0), row("d", 40.0, failed=1)]
    return [board("x2", X2, [row("c", 50.0)]), board("x4", X4, near), board("ct", CT, [row("a", 99.0)])]


def test_the_best_on_the_most_similar_task_wins(methods, tasks):
    measurement = measure({"flair": CartesianMR(4, coils=2)})
    choice = choose(measurement, methods, {}, tasks)
    # first those with results on the task itself, without failures; then those known from another task
    assert [c.method.name for c in choice.ranked] == ["b", "a", "d", "c"]
    assert choice.best.method.name == "b"
    assert choice.nearest[0] == ("x4", 0.0)
    assert choice.best.seconds == pytest.approx(100.0)  # two samples of the task's size
    text = "\n".join(choice.lines())
    for words in ("x4 (0.00)", "b: psnr 31 dB on x4, about 100 s", "failed on 1 of 5", "2 samples", "another version"):
        assert words in text


def test_budget_and_refusals_are_reasons(methods, tasks):
    measurement = measure({"flair": CartesianMR(4, coils=2)})
    choice = choose(measurement, methods, {"a": "one; two; three"}, tasks, budget=10.0)
    assert [c.method.name for c in choice.ranked] == ["d", "c"]
    text = "\n".join(choice.lines())
    assert "a: one (and 2 more)" in text
    assert "b: about 100 s exceed the budget of 10 s" in text
    with pytest.raises(ValueError, match=r"budget: .* got 0\.1 s, less than a \(2 s\)"):
        _ = choose(measurement, methods, {}, tasks, budget=0.1).best
    with pytest.raises(ValueError, match=r"expected one that takes this measurement, got none \(a: no"):
        _ = choose(measurement, methods, dict.fromkeys("abcd", "no"), tasks).best


def test_without_results_on_similar_data_nothing_is_chosen(methods, tasks):
    choice = choose(measure({"ct": ParallelCT(20)}, ("ct",)), methods[1:], {}, tasks[:2])
    assert all(math.isnan(c.score) for c in choice.ranked)
    assert "no recorded task" in "\n".join(choice.lines())
    with pytest.raises(ValueError, match="on a similar task, got none"):
        _ = choice.best


@pytest.mark.parametrize(
    ("options", "message"),
    [({"metric": "beauty"}, "metric"), ({"targets": ["ct"]}, "targets"), ({"budget": 0.0}, "budget")],
)  # fmt: skip
def test_bad_wishes_are_named(methods, tasks, options, message):
    with pytest.raises(ValueError, match=f"{message}: expected"):
        choose(measure({"flair": CartesianMR(4, coils=2)}), methods, {}, tasks, **options)


def test_clean_images_alone_ask_for_nothing(methods, tasks):
    with pytest.raises(ValueError, match="clean images alone"):
        choose(measure({"t1": CleanImage()}, ("t1",)), methods, {}, tasks)
    noisy = describe_acquisition(measure({"t1": CleanImage(0.1)}, ("t1",)))
    assert noisy["blocks"]["t1"]["operator"] == "identity"


def test_the_leaderboard_of_the_repository_is_usable():
    from pathlib import Path

    tasks = read_leaderboard(Path(__file__).parents[2] / "docs" / "leaderboard")
    named = {t.name: t for t in tasks}
    assert named["flair_x4_t1"].acquisition["blocks"]["flair"]["sampling"] == 0.25
    assert "sense_mr" in named["flair_x4_t1"].rows
    assert named["flair_x4_t1"].voxels == 128 * 128


def test_no_records_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="existing file"):
        read_leaderboard(tmp_path)
    (tmp_path / "records.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match="at least one result"):
        read_leaderboard(tmp_path)
