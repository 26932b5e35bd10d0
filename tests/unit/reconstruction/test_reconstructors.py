import io

import pytest
import torch
from monai.data import MetaTensor

from multirecon.acquisition import Acquisition, CartesianMR, CleanImage, ParallelCT, block_mean
from multirecon.measurement import Measurement
from multirecon.networks.classical import GaussianSmoothing, RegularisationWeight
from multirecon.reconstruction import FilteredBackProjection, ImageSource, Reconstructor, SliceWise, Tikhonov
from multirecon.reconstruction.base import Capability
from multirecon.space import ImageSpace, Modality

SPACE = ImageSpace(["flair", "t1", Modality("ct", unit="1/cm", scale=0.2)], (32, 32), (4.0, 4.0))


def phantom(batch=2):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    one = ((y / 0.8) ** 2 + (x / 0.6) ** 2 < 1).float() * 0.6 + (
        ((y - 0.2) / 0.3) ** 2 + (x / 0.2) ** 2 < 1
    ).float() * 0.4
    return torch.stack([one, one.flip(0)])[:batch, None]


def measure(scans, batch=2, **kwargs):
    fine = phantom(batch)
    truth = {"flair": fine, "t1": 0.5 * fine, "ct": 0.2 * fine}
    return Acquisition(SPACE, scans, key="test", oversample=2)(truth, ["a", "b"][:batch], **kwargs)


def psnr(estimate, truth):
    return float(-10 * torch.log10(((estimate - truth) ** 2).mean()))


def test_tikhonov_solves_its_normal_equations():
    m = measure({"flair": CartesianMR(4)})
    network = RegularisationWeight(0.05).eval()
    x = Tikhonov(max_iterations=200, tolerance=1e-7)(m, network).as_tensor()[:, :1]
    a = m.operator["flair"]
    residual = a.gram(x) + 0.05 * a.norms(2).reshape(2, 1, 1, 1) ** 2 * x - a.adjoint(m.y["flair"])
    assert residual.abs().max() < 1e-5


def test_tikhonov_beats_zero_filling():
    m = measure({"flair": CartesianMR(4)})
    truth = block_mean(phantom(), 2)
    zero_filled = m.back_projection()[:, :1]
    best = Tikhonov()(m, RegularisationWeight(1e-3).eval()).as_tensor()[:, :1]
    assert psnr(best, truth) > psnr(zero_filled, truth) + 3


def test_clean_passes_through_and_missing_is_zero():
    m = measure({"flair": CartesianMR(2), "t1": CleanImage()})
    result = Tikhonov()(m, RegularisationWeight(1e-2))
    assert torch.equal(result.as_tensor()[:, 1:2], m.y["t1"])
    assert result[:, 2].abs().max() == 0


def test_fbp_recovers_attenuation():
    m = measure({"ct": ParallelCT(90, photons=1e7)})
    truth = 0.2 * block_mean(phantom(), 2)
    result = FilteredBackProjection()(m, GaussianSmoothing(0.5)).as_tensor()[:, 2:]
    inside = truth > 0.11
    assert float((result - truth)[inside].mean().abs()) < 0.002
    assert psnr(result / 0.2, truth / 0.2) > 20


def test_fbp_refuses_other_data_and_says_why():
    with pytest.raises(ValueError, match=r"block 'flair': expected an operator.*got 'masked_fourier'"):
        FilteredBackProjection()(measure({"flair": CartesianMR(4)}), None)
    with pytest.raises(ValueError, match=r"expected a likelihood of \['gaussian'\], got 'transmission_poisson'"):
        Tikhonov()(measure({"ct": ParallelCT(60)}), RegularisationWeight())


def test_capability_of_targets():
    m = measure({"flair": CartesianMR(4)})
    assert Tikhonov.capability.refusals(m, ["flair"]) == []
    assert "without a measurement" in Tikhonov.capability.refusals(m, ["t1"])[0]
    assert Capability(synthesises=True).refusals(m, ["t1"]) == []
    narrow = Capability(synthesises=True, modalities=frozenset({"flair", "pet_fdg"}))
    assert narrow.refusals(m) == []
    assert narrow.refusals(m, ["t1"]) == ["targets: expected some of ['flair', 'pet_fdg'], got ['t1']"]
    assert "spatial axes" in Capability(ndim=frozenset({3})).refusals(m)[0]
    assert "modalities" in Capability(modalities=frozenset({"ct"})).refusals(m)[0]


def test_gradients_flow_in_training_only():
    m = measure({"flair": CartesianMR(4)})
    network = RegularisationWeight(0.1)
    trained = Tikhonov()(m, network.train())
    trained.as_tensor().square().mean().backward()
    assert network.log_weight.grad is not None
    assert network.log_weight.grad != 0
    with torch.no_grad():
        assert not Tikhonov()(m, network).requires_grad
    assert not Tikhonov()(m, network.eval()).requires_grad


def test_result_carries_the_affine():
    affine = torch.tensor([[-4.0, 0, 0, 10], [0, 4, 0, -20], [0, 0, 3, 7], [0, 0, 0, 1]])
    result = Tikhonov()(measure({"flair": CartesianMR(4)}, affine=affine), RegularisationWeight())
    assert isinstance(result, MetaTensor)
    assert torch.allclose(result.affine, affine.double())


class Constant(Reconstructor):
    def __init__(self, value, shape=None, **kwargs):
        super().__init__(**kwargs)
        self.value, self.shape = value, shape

    def reconstruct(self, measurement, network, *, generator, callback):
        shape = self.shape or (measurement.batch_size, *measurement.space.stack_shape)
        return torch.full(shape, self.value)


