import os
from pathlib import Path

import numpy as np
import pytest
import torch

from multirecon.operators import birdcage_maps, equispaced_mask, estimate_maps, low_resolution_phase, smooth_phase
from multirecon.operators.coils import image_phase
from multirecon.operators.fourier import centred_fft, centred_ifft
from multirecon.operators.masks import calibration_size


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _scan(shape, *, coils=8, noise=0.003):
    """A smooth-phase object inside an ellipse, with its coil maps and noisy full k-space."""
    g = _generator()
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    support = sum((a / 0.75) ** 2 for a in axes) < 1
    image = support * (1 + 0.3 * torch.sin(9 * axes[-1]) * torch.cos(7 * axes[-2]))
    maps = birdcage_maps(coils, shape) * torch.exp(1j * smooth_phase(shape, g))
    kspace = centred_fft(maps * image, len(shape))
    return image, support, maps, kspace + noise * torch.randn(kspace.shape, generator=g, dtype=kspace.dtype)


@pytest.mark.parametrize(("coils", "shape", "rings"), [(8, (32, 32), 1), (5, (31, 20), 1), (8, (6, 12, 10), 2)])
def test_birdcage_root_sum_of_squares(coils, shape, rings):
    maps = birdcage_maps(coils, shape, rings=rings)
    assert maps.shape == (coils, *shape)
    torch.testing.assert_close(torch.linalg.vector_norm(maps, dim=0), torch.ones(shape), atol=1e-6, rtol=0)


def test_birdcage_formula_and_brightest_edge():
    maps = birdcage_maps(8, (64, 64))
    row, column = divmod(int(maps[0].abs().argmax()), 64)
    assert column == 63
    assert abs(row - 32) <= 1
    j, i, r = 10, 50, 1.5
    values = []
    for c in range(8):
        a = 2 * np.pi * c / 8
        x, y = (i - 32) / 32 - r * np.cos(a), (j - 32) / 32 - r * np.sin(a)
        values.append(np.exp(1j * (np.arctan2(x, -y) - a)) / np.hypot(x, y))
    expected = np.array(values) / np.linalg.norm(values)
    np.testing.assert_allclose(maps[:, j, i].numpy(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="coils"):
        birdcage_maps(7, (4, 4, 4), rings=2)


@pytest.mark.parametrize("shape", [(48, 40), (8, 24, 20)])
def test_smooth_phase_is_smooth_with_the_stated_spread(shape):
    phase = smooth_phase(shape, _generator(), amplitude=0.7)
    assert phase.std(correction=0).item() == pytest.approx(0.7, rel=1e-4)
    steps = max(phase.diff(dim=a).abs().max().item() * n for a, n in enumerate(shape))
    assert steps < 0.7 * 20
    assert torch.equal(phase, smooth_phase(shape, _generator(), amplitude=0.7))
    assert not torch.allclose(phase, smooth_phase(shape, _generator(1), amplitude=0.7))


@pytest.mark.parametrize(("shape", "kernel"), [((96, 80), 6), ((71, 65), 5), ((24, 26, 28), 4)])
def test_estimated_maps_equal_the_true_ones(shape, kernel):
    _, support, maps, kspace = _scan(shape)
    mask = equispaced_mask(shape, 4, center_lines=24)
    estimated = estimate_maps(mask * kspace, kernel=kernel)
    inner = (estimated.conj() * maps).sum(0)[support]
    assert inner.abs().mean() > 0.999
    assert inner.real.mean() > 0.99  # the phase of the image is in the maps
    rss = torch.linalg.vector_norm(estimated, dim=0)
    assert torch.allclose(rss[rss > 0], torch.ones(()), atol=1e-5)
    assert (rss[support] > 0).float().mean() > 0.99
    combined = (estimated.conj() * centred_ifft(kspace, len(shape))).sum(0)
    assert combined.imag.square().sum() < 0.01 * combined.abs().square().sum()


def test_phase_can_stay_in_the_image():
    _, support, maps, kspace = _scan((64, 60))
    complex_maps = estimate_maps(kspace, calibration=(24, 24), real_image=False)
    assert (complex_maps.conj() * maps).sum(0).abs()[support].mean() > 0.999
    image = (complex_maps.conj() * centred_ifft(kspace)).sum(0)[support]
    assert image.imag.square().sum() > 0.05 * image.abs().square().sum()
    phase = low_resolution_phase(kspace, complex_maps, calibration=(24, 24))
    absorbed = complex_maps * torch.exp(1j * phase)
    expected = estimate_maps(kspace, calibration=(24, 24))
    torch.testing.assert_close(absorbed[:, support], expected[:, support], atol=1e-4, rtol=0)


def test_image_phase_recovers_a_smooth_phase():
    image, support, maps, kspace = _scan((64, 60))
    plain = birdcage_maps(8, (64, 60))
    combined = (plain.conj() * centred_ifft(kspace)).sum(0)
    phase = image_phase(combined[None, None], (32, 30))[0, 0]
    absorbed = (plain * torch.exp(1j * phase)).conj() * maps  # equal up to |S_c|^2 where both phases agree
    agreement = absorbed.sum(0)[support]
    assert agreement.real.mean() > 0.99
    assert image_phase(combined, (32, 30)).shape == image.shape
    with pytest.raises(ValueError, match="image, size"):
        image_phase(image, (8, 8))
    with pytest.raises(ValueError, match="image, size"):
        image_phase(combined, (65, 8))


def test_calibration_block_is_found_and_demanded():
    mask = equispaced_mask((20, 40), 4, center_lines=10)
    assert calibration_size(mask) == (20, 10)
    assert calibration_size(torch.ones(5, 6)) == (5, 6)
    assert calibration_size(equispaced_mask((8, 8), 4)) == (8, 1)
    assert calibration_size(torch.zeros(4, 4)) == (0, 0)
    kspace = torch.randn(4, 20, 40, generator=_generator(), dtype=torch.complex64) * mask
    with pytest.raises(ValueError, match="calibration: expected at least 12"):
        estimate_maps(kspace)
    with pytest.raises(ValueError, match="calibration: expected a fully sampled block"):
        estimate_maps(kspace, calibration=(20, 14))
    with pytest.raises(ValueError, match="kspace"):
        estimate_maps(kspace.real)


@pytest.mark.peers
def test_agrees_with_sigpy_on_simulated_data():
    _agrees_with_sigpy(_scan((96, 80))[3])


@pytest.mark.peers
@pytest.mark.realdata
@pytest.mark.skipif("MULTIRECON_REAL_DATA" not in os.environ, reason="MULTIRECON_REAL_DATA names no folder")
def test_agrees_with_sigpy_on_measured_data():
    folder = Path(os.environ["MULTIRECON_REAL_DATA"])
    _agrees_with_sigpy(torch.from_numpy(np.load(folder / "kspace" / "cartesian_ksp.npy")))


def _agrees_with_sigpy(kspace):
    mri = pytest.importorskip("sigpy.mri")
    expected = torch.from_numpy(mri.app.EspiritCalib(kspace.numpy(), calib_width=24, show_pbar=False).run())
    support = expected.abs().sum(0) > 0
    correlation = (estimate_maps(kspace, calibration=(24, 24)).conj() * expected).sum(0).abs()[support]
    assert correlation.mean() > 0.99
    assert correlation.quantile(0.01) > 0.99
