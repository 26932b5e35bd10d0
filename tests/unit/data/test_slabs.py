import pytest
import torch
from torch.nn.functional import avg_pool3d

from multirecon.data.slabs import PhantomSlabs

SMALL = {
    "depth": 3,
    "shape": (64, 64),
    "spacing_mm": 3.75,
    "anatomies": ["mni152"],
    "config": {"spacing_mm": (1.875, 1.875, 1.875), "matrix": 128, "z_mm": (0.0, 15.0)},
}


def test_block_means_of_the_fine_slab_are_the_slab():
    item = PhantomSlabs("test", 1, fine=True, modalities=["t1", "ct"], **SMALL)[0]
    assert item["image"].shape == (2, 64, 64, 3)
    assert item["fine"].shape == (2, 128, 128, 6)
    assert torch.allclose(avg_pool3d(item["fine"], 2), item["image"], atol=1e-5)
    assert torch.allclose(avg_pool3d(item["attenuation_fine"], 2), item["attenuation"], atol=1e-6)
    assert item["id"].startswith("mni152/2000000/")
    assert torch.equal(torch.diagonal(item["affine"]), torch.tensor([3.75, 3.75, 3.75, 1.0], dtype=torch.float64))


def test_slab_refuses_what_does_not_fit(phantom):
    with pytest.raises(ValueError, match="start"):
        phantom.slab(0, phantom.shape[2], names=["t1"])
    with pytest.raises(ValueError, match="spacing_mm"):
        phantom.slab(0, 2, names=["t1"], spacing_mm=2.0)
    with pytest.raises(ValueError, match="test"):
        PhantomSlabs("train", 1, **{**SMALL, "anatomies": ["16"]})
