"""The contract can fail: planted fakes, and the ways in which a truth can be smuggled in, are found."""

import functools
import json
import sys
import weakref
import zlib
from pathlib import Path

import pytest
import torch
from contract.promises import (
    LEAST_LOSS,
    LEAST_LOSS_OF_SPARSE_CODES,
    LEAST_LOSS_OF_VOLUMES,
    applicability_faults,
    is_stochastic,
    least_loss,
    loss_without_weights,
    quick,
    simulate,
    unmeasured_as_image,
)
from contract.reachability import leaks
from contract.tiny_bundle import randomise, write_tiny
from monai.data import MetaTensor

from multirecon.blocks import Blocks
from multirecon.bundle import find
from multirecon.likelihoods import BlockLikelihood, Gaussian
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Identity, MaskedFourier
from multirecon.space import ImageSpace


@pytest.fixture
def truth(generator):
    return torch.rand(1, 2, 8, 8, generator=generator)


@pytest.fixture
def measurement(truth, generator):
    space = ImageSpace(["t1", "flair"], (8, 8), (2.0, 2.0))
    maps = torch.randn(1, 2, 8, 8, dtype=torch.complex64, generator=generator)
    operator = MaskedFourier(torch.ones(8, 8), maps)
    blocks = {"t1": truth[:, :1].clone(), "flair": operator(truth[:, 1:])}
    operators = BlockDiagonal(space, {"t1": Identity((1, 8, 8)), "flair": operator})
    return Measurement(Blocks(blocks), operators, BlockLikelihood({"t1": Gaussian(0.0), "flair": Gaussian(0.1)}))


def secret(truth):
    """The channel that was measured, not handed over."""
    return truth[:, 1:].clone()


def test_honest_measurement_tells_nothing(measurement, truth):
    assert leaks(secret(truth), measurement) == []


def test_the_modality_that_was_handed_over_is_not_counted(measurement, truth):
    assert torch.equal(unmeasured_as_image(measurement, truth), truth[:, 1:])
    assert leaks(truth, measurement) != []  # the clean image itself, if one did not leave it out


class Method:
    """A stand-in for an inferer."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


def generator_holding(value):
    kept = value
    yield 0
    yield kept


def started(value):
    suspended = generator_holding(value)
    next(suspended)
    return suspended


def traceback_holding(value):
    def fail(hidden):
        raise RuntimeError(hidden.shape)

    try:
        fail(value)
    except RuntimeError as error:
        return error.__traceback__


class Weak:
    """Something that a weak reference can point to."""

    def __init__(self, value):
        self.value = value


KEEP = []


def weak(value):
    KEEP.append(Weak(value))
    return weakref.ref(KEEP[-1])


WAYS = {
    "attribute": lambda t: t,
    "nested": lambda t: {"a": [({"b": t},)]},
    "closure": lambda t: lambda: t,
    "default": lambda t: lambda x=t: x,
    "partial": lambda t: functools.partial(print, t),
    "method": lambda t: Method(t=t).__init__,
    "generator": started,
    "traceback": traceback_holding,
    "weakref": weak,
    "array": lambda t: t.numpy(),
    "view of more": lambda t: torch.cat([torch.zeros(1, 1, 8, 8), t], 1)[:, :1],
    "scaled": lambda t: 1000 * t,
    "noisy": lambda t: t + 0.002 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1)),
    "finer": lambda t: torch.kron(t, torch.ones(2, 2)),
    "complex": lambda t: t * torch.exp(torch.tensor(0.7j)),
    "double": lambda t: t.double(),
}


@pytest.mark.parametrize("way", WAYS)
def test_smuggled_truth_is_found(measurement, truth, way):
    method = Method(hidden=WAYS[way](secret(truth)))
    assert leaks(secret(truth), measurement, method) != []


def test_truth_in_metadata_hooks_and_buffers_is_found(measurement, truth):
    network = torch.nn.Conv2d(1, 1, 1)
    assert leaks(secret(truth), measurement, network) == []
    network.register_forward_hook(functools.partial(print, secret(truth)))
    assert leaks(secret(truth), network) != []
    other = torch.nn.Conv2d(1, 1, 1)
    other.register_buffer("hidden", secret(truth))
    assert leaks(secret(truth), other) != []
    measurement.metadata["label"] = secret(truth)
    assert leaks(secret(truth), measurement) != []


def test_truth_on_a_class_is_found(truth):
    planted = type("Planted", (), {"hidden": secret(truth), "__module__": "planted.method"})
    assert leaks(secret(truth), planted(), own=("planted",)) != []


def test_unrelated_images_are_not_taken_for_the_truth(truth, generator):
    other = torch.rand(1, 1, 8, 8, generator=generator)
    assert leaks(secret(truth), other, torch.zeros(1, 1, 8, 8), torch.ones(4), secret(truth).flip(-1)) == []


@pytest.fixture
def tiny(tmp_path, request):
    """A bundle of its own, with its own module, for each test."""
    path = list(sys.path)
    number = zlib.crc32(request.node.name.encode())  # Python imports a name once
    yield write_tiny(tmp_path / "bundles", f"tiny{number}_mr", learned=True)
    sys.path[:] = path


def rewrite(bundle, old, new):
    module = bundle.root / f"{bundle.name}.py"
    text = module.read_text(encoding="utf-8")
    assert old in text
    module.write_text(text.replace(old, new), encoding="utf-8")
    sys.modules.pop(bundle.name, None)


def test_method_that_ignores_its_network_loses_nothing(tiny):
    randomise(tiny)
    assert abs(loss_without_weights(tiny)) > 2.0  # random weights: it does depend on them
    rewrite(tiny, "return network(measurement.back_projection())", "return measurement.back_projection()")
    assert loss_without_weights(tiny) == 0.0


def test_only_synthesis_dictionaries_and_volumes_are_held_to_less(tiny, monkeypatch):
    assert least_loss(tiny) == LEAST_LOSS == 2.0
    monkeypatch.setattr("contract.promises.SynthesisDictionary", torch.nn.Module)
    assert least_loss(tiny) == LEAST_LOSS_OF_SPARSE_CODES >= 0.8
    monkeypatch.undo()
    bundles = Path(__file__).resolve().parents[2] / "bundles"
    assert least_loss(find(bundles / "wavelet_diffusion_petmrct")) == LEAST_LOSS
    assert least_loss(find(bundles / "wavelet_diffusion_petct3d")) == LEAST_LOSS_OF_VOLUMES >= 1.0


def test_bundle_whose_preparation_leaks_is_caught(tiny):
    fake = """
