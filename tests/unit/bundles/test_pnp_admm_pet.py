"""The denoisers of plug-and-play PET, their training pairs, and the convergence that shipped weights are held to."""

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.bundle import Bundle, load, load_network, read_weights
from multirecon.measurement import Measurement
from multirecon.networks import dncnn as net
from multirecon.priors.nonexpansive import jacobian_norms, lipschitz_ratios, reflection
from multirecon.priors.nonexpansive_training import RenewNorms
from multirecon.reconstruction.em import unit_range
from multirecon.reconstruction.plug_and_play import mean_activity
from multirecon.space import ImageSpace

ROOT = Path(__file__).parents[3] / "bundles" / "pnp_admm_pet"


def module(name):
    """Return a module of the bundle, which is not installed."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


training, check = (module(f"pnp_admm_pet{part}") for part in ("_training", "_verification"))
DnCNN, SpectralDnCNN, PreparePairs = net.DnCNN, net.SpectralDnCNN, training.PreparePairs
SPACE = ImageSpace(["pet_fdg"], (48, 48), (4.0, 4.0))


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_published_and_shipped_structure():
    assert parameters(DnCNN()) == 665_921
    assert parameters(DnCNN(8, 48)) == 125_617
    published = json.loads((ROOT / "configs" / "train_published.json").read_text())
    assert published["network_def"] == {"_target_": "multirecon.networks.dncnn.DnCNN", "layers": 20, "features": 64}
    assert not [m for m in DnCNN(8, 48).modules() if "Norm" in type(m).__name__]


@pytest.mark.parametrize("activation", ["leaky_relu", "softplus"])
def test_activations_never_expand(activation):
    one = DnCNN(3, 4, activation=activation)
    x = torch.linspace(-3, 3, 1001)[:, None, None, None].double()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
        for convolution in one.convolutions:
            convolution.weight[0, 0, 1, 1] = 1.0
    slopes = (one.double()(x) - x).diff(dim=0) / x.diff(dim=0)
    assert float(slopes.min()) >= -1e-8
    assert float(slopes.max()) <= 1 + 1e-8


def test_norm_of_a_convolution_is_that_of_its_operator():
    """Not of the reshaped kernel; and the bound holds for images of every size."""
    kernel = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    side = 7
    eye = torch.eye(3 * side * side, dtype=torch.float64).reshape(-1, 3, side, side)
    matrix = torch.nn.functional.conv2d(eye, kernel, padding=1).flatten(1)
    exact = float(torch.linalg.matrix_norm(matrix, ord=2))
    start = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    found, _ = net.convolution_norm(kernel, start, iterations=2000)
    assert float(found) == pytest.approx(exact, rel=1e-5)
    reshaped = float(torch.linalg.matrix_norm(kernel.flatten(1), ord=2))
    assert abs(reshaped / exact - 1) > 0.1
    bound = float(net.convolution_bound(kernel))
    assert exact < bound < 1.2 * exact
    for n in (3, 20, 60):
        image = torch.randn(1, 3, n, n, generator=torch.Generator().manual_seed(2))
        assert float(net.convolution_norm(kernel, image, iterations=60)[0]) <= bound


def test_by_construction_no_weights_can_expand():
    torch.manual_seed(0)
    network = SpectralDnCNN(4, 6, grid=12)
    with torch.no_grad():
        for parameter in network.chain.parameters():
            parameter.mul_(5)
    network.certify()
    points = 3 * torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    assert float(jacobian_norms(reflection(network), points, iterations=100)[0].max()) <= 1 + 1e-5
    others = torch.randn(4, 1, 40, 40)
    with torch.no_grad():
        ratios = lipschitz_ratios(reflection(network), others, others + 0.1 * torch.randn(others.shape))
    assert float(ratios.max()) <= 1 + 1e-5
    # without the division the very same weights do
    network.norms.fill_(1.0)
    assert float(jacobian_norms(reflection(network), points, iterations=20)[0].max()) > 2


def test_norms_follow_the_training_and_are_certified_in_the_file(tmp_path):
    torch.manual_seed(0)
    network = SpectralDnCNN(3, 4, grid=12)
    before = network.norms.clone()
    with torch.no_grad():
        network.chain.convolutions[1].weight.mul_(3)
    for _ in range(5):
        RenewNorms(network)._renew(None)
    assert float(network.norms[1] / before[1]) == pytest.approx(3, rel=0.1)
    torch.save(network.state_dict(), tmp_path / "construction.pt")
    assert "norms at most" in training.certify_weights(
        tmp_path / "construction.pt", network=SpectralDnCNN(3, 4, grid=12)
    )
    stored = read_weights(tmp_path / "construction.pt")["norms"]
    assert bool((stored >= network.norms * (1 - 1e-4)).all())


def head(batch=1):
    """CT (unit scale, water) and PET of a disc."""
    place = (torch.arange(48) - 23.5).abs()
    inside = ((place[:, None] ** 2 + place**2).sqrt() < 16).float()[None, None].repeat(batch, 1, 1, 1)
    hot = inside.clone()
    hot[..., 20:26, 20:26] = 2.0
    return torch.cat([inside * 0.35, hot], dim=1)


def test_the_disturbance_is_the_gradient_of_the_likelihood():
    """Mean zero at the truth, of the stated level, and smoother than white noise."""
    maker = PreparePairs(SPACE, counts=[20.0], views=24, level=0.2, white=0.0)
    pairs = torch.cat([maker.pair(head(), torch.Generator().manual_seed(k)) for k in range(60)])
    clean, error = pairs[:, :1], pairs[:, 1:] - pairs[:, :1]
    support = clean[0] > 0
    assert float(clean[0][support].mean()) == pytest.approx(1.0)
    assert float(error[:, support].square().mean().sqrt()) == pytest.approx(0.2, rel=1e-4)
    assert abs(float(error[:, support].mean())) < 4 * 0.2 / 60**0.5
    assert float(error.mean(0)[support].square().mean().sqrt()) < 2 * 0.2 / 60**0.5
    neighbours = (error[..., 1:] * error[..., :-1]).mean() / error.square().mean()
    assert float(neighbours) > 0.3
    white = PreparePairs(SPACE, mode="gaussian", level=0.2)
    pair = white.pair(head(), torch.Generator().manual_seed(0))
    noise = pair[:, 1:] - pair[:, :1]
    assert float(noise.std()) == pytest.approx(0.2, rel=0.1)
    assert abs(float((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean())) < 0.1


def test_air_is_disturbed_within_the_normal_cone_and_no_more_than_the_level():
    """Where nothing emits the equation holds up to a non-negative term: no negative part, and no large one."""
    stack = head()
    stack[..., :8, :8] = 0.0
    pairs = torch.cat(
        [PreparePairs(SPACE, counts=[2.5], views=24, level=0.2, white=0.0)
         .pair(stack, torch.Generator().manual_seed(k)) for k in range(5)]
    )  # fmt: skip
    error, air = pairs[:, 1:] - pairs[:, :1], pairs[0, :1] == 0
    assert float(error[:, air].min()) >= 0.0
    assert 0.0 < float(error[:, air].max()) <= 0.2 + 1e-6
    # so that training is spent on what emits
    assert float(error[:, air].square().mean()) < float(error[:, ~air].square().mean())


def test_pairs_are_a_function_of_seed_and_step():
    maker = PreparePairs(SPACE, counts=[5.0, 20.0], views=12, patch=16, patches=3)
    batch = {"image": head(2), "brain": torch.ones(2, 1, 48, 48)}
    noisy, target = maker(batch)
    assert noisy.shape == (6, 1, 16, 16)
    assert torch.equal(target[:, 1:], noisy)
    assert torch.equal(maker(batch)[0], noisy)
    maker.step = 1
    assert not torch.equal(maker(batch)[0], noisy)
    with pytest.raises(ValueError, match="mode: expected"):
        PreparePairs(SPACE, mode="white")


# the shipped weights


@cache
def shipped(control=None):
    workflow = load(Bundle(ROOT), device="$torch.device('cpu')")
    return load_network(workflow, control=control, bundle=Bundle(ROOT)).eval()


@cache
def scan(level=None):
    workflow = load(Bundle(ROOT), device="$torch.device('cpu')")
    evaluator = workflow.evaluator
    batch = evaluator.data_loader.collate_fn([workflow.dataset[3]])
    measurement, truth = evaluator.prepare_batch(batch, torch.device("cpu"), False)
    settings = workflow.parser.get_parsed_content("tuning").of(measurement, "pet_fdg")
    return check.prepare(measurement, level=level or settings["level"], gain=settings["gain"]), truth


@cache
def trajectory(control=None, iterations=500):
    return check.run(scan()[0], shipped(control), iterations=iterations)


def points(control=None, count=200, side=128):
    truth = scan()[1]
    clean = scan()[0].gain * truth / mean_activity(truth).reshape(-1, 1, 1, 1)
    noisy = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return check.points_of(clean, noisy, trajectory(control)[1], count, side=side)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_jacobian_norms_of_the_shipped_weights():
    found = check.norms(shipped(), points(), iterations=100)
    assert len(found) == 200
    assert float(found.max()) <= 1.05


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pairs_and_ascent_in_double_precision():
    assert float(check.pair_ratios(shipped(), points(side=64), 1000).max()) <= 1.05
    along = torch.cat(trajectory()[1][::100])[..., 32:96, 32:96]
    assert float(check.worst_pairs(shipped(), along, steps=50, radius=0.1 * float(along[0].norm())).max()) <= 1.05


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_residual_falls_and_the_fixed_point_equation_holds():
    result, ws, steps = trajectory()
    assert len(steps) == 500
    rounding = 1e-6 * float(torch.linalg.vector_norm(ws[-1][0]))
    assert check.rising_steps(steps, floor=rounding) == 0
    assert float(result.residuals[-1]) < 1e-6
    assert check.decay_exponent([s for s in steps if s > rounding]) < -0.5
    assert float(result.error) < 1e-3
    assert result.worst_kkt <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_starts_agree():
    decibel, relative = check.spread_of_starts(scan()[0], shipped(), scan()[1], iterations=500)
    assert decibel < 0.1
    assert relative < 0.01


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_unconstrained_control_fails():
    found = check.norms(shipped("unconstrained"), points("unconstrained", count=20, side=64), iterations=50)
    assert float(found.max()) > 1.05
    result, _, steps = trajectory("unconstrained")
    assert check.rising_steps(steps) > 0 or float(result.residuals[-1]) > 1e-4


def test_the_guided_variant_sees_its_t1_and_nothing_else_does():
    """A blank T1 changes the PET image of the guided network, and leaves that of the other one as it is."""

    def images(variant):
        workflow = load(Bundle(ROOT), variant, device="$torch.device('cpu')", **Bundle(ROOT).quick)
        network = load_network(workflow, bundle=Bundle(ROOT))
        evaluator = load(Bundle(ROOT), "guided", device="$torch.device('cpu')").evaluator
        batch = evaluator.data_loader.collate_fn([evaluator.data_loader.dataset[3]])
        measurement, truth = evaluator.prepare_batch(batch, torch.device("cpu"), False)
        data = [Blocks({**measurement.y, "t1": share * measurement.y["t1"]}) for share in (1.0, 0.0)]
        scans = [Measurement(y, measurement.operator, measurement.likelihood, measurement.metadata) for y in data]
        found = [torch.as_tensor(workflow.inferer(m, network))[:, 1:] for m in scans]
        return *found, truth[:, measurement.space.channels("pet_fdg")]

    beside, blank, truth = images("guided")
    assert float((beside - truth).norm()) < 0.95 * float((blank - truth).norm())
    assert torch.equal(*images(None)[:2])


def test_a_guided_denoiser_beside_a_guide_is_a_map_of_images_of_every_size():
    network = DnCNN(3, 4, guides=1)
    guide = torch.rand(1, 1, 12, 12)
    beside = check.Beside(network, guide)
    small = torch.rand(2, 1, 8, 8)
    expected = network(torch.cat([small, guide[..., 2:10, 2:10].expand(2, 1, 8, 8)], 1))
    torch.testing.assert_close(beside(small), expected)
    assert beside.double()(torch.rand(2, 1, 12, 12).double()).shape == (2, 1, 12, 12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_jacobian_norms_beside_a_guide():
    workflow = load(Bundle(ROOT), "guided", device="$torch.device('cpu')")
    evaluator = workflow.evaluator
    batch = evaluator.data_loader.collate_fn([workflow.dataset[3]])
    _, stack = evaluator.prepare_batch(batch, torch.device("cpu"), False)
    beside = check.Beside(load_network(workflow, bundle=Bundle(ROOT)), unit_range(stack[:, :1]))
    assert float(check.norms(beside, points(count=40), iterations=100).max()) <= 1.05


def test_exponent_of_a_power_law_and_a_straight_line():
    assert check.decay_exponent([3 / k**0.7 for k in range(1, 201)]) == pytest.approx(-0.7, abs=1e-6)
    assert check.decay_exponent([2.0] * 100) == pytest.approx(0.0, abs=1e-9)


def test_an_osem_image_is_what_a_network_after_reconstruction_gets():
    maker = PreparePairs(SPACE, mode="postprocess", counts=[50.0], views=24)
    pair = maker.pair(head(), torch.Generator().manual_seed(0))
    assert float(mean_activity(pair[:, 1:])) == pytest.approx(1.0)
    assert float(pair.min()) >= 0.0
    away = (pair[:, 1:] - pair[:, :1]).norm() / pair[:, :1].norm()
    assert 0.02 < float(away) < 0.5


def test_a_guide_goes_with_its_patch_and_is_neither_scaled_nor_denoised():
    maker = PreparePairs(SPACE, counts=[20.0], views=12, patch=16, patches=3, gains=(2.0, 2.0), guide_noise=0.0,
                         augmentation=lambda image, brain, generator: image)  # fmt: skip
    stack = torch.cat([head(2), 5 * head(2)[:, 1:]], dim=1)
    noisy, target = maker({"image": stack, "brain": torch.ones(2, 1, 48, 48)})
    assert noisy.shape == (6, 2, 16, 16)
    assert target.shape == (6, 3, 16, 16)
    assert torch.equal(noisy, target[:, 1:])
    guide = target[:, 2:]
    assert float(guide.max()) == pytest.approx(1.0)
    # the guide is the image here, but for its unit
    hot = target[:, :1] / target[:, :1].amax()
    torch.testing.assert_close(guide, hot, rtol=1e-4, atol=1e-4)
