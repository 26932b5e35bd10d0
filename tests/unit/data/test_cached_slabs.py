"""Volumes stored once and read as slabs, and their augmentation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool3d

from multirecon.data.augmentation import Augmentation, augment_slabs
from multirecon.data.cached_slabs import CachedSlabs, build
from multirecon.data.cached_slices import CachedSlices, info
from multirecon.data.phantoms import PhantomConfig, simulate
from multirecon.units import hu_to_attenuation

CONFIG = {"spacing_mm": (3.75, 3.75, 3.75), "matrix": 64, "z_mm": (-15.0, 15.0)}
TINY = {"shape": (32, 32), "spacing_mm": 7.5, "config": CONFIG, "anatomies": ["mni152"], "progress": False}
OFF = Augmentation(flip=0, rotation_deg=0, scale=0, shear=0, shift=0, warp=0, pet_gain=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "train"
    facts = build(path, "train", 1, **TINY)
    assert facts["subjects"] == 1
    return path


def test_slabs_are_windows_of_the_phantom(folder):
    data = CachedSlabs(folder, depth=2, fine=True, split="train")
    stored = info(folder, verify=True)["slices"]
    assert len(data) == stored - 3
    phantom = simulate("mni152", 0, config=PhantomConfig(**CONFIG))
    for index in (0, len(data) - 1):
        item = data[index]
        assert item["id"] == data.ids[index]
        assert torch.equal(avg_pool3d(item["fine"], 2), item["image"])
        z = int(item["id"].split("/")[2])
        assert z == phantom.useful_slices.start + index
        truth = phantom.slab(z, 2, names=("ct", "pet_fdg"), shape=(32, 32), spacing_mm=7.5, oversample=2)
        assert (item["fine"][0] - hu_to_attenuation(truth["ct"])).abs().max() < 5e-4  # about 1 HU in bone
        assert (item["fine"][1] - truth["pet_fdg"]).abs().max() < 2e-3


def test_steps_and_subjects_that_are_too_short(folder):
    every, third = CachedSlabs(folder, depth=2), CachedSlabs(folder, depth=2, step=3)
    assert third.ids == every.ids[::3]
    with pytest.raises(ValueError, match="slices or more"):
        CachedSlabs(folder, depth=40)
    with pytest.raises(ValueError, match="depth"):
        CachedSlabs(folder, depth=0)


def test_sets_are_not_mixed_up(folder):
    with pytest.raises(ValueError, match="slabs"):
        CachedSlices(folder)
    with pytest.raises(ValueError, match="split"):
        CachedSlabs(folder, split="test")
    with pytest.raises(ValueError, match="config"):
        build(folder, "train", 1, **{**TINY, "config": {**CONFIG, "texture": 0.5}})
    with pytest.raises(ValueError, match=r"voxels of 4\.0 mm"):
        build(folder, "train", 1, **{**TINY, "spacing_mm": 8.0})
    with pytest.raises(ValueError, match="modalities"):
        CachedSlabs(folder, ("ct", "t1"))


def test_a_second_build_simulates_what_is_missing(folder, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*/*.npy")}
    monkeypatch.setattr("multirecon.data.cached_slabs.simulate", lambda *a, **k: pytest.fail("simulated again"))
    build(folder, "train", 1, **TINY)
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("*/*.npy")}
    assert all(np.load(p).dtype == np.float16 for p in before)


def volume(generator):
    return torch.rand(2, 2, 16, 16, 8, generator=generator)


def run(image, settings, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return augment_slabs(image, modalities=("ct", "pet_fdg"), generator=generator, settings=settings)


def test_slabs_that_nothing_moves_are_averaged(generator):
    image = volume(generator)
    assert torch.allclose(run(image, OFF), avg_pool3d(image, 2), atol=1e-5)


def test_slabs_are_flipped_left_and_right_and_nothing_else(generator):
    image = volume(generator)
    flipped = run(image, replace(OFF, flip=1.0))
    assert torch.allclose(flipped, avg_pool3d(image, 2).flip(2), atol=1e-5)


def test_all_slices_and_channels_move_alike(generator):
    plane = torch.rand(2, 1, 16, 16, 1, generator=generator).expand(2, 2, 16, 16, 8)
    moved = run(plane, Augmentation(pet_gain=0))
    assert torch.allclose(moved, moved[:, :1, :, :, :1].expand_as(moved), atol=1e-6)
    assert not torch.allclose(moved, avg_pool3d(plane, 2), atol=0.05)
    assert torch.equal(moved, run(plane, Augmentation(pet_gain=0)))
    assert not torch.equal(moved, run(plane, Augmentation(pet_gain=0), seed=1))


def test_only_pet_changes_in_brightness(generator):
    image = 0.1 + volume(generator)
    ratio = run(image, replace(OFF, pet_gain=0.3)) / avg_pool3d(image, 2)
    assert torch.allclose(ratio[:, 0], torch.ones(()), atol=1e-4)
    gain = ratio[:, 1, :1, :1, :1]
    assert torch.allclose(ratio[:, 1], gain.expand_as(ratio[:, 1]), rtol=1e-4)
    assert (gain - 1).abs().max() > 0.01


def test_slabs_of_mr_are_refused(generator):
    with pytest.raises(ValueError, match="modalities"):
        augment_slabs(volume(generator), modalities=("t1", "ct"), generator=generator)
    with pytest.raises(ValueError, match="image"):
        augment_slabs(volume(generator), modalities=("ct",), generator=generator)
