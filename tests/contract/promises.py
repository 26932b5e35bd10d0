"""What the contract asks of a reconstruction, written once and used on real bundles and on planted fakes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor

from multirecon.bundle import Bundle, load, load_network, reinitialise
from multirecon.measurement import Measurement
from multirecon.priors.dictionaries import SynthesisDictionary
from multirecon.space import ImageSpace
from multirecon.units import attenuation_to_hu, is_hounsfield_outside

BUNDLES = Path(os.environ.get("MULTIRECON_BUNDLES") or Path(__file__).resolve().parents[2] / "bundles")
CPU = "$torch.device('cpu')"
LEAST_LOSS = 2.0
"""What a learned bundle loses at least when its weights are drawn anew, in dB."""
LEAST_LOSS_OF_SPARSE_CODES = 0.8
"""The same of a synthesis dictionary, see :func:`least_loss`."""
LEAST_LOSS_OF_VOLUMES = 1.0
"""The same of a prior of volumes, see :func:`least_loss`."""


def expensive(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test by default on the first bundle found, and on the others with the slow tests."""
    test.expensive = True  # type: ignore[attr-defined]
    return test


def quick(bundle: Bundle, **overrides: Any) -> ConfigWorkflow:
    """Return the inference workflow on the CPU, with the overrides that the bundle names for short runs."""
    return load(bundle, **{"device": CPU, **bundle.quick, **overrides})


def simulate(workflow: ConfigWorkflow, indices: Sequence[int]) -> tuple[Measurement, Tensor]:
    """Return the measurement of some samples of the bundle's own data set, as its evaluator makes it, and the truth."""
    evaluator = workflow.evaluator
    batch = evaluator.data_loader.collate_fn([workflow.dataset[i] for i in indices])
    inputs, truth = evaluator.prepare_batch(batch, torch.device("cpu"), False)
    if not isinstance(inputs, Measurement):  # a bundle that takes images
        inputs = workflow.inferer.source(inputs)
    return inputs, torch.as_tensor(truth)


def reconstruct(workflow: ConfigWorkflow, measurement: Measurement, *, seed: int = 0) -> Tensor:
    """Return the reconstruction ``(B, C, *shape)`` as the evaluator computes it, gradients off."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        result = workflow.inferer(measurement, workflow.parser.get_parsed_content("network"), generator=generator)
    return result.as_tensor()


def applicability_faults(workflow: ConfigWorkflow, measurement: Measurement, targets: Sequence[str]) -> list[str]:
    """Return where the computed capability and what happens part: it runs where it says so, and says why elsewhere."""
    capability = workflow.inferer.capability
    reasons = capability.refusals(measurement)
    try:
        result = reconstruct(workflow, measurement)
    except Exception as error:
        if not reasons:
            return [f"the capability covers it, and it fails: {type(error).__name__}: {error}"]
        if not isinstance(error, ValueError):
            return [f"expected a ValueError, got {type(error).__name__}: {error}"]
        return [f"expected the reason {reason!r}, got {error}" for reason in reasons if reason not in str(error)]
    if reasons:
        return [f"it runs, though its capability refuses: {'; '.join(reasons)}"]
    space = measurement.space
    faults = []
    if tuple(result.shape) != (measurement.batch_size, *space.stack_shape):
        faults.append(f"expected shape {(measurement.batch_size, *space.stack_shape)}, got {tuple(result.shape)}")
    elif not torch.isfinite(result).all():
        faults.append("expected finite values")
    elif not capability.refusals(measurement, targets):
        faults += [f"nothing reconstructed of {t!r}" for t in targets if float(result[:, space.channels(t)].std()) == 0]
    return faults


def source_of(workflow: ConfigWorkflow) -> Any:
    """Return what turns an image stack into a measurement, or ``None`` for a method that takes measurements only."""
    inferer = workflow.inferer
    return getattr(inferer, "source", None) or getattr(getattr(inferer, "reconstructor", None), "source", None)


def in_file_units(stack: Tensor, space: ImageSpace) -> Tensor:
    """Return an image stack as a user hands it over: CT in HU."""
    stack = stack.clone()
    for modality in space.modalities:
        if is_hounsfield_outside(modality.name, modality.unit):
            stack[:, space.channels(modality.name)] = attenuation_to_hu(stack[:, space.channels(modality.name)])
    return stack


def unmeasured_as_image(measurement: Measurement, truth: Tensor) -> Tensor:
    """Return the channels of the truth that were not handed over as clean images."""
    names = [n for n in measurement.space.names if n not in measurement.clean]
    return truth[:, measurement.space.channel_index(names)]


def is_stochastic(workflow: ConfigWorkflow, measurement: Measurement) -> bool:
    """Whether the seed matters."""
    return not torch.equal(reconstruct(workflow, measurement, seed=0), reconstruct(workflow, measurement, seed=1))


def psnr(result: Tensor, truth: Tensor) -> float:
    """Mean PSNR in dB over samples and channels; the peak is each truth's own maximum."""
    error = (result - truth).square().flatten(2).mean(-1).clamp_min(1e-20)
    peak = truth.abs().flatten(2).amax(-1).clamp_min(1e-6)
    return float((10 * torch.log10(peak.square() / error)).mean())


def least_loss(bundle: Bundle) -> float:
    """Return how many dB a learned bundle has to lose when its weights are drawn anew.

    A sparse code of drawn atoms is a code of the same image at not quite twice the price: what a larger sparsity would
    do, to which the error is flat near its best setting. A volume is scanned in all its planes at once, and a drawn
    network is no empty prior: its head starts at zero, which leaves the linear estimate of every band with the table of
    errors beside it. Such methods are held to less, but lose on every sample.
    """
    parser = load(bundle, device=CPU).parser
    if isinstance(parser.get_parsed_content("network"), SynthesisDictionary):
        return LEAST_LOSS_OF_SPARSE_CODES
    space = parser.get("space")
    return LEAST_LOSS_OF_VOLUMES if space and len(space["shape"]) == 3 else LEAST_LOSS


def losses_without_weights(bundle: Bundle, *, samples: int = 4) -> list[float]:
    """Return how many dB each sample loses when the network is drawn anew (everything that is not a clean image)."""
    workflow = load(bundle, device=CPU)
    load_network(workflow)
    count = min(samples, len(workflow.dataset))
    measurement, truth = simulate(workflow, range(count))
    wanted = unmeasured_as_image(measurement, truth)
    names = [n for n in measurement.space.names if n not in measurement.clean]
    channels = measurement.space.channel_index(names)
    trained = reconstruct(workflow, measurement)[:, channels]
    reinitialise(workflow)
    redrawn = reconstruct(workflow, measurement)[:, channels]
    return [
        psnr(trained[k : k + 1], wanted[k : k + 1]) - psnr(redrawn[k : k + 1], wanted[k : k + 1]) for k in range(count)
    ]


def loss_without_weights(bundle: Bundle, *, samples: int = 4) -> float:
    """Return the mean of the losses."""
    losses = losses_without_weights(bundle, samples=samples)
    return sum(losses) / len(losses)
