"""The shipped encoder and the distances in its features."""

import pytest
import torch

from multirecon.data.datasets import PhantomSlices
from multirecon.metrics import ENCODER, features, frechet_distance, kid, load_encoder, network_scale
from multirecon.metrics.features import ENCODER_FILE
from multirecon.space import Modality
from multirecon.units import hu_to_attenuation


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture(scope="module")
def slices():
    """Eight slices of the embedded test subject in six modalities: ``(8, 6, 128, 128)``."""
    data = PhantomSlices(
        "test", 1, modalities=("t1", "t2", "flair", "t2star", "ct", "pet_fdg"), slices=8, ct_unit="unit"
    )
    return torch.stack([data[i]["image"] for i in range(len(data))])


def blurred(images, sigma):
    frequency = torch.fft.fftfreq(images.shape[-1])
    transfer = torch.exp(-2 * (torch.pi * sigma) ** 2 * (frequency[:, None] ** 2 + frequency[None] ** 2))
    return torch.fft.ifft2(torch.fft.fft2(images) * transfer).real


def test_shipped_weights_are_small_and_of_half_precision(encoder):
    assert ENCODER_FILE.stat().st_size < 500_000
    assert 50_000 <= sum(p.numel() for p in encoder.parameters()) <= 150_000
    stored = torch.load(ENCODER_FILE, weights_only=True)
    assert {v.dtype for v in stored.values()} == {torch.float16}


def test_other_weights_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "phantomnet64.pt"
    path.write_bytes(ENCODER_FILE.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(features, "ENCODER_FILE", path)
    features._shipped.cache_clear()
    try:
        with pytest.raises(ValueError, match="SHA-256"):
            load_encoder()
    finally:
        features._shipped.cache_clear()


def test_features_do_not_depend_on_the_batch(encoder, slices):
    images = slices[0, :5, None]
    together = encoder.encode(images, batch_size=2)
    assert together.shape == (5, 64)
    assert torch.allclose(together[3:4], encoder.encode(images[3:4]), atol=1e-4)
    assert not encoder.training


def test_halves_of_one_set_are_close_and_degraded_halves_far(encoder, slices, generator):
    """Every second slice against the others: the same head in the same modalities, then blurred or noisy."""
    first, second = (slices[start::2].flatten(0, 1)[:, None] for start in (0, 1))
    reference = encoder.encode(first)

    def distance(images):
        return kid(reference, encoder.encode(images), bootstrap=200)

    same = distance(second)
    blur = [distance(blurred(second, sigma)) for sigma in (0.5, 1.0, 2.0)]
    noise = [distance(second + level * torch.randn(second.shape, generator=generator)) for level in (0.02, 0.05, 0.1)]
    assert same.low < 0 < same.high
    for row in (blur, noise):
        values = [same.value, *(d.value for d in row)]
        assert values == sorted(values)
        assert row[-1].low > same.high
    assert str(same).startswith(f"KID-{ENCODER} ")


def test_kernel_distance_is_unbiased_for_one_distribution(generator):
    values = torch.tensor(
        [kid(*torch.randn(2, 20, 8, generator=generator, dtype=torch.float64), bootstrap=0).value for _ in range(400)]
    )
    assert abs(values.mean()) < 4 * values.std() / 20
    assert (values < 0).any()


def test_kernel_distance_of_point_masses_is_the_closed_form():
    a, b = torch.zeros(3, 4), torch.full((2, 4), 2.0)  # k(a, a) = 1, k(b, b) = 5^3, k(a, b) = 1
    found = kid(a, b)
    assert found.value == pytest.approx(1 + 125 - 2)
    assert (found.low, found.high, found.counts) == (pytest.approx(124), pytest.approx(124), (3, 2))


def test_interval_holds_the_estimate_of_shifted_features(generator):
    a = torch.randn(60, 8, generator=generator)
    found = kid(a, 0.5 + torch.randn(80, 8, generator=generator), bootstrap=300)
    assert 0 < found.low < found.value < found.high


def test_groups_widen_the_interval_of_repeated_images(generator):
    a, b = (torch.randn(10, 8, generator=generator).repeat_interleave(6, 0) for _ in range(2))
    groups = [i // 6 for i in range(60)]
    loose = kid(a, b, groups_a=groups, groups_b=groups)
    tight = kid(a, b)
    assert loose.value == tight.value
    assert loose.high - loose.low > 1.5 * (tight.high - tight.low)


def test_frechet_distance_of_a_shift_is_its_square(generator):
    a = torch.randn(200, 5, generator=generator)
    found = frechet_distance(a, a + torch.tensor([3.0, 0, 0, 0, 4.0]))
    assert found.value == pytest.approx(25.0, rel=1e-4)
    assert found.name == f"FD-{ENCODER}"


def test_frechet_distance_of_a_scale_is_the_closed_form(generator):
    a = torch.randn(300, 3, generator=generator).double()
    a = a - a.mean(0)
    assert frechet_distance(a, 3 * a).value == pytest.approx(4 * a.var(0).sum().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: kid(torch.zeros(1, 4), torch.zeros(5, 4)), "features_a"),
        (lambda: kid(torch.zeros(5, 4), torch.zeros(5, 3)), "features_b"),
        (lambda: kid(torch.zeros(5, 4), torch.full((5, 4), torch.nan)), "features_b"),
        (lambda: kid(torch.zeros(5, 4), torch.zeros(5, 4), groups_a=[0] * 5), "groups_b"),
        (lambda: kid(torch.zeros(5, 4), torch.zeros(5, 4), groups_a=[0] * 4, groups_b=[0] * 5), "groups_a"),
        (lambda: frechet_distance(torch.zeros(4, 4), torch.zeros(9, 4)), "features_a"),
    ],
)
def test_bad_features_are_refused(call, name):
    with pytest.raises(ValueError, match=name):
        call()


def test_scale_of_the_encoder():
    water = hu_to_attenuation(torch.tensor([-100.0, 200.0]))
    assert network_scale(water, Modality("ct", unit="1/cm")).tolist() == pytest.approx([0.10, 0.75], abs=1e-4)
    assert network_scale(torch.tensor([3.0]), Modality("pet_fdg")).item() == 2.0
    assert network_scale(torch.tensor([0.7]), Modality("t1")).item() == pytest.approx(0.7)
    with pytest.raises(ValueError, match="has seen"):
        network_scale(torch.ones(1), Modality("materials", channels=2))


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 16, 64), (1, 64, 64)])
def test_images_of_another_shape_are_refused(encoder, shape):
    with pytest.raises(ValueError, match=r"images: expected \(B, 1, H, W\)"):
        encoder(torch.zeros(shape))
