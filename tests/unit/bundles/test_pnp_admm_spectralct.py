"""The denoiser of spectral plug-and-play: training pairs, and the convergence that shipped weights are held to."""

import importlib.util
import json
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from multirecon.bundle import Bundle, load, load_network
from multirecon.networks.dncnn import DnCNN
from multirecon.priors.nonexpansive import reflection
from multirecon.priors.nonexpansive_checks import central, norms, pair_ratios, rising_steps, worst_pairs
from multirecon.reconstruction.plug_and_play import plug_and_play

ROOT = Path(__file__).parents[3] / "bundles" / "pnp_admm_spectralct"
NAME = "pnp_admm_spectralct_training"
if NAME not in sys.modules:
    spec = importlib.util.spec_from_file_location(NAME, ROOT / f"{NAME}.py")
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
PreparePatches = sys.modules[NAME].PreparePatches


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_published_and_shipped_structure():
    published = json.loads((ROOT / "configs" / "train_published.json").read_text())["network_def"]
    target = published.pop("_target_")
    assert target.endswith(".DnCNN")
    assert published == {"layers": 20, "features": 64, "channels": 5}
    assert parameters(DnCNN(**published)) == 670_533
    assert parameters(DnCNN(8, 32, channels=5)) == 58_405
    assert not [m for m in DnCNN(8, 32, channels=5).modules() if "Norm" in type(m).__name__]


def test_patches_are_a_function_of_seed_and_step():
    image = torch.rand(2, 2, 40, 40, generator=torch.Generator().manual_seed(0))
    maker = PreparePatches([0.5, 2.0], sigma=0.1, patch=16, patches=3)
    noisy, target = maker({"image": image, "brain": torch.ones(2, 1, 40, 40)})
    assert noisy.shape == (6, 2, 16, 16)
    assert torch.equal(target[:, 2:], noisy)
    # the noise is as large in every energy, in units of the scales
    spread = (noisy - target[:, :2]).std(dim=(0, 2, 3))
    assert spread.tolist() == pytest.approx([0.1, 0.1], rel=0.1)
    assert float(target[:, 0].max()) > 1.5 > 0.51 > float(target[:, 1].max())
    assert torch.equal(maker({"image": image})[0], noisy)
    maker.step = 1
    assert not torch.equal(maker({"image": image})[0], noisy)
    with pytest.raises(ValueError, match="sigma: expected a number > 0"):
        PreparePatches([0.5], sigma=0.0)
    with pytest.raises(ValueError, match="expected 1 channels, got 2"):
        PreparePatches([0.5])({"image": image})


# the shipped weights


@cache
def shipped(control=None):
    return load_network(load(Bundle(ROOT), device="$torch.device('cpu')"), control=control, bundle=Bundle(ROOT)).eval()


@cache
def scan():
    workflow = load(Bundle(ROOT), device="$torch.device('cpu')")
    batch = workflow.evaluator.data_loader.collate_fn([workflow.dataset[3]])
    measurement, _ = workflow.evaluator.prepare_batch(batch, torch.device("cpu"), False)
    reconstructor = workflow.inferer.reconstructor
    return reconstructor, reconstructor.prepare(measurement.embed(reconstructor.space))


@cache
def followed(control=None, iterations=20):
    """A run of plug-and-play, with the data steps of the bundle; the outcome and the arguments of the denoiser."""
    reconstructor, (step, start, rho) = scan()
    arguments = []

    def denoise(image):
        arguments.append(image)
        with torch.no_grad():
            return shipped(control)(image)

    run = plug_and_play(
        step, denoise, start, scale=reconstructor.scales[None], rho=rho, iterations=iterations,
        inner_iterations=reconstructor.inner_iterations, inner_tolerance=reconstructor.inner_tolerance,
    )  # fmt: skip
    return run, arguments


def test_shipped_denoiser_is_firmly_nonexpansive_where_it_is_used():
    """|J_{2D - Id}| <= 1.05, the hard limit, along a run and at the truth's scale; all pairs below 1."""
    _, arguments = followed()
    points = central(torch.cat(arguments[::5]), 48)
    assert float(norms(shipped(), points, iterations=25).max()) <= 1.05
    assert float(pair_ratios(shipped(), points, 40).max()) <= 1.05
    assert float(worst_pairs(shipped(), central(points[:2], 32), steps=10).max()) <= 1.05


def test_residual_of_the_shipped_weights_falls():
    run, arguments = followed()
    steps = [float(torch.linalg.vector_norm(b - a)) for a, b in pairwise(arguments[:21])]
    assert rising_steps(steps) == 0
    assert float(run.residuals[-1]) < 0.1 * float(run.residuals[0])
    # exact data steps, which theory asks for: a bound on the work would hide that they do not end by their tolerance
    reconstructor, _ = scan()
    assert max(run.inner) < reconstructor.inner_iterations
    assert run.worst_kkt <= reconstructor.inner_tolerance


def test_unconstrained_control_expands():
    _, arguments = followed()
    points = central(torch.cat(arguments[::5]), 48)
    assert float(norms(shipped("unconstrained"), points, iterations=10).max()) > 1.05
    Q = reflection(shipped("unconstrained"))
    with torch.no_grad():
        assert Q(points).shape == points.shape


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_convergence_check():
    """Residual of w to 1e-6 without a step that grows, and the fixed-point equation; the bound along the run."""
    run, arguments = followed(iterations=300)
    steps = [float(torch.linalg.vector_norm(b - a)) for a, b in pairwise(arguments[:301])]
    # differences of w are taken in single precision: steps below 1e-6 of its norm are rounding
    rounding = 1e-6 * float(torch.linalg.vector_norm(arguments[300]))
    assert rising_steps(steps, floor=rounding) == 0
    assert float(run.residuals[-1]) < 1e-6
    assert float(run.error.max()) < 1e-4
    assert run.worst_kkt <= scan()[0].inner_tolerance
    points = torch.cat(arguments[::30])
    assert float(norms(shipped(), points, iterations=100).max()) <= 1.05
