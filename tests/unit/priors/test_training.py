import csv
import math
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from multirecon.networks.unet import UNet
from multirecon.priors import DiffusionPrior, HaarDomain, NoiseSchedule, Parametrisation
from multirecon.priors.progress import (
    GradientClip,
    LearningRate,
    MovingAverage,
    TrainingCurve,
    TrainingState,
    export_weights,
)
from multirecon.priors.training import (
    BandLoss,
    DenoisingInferer,
    DenoisingPSNR,
    NetworkInferer,
    PrepareDenoising,
    PrepareNoisy,
    StepBatchSampler,
    coefficient_statistics,
    denoising_metrics,
    keyed_generator,
)
from multirecon.space import ImageSpace

SIGMAS = (0.1, 1.0)


def make_prior(kind="velocity"):
    statistics = {"mean": [0.0] * 8, "std": [0.5] * 8} if kind == "preconditioned" else {}
    return DiffusionPrior(
        ImageSpace(["t1", "t2"], (8, 8), (1.0, 1.0)),
        NoiseSchedule.cosine(),
        parametrisation=Parametrisation(kind, **statistics),
        domain=HaarDomain(),
    )


def make_data(count=7):
    generator = torch.Generator().manual_seed(5)
    return [{"image": torch.rand(2, 8, 8, generator=generator), "brain": torch.ones(1, 8, 8)} for _ in range(count)]


def jitter(image, brain, *, generator):
    return image * brain * (1 + 0.1 * torch.rand(len(image), 1, 1, 1, generator=generator))


