"""What every bundle computes: repeatable, sample by sample, on the measurement's grid, from the data alone."""

import ast
import inspect
import json
from pathlib import Path

import pytest
import torch
from contract.promises import (
    LEAST_LOSS,
    applicability_faults,
    in_file_units,
    is_stochastic,
    least_loss,
    losses_without_weights,
    quick,
    reconstruct,
    source_of,
    unmeasured_as_image,
)
from contract.reachability import leaks
from monai.data import MetaTensor

from multirecon import tasks
from multirecon.reconstruction import SliceWise

ROOT = Path(__file__).resolve().parents[2]
TASKS = tasks.names()


def structure(name):
    """What a capability can see of a task: modalities, grid, kinds of scans, targets; not doses, views or noise."""
    config = tasks.load(name).config
    named = [m if isinstance(m, dict) else {"name": m} for m in config["space"]["modalities"]]
    modalities = [(m["name"], m.get("channels", 1)) for m in named]
    scans = {key: scan["_target_"] for key, scan in config["acquisition"]["scans"].items()}
    return json.dumps([modalities, config["space"]["shape"], scans, config["targets"]], sort_keys=True)


def one_of_each_structure():
    """Every task; the second of the same structure and later are left to the slow tests."""
    seen = set()
    for name in TASKS:
        key = structure(name)
        yield pytest.param(name, id=name, marks=[pytest.mark.slow] if key in seen else [])
        seen.add(key)


def test_result_lies_on_the_grid_of_the_measurement(workflow, scan, tilted):
    measurement, _ = scan
    with torch.no_grad():
        network = workflow.parser.get_parsed_content("network")
        result = workflow.inferer(tilted, network)
    assert tuple(result.shape) == (measurement.batch_size, *measurement.space.stack_shape)
    assert result.dtype == torch.float32
    assert torch.isfinite(result.as_tensor()).all()
    assert torch.equal(result.affine, tilted.space.affine[0])
    # where an image lies in the room changes nothing of it
    torch.testing.assert_close(result.as_tensor(), reconstruct(workflow, measurement), rtol=1e-4, atol=1e-5)


def test_same_seed_same_image(workflow, scan):
    first, second = (reconstruct(workflow, scan[0], seed=3) for _ in range(2))
    assert torch.equal(first, second)


def test_measurement_is_not_changed(workflow, scan):
    measurement, _ = scan
    before = measurement.fingerprint()
    reconstruct(workflow, measurement)
    assert measurement.fingerprint() == before


def test_batch_is_the_loop_over_its_samples(workflow, scan):
    """For a method that draws random numbers the draws differ; its closed-form tests look at the distribution."""
    measurement, _ = scan
    assert measurement.batch_size == 2
    batch = reconstruct(workflow, measurement)
    singles = [reconstruct(workflow, measurement.samples(i, i + 1)) for i in range(2)]
    if is_stochastic(workflow, measurement):
        assert batch.shape == torch.cat(singles).shape
    else:
        scale = float(batch.abs().max())
        torch.testing.assert_close(batch / scale, torch.cat(singles) / scale, rtol=0, atol=1e-4)


class Spy:
    """Stands in for the inferer of an evaluator and looks at everything that the real one could get at."""

    def __init__(self, inferer, truth, own):
        self.inferer, self.truth, self.own = inferer, truth, own
        self.found, self.calls = [], 0

    def __call__(self, inputs, network, *args, **kwargs):
        self.calls += 1
        self.found += leaks(self.truth, inputs, network, args, kwargs, self.inferer, own=("multirecon", *self.own))
        return self.inferer(inputs, network, *args, **kwargs)


def test_truth_cannot_be_reached_from_what_a_reconstructor_receives(bundle, scan, tmp_path):
    measurement, truth = scan
    workflow = quick(bundle, output_dir=str(tmp_path), **{"evaluator#epoch_length": 1})
    evaluator = workflow.evaluator
    spy = Spy(evaluator.inferer, unmeasured_as_image(measurement, truth), (bundle.name,))
    evaluator.inferer = spy
    workflow.run()
    assert spy.calls == 1
    assert spy.found == []
    assert list(tmp_path.glob("*.nii.gz"))


LOOKS_AROUND = {
    "_getframe", "_current_frames", "currentframe", "f_back", "f_locals", "f_globals", "get_objects", "get_referrers",
    "settrace", "setprofile", "stack", "getouterframes",
}  # fmt: skip


