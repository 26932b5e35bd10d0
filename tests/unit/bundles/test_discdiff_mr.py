"""DisC-Diff, point by point: sizes, streams, the disentangling loss, the sampler, and a run of a few steps."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage
from multirecon.data.cached_slices import build
from multirecon.priors import NoiseSchedule, Parametrisation
from multirecon.priors.conditional import ConditionalDiffusion
from multirecon.space import ImageSpace

BUNDLE = Path(__file__).parents[3] / "bundles" / "discdiff_mr"
SMALL = {"channels": [8, 16], "num_res_blocks": 1, "attention_levels": [False, True], "num_head_channels": 8,
         "norm_num_groups": 4}  # fmt: skip
TINY = {"spacing_mm": (7.5, 7.5, 7.5), "matrix": 32}


@pytest.fixture(scope="module", autouse=True)
def _path():
    sys.path.insert(0, str(BUNDLE))
    yield
    sys.path.remove(str(BUNDLE))


@pytest.fixture(scope="module")
def own():
    import discdiff_mr

    return discdiff_mr


@pytest.fixture(scope="module")
def losses():
    import discdiff_mr_training

    return discdiff_mr_training


@pytest.fixture
def net(own):
    torch.manual_seed(0)
    return own.DisentangledUNet(**SMALL)


def config(name):
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


def count(module):
    return sum(p.numel() for p in module.parameters())


def made(own, **arguments):
    with torch.device("meta"):
        return own.DisentangledUNet(**arguments)


def awake(net):
    """Give every weight that starts at zero a value, so that outputs tell something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


# 1. sizes, and three encoders that start equal


def test_published_sizes(own):
    arguments = {k: v for k, v in config("train_published")["network_def"].items() if k != "_target_"}
    net = made(own, **arguments)
    parts = {
        "time": [net.time1, net.time2],
        "noisy": [net.noisy],
        "degraded": [net.degraded],
        "reference": [net.reference],
        "middle": [net.middle1, net.middle2],
        "decoder": [net.decoder],
        "attention": [net.common_attention],
        "reduce": [net.reduce],
        "common": [net.common],
        "distinct": [net.distinct],
        "head": [net.norm, net.head],
    }
    assert {name: sum(map(count, modules)) for name, modules in parts.items()} == {
        "time": 185_088, "noisy": 16_191_264, "degraded": 16_191_264, "reference": 16_191_264, "middle": 3_766_464,
        "decoder": 32_703_360, "attention": 5_184, "reduce": 166_176, "common": 373_392, "distinct": 373_392,
        "head": 1_922,
    }  # fmt: skip
    assert [count(m) for m in net.distinct_attention] == [5_184] * 3
    assert count(net) == 86_164_322
    assert len(net.noisy.stages) + 1 == len(net.decoder) == 18


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"channels": (64, 64, 128, 128, 192), "num_res_blocks": 2, "num_head_channels": 64}, 25_854_722),
        ({"channels": (32, 32, 64, 64, 96), "num_res_blocks": 1, "num_head_channels": 32}, 4_348_450),
    ],
    ids=["mid", "cpu"],
)
def test_sizes_of_the_smaller_configurations(own, arguments, expected):
    assert count(made(own, attention_levels=(False, False, False, True, True), **arguments)) == expected


def test_shipped_size(own):
    for name in ("train", "inference"):
        arguments = {k: v for k, v in config(name)["network_def"].items() if k != "_target_"}
        assert 2 * count(made(own, **arguments)) < 3e6  # bytes in float16


def test_encoders_start_equal_and_apart(net):
    first, *others = ((e.state_dict(), e) for e in (net.noisy, net.degraded, net.reference))
    for state, _ in others:
        assert all(torch.equal(first[0][k], state[k]) for k in state)
        assert not {p.data_ptr() for p in first[1].parameters()} & {t.data_ptr() for t in state.values()}


# 2. skips are means over the streams


def test_equal_streams_leave_the_skips_of_one(net, generator):
    awake(net)
    net.degraded.load_state_dict(net.noisy.state_dict())
    net.reference.load_state_dict(net.noisy.state_dict())
    image = torch.rand(1, 1, 16, 16, generator=generator)
    seen = []
    for stage in net.decoder:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net(image.repeat(1, 3, 1, 1), torch.tensor([7.0]))
    from multirecon.networks.unet import timestep_embedding

    embedding = net.time2(torch.nn.functional.silu(net.time1(timestep_embedding(torch.tensor([7.0]), 8))))
    entries = net.noisy(image, embedding)
    for given, entry in zip(seen, reversed(entries), strict=True):
        torch.testing.assert_close(given[:, -entry.shape[1] :], entry)


