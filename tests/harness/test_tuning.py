"""The tuner: its search on functions with a known optimum, and the command on a bundle with one."""

import csv
import json
import math

import pytest
import torch

from multirecon import tasks
from multirecon.__main__ import main
from multirecon.blocks import Blocks
from multirecon.bundle.folder import find
from multirecon.data import splits
from multirecon.harness.methods import Method
from multirecon.harness.tuning import TunableMethod
from multirecon.harness.tuning_data import REPRESENTATIVE, Case, ValidationData, validation_task
from multirecon.harness.tuning_log import LoggedTrial, TrialLog
from multirecon.harness.tuning_search import Range, Search, Trial
from multirecon.likelihoods import BlockLikelihood, Gaussian
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Diagonal, Identity
from multirecon.reconstruction import Capability
from multirecon.space import ImageSpace
from multirecon.tasks import load

RANGES = {"weight": Range(1e-4, 1e2, "log"), "edge": Range(-1.0, 3.0, "linear")}
START = {"weight": 10.0, "edge": 0.0}
KIND = "parallel_beam/transmission_poisson"
FAN = json.loads((tasks.resources.files(tasks) / "ct_sparse60_scanner_b.json").read_text())["acquisition"]["scans"][
    "ct"
]


def searched(function, ranges, default, trials, seed=0):
    search, history = Search(ranges, default, trials=trials, seed=seed), []
    while len(history) < trials:
        settings = search.propose(history)
        history.append(Trial(settings, function(settings)))
    return history


def bowl(settings):
    """A quadratic in log10(weight) and edge with its maximum at 0.02 and 1.7."""
    return -((math.log10(settings["weight"]) - math.log10(0.02)) ** 2) - (settings["edge"] - 1.7) ** 2


@pytest.mark.parametrize("seed", range(5))
def test_search_finds_the_optimum_of_a_quadratic(seed):
    history = searched(bowl, RANGES, START, 24, seed)
    best = max(history, key=lambda t: t.score)
    assert abs(math.log10(best.settings["weight"] / 0.02)) < 0.05
    assert abs(best.settings["edge"] - 1.7) < 0.05
    design = max(history[:12], key=lambda t: t.score)
    assert best.score > design.score  # the steps around the best are worth their trials


def test_search_of_whole_numbers_tries_new_ones():
    history = searched(
        lambda s: -((s["count"] - 7) ** 2), {"count": Range(1, 12, "integer")}, {"count": 2.0}, trials=12
    )
    tried = [t.settings["count"] for t in history]
    assert max(history, key=lambda t: t.score).settings["count"] == 7
    assert all(value.is_integer() and 1 <= value <= 12 for value in tried)
    assert len(set(tried)) >= 8


def test_design_is_the_same_for_all_and_fills_the_ranges():
    first, second = searched(bowl, RANGES, START, 24), searched(bowl, RANGES, START, 24)
    assert first == second
    assert first[0].settings == START
    assert searched(bowl, RANGES, START, 24, seed=1)[1] != first[1]
    shares = sorted(RANGES["weight"].share(t.settings["weight"]) for t in first[1:12])
    assert max(b - a for a, b in zip([0, *shares], [*shares, 1], strict=False)) < 0.25
    stages = [Search(RANGES, START, trials=24).stage(i) for i in range(24)]
    assert [stages.count(s) for s in ("default", "design", "refinement")] == [1, 11, 12]


def test_failed_trials_are_left_behind():
    history = searched(lambda s: -math.inf if s["edge"] < 1 else bowl(s), RANGES, {"weight": 1.0, "edge": 0.0}, 24)
    assert math.isfinite(max(history, key=lambda t: t.score).score)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, "log"), "low: expected > 0"),
        ((1.0, 1.0, "linear"), "expected two finite numbers in this order"),
        ((1.0, 2.5, "integer"), "expected whole numbers"),
        ((1.0, 2.0, "cubic"), "scale: expected 'log', 'linear' or 'integer'"),
    ],
)
def test_bad_ranges(arguments, message):
    with pytest.raises(ValueError, match=message):
        Range(*arguments)
    with pytest.raises(ValueError, match=r"weight: expected a default in \[0.0001, 100\], got 1000"):
        Search(RANGES, {"weight": 1000.0, "edge": 0.0})
    with pytest.raises(ValueError, match="trials: expected >= 2"):
        Search(RANGES, START, trials=1)


