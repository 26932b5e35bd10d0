"""Closed forms of Cartesian multi-coil MR."""

from math import pi

import pytest
import torch

from multirecon.operators import MaskedFourier, acceleration, birdcage_maps, equispaced_mask, smooth_phase


def _operator(mask, *, coils=8, real_image=True, seed=0):
    maps = birdcage_maps(coils, mask.shape)
    maps = maps * torch.exp(1j * smooth_phase(mask.shape, torch.Generator().manual_seed(seed)))
    return MaskedFourier(mask, maps, real_image=real_image).double()


@pytest.mark.parametrize(("shape", "rate"), [((24, 32), 4), ((21, 30), 3), ((16, 20), 5)])
@pytest.mark.parametrize("offset", [0, 1])
def test_equispaced_gram_is_a_sum_of_weighted_shifts(shape, rate, offset):
    """Sampling every R-th line folds the field of view: R copies, W/R apart, weighted by the coils."""
    operator = _operator(equispaced_mask(shape, rate, offset=offset))
    assert acceleration(operator.mask) == rate
    x = torch.randn(2, *operator.domain_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.zeros_like(x)
    for fold in range(rate):
        step = fold * shape[1] // rate
        aliased = torch.roll(operator.maps * x, step, dims=-1)
        turn = torch.exp(torch.tensor(2j * pi * offset * fold / rate, dtype=torch.complex128))
        expected += (operator.maps.conj() * aliased * turn).sum(1, keepdim=True).real / rate
    torch.testing.assert_close(operator.gram(x), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(operator.adjoint(operator(x)), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("shape", [(64, 64), (63, 50)])
def test_gaussian_blob_has_a_gaussian_spectrum(shape):
    """An off-centre Gaussian of width s has the spectrum s^2 2 pi exp(-2 pi^2 s^2 f^2) with a linear phase."""
    height, width = shape
    rows = torch.arange(height, dtype=torch.float64)[:, None] - height // 2
    columns = torch.arange(width, dtype=torch.float64)[None, :] - width // 2
    s, dy, dx = 2.5, 3.0, -4.0
    image = torch.exp(-((rows - dy) ** 2 + (columns - dx) ** 2) / (2 * s**2))
    fy, fx = rows / height, columns / width
    spectrum = 2 * pi * s**2 * torch.exp(-2 * pi**2 * s**2 * (fy**2 + fx**2)) / (height * width) ** 0.5
    spectrum = spectrum * torch.exp(-2j * pi * (fy * dy + fx * dx))
    operator = MaskedFourier(torch.ones(shape), torch.ones(1, *shape, dtype=torch.complex64)).double()
    error = torch.linalg.vector_norm(operator(image[None, None])[0, 0] - spectrum)
    assert error < 1e-6 * torch.linalg.vector_norm(spectrum)


def test_eigenvalues_lie_between_zero_and_one():
    operator = _operator(equispaced_mask((8, 12), 3, center_lines=4), coils=4)
    columns = operator.gram(torch.eye(96, dtype=torch.float64).reshape(96, 1, 8, 12)).reshape(96, 96)
    torch.testing.assert_close(columns, columns.T, atol=1e-14, rtol=0)
    eigenvalues = torch.linalg.eigvalsh(columns)
    assert eigenvalues.min() > -1e-12
    assert eigenvalues.max() < 1 + 1e-12
    norm = float(operator.norms(iterations=2000, tolerance=1e-9))
    assert norm**2 == pytest.approx(eigenvalues.max().item(), rel=1e-3)


def test_absorbed_phase_makes_the_image_real():
    """With the phase in the maps the real model explains all data; without it half the energy may be lost."""
    mask = torch.ones(32, 30)
    phase = torch.exp(1j * smooth_phase((32, 30), torch.Generator().manual_seed(3))).to(torch.complex128)
    with_phase, maps = _operator(mask), birdcage_maps(8, (32, 30)).to(torch.complex128)
    with_phase = MaskedFourier(mask, maps * phase)
    without = MaskedFourier(mask, maps, real_image=False)
    x = torch.rand(1, 1, 32, 30, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    y = with_phase(x)
    torch.testing.assert_close(with_phase.adjoint(y), x)
    torch.testing.assert_close(without.adjoint(y), x * phase)


def test_noise_is_amplified_by_the_geometry_factor():
    """The least-squares noise per pixel is sqrt(R) g with g >= 1, and g = 1 for maps that separate the folds."""
    shape, rate = (4, 12), 3
    mask = equispaced_mask(shape, rate)
    maps = torch.zeros(rate, *shape, dtype=torch.complex128)
    for coil in range(rate):
        maps[coil, :, coil * 4 : coil * 4 + 4] = 1  # one coil a fold
    separated = MaskedFourier(mask, maps, real_image=False)
    birdcage = MaskedFourier(mask, birdcage_maps(8, shape).to(torch.complex128), real_image=False)
    identity = torch.eye(48, dtype=torch.complex128).reshape(48, 1, *shape)
    factors = []
    for operator in (separated, birdcage):
        gram = operator.gram(identity).reshape(48, 48).T
        full = MaskedFourier(torch.ones(shape), operator.maps, real_image=False).gram(identity).reshape(48, 48).T
        variance, reference = torch.linalg.inv(gram).diagonal().real, torch.linalg.inv(full).diagonal().real
        factors.append((variance / (rate * reference)).sqrt())
    torch.testing.assert_close(factors[0], torch.ones(48, dtype=torch.float64))
    assert factors[1].min() > 1 - 1e-9
    assert factors[1].max() > 1.01