def test_no_method_looks_at_its_caller(bundle):
    """MONAI's evaluator holds the truth while it calls the inferer; nobody may climb up to it."""
    own = sorted(bundle.root.rglob("*.py"))
    library = [
        p for part in ("reconstruction", "priors", "solvers") for p in (ROOT / "common/multirecon" / part).rglob("*.py")
    ]
    found = []
    for path in own + library:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            module = ast.unparse(node.value) if isinstance(node, ast.Attribute) else ""
            if name in LOOKS_AROUND and (name != "stack" or module == "inspect"):
                found.append(f"{path.name}:{node.lineno} {name}")
    assert found == []


def test_there_are_tasks():
    assert TASKS


@pytest.fixture(scope="session")
def question():
    """The first measurement of a task's small set."""
    cache = {}

    def ask(name):
        if name not in cache:
            task = tasks.load(name)
            measurement, _ = task.measure(task.samples("small")[0])
            cache[name] = task, measurement
        return cache[name]

    return ask


@pytest.mark.parametrize("task_name", one_of_each_structure())
def test_what_the_capability_says_is_what_happens(workflow, question, task_name):
    """A method runs on every task that its computed capability covers, and says why on every other."""
    task, measurement = question(task_name)
    assert applicability_faults(workflow, measurement, task.targets) == []


def test_every_bundle_has_a_task(workflow, question):
    """Otherwise it would be in no table."""
    covered = [
        name for name in TASKS if not workflow.inferer.capability.refusals(question(name)[1], question(name)[0].targets)
    ]
    assert covered


def test_inferer_takes_what_label_and_deploy_call_it_with(workflow, scan):
    """MONAI Label calls it by position, Deploy by the names `inputs` and `network`."""
    measurement, _ = scan
    network = workflow.parser.get_parsed_content("network")
    names = list(inspect.signature(workflow.inferer.__call__).parameters)
    assert names[:2] == ["inputs", "network"]
    with torch.no_grad():
        by_position = workflow.inferer(measurement, network)
        by_name = workflow.inferer(inputs=measurement, network=network)
    assert torch.equal(by_position.as_tensor(), by_name.as_tensor())


def test_options_of_bundles_that_take_images(bundle, workflow):
    """MONAI Label shows them; every one reaches the method, and the seed is among them."""
    options = workflow.parser.get("displayable_configs") or {}
    if source_of(workflow) is None:
        assert not options, "options of a bundle that takes no images: nothing reads them"
        return
    assert "seed" in options
    assert all(isinstance(value, str | int | float | bool) for value in options.values()), "a list is a choice of one"
    changed = quick(bundle, **{"displayable_configs#seed": "7"})  # a user interface hands over text
    assert (changed.inferer.seed, source_of(changed).seed) == (7, 7)


def test_images_come_back_on_their_own_grid(bundle, workflow, scan):
    """What MONAI Label and Deploy hand over: a stack of slices, or a volume of any orientation."""
    accepts = bundle.metadata["multirecon"].get("accepts")
    source = source_of(workflow)
    if accepts is not None:
        assert ("image" in accepts) == (source is not None)
    if source is None:
        with pytest.raises(ValueError, match="expected a Measurement"), torch.no_grad():
            workflow.inferer(scan[1], workflow.parser.get_parsed_content("network"))
        return
    truth = in_file_units(scan[1], source.space)
    network = workflow.parser.get_parsed_content("network")
    with torch.no_grad():
        result = workflow.inferer(MetaTensor(truth[:1]), network)
        named = result.meta.get("modalities", source.space.names)  # one of them, where the option `target` names it
        channels = len(source.space.channel_index(named))
        assert result.shape == (1, channels, *truth.shape[2:])
        assert torch.isfinite(result.as_tensor()).all()
        if isinstance(workflow.inferer, SliceWise):
            # axes swapped and one flipped, three slices
            volume = truth[:1].repeat_interleave(3, 0).permute(1, 3, 0, 2).flip(0)[None].contiguous()
            affine = torch.tensor([[0, 0, -1.9, 80], [1.8, 0, 0, -70], [0, 5, 0, 3], [0, 0, 0, 1]], dtype=torch.float64)
            result = workflow.inferer(MetaTensor(volume, affine=affine), network)
            assert result.shape == (1, channels, *volume.shape[2:])
            assert torch.equal(result.affine, affine)
            assert torch.isfinite(result.as_tensor()).all()


@pytest.mark.slow
def test_trained_weights_matter(trained):
    """A method that ignores its network is a fake: drawn anew, it must lose 2 dB (dictionaries: see `least_loss`)."""
    losses, least = losses_without_weights(trained), least_loss(trained)
    assert sum(losses) / len(losses) >= least, losses
    assert least >= LEAST_LOSS or min(losses) > 0, losses
