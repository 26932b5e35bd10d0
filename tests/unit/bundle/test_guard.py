"""The guard in front of a run."""

import json

import pytest

from multirecon.bundle import guard, load, root_cause, unknown_keys


def run(workflow):
    """Run and return the error that a user would read."""
    with pytest.raises(Exception) as caught:
        workflow.run()
    return str(root_cause(caught.value))


def test_outside_a_workflow_it_is_silent():
    assert guard() is None


def test_key_that_slipped_in_after_loading_is_refused(tiny):
    workflow = load(tiny)
    workflow.parser["output_dri"] = "x"
    assert run(workflow) == (
        "unknown key 'output_dri' (did you mean 'output_dir'?): nothing in the configuration refers to it"
    )


def test_allowed_keys_pass(tiny, tmp_path):
    workflow = load(tiny, output_dir=str(tmp_path))
    workflow.parser["remark"] = "x"
    workflow.parser["run"] = [{"_target_": "multirecon.bundle.guard", "allow": ["remark"]}, "$@evaluator.run()"]
    workflow.initialize()
    workflow.run()
    assert list(tmp_path.glob("*.nii.gz"))


@pytest.mark.parametrize(
    ("workflow", "key"), [("inference", "dataset#default#count"), ("train", "train#dataset#count")]
)
def test_empty_data_set_is_refused(tiny, workflow, key):
    assert "expected at least one sample, got none" in run(load(tiny, workflow=workflow, **{key: 0}))


def test_empty_folder_is_refused(tiny, tmp_path):
    assert "dataset_dir: expected measurement files" in run(load(tiny, dataset_dir=str(tmp_path)))


def test_missing_folder_is_refused(tiny, tmp_path):
    assert "dataset_dir: expected an existing folder" in run(load(tiny, dataset_dir=str(tmp_path / "nowhere")))


def test_keys_of_tasks_label_and_tracking_are_known(tiny, tmp_path):
    overlay = tmp_path / "task.json"
    overlay.write_text(
        json.dumps(
            {
                "name": "a", "description": "b", "targets": ["flair"], "metrics": ["psnr"], "sets": {"small": {}},
                "repeats": 1, "displayable_configs": {}, "experiment_name": "c", "tracking_uri": "d",
            }
        )
    )  # fmt: skip
    assert unknown_keys(load(tiny, overlays=[overlay])) == []


def test_an_option_that_turns_nothing_is_refused(tiny):
    """MONAI Label shows `displayable_configs` as options; what nothing refers to would be a knob without a wire."""
    workflow = load(tiny)
    workflow.parser["displayable_configs"] = {"seed": 0, "steps": 3}
    workflow.parser["handlers"] = [{"_target_": "dict", "seed": "$int(@displayable_configs#seed)"}]
    assert [line.split("'")[1] for line in unknown_keys(workflow)] == ["displayable_configs::steps"]


def test_an_expression_counts_as_a_reference(tiny):
    workflow = load(tiny)
    workflow.parser["steps"] = 3
    workflow.parser["twice"] = "$2 * @steps"
    assert [line.split("'")[1] for line in unknown_keys(workflow)] == ["twice"]


def test_a_key_that_an_override_orphans_is_no_mistake(copy_of_tiny):
    bundle = copy_of_tiny()
    path = bundle.configs / "train.json"
    config = json.loads(path.read_text())
    config["max_epochs"] = 2
    config["train"]["trainer"]["max_epochs"] = "@max_epochs"
    path.write_text(json.dumps(config))
    assert unknown_keys(load(bundle, workflow="train", **{"train#trainer#max_epochs": 1})) == []
    with pytest.raises(ValueError, match="unknown key 'max_epochs'"):
        load(bundle, max_epochs=3)  # the inference has no use for it
