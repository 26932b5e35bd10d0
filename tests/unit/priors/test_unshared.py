"""Changes of one modality alone in training patches: independent, on the object, in the range, and repeatable."""

import pytest
import torch

from multirecon.priors.unshared import UnsharedChanges


def patches(n=200):
    x = torch.full((n, 2, 16, 16), -1.0)
    x[:, :, 4:] = 0.2
    return x


def changed(x, seed=0, **options):
    return UnsharedChanges([0.4, 0.8], **options)(x, torch.Generator().manual_seed(seed))


def test_spots_of_the_modalities_are_independent_and_as_frequent_as_asked():
    x = patches(2000)
    found = (changed(x, probability=0.3, radius=(3.0, 6.0)) - x).abs().amax((2, 3)) > 0.02
    share = found.float().mean(0)
    # some spots lie in the background alone
    assert ((share > 0.22) & (share < 0.32)).all(), share
    both = float((found[:, 0] & found[:, 1]).float().mean())
    assert abs(both - float(share.prod())) < 0.02


def test_spots_rise_and_fall_within_their_size_and_stay_on_the_object():
    x = patches()
    difference = changed(x, probability=1.0) - x
    assert torch.equal(difference[:, :, :4], torch.zeros_like(difference[:, :, :4]))
    for channel, rise in enumerate((0.4, 0.8)):
        part = difference[:, channel]
        assert 0.8 * rise < float(part.max()) <= rise + 1e-6
        assert -rise - 1e-6 <= float(part.min()) < -0.8 * rise
    assert float(changed(x - 0.9, probability=1.0).min()) >= -1.0


def test_spots_are_round_with_half_axes_in_the_stated_range():
    x = torch.zeros(400, 2, 33, 33)
    difference = (changed(x, probability=1.0, radius=(2.0, 4.0)) - x).abs()
    area = (difference > 0.5 * difference.amax((2, 3), keepdim=True)).float().sum((2, 3))
    # spots at the border are cut off
    assert float(area.max()) < 1.3 * 3.1416 * 16
    assert float(area.median()) > 0.5 * 3.1416 * 4


def test_gains_act_above_the_background():
    x = patches()
    ratio = (changed(x, probability=0.0, gain=[0.0, 0.2]) + 1)[:, :, 8, 8] / (x + 1)[:, :, 8, 8]
    assert torch.equal(ratio[:, 0], torch.ones(200))
    assert 0.8 <= float(ratio[:, 1].min()) < 0.85
    assert 1.15 < float(ratio[:, 1].max()) <= 1.2


def test_the_generator_fixes_everything():
    x = patches(8)
    assert torch.equal(changed(x, 3), changed(x, 3))
    assert not torch.equal(changed(x, 3), changed(x, 4))
    torch.testing.assert_close(changed(x, probability=0.0), x)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: UnsharedChanges([]), "rise, gain: expected"),
    (lambda: UnsharedChanges([0.1, -0.1]), "rise, gain: expected"),
    (lambda: UnsharedChanges([0.1], gain=[0.1, 0.1]), "rise, gain: expected"),
    (lambda: UnsharedChanges([0.1], probability=1.5), "probability, radius: expected"),
    (lambda: UnsharedChanges([0.1], radius=(3.0, 2.0)), "probability, radius: expected"),
    (lambda: UnsharedChanges([0.1])(torch.zeros(1, 2, 4, 4), torch.Generator()), "patches: expected"),
])  # fmt: skip
def test_what_does_not_fit_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
