import os
from pathlib import Path

import numpy as np
import pytest
import torch

from multirecon.data.kspace import hold_out, noise_level, read_kspace, sampling_mask


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _kspace(shape=(40, 36), *, coils=4, sigma=0.05):
    g = _generator()
    mask = torch.rand(shape, generator=g) < 0.4
    mask[14:26, 12:24] = True
    noise = torch.randn(coils, *shape, generator=g, dtype=torch.complex64) * 2**0.5 * sigma
    radius = torch.hypot(*torch.meshgrid(torch.arange(shape[0]) - 20.0, torch.arange(shape[1]) - 18.0, indexing="ij"))
    return (noise + torch.exp(-(radius**2) / 20)) * mask, mask.float()


def test_read_returns_data_and_mask(tmp_path):
    kspace, mask = _kspace()
    np.save(tmp_path / "k.npy", kspace.numpy().astype(np.complex128))
    read, found = read_kspace(tmp_path / "k.npy")
    assert read.dtype == torch.complex64
    torch.testing.assert_close(read, kspace)
    assert torch.equal(found, mask)
    assert torch.equal(sampling_mask(kspace), mask)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 8, 8)), "complex"),
        (np.ones((8, 8), complex), "complex array"),
        (np.zeros((4, 8, 8), complex), "at least one sample"),
        (np.full((4, 8, 8), np.nan, complex), "finite"),
    ],
)
def test_read_refuses_other_arrays(tmp_path, array, message):
    np.save(tmp_path / "k.npy", array)
    with pytest.raises(ValueError, match=message):
        read_kspace(tmp_path / "k.npy")


def test_read_never_unpickles(tmp_path):
    np.save(tmp_path / "k.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickle"):
        read_kspace(tmp_path / "k.npy")


def test_held_out_points():
    _, mask = _kspace()
    kept, held = hold_out(mask, 0.2, _generator(), calibration=(12, 12))
    assert torch.equal(kept + held, mask)
    assert held[14:26, 12:24].sum() == 0
    assert held.sum() == round(0.2 * (mask.sum().item() - 144))
    again = hold_out(mask, 0.2, _generator(), calibration=(12, 12))
    assert torch.equal(held, again[1])
    assert not torch.equal(held, hold_out(mask, 0.2, _generator(1), calibration=(12, 12))[1])


def test_held_out_lines():
    mask = torch.zeros(20, 32)
    mask[:, ::4] = 1
    mask[:, 12:20] = 1
    kept, held = hold_out(mask, 0.5, _generator(), calibration=(20, 8), axis=1)
    assert torch.equal(kept + held, mask)
    assert held.sum(0).unique().tolist() == [0.0, 20.0]
    assert (held.sum(0) > 0).sum() == 3  # half of the six lines outside the block
    assert held[:, 12:20].sum() == 0


def test_noise_level_of_known_noise():
    kspace, _ = _kspace(sigma=0.05)
    assert noise_level(kspace, share=0.3) == pytest.approx(0.05, rel=0.08)
    with pytest.raises(ValueError, match="share"):
        noise_level(torch.zeros(2, 4, 4, dtype=torch.complex64))


def test_hold_out_errors():
    mask = torch.ones(8, 8)
    with pytest.raises(ValueError, match="fraction"):
        hold_out(mask, 1.0, _generator(), calibration=(2, 2))
    with pytest.raises(ValueError, match="calibration"):
        hold_out(mask, 0.5, _generator(), calibration=(2, 9))
    with pytest.raises(ValueError, match="at least one"):
        hold_out(mask, 0.5, _generator(), calibration=(8, 8))


@pytest.mark.realdata
@pytest.mark.skipif("MULTIRECON_REAL_DATA" not in os.environ, reason="MULTIRECON_REAL_DATA names no folder")
def test_measured_file():
    kspace, mask = read_kspace(Path(os.environ["MULTIRECON_REAL_DATA"]) / "kspace" / "cartesian_ksp.npy")
    assert kspace.shape == (8, 230, 180)
    assert mask.mean().item() == pytest.approx(0.124, abs=1e-3)
    assert mask[103:127, 78:102].all()
    kept, held = hold_out(mask, 0.1, _generator(), calibration=(24, 24))
    assert held.sum() > 400
    assert torch.equal(kept + held, mask)
