"""The schema refuses what the tools of MONAI, Label and Deploy would trip over."""

import copy

import jsonschema
import pytest

from multirecon.bundle import metadata_faults, schema


def changed(metadata, path, value):
    """A copy with one nested entry replaced, or removed where the value is ``None``."""
    result = copy.deepcopy(metadata)
    *parents, last = path.split(".")
    inner = result
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return result


def test_schema_is_itself_valid():
    jsonschema.Draft202012Validator.check_schema(schema())


def test_a_good_bundle_has_no_fault(tiny):
    assert metadata_faults(tiny.metadata, name="tiny_mr") == []


REQUIRED = [
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
    "description", "authors", "copyright", "network_data_format", "multirecon", "multirecon.learned",
    "multirecon.family", "network_data_format.inputs.image", "network_data_format.outputs.pred",
    "network_data_format.inputs.image.num_channels", "network_data_format.inputs.image.spatial_shape",
    "network_data_format.inputs.image.dtype", "network_data_format.inputs.image.value_range",
    "network_data_format.inputs.image.channel_def",
]  # fmt: skip


@pytest.mark.parametrize("path", REQUIRED)
def test_missing_entries_are_named(tiny, path):
    faults = metadata_faults(changed(tiny.metadata, path, None))
    assert any(f"'{path.rsplit('.', 1)[-1]}'" in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("version", "0.10.0", "version"),
        ("version", "0.2.0", "changelog: expected an entry for the current version '0.2.0'"),
        ("name", "other_mr", "name: expected the folder's name 'tiny_mr'"),
        ("authors", "Your Name Here", "authors: expected an entry of your own"),
        ("authors", " ", "authors"),
        ("schema", "file:///schema.json", "schema"),
        ("required_packages_version", {"nibabel": ">=5"}, "required_packages_version.nibabel"),
        ("network_data_format.inputs.image.type", "picture", "image.type"),
        ("network_data_format.inputs.image.spatial_shape", ["8*m", 8], "spatial_shape.0"),
        ("network_data_format.inputs.image.channel_def", {"1": "flair"}, "channel_def: expected channels ['0']"),
        ("network_data_format.outputs.pred.num_channels", 2, "outputs.pred.channel_def"),
        ("multirecon.family", "astrology", "multirecon.family"),
        ("multirecon.learned", True, "'weights' is a required property"),
        ("multirecon.typo", 1, "typo"),
        ("multirecon.weights", {"source": "trained"}, "'data' is a required property"),
        ("multirecon.controls", {"model": "the main one"}, "controls"),
        ("multirecon.tuning", {"weight": {"low": 1, "high": 2}}, "'scale' is a required property"),
        ("multirecon.tuning", {"weight": {"low": 1, "high": 2, "scale": "cubic"}}, "tuning.weight.scale"),
    ],
)
def test_wrong_entries_are_named(tiny, path, value, words):
    faults = metadata_faults(changed(tiny.metadata, path, value), name="tiny_mr")
    assert any(words in fault for fault in faults), faults


def test_a_trained_bundle_may_not_ship_initial_weights(tiny):
    weights = {"learned": True, "family": "mr", "weights": {"source": "initialised"}}
    assert metadata_faults(changed(tiny.metadata, "multirecon", weights)) != []
