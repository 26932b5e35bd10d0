"""Images handed in: named channels, simulated scans of some, units of files, a seed."""

import pytest
import torch
from monai.data import MetaTensor

from multirecon.acquisition import Acquisition, CartesianMR, ParallelCT, PETScan
from multirecon.reconstruction import Capability, ImageSource, Reconstructor, SliceWise
from multirecon.space import ImageSpace, Modality
from multirecon.units import attenuation_to_hu, hu_to_attenuation

CT = Modality("ct", unit="1/cm", scale=0.2)
SPACE = ImageSpace(["t1", "flair", CT, "pet_fdg"], (24, 24), (8.0, 8.0))
SCANS = Acquisition(
    SPACE, {"flair": CartesianMR(3), "ct": ParallelCT(20), "pet_fdg": PETScan(50.0, attenuation="ct")}, key="test"
)


def head(*, hounsfield=True):
    """A disc in every channel ``(1, 4, 24, 24)``: water in CT, air around it."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 24)] * 2, indexing="ij")
    disc = ((x**2 + y**2) < 0.6).float()
    stack = disc.repeat(1, 4, 1, 1)
    stack[:, 2] = 1000 * (disc - 1) if hounsfield else 0.1929 * disc
    return stack


class Passing(Reconstructor):
    """Returns clean images, and zero elsewhere."""

    capability = Capability()

    def reconstruct(self, measurement, network, *, generator, callback):
        shape = (measurement.batch_size, *measurement.space.stack_shape)
        result = torch.zeros(shape)
        for name in measurement.clean:
            result[:, measurement.space.channels(name)] = measurement.y[name]
        return result


class Drawing(Reconstructor):
    """Returns noise of its generator."""

    def reconstruct(self, measurement, network, *, generator, callback):
        return torch.randn((measurement.batch_size, *measurement.space.stack_shape), generator=generator)


@pytest.mark.parametrize("names", ["t1, flair", ["t1", "flair"], " t1,flair ,"])
def test_names_come_as_text_or_list(names):
    source = ImageSource(SPACE, available=names, acquisition=SCANS)
    assert source.available == ("t1", "flair")
    assert source.simulate == ("flair",)  # the only one of them that has a scan


def test_only_what_is_named_is_simulated():
    every = ImageSource(SPACE, acquisition=SCANS)(head())
    assert every.clean == ("t1",)
    some = ImageSource(SPACE, acquisition=SCANS, simulate="ct")(head())
    assert some.clean == ("t1", "flair", "pet_fdg")
    none = ImageSource(SPACE, acquisition=SCANS, simulate="")(head())
    assert none.clean == SPACE.names
    assert every.metadata["simulated"]
    assert not none.metadata["simulated"]


def test_channels_are_in_the_order_in_which_they_are_named():
    stack = head()
    stack[:, 1] *= 3
    swapped = ImageSource(SPACE, available="flair, t1")(stack[:, [1, 0]])
    assert torch.equal(swapped.y["flair"], stack[:, 1:2])
    whole = ImageSource(SPACE, available="flair, t1")(stack)  # all channels of the space: in its order
    assert torch.equal(whole.y["flair"], stack[:, 1:2])
    assert whole.available == ("t1", "flair")
    permuted = ImageSource(SPACE, available="pet_fdg, ct, flair, t1")(stack.flip(1))
    assert torch.equal(permuted.y["flair"], stack[:, 1:2])


def test_pet_is_attenuated_by_the_ct_that_comes_with_it():
    source = ImageSource(SPACE, available="ct, pet_fdg", acquisition=SCANS, simulate="pet_fdg")
    assert float(source(head()).operator["pet_fdg"].attenuation.max()) == pytest.approx(0.096, rel=0.05)
    with pytest.raises(ValueError, match="expected the true 511 keV map"):
        ImageSource(SPACE, available="pet_fdg", acquisition=SCANS)(head())


def test_ct_comes_and_goes_in_hounsfield_units():
    source = ImageSource(SPACE)
    assert torch.allclose(source(head()).y["ct"], head(hounsfield=False)[:, 2:3], atol=1e-6)
    back = Passing(source=source)(head(), None).as_tensor()
    assert torch.allclose(back, head(), atol=1e-3)
    other = ImageSource(ImageSpace(["ct"], (24, 24), (8.0, 8.0)))  # stated in another unit: left alone
    assert torch.equal(other(head()[:, 2:3]).y["ct"], head()[:, 2:3])


def test_a_synthesised_ct_is_in_hounsfield_units_too():
    back = Passing(source=ImageSource(SPACE, available="t1"))(head()[:, :1], None).as_tensor()
    assert torch.allclose(back[:, 2], torch.tensor(-1000.0))  # Passing leaves 0 1/cm there


def test_outside_of_a_volume_is_air():
    """A small volume on a larger grid: what the resampling pads is 0 1/cm, not 0 HU."""
    source = ImageSource(ImageSpace([CT], (24, 24), (8.0, 8.0)))
    seen = []

    class Spy(Passing):
        def reconstruct(self, measurement, network, *, generator, callback):
            seen.append(measurement.y["ct"])
            return super().reconstruct(measurement, network, generator=generator, callback=callback)

    volume = torch.zeros(1, 1, 10, 10, 2)  # water
    result = SliceWise(Spy(source=source), space=source.space)(MetaTensor(volume, affine=torch.diag(
        torch.tensor([8.0, 8.0, 8.0, 1.0]))), None)  # fmt: skip
    assert float(seen[0].min()) == 0.0
    assert float(seen[0].max()) == pytest.approx(0.1929)
    assert result.shape == volume.shape
    assert float(result[0, 0, 2:8, 2:8].abs().max()) < 1e-2
    hu = torch.tensor([-1000.0, 0.0, 40.0])
    assert torch.allclose(attenuation_to_hu(hu_to_attenuation(hu)), hu, atol=1e-3)


def test_levels_name_who_is_scaled():
    stack = 700 * head()[:, :2]
    source = ImageSource(SPACE, available="t1, flair", percentile=99.5, levels={"flair": 0.75})
    measurement = source(stack)
    assert float(measurement.y["t1"].max()) == pytest.approx(700)
    assert float(measurement.y["flair"].max()) == pytest.approx(0.75)
    assert torch.allclose(Passing(source=source)(stack, None).as_tensor()[:, :2], stack)


def test_the_seed_reaches_noise_and_sampler():
    stack = head()[:, 1:2]

    def noise(seed):
        return ImageSource(SPACE, available="flair", acquisition=SCANS, seed=seed)(stack).y["flair"]

    assert torch.equal(noise(3), noise(3))
    assert not torch.equal(noise(3), noise(4))
    source = ImageSource(SPACE, available="flair")

    def drawn(seed, batch_size=16):
        return SliceWise(Drawing(source=source), space=SPACE, seed=seed, batch_size=batch_size)(stack, None).as_tensor()

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    own = SliceWise(Drawing(source=source), space=SPACE, seed=3)
    assert not torch.equal(own(stack, None, generator=torch.Generator().manual_seed(9)).as_tensor(), drawn(3))


def test_a_target_is_returned_alone_and_named():
    source = ImageSource(SPACE)
    stack = head()
    whole = SliceWise(Passing(source=source), space=SPACE)(stack, None)
    assert whole.meta["modalities"] == list(SPACE.names)
    one = SliceWise(Passing(source=source), space=SPACE, target="ct")(stack, None)
    assert one.meta["modalities"] == ["ct"]
    assert torch.equal(one.as_tensor(), whole.as_tensor()[:, 2:3])
    volume = MetaTensor(stack[..., None].repeat(1, 1, 1, 1, 2), affine=torch.diag(torch.tensor([8.0, 8.0, 5.0, 1.0])))
    assert SliceWise(Passing(source=source), space=SPACE, target="ct")(volume, None).shape == (1, 1, 24, 24, 2)
    measurement = source(stack)  # of measurements the whole stack is returned: tasks choose their targets
    assert SliceWise(Passing(), space=SPACE, target="ct")(measurement, None).shape == stack.shape
    with pytest.raises(ValueError, match="expected one of"):
        SliceWise(Passing(source=source), space=SPACE, target="t3")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"available": ""}, "available: expected some of"),
        ({"available": "t1, t1"}, "no repeated name"),
        ({"available": "t3"}, "expected one of"),
        ({"simulate": "t1"}, r"expected available modalities that have a scan \(\['flair', 'ct', 'pet_fdg'\]\)"),
        ({"available": "t1", "simulate": "flair"}, "simulate: expected available modalities"),
        ({"percentile": 0.0}, "percentile"),
        ({"levels": {"t1": 0.0}}, "levels"),
        ({"levels": {"t3": 1.0}}, "expected one of"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        ImageSource(SPACE, acquisition=SCANS, **options)


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match=r"expected 1 channels for the available \['t1'\], or all 4 channels"):
        ImageSource(SPACE, available="t1")(head()[:, :2])