def test_skips_are_means(net, generator):
    awake(net)
    image, t = torch.rand(1, 3, 16, 16, generator=generator), torch.tensor([7.0])
    entries = {}
    for name in ("noisy", "degraded", "reference"):
        getattr(net, name).register_forward_hook(lambda m, i, output, name=name: entries.update({name: output}))
    seen = []
    net.decoder[-1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net(image, t)
    mean = sum(e[0] for e in entries.values()) / 3
    torch.testing.assert_close(seen[0][:, -mean.shape[1] :], mean)
    assert not torch.allclose(entries["noisy"][0], mean)


# 3 and 4. shared convolutions, separate channel attentions, one reduction


def test_what_is_shared(net, generator):
    calls = {}
    names = {
        "common": net.common, "distinct": net.distinct, "reduce": net.reduce, "all": net.common_attention,
        **{f"own {i}": m for i, m in enumerate(net.distinct_attention)},
    }  # fmt: skip
    for name, module in names.items():
        module.register_forward_hook(lambda m, i, o, name=name: calls.update({name: calls.get(name, 0) + 1}))
    net(torch.rand(1, 3, 16, 16, generator=generator))
    assert calls == {"common": 3, "distinct": 3, "reduce": 1, "all": 1, "own 0": 1, "own 1": 1, "own 2": 1}
    states = [m.squeeze.weight for m in (net.common_attention, *net.distinct_attention)]
    assert len({s.data_ptr() for s in states}) == 4
    assert not any(torch.equal(a, b) for i, a in enumerate(states) for b in states[:i])
    assert net.reduce.kernel_size == (1, 1)
    assert (net.reduce.in_channels, net.reduce.out_channels) == (2 * 16, 16)


def test_common_part_is_averaged_and_every_stream_arrives(net, generator):
    awake(net)
    image = torch.rand(1, 3, 16, 16, generator=generator, requires_grad=True)
    net(image, torch.tensor([3.0])).square().sum().backward()
    assert (image.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


def test_squeeze_and_excitation_by_hand(own, generator):
    block = own.SqueezeExcitation(16)
    assert [p.shape for p in block.parameters()] == [(2, 16), (16, 2)]
    h = torch.randn(2, 16, 4, 4, generator=generator)
    mean = h.mean(dim=(2, 3))
    weight = torch.sigmoid(torch.relu(mean @ block.squeeze.weight.T) @ block.excite.weight.T)
    torch.testing.assert_close(block(h), h * weight[:, :, None, None])


# 5. the six tensors of the loss


def test_returned_parts(net, own, generator):
    image = torch.rand(2, 3, 16, 24, generator=generator)
    output, common, distinct = net.disentangle(image, torch.tensor([3.0, 900.0]))
    assert output.shape == (2, 2, 16, 24)
    assert [t.shape for t in common + distinct] == [(2, 8, 8, 12)] * 6
    published = made(own)
    image = torch.empty(1, 3, 224, 224, device="meta")
    _, common, distinct = published.disentangle(image, torch.empty(1, device="meta"))
    assert [t.shape for t in common + distinct] == [(1, 144, 7, 7)] * 6


def test_common_before_and_distinct_after_channel_attention(net, generator):
    shown = {}
    net.common.register_forward_hook(lambda m, i, o: shown.setdefault("common", []).append(o))
    for index, module in enumerate(net.distinct_attention):
        module.register_forward_hook(lambda m, i, o, index=index: shown.update({index: o}))
    _, common, distinct = net.disentangle(torch.rand(1, 3, 16, 16, generator=generator))
    for got, raw in zip(common, shown["common"], strict=True):
        assert torch.equal(got, torch.nn.functional.silu(raw))
    assert all(torch.equal(got, shown[i]) for i, got in enumerate(distinct))


# 6 and 7. the loss


def diffusion(**options):
    return ConditionalDiffusion(NoiseSchedule.linear(), parametrisation=Parametrisation("epsilon"), **options)


def noisy(made_diffusion, generator):
    x0 = torch.rand(4, 1, 16, 16, generator=generator)
    return made_diffusion.training_batch(x0, torch.rand(4, 2, 16, 16, generator=generator), generator)


def test_equal_streams_keep_the_loss_finite(losses, generator):
    loss, part = losses.DisentanglingLoss(diffusion()), torch.rand(2, 8, 4, 4, generator=generator)
    target = noisy(loss.diffusion, generator)
    output = torch.zeros(4, 2, 16, 16, requires_grad=True)
    parts = part.clone().requires_grad_()
    value = loss((output, [parts] * 3, [parts] * 3), target)
    assert (loss.terms["common"], loss.terms["distinct"], loss.terms["ratio"]) == (0.0, 0.0, 0.0)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(output.grad).all()
    assert torch.isfinite(parts.grad).all()


def test_loss_by_hand(losses, generator):
    loss = losses.DisentanglingLoss(diffusion(), disentangling=0.5)
    target = noisy(loss.diffusion, generator)
    common = [torch.rand(4, 8, 2, 2, generator=generator) for _ in range(3)]
    distinct = [torch.rand(4, 8, 2, 2, generator=generator) for _ in range(3)]
    exact = torch.cat([target.target, torch.zeros_like(target.target)], dim=1)
    value = loss((exact, common, distinct), target)
    assert loss.terms["charbonnier"] == pytest.approx(1e-3)  # no error is not 0
    mse = torch.nn.functional.mse_loss
    ratio = [mse(p[0], p[1]) + mse(p[0], p[2]) + mse(p[1], p[2]) for p in (common, distinct)]
    assert loss.terms["ratio"] == pytest.approx(float(ratio[0] / ratio[1]), rel=1e-5)
    bound = loss.diffusion.variational_bound(target, exact[:, :1], exact[:, 1:]).mean()
    expected = 1e-3 + 0.5 * float(ratio[0] / ratio[1]) + float(bound)
    assert float(value) == pytest.approx(expected, rel=1e-5)


# 8. zero at the start


def test_output_starts_at_zero(own, net, generator):
    for network in (net, own.DisentangledUNet(**SMALL, patch=2)):
        output = network(torch.rand(2, 3, 16, 16, generator=generator), torch.tensor([1.0, 2.0]))
        assert output.shape == (2, 2, 16, 16)
        assert not output.any()


def test_wrong_sides_are_named(net):
    with pytest.raises(ValueError, match="divisible by 2"):
        net(torch.zeros(1, 3, 15, 16))


# 9. sampling


def scan(acceleration=4, samples=2, sigma=0.01, generator=None):
    space = ImageSpace(["flair", "t1"], (32, 32), (7.5, 7.5))
    scans = {"flair": CartesianMR(acceleration, coils=4, sigma=sigma), "t1": CleanImage()}
    grid = torch.linspace(-1, 1, 32)
    disc = ((grid[:, None] ** 2 + grid[None] ** 2) < 0.5).float().repeat(samples, 1, 1, 1)
    return Acquisition(space, scans, key="test")({"flair": disc, "t1": 0.5 * disc}, list("abcdef"[:samples])), disc


def sampling(own, **options):
    space = ImageSpace(["flair", "t1"], (32, 32), (7.5, 7.5))
    settings = {"space": space, "diffusion": diffusion(image_range=(0.0, 1.0)), "multiple": 2, **options}
    return own.DisentangledSampling(**settings)


def test_twenty_steps_from_999_to_0(own, net):
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(float(inputs[1][0])))
    measurement, _ = scan()
    with torch.no_grad():
        sampling(own)(measurement, net)
    assert len(seen) == 20
    assert (seen[0], seen[-1]) == pytest.approx((999.0, 0.0), abs=1e-2)
    published = config("inference")
    assert published["inferer"]["reconstructor"]["chain"] == "ancestral"
    assert (published["steps"], published["displayable_configs"]["steps"]) == ("$int(@displayable_configs#steps)", 20)


def test_degraded_image_is_the_step_of_steepest_descent(own):
    measurement, _ = scan(sigma=0.0)
    operator, y = measurement.operator["flair"], measurement.y["flair"]
    image = own.degraded_image(operator, y)

    def misfit(scale):
        return float((operator(scale * image) - y).abs().square().sum())

    assert misfit(1.0) < min(misfit(0.99), misfit(1.01))
    scales = (image / operator.adjoint(y))[:, 0, 12:20, 12:20].flatten(1)  # one number a sample, above 1
    torch.testing.assert_close(scales, scales[:, :1].expand_as(scales))
    assert (scales > 1).all()


def test_network_sees_target_degraded_and_reference(own, net):
    measurement, disc = scan()
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    sampler = sampling(own, steps=2)
    with torch.no_grad():
        result = sampler(measurement, net).as_tensor()
    degraded = own.degraded_image(measurement.operator["flair"], measurement.y["flair"])
    torch.testing.assert_close(seen[0][:, 1:], torch.cat([degraded, 0.5 * disc], dim=1))
    assert torch.equal(result[:, 1:], 0.5 * disc)


@pytest.mark.parametrize("options", [{"chain": "ancestral"}, {"chain": "ddim"}, {"chain": "multistep"}], ids=str)
def test_draws_differ_and_repeat(own, net, options):
    awake(net)
    sampler, (measurement, _) = sampling(own, steps=3, **options), scan()
    draws = sampler.draw(measurement, net, 2, generator=torch.Generator().manual_seed(5))
    again = sampler.draw(measurement, net, 2, generator=torch.Generator().manual_seed(5))
    assert draws.shape == (2, 2, 2, 32, 32)
    assert torch.equal(draws, again)
    assert not torch.equal(draws[0, :, :1], draws[1, :, :1])
    assert torch.equal(draws[0, :, 1:], draws[1, :, 1:])


def test_mean_of_samples(own, net):
    awake(net)
    measurement, _ = scan()
    draws = sampling(own, steps=3).draw(measurement, net, 4, generator=torch.Generator().manual_seed(5))
    mean = sampling(own, steps=3, samples=4)(measurement, net, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(mean.as_tensor(), draws.mean(0))


def test_consistency_pulls_to_the_data(own, net):
    awake(net)
    measurement, _ = scan(acceleration=2)
    operator, y = measurement.operator["flair"], measurement.y["flair"]
    misfit = []
    for options in ({}, {"consistency": 0.05}):
        with torch.no_grad():
            result = sampling(own, steps=3, chain="ddim", **options)(measurement, net).as_tensor()
        misfit.append(float((operator(result[:, :1]) - y).abs().square().mean()))
    assert misfit[1] < 0.1 * misfit[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chain": "euler"}, "chain: expected one of"),
        ({"steps": 0}, "count: expected 1 to 1000"),
        ({"samples": 0}, "samples: expected at least 1"),
        ({"consistency": 0.1}, "consistency: expected a positive weight"),
        ({"target": "t2"}, "t2"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(own, options, words):
    with pytest.raises(ValueError, match=words):
        sampling(own, **options)


# 10. the curriculum, the published overlay, and a run


def workflow(*names, **overrides):
    files = [str(BUNDLE / "configs" / f"{name}.json") for name in names]
    meta = str(BUNDLE / "configs" / "metadata.json")
    return ConfigWorkflow(config_file=files, workflow_type="train", meta_file=meta, logging_file=False, **overrides)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    for split in ("train", "validation"):
        build(folder / split, split, 1, modalities=("flair", "t1"), shape=(64, 64), spacing_mm=3.75,
              anatomies=["mni152"], config=TINY, progress=False)  # fmt: skip
    return str(folder)


def test_published_overlay_is_the_published_model(dataset):
    parser = workflow("train", "train_published", bundle_root=str(BUNDLE), dataset_dir=dataset).parser
    parsed = {name: parser.get_parsed_content(name) for name in ("diffusion", "learning_rate", "average_decay")}
    assert parsed["diffusion"].parametrisation.kind == "epsilon"
    assert parsed["diffusion"].image_range == (0.0, 1.0)
    assert parsed["diffusion"].clamp == (-1.0, 1.0)
    assert parsed["diffusion"].schedule.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    assert (parsed["learning_rate"], parsed["average_decay"]) == (1e-4, 0.9999)
    assert parser.get_parsed_content("optimizer").defaults["weight_decay"] == 0
    assert parser.get_parsed_content("loss").disentangling == 1.0
    sampler = parser.get_parsed_content("train#sampler")
    assert (sampler.curriculum, sampler.batch_size, sampler.fresh) == (20_000, 5, 5)
    assert parser.get_parsed_content("train#prepare_batch").rows is None


def test_curriculum_of_the_short_run_keeps_the_share():
    short, published = config("train"), config("train_published")
    assert published["curriculum_steps"] / published["max_steps"] == 0.1
    assert 0 < short["curriculum_steps"] < short["max_steps"]


def test_training_and_inference_agree():
    train, inference = config("train"), config("inference")
    assert train["network_def"] == inference["network_def"]
    assert train["diffusion"] == inference["diffusion"]


def short(tmp_path, dataset, **more):
    space = {"space#shape": [32, 32], "space#spacing_mm": [7.5, 7.5]}
    small = {f"network_def#{key}": value for key, value in SMALL.items()}
    return {"bundle_root": str(BUNDLE), "output_dir": str(tmp_path / "run"), "ckpt_dir": str(tmp_path / "out"),
            "dataset_dir": dataset, "batch_size": 2, "epoch_length": 2, "rows": 16, "validation_steps": 2,
            "curriculum_steps": 2, "device": "$torch.device('cpu')", **space, **small, **more}  # fmt: skip


def run(*names, **overrides):
    built = workflow(*names, **overrides)
    built.initialize()
    built.run()
    return built


def test_training_runs_resumes_and_exports(dataset, tmp_path):
    whole = short(tmp_path / "whole", dataset, max_steps=4)
    run("train", **whole)
    halves = short(tmp_path / "halves", dataset)
    for steps in (2, 4):
        run("train", **halves, max_steps=steps)
    states = [torch.load(tmp_path / name / "run" / "last.pt", weights_only=True) for name in ("whole", "halves")]
    assert all(torch.equal(states[0]["network"][k], v) for k, v in states[1]["network"].items())
    rows = list(csv.DictReader((tmp_path / "halves" / "run" / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert {"train_loss", "psnr", "ssim"} <= set(rows[0])
    terms = list(csv.DictReader((tmp_path / "whole" / "run" / "losses.csv").open()))
    assert [row["step"] for row in terms] == ["1", "2", "3", "4"]
    parts = [float(terms[0][name]) for name in ("charbonnier", "ratio", "bound")]
    assert sum(parts) == pytest.approx(float(terms[0]["loss"]), rel=1e-4)
    run("train", **{**whole, "max_steps": 10}, decay=True, decay_steps=2)
    assert torch.load(tmp_path / "whole" / "run" / "decay.pt", weights_only=True)["step"] == 6
    weights = torch.load(tmp_path / "whole" / "out" / "model.pt", weights_only=True)
    assert all(v.dtype == torch.float16 for v in weights.values())
    run("train", "evaluate", **whole)
    assert (tmp_path / "whole" / "run" / "metrics.csv").exists()


@pytest.mark.slow
def test_published_size_takes_a_step_and_samples(own, losses, generator):
    torch.manual_seed(0)
    net = own.DisentangledUNet(**{k: v for k, v in config("train_published")["network_def"].items() if k != "_target_"})
    loss = losses.DisentanglingLoss(diffusion(image_range=(0.0, 1.0)))
    x0 = torch.rand(1, 1, 32, 32, generator=generator)
    target = loss.diffusion.training_batch(x0, torch.rand(1, 2, 32, 32, generator=generator), generator)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
    value = loss(losses.TrainingPass(net)(target.image, target.timestep), target)
    value.backward()
    optimizer.step()
    assert torch.isfinite(value)
    measurement, _ = scan(samples=1)
    with torch.no_grad():
        result = sampling(own, multiple=32)(measurement, net.eval()).as_tensor()
    assert result.shape == (1, 2, 32, 32)
    assert float(result[:, :1].std()) > 0


@pytest.mark.slow
def test_two_processes_train_together(dataset, tmp_path):
    """The overlay for several GPUs, here two CPU processes with gloo."""
    configs = [str(BUNDLE / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
    options = {k: v for k, v in short(tmp_path, dataset, max_steps=4).items() if k != "device"}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [
        *[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
        *["-m", "monai.bundle", "run", "--config_file", str(configs), *words],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, check=True, env=environment, timeout=400, capture_output=True)
    assert [row["step"] for row in csv.DictReader((tmp_path / "run" / "curve.csv").open())] == ["2", "4"]
