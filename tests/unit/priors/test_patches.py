"""Overlapping patches: exact counts, an exact adjoint, random places; what the training of autoencoders is given."""

import pytest
import torch

from multirecon.priors import IntensityScaling
from multirecon.priors.latent_training import BetaVAELoss, EvidenceInferer, PreparePatches
from multirecon.priors.pair_training import PreparePatchPairs
from multirecon.priors.patches import PatchGrid, patches_around, random_patches
from multirecon.priors.training import keyed_generator
from multirecon.priors.unshared import UnsharedChanges
from multirecon.space import ImageSpace, Modality

SPACE = ImageSpace([Modality("ct", unit="1/cm", scale=0.2), "pet_fdg"], (24, 20), (8.0, 8.0))
KNOTS = {"ct": [[-1000.0, -1.0], [1000.0, 1.0]]}


@pytest.mark.parametrize(("shape", "patch", "stride", "origin"), [
    ((16, 16), 8, 4, (0, 0)), ((17, 21), 8, 3, (2, 1)), ((9, 9), 9, 9, (5, 0)), ((20, 12), 6, 6, (4, 5)),
])  # fmt: skip
def test_counts_are_how_often_a_pixel_is_covered(shape, patch, stride, origin):
    """Checklist 5."""
    grid = PatchGrid(shape, patch=patch, stride=stride, origin=origin)
    expected = torch.zeros(shape)
    for r, c in grid.corners:
        expected[r : r + patch, c : c + patch] += 1
    assert (expected >= 1).all()
    assert torch.equal(grid.counts, expected)
    assert len(set(grid.corners)) == len(grid)


def test_accumulate_is_the_adjoint_and_aggregate_inverts():
    grid = PatchGrid((17, 21), patch=8, stride=3, origin=(2, 1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 17, 21, generator=generator, dtype=torch.float64)
    v = torch.randn(2, len(grid), 3, 8, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((grid.extract(x) * v).sum(), (x * grid.accumulate(v)).sum())
    torch.testing.assert_close(grid.aggregate(grid.extract(x)), x)
    for number, (r, c) in enumerate(grid.corners):
        assert torch.equal(grid.extract(x)[:, number], x[:, :, r : r + 8, c : c + 8])


def test_aggregate_is_the_minimiser_of_the_distances():
    """The penalty of an image is that of its distance to the aggregate, weighted by the counts, plus a constant."""
    grid = PatchGrid((12, 12), patch=6, stride=3)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(1, len(grid), 1, 6, 6, generator=generator, dtype=torch.float64)
    mean = grid.aggregate(v)

    def cost(x):
        return 0.5 * (grid.extract(x) - v).square().sum()

    for _ in range(3):
        x = torch.randn(1, 1, 12, 12, generator=generator, dtype=torch.float64)
        expected = cost(mean) + 0.5 * (grid.counts * (x - mean).square()).sum()
        torch.testing.assert_close(cost(x), expected)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"patch": 30}, "patch: expected"), ({"stride": 9}, "stride: expected"), ({"origin": (4, 0)}, "origin: expected")],
)
def test_wrong_grids_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        PatchGrid((16, 16), **{"patch": 8, "stride": 4, **wrong})


def test_random_patches_lie_mostly_on_the_object(generator):
    image = torch.full((2, 2, 64, 64), -1.0)
    image[:, 1, 40:56, 40:56] = 1.0
    found = random_patches(image, patch=16, count=200, generator=generator)
    assert found.shape == (400, 2, 16, 16)
    inside = (found[:, 1] > 0).float().mean((1, 2)) >= 0.1
    # places with a tenth of object are an eighth of all places
    assert 0.6 < float(inside.float().mean()) < 0.9


def batch():
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(2, 2, 24, 20, generator=generator)
    return {"image": image, "brain": torch.ones(2, 1, 24, 20), "id": ["a", "b"]}


