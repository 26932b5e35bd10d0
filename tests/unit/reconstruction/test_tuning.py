"""Tuned settings: look-up by kind of block, the file, and its faults."""

import json

import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian, Poisson
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Diagonal, Identity
from multirecon.operators.base import ScaledOperator
from multirecon.operators.projector_stack import SliceStack
from multirecon.reconstruction import Tuning, block_kind
from multirecon.space import ImageSpace

KIND = "diagonal/poisson"
SHAPE = (1, 4, 4)


def written(folder, settings, **entries):
    path = folder / "tuning.json"
    path.write_text(json.dumps({"format": 1, "metric": "psnr", "trials": 3, "settings": settings, **entries}))
    return path


def measured(*, clean=(), scaled=False):
    """A diagonal block of PET counts beside clean modalities."""
    space = ImageSpace(["pet_fdg", "t1"], SHAPE[1:], (1.0, 1.0))
    operator = Diagonal(torch.full(SHAPE, 2.0), shape=SHAPE)
    operators = {"pet_fdg": ScaledOperator(operator, 3.0) @ Identity(SHAPE) if scaled else operator}
    likelihoods = {"pet_fdg": Poisson(1.0)}
    for name in clean:
        operators[name], likelihoods[name] = Identity(SHAPE), Gaussian(0.0)
    y = Blocks({name: torch.ones(1, *SHAPE) for name in operators})
    return Measurement(y, BlockDiagonal(space, operators), BlockLikelihood(likelihoods))


def test_defaults_without_a_file(tmp_path):
    tuning = Tuning({"weight": 0.1, "iterations": 8}, path=tmp_path / "none.json")
    assert tuning("weight", KIND) == 0.1
    assert tuning("iterations", KIND) == 8.0
    assert tuning.settings == {}


def test_file_goes_before_the_default_name_by_name(tmp_path):
    path = written(tmp_path, {KIND: {"weight": 0.3}, f"{KIND}+guide": {"iterations": 20}}, version="0.1.0")
    tuning = Tuning({"weight": 0.1, "iterations": 8}, path=path)
    assert tuning("weight", KIND) == 0.3
    assert tuning("iterations", KIND) == 8
    assert tuning("iterations", f"{KIND}+guide") == 20
    assert tuning("weight", f"{KIND}+guide") == 0.3  # from the kind without a guide
    assert tuning("weight", "pet/poisson") == 0.1


def test_kind_says_operator_likelihood_and_guide():
    assert block_kind(measured(), "pet_fdg") == KIND
    assert block_kind(measured(clean=["t1"]), "pet_fdg") == f"{KIND}+guide"
    assert block_kind(measured(clean=["t1"]), "t1") == "identity/gaussian"  # it does not guide itself
    assert block_kind(measured(scaled=True), "pet_fdg") == KIND
    with pytest.raises(ValueError, match="block: expected one of"):
        block_kind(measured(), "ct")


def test_kind_of_a_stack_of_slices_is_that_of_its_slices():
    operator = SliceStack(Diagonal(torch.ones(3, 4, 4), shape=(3, 4, 4)), slices=3)
    space = ImageSpace(["ct"], (4, 4, 3), (1.0, 1.0, 1.0))
    y = Blocks({"ct": torch.ones(1, *operator.range_shape)})
    m = Measurement(y, BlockDiagonal(space, {"ct": operator}), BlockLikelihood({"ct": Gaussian(1.0)}))
    assert block_kind(m, "ct") == "diagonal/gaussian"


def test_settings_of_a_block(tmp_path):
    tuning = Tuning({"weight": 0.1, "edge": 2.0}, path=written(tmp_path, {f"{KIND}+guide": {"edge": 3.0}}))
    assert tuning.of(measured(), "pet_fdg") == {"weight": 0.1, "edge": 2.0}
    assert tuning.of(measured(clean=["t1"]), "pet_fdg") == {"weight": 0.1, "edge": 3.0}


def test_a_variant_takes_what_it_has_not_tuned_from_its_bundle(tmp_path):
    plain = written(tmp_path, {KIND: {"weight": 0.3, "other": 1.0}, "pet/poisson": {"weight": 0.4}})
    own = tmp_path / "tuning_edgy.json"
    parameters = {"weight": 0.1, "edge": 2.0}
    assert Tuning(parameters, path=own, fallback=plain)("weight", KIND) == 0.3  # no file of its own yet
    own.write_text(json.dumps({"format": 1, "settings": {f"{KIND}+guide": {"weight": 0.7}}}))
    tuning = Tuning(parameters, path=own, fallback=plain)
    assert tuning("weight", f"{KIND}+guide") == 0.7
    assert tuning("weight", KIND) == 0.3
    assert tuning("weight", "pet/poisson+guide") == 0.4
    assert tuning("edge", KIND) == 2.0
    assert tuning.settings == {f"{KIND}+guide": {"weight": 0.7}}
    plain.write_text('{"format": 2}')
    with pytest.raises(ValueError, match="format: expected 1, got 2"):
        Tuning(parameters, path=own, fallback=plain)


def test_override_replaces_the_file_and_ends(tmp_path):
    tuning = Tuning({"weight": 0.1}, path=written(tmp_path, {KIND: {"weight": 0.3}, "pet/poisson": {"weight": 0.4}}))
    with tuning.override({KIND: {"weight": 7.0}}):
        assert tuning("weight", KIND) == 7.0
        assert tuning("weight", "pet/poisson") == 0.1
    assert tuning("weight", KIND) == 0.3
    with pytest.raises(ZeroDivisionError), tuning.override({}):
        1 / 0  # noqa: B018
    assert tuning("weight", KIND) == 0.3
    with pytest.raises(ValueError, match=r"settings.diagonal/poisson: expected some of \['weight'\], got \['sigma'\]"):
        tuning.override({KIND: {"sigma": 1.0}}).__enter__()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON file"),
        ("[]", "format: expected 1, got 'list'"),
        ('{"settings": {}}', "format: expected 1, got None"),
        ('{"format": 2, "settings": {}}', "format: expected 1, got 2"),
        ('{"format": 1}', "settings: expected kinds with settings, got NoneType"),
        ('{"format": 1, "settings": {"pet": {}}}', "expected '<operator kind>/<likelihood kind>'"),
        ('{"format": 1, "settings": {"pet/poisson": 3}}', "expected names with numbers, got int"),
        ('{"format": 1, "settings": {"pet/poisson": {"wieght": 3}}}', r"expected some of \['weight'\], got"),
        ('{"format": 1, "settings": {"pet/poisson": {"weight": NaN}}}', "expected a finite number, got nan"),
        ('{"format": 1, "settings": {"pet/poisson": {"weight": "1"}}}', "expected a finite number, got '1'"),
        ('{"format": 1, "settings": {"pet/poisson": {"weight": true}}}', "expected a finite number, got True"),
    ],
)
def test_malformed_file_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "tuning.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as fault:
        Tuning({"weight": 0.1}, path=path)
    assert "\n" not in str(fault.value)
    assert "tuning.json" in str(fault.value)


def test_bad_look_ups():
    tuning = Tuning({"weight": 0.1})
    with pytest.raises(ValueError, match=r"name: expected one of \['weight'\], got 'sigma'"):
        tuning("sigma", KIND)
    with pytest.raises(ValueError, match="kind: expected"):
        tuning("weight", "pet")
    with pytest.raises(ValueError, match=r"parameters.weight: expected a finite number, got inf"):
        Tuning({"weight": float("inf")})