def test_log_survives_a_line_cut_short(tmp_path):
    log = TrialLog(tmp_path / "log.csv")
    trials = [Trial({"weight": 0.1 + i, "edge": 1e-7}, -math.inf if i == 1 else 20.5) for i in range(3)]
    for i, trial in enumerate(trials):
        log.append(LoggedTrial("abc", KIND, i, "design", trial, 0.1))
    assert log.trials("abc") == trials
    assert log.trials("other") == []
    log.path.write_bytes(log.path.read_bytes()[:-12])
    assert log.trials("abc") == trials[:2]
    log.append(LoggedTrial("abc", KIND, 2, "design", trials[2], 0.1))
    assert log.trials("abc") == trials


# --- validation samples


def test_representative_tasks_are_validated_on_validation_anatomies_only(monkeypatch, tmp_path):
    monkeypatch.delenv("MULTIRECON_ANATOMIES", raising=False)
    for name in REPRESENTATIVE:
        task = validation_task(load(name))
        samples = task.samples("validation").samples
        assert {splits.split_of(*s) for s in samples} == {"validation"}
        assert len(samples) == 2
        with pytest.raises(ValueError, match="set of task"):
            task.samples("small")
    for number in ("04", "09", "13", "16"):
        (tmp_path / f"training_seg_{number}.nii.gz").touch()
    monkeypatch.setenv("MULTIRECON_ANATOMIES", str(tmp_path))
    samples = validation_task(load("ct_sparse60")).samples("validation").samples
    assert [anatomy for anatomy, _ in samples] == ["04", "13"]


def test_tasks_on_test_anatomies_are_refused(tmp_path, monkeypatch):
    config = json.loads((tasks.resources.files(tasks) / "ct_sparse60.json").read_text(encoding="utf-8"))
    config["dataset"] |= {"anatomies": ["09"]}
    file = tmp_path / "task.json"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"split 'validation' only, got 09"):
        validation_task(load(file))
    config["dataset"] |= {"anatomies": ["unknown"]}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"split 'validation' only, got unknown"):
        validation_task(load(file))


# --- the command, on a bundle whose image is the constant that is tuned

CONSTANT = """
import torch
from multirecon.reconstruction import Reconstructor, block_kind

class Constant(Reconstructor):
    calls = []

    def __init__(self, tuning):
        super().__init__()
        self.tuning = tuning

    def reconstruct(self, measurement, network, *, generator, callback):
        (name,) = measurement.available
        level = self.tuning.of(measurement, name)["level"]
        Constant.calls.append((level, measurement.fingerprint()))
        if level > 0.9:
            raise ValueError("level: too high")
        return torch.full((measurement.batch_size, *measurement.space.stack_shape), level)
"""


@pytest.fixture
def task_file(tmp_path, monkeypatch):
    """The shipped CT task on a coarse phantom."""
    monkeypatch.setenv("MULTIRECON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MULTIRECON_ANATOMIES", raising=False)
    config = json.loads((tasks.resources.files(tasks) / "ct_sparse60.json").read_text(encoding="utf-8"))
    config["name"] = "ct_tiny"
    config["space"] |= {"shape": [32, 32], "spacing_mm": [7.5, 7.5]}
    coarse = {"spacing_mm": [3.75, 3.75, 3.75], "matrix": 64}
    config["dataset"] |= {"shape": [32, 32], "spacing_mm": 7.5, "slices": 2, "config": coarse}
    path = tmp_path / "ct_tiny.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def constant(make_bundle, request):
    """A bundle with one tuned setting, under a name of its own (its module stays imported)."""
    name = f"constant_{sum(map(ord, request.node.name))}"
    root = make_bundle(name, CONSTANT)
    config = json.loads((root / "configs" / "inference.json").read_text())
    path = "$os.path.join(@bundle_root, 'configs', 'tuning.json')"
    config["tuning"] = {"_target_": "multirecon.reconstruction.Tuning", "parameters": {"level": 0.5}, "path": path}
    config["inferer"] = {"_target_": f"{name}.Constant", "tuning": "@tuning"}
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    entry = {"level": {"low": 0.001, "high": 1.0, "scale": "log"}}
    metadata = {"version": "0.1.0", "name": name, "multirecon": {"learned": False, "family": "ct", "tuning": entry}}
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return root


