import pytest
import torch
from torch.nn.functional import avg_pool2d

from multirecon.data.datasets import PET_UNIT, STACK, PhantomSlices, spread_slices, to_unit
from multirecon.units import attenuation_to_hu, hu_to_attenuation

TINY = {
    "anatomies": ["mni152"],
    "shape": (64, 64),
    "spacing_mm": 3.75,
    "config": {"spacing_mm": (1.875, 1.875, 3.75), "matrix": 128, "ms_probability": 1.0},
}


@pytest.fixture(scope="module")
def data():
    return PhantomSlices("test", 1, slices=3, fine=True, **TINY)


def test_items_have_the_documented_contents(data):
    assert len(data) == 3
    item = data[1]
    assert item["image"].shape == (5, 64, 64)
    assert item["fine"].shape == (5, 128, 128)
    assert item["attenuation"].shape == item["lesion"].shape == item["brain"].shape == (1, 64, 64)
    assert item["regions"].dtype == torch.uint8
    assert item["affine"].shape == (4, 4)
    anatomy, seed, z = item["id"].split("/")
    assert (anatomy, int(seed)) == data.samples[0] == ("mni152", 2_000_000)
    assert int(z) > 0
    assert len({data[i]["id"] for i in range(3)}) == 3


def test_fine_block_means_are_the_image(data):
    item = data[0]
    assert torch.allclose(avg_pool2d(item["fine"], 2), item["image"], atol=1e-5)
    assert torch.allclose(avg_pool2d(item["attenuation_fine"], 2), item["attenuation"], atol=1e-6)


def test_ct_units_agree_with_each_other(data):
    units = {u: PhantomSlices("test", 1, slices=3, ct_unit=u, modalities=["ct"], **TINY)[0]["image"]
             for u in ("1/cm", "HU", "unit")}  # fmt: skip
    assert torch.allclose(units["1/cm"], hu_to_attenuation(units["HU"]), atol=1e-6)
    assert torch.allclose(units["unit"], to_unit("ct", units["HU"]))
    brain = data[0]["brain"][0] == 1
    assert 25 < float(attenuation_to_hu(data[0]["image"][STACK.index("ct")])[brain].median()) < 45


def test_same_item_every_time(data):
    again = PhantomSlices("test", 1, slices=3, fine=True, **TINY)
    for key, value in data[2].items():
        assert torch.equal(value, again[2][key]) if isinstance(value, torch.Tensor) else value == again[2][key]


def test_splits_are_enforced():
    with pytest.raises(ValueError, match=r"15 seed 0 \(test"):
        PhantomSlices("train", 1, anatomies=["01", "15"])
    train, test = (PhantomSlices(s, 2, **TINY) for s in ("train", "test"))
    assert set(train.samples).isdisjoint(test.samples)


def test_arguments_are_checked():
    for options, name in (
        ({"modalities": ["t1", "pet"]}, "modalities"),
        ({"modalities": []}, "modalities"),
        ({"ct_unit": "hu"}, "ct_unit"),
        ({"shape": (64, 64, 64)}, "shape"),
        ({"config": {"noise": 1}}, "config"),
        ({"seeds": 0}, "seeds"),
    ):
        with pytest.raises(ValueError, match=name):
            PhantomSlices("test", **{**TINY, **options})


def test_indices_beyond_the_end_end_an_iteration(data):
    assert data[-1]["id"] == data[2]["id"]
    with pytest.raises(IndexError):
        data[3]


def test_spread_slices_are_even_and_inside():
    assert spread_slices(range(100), 4) == [20, 40, 60, 80]
    assert spread_slices(range(10, 14), 4) == [10, 11, 12, 13]
    with pytest.raises(ValueError, match="slices"):
        spread_slices(range(3), 4)


def test_network_scale():
    values = torch.tensor([0.0, 1.5])
    assert torch.equal(to_unit("pet_fdg", values), values / PET_UNIT["pet_fdg"])
    assert torch.equal(to_unit("t1", values), values)
