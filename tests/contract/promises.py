"""What the contract asks of a reconstruction, written once and used on real bundles and on planted fakes."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor

from multirecon.bundle import Bundle, load, load_network, reinitialise
from multirecon.measurement import Measurement

CPU = "$torch.device('cpu')"


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


def loss_without_weights(bundle: Bundle, *, samples: int = 4) -> float:
    """Return how many dB the bundle loses when its network is drawn anew (everything that is not a clean image)."""
    workflow = load(bundle, device=CPU)
    load_network(workflow)
    count = min(samples, len(workflow.dataset))
    measurement, truth = simulate(workflow, range(count))
    wanted = unmeasured_as_image(measurement, truth)
    names = [n for n in measurement.space.names if n not in measurement.clean]
    channels = measurement.space.channel_index(names)
    trained = psnr(reconstruct(workflow, measurement)[:, channels], wanted)
    reinitialise(workflow)
    return trained - psnr(reconstruct(workflow, measurement)[:, channels], wanted)