def make_trainer(folder, steps, *, decay=False, decay_steps=4, every=2, write=True, interval_s=180.0, pretrained=""):
    torch.manual_seed(0)
    net = UNet(2, 8, out_channels=8, channels=(8, 16), num_res_blocks=1, norm_num_groups=4, num_head_channels=8)
    prior, data = make_prior(), make_data()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    average = MovingAverage(net, decay=0.9)
    state = TrainingState(
        folder, network=net, optimizer=optimizer, average=average, interval_s=interval_s, decay=decay, write=write,
        pretrained=pretrained,
    )  # fmt: skip
    sampler = StepBatchSampler(data, 3, seed=1)
    prepare = PrepareNoisy(prior, units="unit", augmentation=jitter, seed=2)
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(data[:2], batch_size=2),
        network=average.model,
        inferer=DenoisingInferer(prior),
        prepare_batch=PrepareDenoising(prior, sigmas=SIGMAS, units="unit"),
        key_val_metric={"psnr_mean": DenoisingPSNR(len(SIGMAS))},
        additional_metrics=denoising_metrics(SIGMAS),
        decollate=False,
    )
    rates = LearningRate(optimizer, state=state, base=1e-2, warmup=3, decay_steps=decay_steps)
    curve = TrainingCurve(folder / "curve.csv", state=state, evaluator=evaluator, every=every, write=write)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=math.ceil(steps / 2),
        epoch_length=2,
        train_data_loader=DataLoader(data, batch_sampler=sampler),
        network=net,
        optimizer=optimizer,
        loss_function=BandLoss([1.9, 0.8, 0.8, 0.5]),
        inferer=NetworkInferer(),
        prepare_batch=prepare,
        train_handlers=[state, sampler, prepare, rates, GradientClip(net), average, curve],
        decollate=False,
    )
    return trainer, net, average, state, rates


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    straight, net, average, *_ = make_trainer(tmp_path / "a", 6)
    straight.run()
    for steps in (2, 6):
        resumed, again, average_again, *_ = make_trainer(tmp_path / "b", steps)
        resumed.run()
    assert resumed.state.iteration == straight.state.iteration == 6
    assert same(net, again)
    assert same(average.averaged, average_again.averaged)
    assert not same(net, average.model)
    rows = list(csv.DictReader((tmp_path / "b" / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert set(rows[0]) == {"step", "seconds", "cpu_seconds", "lr", "train_loss", "psnr_mean", "psnr_0.1", "psnr_1"}
    assert float(rows[0]["psnr_mean"]) == pytest.approx(
        (float(rows[0]["psnr_0.1"]) + float(rows[0]["psnr_1"])) / 2, abs=2e-3
    )
    assert 0 < float(rows[0]["cpu_seconds"]) < float(rows[-1]["cpu_seconds"])
    assert [p.name for p in sorted((tmp_path / "b").iterdir())] == ["curve.csv", "last.pt"]


def test_stopping_in_the_middle_of_an_epoch_loses_nothing(tmp_path):
    straight, net, *_ = make_trainer(tmp_path / "a", 6, every=100)
    straight.run()
    first, *_ = make_trainer(tmp_path / "b", 6, every=100)
    first.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda engine: engine.terminate())
    first.run()
    assert torch.load(tmp_path / "b" / "last.pt", weights_only=True)["step"] == 3
    second, again, *_ = make_trainer(tmp_path / "b", 6, every=100)
    second.run()
    assert second.state.iteration == 6
    assert same(net, again)


def test_a_new_run_starts_from_given_weights(tmp_path):
    """Also as a falling rate alone; a run with a state of its own goes on from that."""
    first, given, *_ = make_trainer(tmp_path / "a", 2, every=100)
    first.run()
    torch.save({k: v.half() for k, v in given.state_dict().items()}, tmp_path / "model.pt")
    rounded = {k: v.half().float() for k, v in given.state_dict().items()}
    seen = []

    def note(engine):
        seen.append(all(torch.equal(v, rounded[k]) for k, v in engine.network.state_dict().items()))
        seen.append(all(torch.equal(v, rounded[k]) for k, v in average.model.state_dict().items()))

    tuned, net, average, state, rates = make_trainer(
        tmp_path / "b", 10, decay=True, decay_steps=4, every=100, pretrained=tmp_path / "model.pt"
    )
    tuned.add_event_handler(Events.STARTED, note)
    tuned.run()
    assert seen == [True, True]
    assert tuned.state.iteration == 4
    assert state.decay_start == 0
    assert rates.at(4) == pytest.approx(1e-2 / 4)
    assert not same(net, given)
    # with a state of its own a run goes on from that: the checkpoint is not asked for again
    straight, whole, *_ = make_trainer(tmp_path / "c", 4, pretrained=tmp_path / "model.pt")
    straight.run()
    for steps, source in ((2, "model.pt"), (4, "missing.pt")):
        resumed, parts, *_ = make_trainer(tmp_path / "d", steps, pretrained=tmp_path / source)
        resumed.run()
    assert same(parts, whole)


@pytest.mark.parametrize("content", [None, b"no checkpoint", {"weight": torch.ones(1)}, [1]], ids=repr)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    trainer, *_ = make_trainer(tmp_path / "run", 2, pretrained=path)
    with pytest.raises(ValueError, match="pretrained: expected a checkpoint of UNet, got") as caught:
        trainer.run()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


def curve_of(folder):
    """The curve without what depends on the clock."""
    rows = csv.DictReader((folder / "curve.csv").open())
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def assert_same_run(folder, straight, steps):
    assert curve_of(folder) == curve_of(straight)
    states = [torch.load(f / "last.pt", weights_only=True) for f in (folder, straight)]
    assert [s["step"] for s in states] == [steps, steps]
    for part in ("network", "average"):
        assert all(torch.equal(states[0][part][k], states[1][part][k]) for k in states[1][part])


@pytest.mark.parametrize("kept", [1, 3, 4])
def test_a_killed_run_gives_the_uninterrupted_curve(tmp_path, kept):
    """The last state is of step ``kept``, in the middle of a line of the curve; the run had gone on to step 5."""
    straight, *_ = make_trainer(tmp_path / "a", 8, every=2)
    straight.run()
    first, _, _, state, _ = make_trainer(tmp_path / "b", 8, every=2, interval_s=0.0)

    def stop_saving(engine):
        state.interval_s = math.inf if engine.state.iteration > kept else 0.0

    def kill(engine):
        raise Killed

    first.add_event_handler(Events.ITERATION_STARTED, stop_saving)
    first.add_event_handler(Events.ITERATION_COMPLETED(once=5), kill)
    with pytest.raises(Killed):
        first.run()
    assert torch.load(tmp_path / "b" / "last.pt", weights_only=True)["step"] == kept
    with (tmp_path / "b" / "curve.csv").open("a") as file:
        file.write("6,0.1,0.")  # killed while it wrote
    second, *_ = make_trainer(tmp_path / "b", 8, every=2)
    second.run()
    assert_same_run(tmp_path / "b", tmp_path / "a", 8)


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    """kill -9 of a training process, again and again: the curve and the weights are those of a run in one go."""
    steps, chance = 60, random.Random(0)
    fork = multiprocessing.get_context("fork")
    begin = time.monotonic()
    process = fork.Process(target=lambda: make_trainer(tmp_path / "a", steps, every=3, interval_s=0.02)[0].run())
    process.start()
    process.join()
    whole, kills = time.monotonic() - begin, 0
    for _ in range(200):
        process = fork.Process(target=lambda: make_trainer(tmp_path / "b", steps, every=3, interval_s=0.02)[0].run())
        process.start()
        process.join(whole * chance.uniform(0.05, 0.5))
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills >= 3
    assert_same_run(tmp_path / "b", tmp_path / "a", steps)


def test_sigterm_ends_the_run_saved_and_leaves_the_process_alone(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    trainer, *_ = make_trainer(tmp_path, 100, every=1000)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda e: os.kill(os.getpid(), signal.SIGTERM))
    trainer.run()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] in (3, 4)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_final_decay_is_a_phase_of_its_own(tmp_path):
    with pytest.raises(ValueError, match="constant phase"):
        make_trainer(tmp_path, 100, decay=True)[0].run()
    make_trainer(tmp_path, 4)[0].run()
    trainer, *_, state, rates = make_trainer(tmp_path, 100, decay=True)
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.optimizer.param_groups[0]["lr"]))
    trainer.run()
    assert state.decay_start == 4
    assert trainer.state.iteration == 8
    assert seen == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 4
    assert torch.load(tmp_path / "decay.pt", weights_only=True)["step"] == 8
    assert rates.at(9) == 0