class Leaky:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, batch, device=None, non_blocking=False, **kwargs):
        measurement, truth = self.inner(batch, device, non_blocking)
        measurement.metadata["acquisition"] = lambda: truth
        return measurement, truth
"""
    module = tiny.root / f"{tiny.name}.py"
    module.write_text(module.read_text(encoding="utf-8") + fake, encoding="utf-8")
    path = tiny.configs / "inference.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["prepare_batch"] = {"_target_": f"{tiny.name}.Leaky", "inner": config["prepare_batch"]}
    path.write_text(json.dumps(config), encoding="utf-8")
    sys.modules.pop(tiny.name, None)
    measurement, truth = simulate(quick(tiny), [0, 1])
    assert leaks(unmeasured_as_image(measurement, truth), measurement) != []


def test_randomness_without_the_generator_is_seen(tiny):
    workflow = quick(tiny)
    measurement, _ = simulate(workflow, [0])
    assert not is_stochastic(workflow, measurement)
    call = "network(measurement.back_projection())"
    rewrite(tiny, call, f"{call} + torch.randn(1, generator=generator)")
    assert is_stochastic(quick(tiny), measurement)


def test_capability_that_promises_too_much_or_too_little_is_caught(tiny):
    workflow = quick(tiny)
    measurement, _ = simulate(workflow, [0])
    assert applicability_faults(workflow, measurement, ["flair"]) == []
    call = "return network(measurement.back_projection())"
    rewrite(tiny, call, "raise ValueError('I would rather not')")
    assert "the capability covers it, and it fails" in applicability_faults(quick(tiny), measurement, ["flair"])[0]
    rewrite(tiny, "raise ValueError('I would rather not')", "return 0 * measurement.back_projection()")
    assert applicability_faults(quick(tiny), measurement, ["flair"]) == ["nothing reconstructed of 'flair'"]
    rewrite(tiny, '{"masked_fourier", "identity"}', '{"identity"}')
    workflow = quick(tiny)
    workflow.inferer.__class__.__call__ = lambda self, inputs, *a, **k: MetaTensor(inputs.back_projection())
    assert "it runs, though its capability refuses" in applicability_faults(workflow, measurement, ["flair"])[0]
