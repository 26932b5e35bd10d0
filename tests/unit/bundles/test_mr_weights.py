"""What the shipped weights do: the data and the clean reference both matter."""

import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from bundles_of_mr import BUNDLES, TRAINED

from multirecon.blocks import Blocks
from multirecon.bundle import load, load_network


@cache
def trained(name):
    """Return workflow, network, measurement and truth of two slices that the bundle simulates by itself."""
    path = list(sys.path)
    workflow = load(BUNDLES / name, device="$torch.device('cpu')")
    network = load_network(workflow).eval()
    sys.path[:] = path
    evaluator = workflow.evaluator
    batch = evaluator.data_loader.collate_fn([workflow.dataset[i] for i in (2, 4)])
    measurement, truth = evaluator.prepare_batch(batch, torch.device("cpu"), False)
    return workflow, network, measurement, torch.as_tensor(truth)


def psnr(inferer, network, measurement, truth):
    with torch.no_grad():
        result = inferer(measurement, network).as_tensor()
    return float(-10 * torch.log10((result - truth)[:, :1].square().mean((1, 2, 3))).mean())


LOSSES = {"mcvarnet_mr": (2.0, 1.0), "minet_mr": (1.0, 0.3)}  # dB without the reference, and with another slice's


@pytest.mark.parametrize("name", TRAINED)
def test_reference_matters(name):
    workflow, network, measurement, truth = trained(name)
    best = psnr(workflow.inferer, network, measurement, truth)
    other = measurement.y["t1"].flip(0)
    for image, loss in zip((torch.zeros_like(other), other), LOSSES[name], strict=True):
        changed = replace(measurement, y=Blocks({**measurement.y, "t1": image}))
        assert psnr(workflow.inferer, network, changed, truth) < best - loss


def test_data_consistency_matters():
    workflow, network, measurement, truth = trained("mcvarnet_mr")
    best = psnr(workflow.inferer, network, measurement, truth)
    reconstructor = workflow.inferer.reconstructor
    reconstructor.data_consistency = False
    try:
        without = psnr(reconstructor, network, measurement, truth)
    finally:
        reconstructor.data_consistency = True
    assert without < best - 3


def test_result_explains_the_data_better_than_its_start():
    """The measured k-space entries of the result lie closer to the data than those of the zero-filled image."""
    workflow, network, measurement, _ = trained("mcvarnet_mr")
    with torch.no_grad():
        result = workflow.inferer(measurement, network).as_tensor()
    A, y = measurement.operator["flair"], measurement.y["flair"]
    assert float((A(result[:, :1]) - y).norm()) < 0.4 * float((A(A.adjoint(y)) - y).norm())
