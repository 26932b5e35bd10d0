"""Convolutional dictionaries: adjoints, tight frames, thresholds against brute force, codes, learning."""

import itertools
import math

import pytest
import torch

from multirecon.priors.dictionaries import (
    AnalysisLearner,
    AnalysisOperator,
    PrepareChannels,
    SynthesisDictionary,
    SynthesisLearner,
    analyse,
    coding_objective,
    dct_bank,
    frame_error,
    high_pass,
    keep_jointly,
    nearest_tight_frame,
    shrink,
    shrink_mixed_norm,
    sparse_code,
    synthesise,
    transfer,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def edges(batch=3, size=24, seed=0):
    """Pairs of piecewise constant images whose edges coincide, with other contrasts."""
    shape = draw(batch, 1, size, size, seed=seed)
    blobs = (torch.nn.functional.avg_pool2d(shape, 7, stride=1, padding=3) > 0.03).double()
    return torch.cat([blobs, 0.6 - 0.4 * blobs], dim=1)


@pytest.mark.parametrize(("size", "filters", "banks"), [(7, 49, 2), (8, 5, 1), (3, 4, 2)])
def test_filters_and_their_adjoint_pass_the_dot_test(size, filters, banks):
    x, bank, z = draw(2, 2, 20, 17), draw(banks, filters, size, size, seed=1), draw(2, 2, filters, 20, 17, seed=2)
    left, right = (analyse(x, bank) * z).sum(), (x * synthesise(z, bank)).sum()
    assert abs(float((left - right) / left)) < 1e-12
    spectrum = (transfer(bank, 20, 17)[None] * torch.fft.rfft2(z)).sum(2)
    torch.testing.assert_close(torch.fft.irfft2(spectrum, s=(20, 17)), synthesise(z, bank))


def test_a_tight_frame_keeps_energy_and_gives_the_image_back():
    bank, x = nearest_tight_frame(draw(2, 60, 7, 7)), draw(1, 2, 16, 18, seed=1)
    assert frame_error(bank) < 1e-13
    responses = analyse(x, bank)
    torch.testing.assert_close(responses.square().sum((2, 3, 4)), x.square().sum((2, 3)))
    torch.testing.assert_close(synthesise(responses, bank), x)
    with pytest.raises(ValueError, match="at least as many filters as pixels"):
        nearest_tight_frame(draw(1, 48, 7, 7))


def test_the_nearest_tight_frame_is_the_nearest():
    target = draw(1, 5, 2, 2)
    best = (nearest_tight_frame(target) - target).norm()
    others = [nearest_tight_frame(draw(1, 5, 2, 2, seed=s)) for s in range(1, 30)]
    near = [nearest_tight_frame(nearest_tight_frame(target) + 0.05 * draw(1, 5, 2, 2, seed=s)) for s in range(1, 30)]
    assert all((other - target).norm() > best for other in others + near)


def test_cosines_are_a_tight_frame_with_a_constant_filter():
    bank = dct_bank(7)
    assert frame_error(bank) < 1e-14
    torch.testing.assert_close(bank[0, 0], torch.full((7, 7), 1 / 49, dtype=torch.float64))


def test_joint_threshold_against_brute_force():
    responses, precision, cost = (
        draw(1, 3, 4, 5, 5),
        torch.tensor([0.5, 2.0, 1.0]).double(),
        torch.tensor([1.2]).double(),
    )
    found = keep_jointly(responses, precision, cost)
    for place in itertools.product(range(4), range(5), range(5)):
        r = responses[(0, slice(None), *place)]
        # with the support of a position paid for once, every subset of the channels may be kept
        best = min(
            (float(0.5 * (precision * (r - torch.tensor(keep) * r) ** 2).sum()) + 1.2 * any(keep), keep)
            for keep in itertools.product((0.0, 1.0), repeat=3)
        )
        torch.testing.assert_close(found[(0, slice(None), *place)], torch.tensor(best[1]).double() * r)
    kept = found != 0
    assert 0.1 < kept.double().mean() < 0.9
    assert torch.equal(kept.any(1), kept.all(1))


def test_without_coupling_every_channel_is_thresholded_by_itself():
    responses, precision = draw(2, 2, 3, 6, 6), torch.tensor([1.0, 3.0]).double()
    cost = torch.tensor([0.4, 0.9]).double()
    found = keep_jointly(responses, precision, cost, joint=False)
    for c in range(2):
        threshold = math.sqrt(2 * cost[c] / precision[c])
        assert torch.equal(found[:, c], responses[:, c] * (responses[:, c].abs() >= threshold))


def least(objective, start, steps=1500):
    """Minimise a convex function of a small vector by random search around the best, and return its value there."""
    best, value, width = start, objective(start), 1.0
    for step in range(steps):
        trial = best + width * draw(*best.shape, seed=step)
        if step % 100 == 99:
            width *= 0.7
        if objective(trial) < value:
            best, value = trial, objective(trial)
    return value


@pytest.mark.parametrize("seed", range(3))
def test_proximal_maps_are_minimisers(seed):
    v, single, group = 2 * draw(3, seed=seed), torch.tensor([0.3, 0.1, 0.5]).double(), torch.tensor([0.6]).double()

    def penalty(z):
        return float(0.5 * (z - v).square().sum() + (single * z.abs()).sum() + group * z.norm())

    z = shrink(v.reshape(1, 3, 1, 1, 1), single.reshape(1, 3, 1, 1, 1), group.reshape(1, 1, 1, 1, 1)).flatten()
    assert penalty(z) <= least(penalty, v) + 1e-9

    for precision in (torch.tensor([2.0, 2.0, 2.0]).double(), torch.tensor([2.0, 1.0, 0.7]).double()):

        def mixed(z, p=precision):
            return float(0.5 * (p * (z - v) ** 2).sum() + z.norm())

        z = shrink_mixed_norm(v.reshape(1, 3, 1, 1, 1), precision, iterations=300).flatten()
        assert mixed(z) <= least(mixed, v) + 1e-7


def test_high_pass_is_the_rest_of_the_smoothing_problem():
    x = draw(1, 1, 12, 15)
    low = x - high_pass(x, 5.0)
    neighbours = sum(torch.roll(low, s, dims=d) for s in (1, -1) for d in (2, 3))
    torch.testing.assert_close(low + 5.0 * (4 * low - neighbours), x)
    y = draw(1, 1, 12, 15, seed=1)
    torch.testing.assert_close((high_pass(x) * y).sum(), (x * high_pass(y)).sum())


def proximal_gradient(signal, bank, terms, steps=1200):
    """An independent solver of the coding problem: accelerated proximal gradients, in the image domain."""
    weight = terms["weight"].reshape(1, -1, 1, 1, 1)
    length = 1 / float((weight * transfer(bank, *signal.shape[-2:]).abs().square().sum(1)[None, :, None]).max())
    z = ahead = torch.zeros(*signal.shape[:2], bank.shape[1], *signal.shape[2:], dtype=signal.dtype)
    t = 1.0
    for _ in range(steps):
        slope = weight * analyse(synthesise(ahead, bank) - signal, bank)
        new = shrink(ahead - length * slope, length * terms["single"].reshape(1, -1, 1, 1, 1), length * terms["group"])
        t_new = (1 + math.sqrt(1 + 4 * t * t)) / 2
        ahead, z, t = new + (t - 1) / t_new * (new - z), new, t_new
    return z


def test_codes_agree_with_another_solver_and_go_on_where_they_stopped():
    bank, signal = draw(1, 6, 4, 4), high_pass(edges(2, 16))
    bank = bank / bank.flatten(2).norm(dim=2)[..., None, None]
    terms = {"single": torch.tensor([0.05, 0.08]).double(), "group": torch.tensor([0.05]).double(),
             "weight": torch.tensor([1.0, 2.0]).double()}  # fmt: skip
    state = sparse_code(signal, bank, iterations=300, **terms)
    found = coding_objective(synthesise(state.codes, bank) - signal, state.codes, **terms)
    z = proximal_gradient(signal, bank, terms)
    torch.testing.assert_close(found, coding_objective(synthesise(z, bank) - signal, z, **terms), rtol=1e-5, atol=0)
    half = sparse_code(signal, bank, iterations=13, **terms)
    whole = sparse_code(signal, bank, iterations=32, **terms)
    half = sparse_code(signal, bank, iterations=19, state=half, **terms)
    torch.testing.assert_close(half.codes, whole.codes, rtol=0, atol=1e-13)
    alone = sparse_code(signal[1:], bank, iterations=32, **terms)  # rho is balanced sample by sample
    torch.testing.assert_close(alone.codes, whole.codes[1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("lam", [1 + 1e-6, 1.5])
@pytest.mark.parametrize("norm", ["count", "mixed"])
def test_analysis_learning_never_rises_and_keeps_the_frame(norm, lam):
    network = AnalysisOperator(2, 25, 5).double()
    assert torch.equal(network.filters[:, 0], network.filters[:, 0, :1, :1].expand(2, 5, 5))  # constant at first
    learner = AnalysisLearner(network, precision=40.0, norm=norm, lam=lam)
    values, images = [], edges()
    for _ in range(12):
        values.append(float(learner.update(images)))
        assert frame_error(network.filters) < 1e-6
    assert all(b <= a * (1 + 1e-10) for a, b in itertools.pairwise(values))
    assert values[-1] < 0.9 * values[0]


def test_learned_filters_beat_the_cosine_transform_on_their_training_set():
    images = edges(6)
    learned, cosines = (AnalysisOperator(2, 25, 5).double() for _ in range(2))
    learner = AnalysisLearner(learned, precision=40.0)
    for _ in range(60):
        learner.update(images)
    cosines.filters.copy_(dct_bank(5).expand(2, -1, -1, -1))
    best, control = (float(AnalysisLearner(n, precision=40.0).codes(images)[1]) for n in (learned, cosines))
    assert best < 0.98 * control


def test_uncoupled_learning_is_learning_channel_by_channel():
    images = edges()
    both = AnalysisOperator(2, 25, 5).double()
    learner = AnalysisLearner(both, precision=[40.0, 90.0], joint=False)
    start = both.filters.detach().clone()
    for _ in range(5):
        learner.update(images)
    for c, precision in enumerate((40.0, 90.0)):
        one = AnalysisOperator(1, 25, 5).double()
        one.filters.copy_(start[c : c + 1])
        learner = AnalysisLearner(one, precision=precision)
        for _ in range(5):
            learner.update(images[:, c : c + 1])
        torch.testing.assert_close(one.filters[0], both.filters[c])


def test_channels_share_the_support_of_their_codes():
    network = AnalysisOperator(2, 25, 5).double()
    learner = AnalysisLearner(network, precision=40.0)
    images = edges() + 0.01 * draw(3, 2, 24, 24)  # so that no response that is kept is zero by chance
    learner.update(images)
    z, _ = learner.codes(images)
    assert torch.equal(z[:, 0] != 0, z[:, 1] != 0)
    assert 0 < (z != 0).double().mean() < 0.5


def test_synthesis_learning_lowers_its_objective_with_filters_in_the_ball():
    network = SynthesisDictionary(12, 6).double()
    learner = SynthesisLearner(network, sparsity=0.03, coupling=0.015)
    values = []
    for _ in range(60):
        values.append(float(learner.update(edges())))
        assert float(network.filters.flatten(2).norm(dim=2).max()) <= 1 + 1e-9
    # one ADMM iteration of the codes is no descent step: the course falls, not every iteration
    assert values[-1] < 0.75 * values[0]
    assert all(max(values[k : k + 10]) < values[k - 10] for k in range(20, 60, 10))
    fresh = SynthesisDictionary(12, 6).double()
    terms = {"single": torch.full((2,), 0.03).double(), "group": torch.tensor([0.015]).double()}
    other, signal = edges(seed=5), high_pass(edges(seed=5))

    def explained(bank):
        z = sparse_code(signal, bank.detach(), iterations=150, **terms).codes
        return float(coding_objective(synthesise(z, bank.detach()) - signal, z, **terms).sum())

    assert explained(network.filters) < 0.9 * explained(fresh.filters)
    assert network(other).shape == other.shape
    assert (network(other) - other).norm() < 0.2 * other.norm()


@pytest.mark.parametrize("kind", ["analysis", "synthesis"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind):
    def fresh():
        if kind == "analysis":
            network = AnalysisOperator(2, 25, 5)
            return network, AnalysisLearner(network, precision=40.0, lam=1.5)
        network = SynthesisDictionary(6, 4)
        return network, SynthesisLearner(network, sparsity=0.03)

    images = edges().float()
    whole, learner = fresh()
    for _ in range(8):
        learner.update(images)
    part, learner = fresh()
    for _ in range(3):
        learner.update(images)
    state, weights = learner.state_dict(), part.state_dict()
    again, learner = fresh()
    again.load_state_dict(weights)
    learner.load_state_dict(state)
    for _ in range(5):
        learner.update(images)
    torch.testing.assert_close(again.filters, whole.filters, rtol=0, atol=1e-6)


def test_channels_are_prepared_in_their_own_units():
    prepare = PrepareChannels(["ct", "pet_fdg"], [2.0, 4.0, 5.0],
                              transforms={"ct": lambda x: torch.cat([x, 2 * x], 1)}, sigma=0.1)  # fmt: skip
    batch = {"image": torch.full((1, 2, 8, 8), 10.0)}
    noisy, clean = prepare(batch)
    assert clean[0, :, 0, 0].tolist() == [5.0, 5.0, 2.0]
    assert 0.07 < float((noisy - clean).std()) < 0.13
    assert torch.equal(noisy, prepare(batch)[0])
    with pytest.raises(ValueError, match="scales: expected one for each of 3 channels, got 2"):
        PrepareChannels(["ct", "pet_fdg"], [1.0, 1.0], transforms={"ct": lambda x: torch.cat([x, x], 1)})(batch)
    with pytest.raises(ValueError, match="transforms: expected some of"):
        PrepareChannels(["ct"], [1.0], transforms={"t1": abs})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AnalysisOperator(1, 48, 7), "at least size"),
        (lambda: AnalysisLearner(AnalysisOperator(1), lam=1.0), "lam: expected > 1"),
        (lambda: AnalysisLearner(AnalysisOperator(1), precision=[1.0, 2.0]), "precision: expected 1 numbers"),
        (lambda: SynthesisLearner(SynthesisDictionary(4), sparsity=-1.0), "expected >= 0"),
        (lambda: SynthesisDictionary(0), "expected >= 1"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def _learn_a_share(rank, folder, kind, iterations):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network, learner = _learner(kind)
    for _ in range(iterations):
        objective = learner.update(edges(4)[rank::2])
    torch.save((network.filters.detach(), objective), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _learner(kind):
    if kind == "analysis":
        network = AnalysisOperator(2, 25, 5).double()
        return network, AnalysisLearner(network, precision=40.0)
    network = SynthesisDictionary(6, 4).double()
    return network, SynthesisLearner(network, sparsity=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["analysis", "synthesis"])
def test_two_processes_learn_what_one_does(kind, tmp_path):
    torch.multiprocessing.spawn(_learn_a_share, (str(tmp_path), kind, 5), nprocs=2)
    network, learner = _learner(kind)
    for _ in range(5):
        objective = learner.update(edges(4))
    for rank in range(2):
        filters, value = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(filters, network.filters.detach(), rtol=0, atol=1e-7)
        torch.testing.assert_close(value, objective, rtol=1e-8, atol=0)