def test_training_batches_follow_from_seed_and_step():
    def prepare(step, seed=0):
        made = PreparePatches(SPACE, scaling=IntensityScaling(SPACE, knots=KNOTS), patch=8, count=4, latent=3, draws=2,
                              augmentation=lambda image, brain, generator: image + torch.rand((), generator=generator),
                              seed=seed)  # fmt: skip
        made.step = step
        patches, target, (noise,), _ = made(batch())
        assert torch.equal(patches, target)
        assert patches.shape == (8, 2, 8, 8)
        assert noise.shape == (2, 8, 3)
        return patches, noise

    for one, other in zip(prepare(5), prepare(5), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(prepare(5)[0], prepare(6)[0])
    assert not torch.equal(prepare(5)[1], prepare(5, seed=1)[1])


def test_changes_of_one_modality_follow_from_seed_and_step():
    change = UnsharedChanges([0.2, 0.8], probability=1.0)

    def prepare(step, unshared):
        made = PreparePatches(SPACE, scaling=IntensityScaling(SPACE, knots=KNOTS), patch=8, count=4, draws=0,
                              unshared=unshared)  # fmt: skip
        made.step = step
        return made(batch())[0]

    plain = prepare(5, None)
    assert torch.equal(prepare(5, change), change(plain, keyed_generator("unshared", 0, 5, 0)))
    assert not torch.equal(prepare(6, change) - prepare(6, None), prepare(5, change) - plain)


def test_patches_are_in_the_affine_range_of_the_network():
    """Stored CT is compressed; the network sees HU / 1000."""
    space = ImageSpace([Modality("ct", unit="1/cm", scale=0.2)], (8, 8), (8.0, 8.0))
    stored = torch.full((1, 1, 8, 8), 0.75)  # 200 HU: 0.5 in [-1, 1]
    prepare = PreparePatches(space, scaling=IntensityScaling(space, knots=KNOTS), patch=8, count=1, draws=0)
    patches, _, noise, _ = prepare({"image": stored, "id": ["a"]})
    torch.testing.assert_close(patches, torch.full_like(patches, 0.2))
    assert noise == ()


def test_loss_is_the_negative_bound_with_a_warm_up():
    loss = BetaVAELoss([0.5, 1.0], beta=0.1, warmup=10)
    target = torch.zeros(2, 2, 1, 1)
    prediction = torch.tensor([1.0, 3.0]).reshape(1, 1, 2, 1, 1).expand(1, 2, 2, 1, 1)
    divergence = torch.tensor([4.0, 6.0])
    assert float(loss((prediction, divergence), target)) == pytest.approx(1 / 0.5 + 9 / 2 + 0.5)
    loss.step = 5
    assert float(loss((prediction, divergence), target)) == pytest.approx(1 / 0.5 + 9 / 2 + 0.25)
    with pytest.raises(ValueError, match="expected 2 modalities"):
        loss((prediction, divergence), target[:, :1])


def test_mixed_precision_returns_single_precision():
    layer = torch.nn.Linear(2, 2)

    def network(x, noise):
        return layer(x), layer(noise).sum(1)

    out = EvidenceInferer(autocast="bfloat16")(torch.ones(1, 2), network, torch.ones(1, 2))
    assert [t.dtype for t in out] == [torch.float32, torch.float32]


def test_patches_around_an_object_hold_it_and_stay_inside_the_image():
    image = torch.arange(2 * 12 * 10.0).reshape(2, 12, 10)
    inside = torch.zeros(12, 10, dtype=torch.bool)
    inside[11, 0] = True  # in a corner: the patch is moved into the image
    options = {"count": 3, "generator": torch.Generator().manual_seed(0)}
    corner = patches_around(image, inside, patch=4, **options)
    assert torch.equal(corner, image[None, :, 8:, :4].expand(3, -1, -1, -1))
    middle = patches_around(image, ~inside & inside, patch=4, **options)
    assert torch.equal(middle[0], image[:, 4:8, 3:7])
    assert torch.equal(patches_around(image, inside, patch=10, **options), image[None])


class Halves(PreparePatchPairs):
    """Pairs of a patch and the patch with noise: the least a subclass adds."""

    def pairs(self, cut, generator):
        return cut + torch.rand(cut.shape, generator=generator), cut


def test_pairs_are_scaled_cut_around_the_object_and_follow_the_step():
    image = torch.zeros(2, 2, 32, 32)
    image[:, :, 20:, 20:] = 3.0
    maker = Halves([1.5, 6.0], patch=8, patches=5, seed=3)
    noisy, clean = maker({"image": image})
    assert noisy.shape == clean.shape == (10, 2, 8, 8)
    assert bool(
        (clean.amax(dim=(2, 3)) == torch.tensor([2.0, 0.5])).all()
    )  # in units of the scales; all hold the object
    assert torch.equal(maker({"image": image})[0], noisy)
    for other in (
        Halves([1.5, 6.0], patch=8, patches=5, seed=4),
        Halves([1.5, 6.0], patch=8, patches=5, seed=3, rank=1),
    ):
        assert not torch.equal(other({"image": image})[0], noisy)
    maker.step = 1
    assert not torch.equal(maker({"image": image})[0], noisy)


def test_pairs_are_augmented_with_the_brain_before_they_are_scaled():
    def mask(image, brain, *, generator):
        assert isinstance(generator, torch.Generator)
        return image * brain

    image, brain = torch.full((1, 1, 16, 16), 4.0), torch.zeros(1, 1, 16, 16)
    brain[..., 8:] = 1.0
    _, clean = Halves([2.0], patch=16, patches=1, augmentation=mask)({"image": image, "brain": brain})
    assert torch.equal(clean, 2 * brain)


def test_pairs_refuse_scales_that_do_not_fit():
    with pytest.raises(ValueError, match="scales: expected numbers > 0"):
        Halves([1.0, 0.0])
    with pytest.raises(ValueError, match="image: expected 3 channels, got 2"):
        Halves([1.0, 1.0, 1.0])({"image": torch.ones(1, 2, 8, 8)})