@pytest.mark.parametrize(
    ("value", "shape", "message"), [(float("nan"), None, "finite"), (0.0, (2, 3, 16, 16), "expected shape")]
)
def test_bad_results_are_refused(value, shape, message):
    with pytest.raises(ValueError, match=message):
        Constant(value, shape)(measure({"flair": CartesianMR(4)}), None)


def test_own_stack_is_embedded_and_cut_back():
    seen = {}

    class Spy(Reconstructor):
        def reconstruct(self, measurement, network, *, generator, callback):
            seen["names"] = measurement.space.names
            stack = torch.arange(measurement.space.num_channels).float().reshape(1, -1, 1, 1)
            return stack.expand(measurement.batch_size, -1, *measurement.space.shape).clone()

    own = ImageSpace(["pet_fdg", "ct", "flair", "t1"], (32, 32), (4.0, 4.0))
    result = Spy(space=own)(measure({"flair": CartesianMR(4)}), None)
    assert seen["names"] == own.names
    assert [int(v) for v in result[0, :, 0, 0]] == [2, 3, 1]
    # a missing modality that the own stack does not know either
    narrow = Spy(space=ImageSpace(["pet_fdg", "flair"], (32, 32), (4.0, 4.0)))
    assert [int(v) for v in narrow(measure({"flair": CartesianMR(4)}), None)[0, :, 0, 0]] == [1, 0, 0]


def test_slicewise_batches_equal_one_run():
    m = measure({"flair": CartesianMR(4)})
    network = RegularisationWeight(0.01).eval()
    one = Tikhonov()(m, network).as_tensor()
    many = SliceWise(Tikhonov(), space=SPACE, batch_size=1, progress=False)(m, network).as_tensor()
    assert torch.allclose(one, many, atol=1e-6)


class Passing(Reconstructor):
    """Returns the clean image: what remains is the resampling of the wrapper."""

    def reconstruct(self, measurement, network, *, generator, callback):
        return measurement.y["t1"]


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_volume_returns_to_its_native_grid(flip):
    # A smooth blob in a volume of another orientation (axes permuted and flipped), spacing and size.
    space = ImageSpace(["t1"], (64, 64), (2.0, 2.0))
    affine = torch.tensor([[0, 0, flip * 2.5, 5.0], [-1.5, 0, 0, 60.0], [0, 1.2, 0, -30.0], [0, 0, 0, 1]]).double()
    shape = (70, 50, 40)
    grid = torch.stack(torch.meshgrid(*[torch.arange(n).double() for n in shape], indexing="ij"), -1)
    world = grid @ affine[:3, :3].T + affine[:3, 3]
    centre = torch.tensor([35.0, 25.0, 20.0]).double() @ affine[:3, :3].T + affine[:3, 3]
    volume = 700 * torch.exp(-((world - centre) ** 2).sum(-1) / (2 * 12.0**2)).float()
    source = ImageSource(space, percentile=99.5)
    result = SliceWise(Passing(source=source), space=space, batch_size=7, progress=False)(
        MetaTensor(volume[None, None], affine=affine), None
    )
    assert result.shape == (1, 1, *shape)
    assert torch.allclose(result.affine, affine)
    assert float((result[0, 0] - volume).abs().max()) < 0.03 * 700


@pytest.mark.parametrize(
    ("terminal", "progress", "shown"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_a_volume_shows_its_progress_in_a_terminal(monkeypatch, terminal, progress, shown):
    """Slice batches are counted to the end; nothing goes to a log file, or where it is not wanted."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr", stream)
    space = ImageSpace(["t1"], (16, 16), (4.0, 4.0))
    method = SliceWise(Passing(source=ImageSource(space)), space=space, batch_size=4, progress=progress)
    method(MetaTensor(torch.rand(1, 1, 16, 16, 10), affine=torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0]))), None)
    assert ("slices: 100%" in stream.getvalue() and "3/3" in stream.getvalue()) == shown
    assert bool(stream.getvalue()) == shown


def test_image_source_names_what_is_wrong():
    source = ImageSource(SPACE, available=["t1", "flair"])
    assert source(torch.rand(1, 2, 32, 32)).available == ("flair", "t1")  # in the order of the space
    assert source(torch.rand(1, 3, 32, 32)).available == ("flair", "t1")
    bad = torch.rand(1, 2, 32, 32)
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="never coded as NaN"):
        source(bad)
    with pytest.raises(ValueError, match="expected shape"):
        source(torch.rand(1, 2, 16, 16))
    with pytest.raises(ValueError, match="needs a 'source'"):
        Tikhonov()(torch.rand(1, 2, 32, 32), RegularisationWeight())
    with pytest.raises(ValueError, match="expected one of"):
        ImageSource(SPACE, available=["pet"])


def test_intensity_scale_is_undone():
    space = ImageSpace(["t1"], (32, 32), (4.0, 4.0))
    image = 1000 * block_mean(phantom(1), 2)
    source = ImageSource(space, percentile=99.0)
    measurement = source(image)
    assert float(measurement.y["t1"].max()) < 1.5
    assert torch.allclose(Passing(source=source)(image, None).as_tensor(), image, rtol=1e-5)


def test_saved_measurement_reconstructs_identically(tmp_path):
    m = measure({"flair": CartesianMR(4), "ct": ParallelCT(30)})
    again = Measurement.load(m.save(tmp_path / "m.h5"))
    network = RegularisationWeight(0.01).eval()
    for part in (["flair"],):
        a = Tikhonov()(m.restrict(part), network).as_tensor()
        assert torch.equal(a, Tikhonov()(again.restrict(part), network).as_tensor())