def calls(root):
    import importlib

    return importlib.import_module(root.name).Constant.calls


def rows(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_command_finds_the_best_constant(constant, task_file, capsys, monkeypatch):
    words = ["tune", str(constant), "--tasks", str(task_file), "--trials", "24", "--noprogress", "--slices", "2"]
    assert main(words) == 0
    assert KIND in capsys.readouterr().out
    content = json.loads((constant / "configs" / "tuning.json").read_text())
    found = content["settings"][KIND]["level"]
    task = validation_task(load(task_file))
    samples = task.samples("validation")
    truths = torch.stack([samples[i]["image"] for i in range(len(samples))])

    def score(level):
        return float((-10 * torch.log10(((truths - level) ** 2).flatten(1).mean(1))).mean())

    levels = torch.logspace(-3, -0.05, 600).tolist()
    best = max(levels, key=score)
    assert abs(math.log10(found / best)) < 0.05
    assert score(found) > score(best) - 0.02
    record = content["kinds"][KIND]
    assert record["default"] < record["best"]
    assert record["tasks"] == ["ct_tiny"]
    assert len(record["subjects"]) == 4
    assert all(splits.split_of(a, int(s)) == "validation" for a, s, _ in (i.split("/") for i in record["subjects"]))
    assert (content["trials"], content["metric"], content["split"]) == (24, "psnr", "validation")
    log = rows(constant / "docs" / "tuning.csv")
    assert len(log) == 24
    assert [row["score"] == "" for row in log] == [float(row["settings"].split("=")[1]) > 0.9 for row in log]
    seen = {fingerprint for _, fingerprint in calls(constant)}
    assert len(seen) == 4  # the same data in every trial

    # nothing is left to do: no trial runs again, and the file stays as it is
    before, text = len(calls(constant)), (constant / "configs" / "tuning.json").read_text()
    assert main(words) == 0
    assert len(calls(constant)) == before
    assert (constant / "configs" / "tuning.json").read_text() == text


def test_run_that_was_killed_goes_on(constant, task_file, tmp_path, monkeypatch):
    words = ["tune", str(constant), "--tasks", str(task_file), "--trials", "8", "--noprogress"]
    assert main([*words, "--output", str(tmp_path / "whole")]) == 0
    append, count = TrialLog.append, 0

    def killed(self, trial):
        nonlocal count
        count += 1
        if count > 5:
            raise KeyboardInterrupt
        append(self, trial)

    monkeypatch.setattr(TrialLog, "append", killed)
    out = ["--output", str(tmp_path / "parts")]
    assert main([*words, *out]) == 130
    place = tmp_path / "parts" / constant.name
    assert len(rows(place / "tuning.csv")) == 5
    assert not (place / "tuning.json").exists()
    monkeypatch.setattr(TrialLog, "append", append)
    before = len(calls(constant))
    assert main([*words, *out]) == 0
    assert len({level for level, _ in calls(constant)[before:]}) == 3
    whole = tmp_path / "whole" / constant.name
    assert (place / "tuning.json").read_text() == (whole / "tuning.json").read_text()
    settings = [row["settings"] for row in rows(place / "tuning.csv")]
    assert settings == [row["settings"] for row in rows(whole / "tuning.csv")]
    assert not (constant / "configs" / "tuning.json").exists()


def test_kinds_that_are_not_tuned_again_are_kept(constant, task_file):
    file = constant / "configs" / "tuning.json"
    file.write_text(
        json.dumps({"format": 1, "settings": {"pet/poisson": {"level": 0.25}}, "kinds": {"pet/poisson": {}}})
    )
    assert main(["tune", str(constant), "--tasks", str(task_file), "--trials", "2", "--noprogress"]) == 0
    content = json.loads(file.read_text())
    assert content["settings"]["pet/poisson"] == {"level": 0.25}
    assert set(content["kinds"]) == {"pet/poisson", KIND}


def test_every_kind_gets_the_same_number_of_trials(constant, task_file, tmp_path):
    config = json.loads(task_file.read_text())
    config["name"] = "fan_tiny"
    config["acquisition"]["scans"] = load("ct_sparse60_scanner_b").config["acquisition"]["scans"]
    fan = tmp_path / "fan.json"
    fan.write_text(json.dumps(config))
    words = ["tune", str(constant), "--tasks", f"{task_file},{fan}", "--trials", "4", "--noprogress"]
    assert main(words) == 0
    log = rows(constant / "docs" / "tuning.csv")
    kinds = [row["kind"] for row in log]
    assert {kind: kinds.count(kind) for kind in kinds} == {KIND: 4, "fan_beam/transmission_poisson": 4}


def test_only_the_kinds_that_are_named(constant, task_file, tmp_path, capsys):
    config = json.loads(task_file.read_text())
    config["name"] = "fan_tiny"
    config["acquisition"]["scans"] = load("ct_sparse60_scanner_b").config["acquisition"]["scans"]
    fan = tmp_path / "fan.json"
    fan.write_text(json.dumps(config))
    words = ["tune", str(constant), "--tasks", f"{task_file},{fan}", "--trials", "2", "--noprogress"]
    assert main([*words, "--kinds", "fan_beam/transmission_poisson"]) == 0
    content = json.loads((constant / "configs" / "tuning.json").read_text())
    assert set(content["settings"]) == {"fan_beam/transmission_poisson"}
    assert main([*words, "--kinds", "pet/poisson"]) == 1
    assert "expected one of the kinds ['pet/poisson']" in capsys.readouterr().err


class Guided:
    """Stands in for the inferer of a method: a constant, or one that depends on the clean image."""

    def __init__(self, looks):
        self.looks = looks

    def __call__(self, measurement, network, generator):
        result = torch.ones(1, *measurement.space.stack_shape)
        return result + sum(measurement.y[n].sum() for n in measurement.clean) if self.looks else result


@pytest.mark.parametrize("looks", [True, False])
def test_a_guide_that_is_not_looked_at_is_no_kind_of_its_own(looks, constant):
    method = TunableMethod(Method(find(constant)))
    method.inferer = Guided(looks)
    case = Case("t", "s", guided_measurement(), torch.zeros(1, 2, 4, 4))
    assert method.uses_guide(case) is looks
    assert case.kinds == {"diagonal/gaussian+guide": ["flair"]}
    method.inferer.capability = Capability(requires={"t1": "identity"})  # it cannot do without
    assert method.uses_guide(case) is True


def guided_measurement():
    space = ImageSpace(["flair", "t1"], (4, 4), (1.0, 1.0))
    operators = {"flair": Diagonal(torch.full((1, 4, 4), 2.0), shape=(1, 4, 4)), "t1": Identity((1, 4, 4))}
    y = Blocks({name: torch.ones(1, 1, 4, 4) for name in operators})
    likelihood = BlockLikelihood({"flair": Gaussian(0.1), "t1": Gaussian(0.0)})
    return Measurement(y, BlockDiagonal(space, operators), likelihood)


def changed(root, name, change):
    path = root / "configs" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


FAULTS = {
    "expected ranges in multirecon.tuning": ("metadata", lambda c: c["multirecon"].pop("tuning")),
    "expected some of ['level'], got ['other']": (
        "metadata",
        lambda c: c["multirecon"]["tuning"].update(other={"low": 1, "high": 2}),
    ),
    "low: expected > 0": ("metadata", lambda c: c["multirecon"]["tuning"]["level"].update(low=0)),
    "multirecon.tuning: 'high'": ("metadata", lambda c: c["multirecon"]["tuning"]["level"].pop("high")),
    "level: expected a default in [0.001, 1], got 3": (
        "inference",
        lambda c: c["tuning"]["parameters"].update(level=3.0),
    ),
    "expected a Tuning with a path under 'tuning'": (
        "inference",
        lambda c: c.update(tuning={"_target_": "torch.nn.Identity"}),
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_bad_bundles_are_one_clear_line(constant, task_file, capsys, message):
    name, change = FAULTS[message]
    changed(constant, f"{name}.json", change)
    assert main(["tune", str(constant), "--tasks", str(task_file), "--noprogress"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (constant / "docs" / "tuning.csv").exists()


def test_variant_has_settings_of_its_own(constant, task_file):
    overlay = {
        "tuning#parameters": {"level": 0.2, "edge": 1.0},
        "tuning#path": "$os.path.join(@bundle_root, 'configs', 'tuning_edgy.json')",
    }
    (constant / "configs" / "inference_edgy.json").write_text(json.dumps(overlay))
    changed(
        constant,
        "metadata.json",
        lambda c: c["multirecon"].update(
            variants={"edgy": "with an edge"},
            tuning={**c["multirecon"]["tuning"], "edge": {"low": 0, "high": 2, "scale": "linear"}},
        ),
    )
    assert main(["tune", "--folder", str(constant.parent), "--tasks", str(task_file), "--trials", "3"]) == 0
    plain = json.loads((constant / "configs" / "tuning.json").read_text())
    edgy = json.loads((constant / "configs" / "tuning_edgy.json").read_text())
    assert set(plain["settings"][KIND]) == {"level"}
    assert set(edgy["settings"][KIND]) == {"level", "edge"}
    assert edgy["bundle"] == f"{constant.name}:edgy"
    assert rows(constant / "docs" / "tuning_edgy.csv")[0]["settings"] == "level=0.2 edge=1"


def test_bad_arguments_are_one_clear_line(constant, task_file, capsys):
    base = ["tune", str(constant), "--tasks", str(task_file), "--noprogress"]
    for words, message in (
        (["--metric", "nrmse"], "metric: expected one of ('psnr', 'ssim'), got 'nrmse'"),
        (["--trials", "1"], "trials: expected >= 2"),
        (["--slices", "0"], "slices: expected at least one"),
    ):
        assert main([*base, *words]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_malformed_settings_file_is_refused_and_kept(constant, task_file, capsys):
    file = constant / "configs" / "tuning.json"
    file.write_text('{"format": 1, "settings": {"pet/poisson": {"sigma": 1}}}')
    assert main(["tune", str(constant), "--tasks", str(task_file), "--noprogress"]) == 1
    assert "expected some of ['level'], got ['sigma']" in capsys.readouterr().err
    assert "sigma" in file.read_text()


def test_default_tasks_cover_every_scan_of_the_shipped_tasks():
    def scans(names):
        texts = [(tasks.resources.files(tasks) / f"{name}.json").read_text(encoding="utf-8") for name in names]
        return {scan["_target_"] for text in texts for scan in json.loads(text)["acquisition"]["scans"].values()}

    assert scans(tasks.names()) - scans(REPRESENTATIVE) <= {"multirecon.acquisition.Misregistered"}


def test_case_kinds_leave_clean_images_out(task_file):
    data = ValidationData([load(task_file)], slices=1)
    assert [case.kinds for case in data.cases("ct_tiny")] == [{KIND: ["ct"]}] * 2
    assert data.cases("ct_tiny") is data.cases("ct_tiny")
