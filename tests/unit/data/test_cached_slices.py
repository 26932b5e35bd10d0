import json
import shutil

import numpy as np
import pytest
import torch

from multirecon.data import cached_slices
from multirecon.data.augmentation import Augmentation, augment, training_batches
from multirecon.data.cached_slices import CachedSlices, build, info
from multirecon.data.phantoms import PhantomConfig, simulate

TINY = {
    "shape": (64, 64),
    "spacing_mm": 3.75,
    "config": {"spacing_mm": (3.75, 3.75, 3.75), "matrix": 64},
    "anatomies": ["mni152"],
    "progress": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "train"
    build(path, "train", 2, **TINY)
    return path


def test_info_counts_and_checks(folder):
    facts = info(folder, verify=True)
    assert facts["subjects"] == 2
    assert facts["slices"] == sum(facts["anatomies"].values()) > 10
    assert facts["bytes"] == sum(p.stat().st_size for p in folder.glob("*/*.npy"))
    assert facts["clipped"] < 0.01


def test_stored_values_are_the_phantom_within_their_step(folder):
    data = CachedSlices(folder, ("t1", "ct", "pet_fdg"), units="phantom", split="train")
    item = data[3]
    anatomy, seed, z = item["id"].split("/")
    p = simulate(anatomy, int(seed), config=PhantomConfig(**TINY["config"]))
    truth = p.slices([int(z)], names=("t1", "ct", "pet_fdg"), shape=(64, 64), spacing_mm=3.75)
    image = item["image"]
    assert (image[0] - truth["t1"][0].clamp_max(1.275)).abs().max() <= 0.00251
    hu = truth["ct"][0]
    brain = (hu > -100) & (hu < 200)
    assert (image[1] - hu)[brain].abs().max() < 0.3
    assert (image[1] - hu).abs().max() < 4
    assert (image[2] - truth["pet_fdg"][0]).abs().max() < 2e-3


def test_build_goes_on_where_it_stopped(folder, monkeypatch, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    victim = sorted(copy.glob("mni152_*"))[1]
    shutil.rmtree(victim)
    (copy / ".half").mkdir()  # what a killed build may leave
    simulated = []
    real = cached_slices.simulate

    def spy(*args, **kwargs):
        simulated.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(cached_slices, "simulate", spy)
    build(copy, "train", 2, **TINY)
    assert simulated == [("mni152", 1)]
    for name in ("t1", "ct", "regions"):
        again = np.load(victim / f"{name}.npy")
        assert np.array_equal(again, np.load(folder / victim.name / f"{name}.npy"))


def test_a_failed_subject_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(cached_slices.np, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        build(tmp_path / "new", "train", 1, **TINY)
    assert not [p for p in (tmp_path / "new").iterdir() if p.is_dir()]


def test_checksums_find_a_changed_file(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    file = next(copy.glob("*/t1.npy"))
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match="checksum"):
        info(copy, verify=True)


def test_a_folder_keeps_to_its_settings_and_split(folder):
    with pytest.raises(ValueError, match="stride"):
        build(folder, "train", 2, **{**TINY, "stride": 3})
    with pytest.raises(ValueError, match="split"):
        build(folder, "test", 1, **TINY)
    with pytest.raises(ValueError, match="split"):
        CachedSlices(folder, split="validation")


def test_training_refuses_a_set_with_test_subjects(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    record = next(copy.glob("*/subject.json"))
    facts = json.loads(record.read_text())
    record.write_text(json.dumps({**facts, "seed": 2_000_000}))
    with pytest.raises(ValueError, match="test"):
        CachedSlices(copy, split="train")
    with pytest.raises(ValueError, match="09"):
        build(tmp_path / "other", "train", 1, **{**TINY, "anatomies": ["09"]})


def test_errors_name_the_argument(folder, tmp_path):
    with pytest.raises(ValueError, match="folder"):
        CachedSlices(tmp_path)
    with pytest.raises(ValueError, match="modalities"):
        CachedSlices(folder, ("t1", "t9"))
    with pytest.raises(ValueError, match="units"):
        CachedSlices(folder, units="HU")


def test_training_batches_cover_the_set_and_repeat_by_seed(folder):
    data = CachedSlices(folder)

    def first_pass(seed):
        stream = training_batches(data, 5, generator=torch.Generator().manual_seed(seed))
        return [next(stream) for _ in range(len(data) // 5)]

    one, two = first_pass(0), first_pass(0)
    names = [name for batch in one for name in batch["id"]]
    assert len(names) == len(set(names)) > 0.7 * len(data)
    for a, b in zip(one, two, strict=True):
        assert a["id"] == b["id"]
        assert torch.equal(a["image"], b["image"])
        assert a["image"].shape == (5, 5, 64, 64)
        assert torch.isfinite(a["image"]).all()
    with pytest.raises(ValueError, match="batch_size"):
        next(training_batches(data, 10_000, generator=torch.Generator()))


OFF = Augmentation(
    flip=0, rotation_deg=0, scale=0, shear=0, shift=0, warp=0, gamma=0, gain=0, pet_gain=0, strip=0
)  # fmt: skip


def test_augmentation_switched_off_is_the_identity():
    g = torch.Generator().manual_seed(0)
    image, brain = torch.rand(3, 2, 16, 16, generator=g), torch.ones(3, 1, 16, 16)
    out = augment(image, brain, modalities=("t1", "ct"), generator=g, settings=OFF)
    assert torch.allclose(out, image, atol=1e-5)


def test_flip_mirrors_left_and_right_of_all_channels():
    from dataclasses import replace

    g = torch.Generator().manual_seed(0)
    image, brain = torch.rand(2, 2, 16, 16, generator=g), torch.ones(2, 1, 16, 16)
    out = augment(image, brain, modalities=("t1", "ct"), generator=g, settings=replace(OFF, flip=1.0))
    assert torch.allclose(out, image.flip(2), atol=1e-5)


def test_stripping_leaves_only_the_brain():
    from dataclasses import replace

    g = torch.Generator().manual_seed(0)
    image, brain = torch.rand(2, 2, 16, 16, generator=g) + 0.1, torch.zeros(2, 1, 16, 16)
    brain[..., 4:9, 5:11] = 1
    out = augment(image, brain, modalities=("t1", "ct"), generator=g, settings=replace(OFF, strip=1.0))
    assert torch.equal(out != 0, (brain > 0).expand_as(out))


def test_intensity_changes_leave_ct_alone():
    from dataclasses import replace

    g = torch.Generator().manual_seed(0)
    image, brain = torch.rand(2, 3, 16, 16, generator=g), torch.ones(2, 1, 16, 16)
    settings = replace(OFF, gamma=0.3, gain=0.2, pet_gain=0.2)
    out = augment(image, brain, modalities=("t1", "ct", "pet_fdg"), generator=g, settings=settings)
    assert torch.allclose(out[:, 1], image[:, 1], atol=1e-5)
    assert not torch.allclose(out[:, 0], image[:, 0], atol=1e-2)
    ratio = out[:, 2] / image[:, 2]
    assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-3)