def test_warm_up(tmp_path):
    *_, rates = make_trainer(tmp_path, 2)
    assert [rates.at(k) for k in (1, 2, 3, 50)] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])


def test_export_is_the_average_in_float16(tmp_path):
    trainer, net, average, *_ = make_trainer(tmp_path, 4)
    with pytest.raises(ValueError, match="neither"):
        export_weights(tmp_path, tmp_path / "model.pt")
    trainer.run()
    line = export_weights(tmp_path, tmp_path / "models" / "model.pt")
    assert "step 4" in line
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert {v.dtype for v in weights.values()} == {torch.float16}
    net.load_state_dict(weights, strict=True)
    for mine, theirs in zip(net.parameters(), average.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_only_the_first_process_writes(tmp_path):
    make_trainer(tmp_path, 2, write=False)[0].run()
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer, net, *_ = make_trainer(tmp_path, 4)
    net.stem.weight.data.fill_(float("nan"))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="finite"):
        trainer.run()
    assert not (tmp_path / "last.pt").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_average_warms_up():
    net = torch.nn.Linear(1, 1, bias=False)
    average = MovingAverage(net, decay=0.999)
    values = [1.0, 2.0, 5.0]
    expected = 1.0
    for count, value in enumerate(values):
        net.weight.data.fill_(value)
        average.averaged.update_parameters(net)
        keep = min(0.999, (1 + count) / (10 + count))
        expected = value if count == 0 else keep * expected + (1 - keep) * value
    assert float(average.model.weight.detach()) == pytest.approx(expected)
    assert not average.model.training


def test_batches_are_a_function_of_step_and_rank():
    def take(start, count, rank=0, world=1):
        sampler = StepBatchSampler(range(7), 2, seed=4, rank=rank, world_size=world)
        sampler.start = start
        iterator = iter(sampler)
        return [next(iterator) for _ in range(count)]

    assert take(0, 9)[5:] == take(5, 4)
    flat = [i for batch in take(0, 7) for i in batch]
    assert sorted(flat[:7]) == sorted(flat[7:]) == list(range(7))
    assert flat[:7] != flat[7:]
    two = [take(0, 3, rank, 2) for rank in (0, 1)]
    assert [b for pair in zip(*two, strict=True) for b in pair] == take(0, 6)


def test_keyed_generators_differ():
    draws = {tuple(torch.randint(1000, (4,), generator=keyed_generator(*k)).tolist()) for k in
             [("noise", 0, 1, 0), ("noise", 0, 1, 1), ("noise", 0, 11, 0), ("augment", 0, 1, 0)]}  # fmt: skip
    assert len(draws) == 4


def test_noise_follows_the_step_and_units_agree():
    prior, data = make_prior(), {"image": torch.rand(3, 2, 8, 8), "brain": torch.ones(3, 1, 8, 8)}
    unit, physical = PrepareNoisy(prior, units="unit"), PrepareNoisy(prior)
    first = unit(data, "cpu")
    for a, b in zip(first[:2], physical(data, "cpu")[:2], strict=True):  # MR: physical and unit scale are the same
        torch.testing.assert_close(a, b)
    unit.step = 1
    assert not torch.equal(first[0], unit(data, "cpu")[0])
    with pytest.raises(ValueError, match="units"):
        PrepareNoisy(prior, units="HU")


def test_band_loss():
    prediction, target = torch.randn(2, 8, 3, 3), torch.randn(2, 8, 3, 3)
    error = (prediction - target).square()
    bands = [error[:, b::4].mean() for b in range(4)]
    expected = (1.9 * bands[0] + 0.8 * (bands[1] + bands[2]) + 0.5 * bands[3]) / 4
    torch.testing.assert_close(BandLoss([1.9, 0.8, 0.8, 0.5])(prediction, target), expected)
    torch.testing.assert_close(BandLoss([1.0] * 4)(prediction, target), error.mean())
    with pytest.raises(ValueError, match="weights"):
        BandLoss([0.0, 0.0])


def test_psnr_of_known_error():
    metric = DenoisingPSNR(2, index=1)
    label = torch.zeros(4, 2, 8, 8)
    pred = torch.cat([label[:2] + 1.0, label[2:] + 0.02])
    metric.update((pred, label))
    assert metric.compute() == pytest.approx(40.0)
    with pytest.raises(ValueError, match="at least one batch"):
        DenoisingPSNR(2).compute()


def test_statistics_are_those_of_the_coefficients():
    prior = make_prior()
    images = [item["image"] for item in make_data(20)]
    found = coefficient_statistics(prior, images, units="unit")
    w = prior.domain.forward(2 * torch.stack(images) - 1)
    torch.testing.assert_close(torch.tensor(found["mean"]), w.mean(dim=(0, 2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.tensor(found["std"]), w.std(dim=(0, 2, 3), correction=0), rtol=0, atol=1e-4)


def test_training_improves_denoising(tmp_path):
    trainer, *_ = make_trainer(tmp_path, 120, every=60)
    trainer.run()
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert float(rows[-1]["psnr_1"]) > float(rows[0]["psnr_1"])
