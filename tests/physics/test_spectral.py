"""Attenuation tables, spectra and the spectral operators."""

from __future__ import annotations

import pytest
import torch

from multirecon.likelihoods import PolyenergeticPoisson
from multirecon.operators import ParallelBeam, check_operator
from multirecon.operators.materials import energy_bins, mass_attenuation, tube_spectrum
from multirecon.operators.spectral import ChannelMixing, MaterialBasis, SpectralProjector, effective_attenuation

# the reference values that the head phantom documents, cm^2/g
REFERENCE = {
    "water": {40: 0.268, 50: 0.227, 60: 0.206, 80: 0.184, 100: 0.171, 150: 0.151},
    "bone": {40: 0.666, 50: 0.424, 60: 0.315, 80: 0.223, 100: 0.186, 150: 0.148},
    "iodine": {40: 22.1, 50: 12.3, 60: 7.58, 80: 3.51, 100: 1.94, 150: 0.70},
}


@pytest.mark.parametrize("material", REFERENCE)
def test_tables_hold_the_documented_values(material: str) -> None:
    row = mass_attenuation([material], list(REFERENCE[material]))[0]
    assert torch.allclose(row, torch.tensor(list(REFERENCE[material].values())), rtol=5e-3)


@pytest.mark.parametrize("material", ["water", "bone", "aluminium", "iodine"])
def test_interpolation_predicts_left_out_nodes(material: str) -> None:
    """Halving the table moves the curve by at most 4 %; the full table's error is an order smaller (cubic spline)."""
    import numpy as np
    from scipy.interpolate import CubicSpline

    from multirecon.operators.materials import MATERIALS

    table = MATERIALS[material][-1]
    energy, value = np.array(list(table)), np.array(list(table.values()))
    inner = np.arange(2, len(energy) - 2, 2)
    kept = np.setdiff1d(np.arange(len(energy)), inner)
    coarse = CubicSpline(np.log(energy[kept]), np.log(value[kept]))
    assert np.abs(np.exp(coarse(np.log(energy[inner]))) / value[inner] - 1).max() < 0.04


def test_attenuation_falls_with_energy_except_at_the_edge() -> None:
    energies = torch.arange(20.0, 150.5, 0.5)
    rows = mass_attenuation(["water", "bone", "aluminium", "iodine"], energies)
    assert (rows[:3].diff(dim=1) < 0).all()
    rises = (rows[3].diff() > 0).nonzero().flatten()
    assert energies[rises].tolist() == [33.0]
    below, above = mass_attenuation(["iodine"], [33.16, 33.18])[0]
    assert above / below == pytest.approx(5.46, abs=0.05)


def test_water_at_seventy_kev_agrees_with_the_unit_conversion() -> None:
    from multirecon.units import WATER_ATTENUATION_70KEV

    assert mass_attenuation(["water"], [70.0]).item() == pytest.approx(WATER_ATTENUATION_70KEV, rel=5e-3)


def test_spectrum_shape_and_beam_hardening() -> None:
    energies = torch.arange(20.0, 121.0)
    soft, hard = tube_spectrum(energies, 120.0, filter_mm=3.0), tube_spectrum(energies, 120.0, filter_mm=12.0)
    mean_soft, mean_hard = (energies * soft).sum(), (energies * hard).sum()
    assert soft.sum() == pytest.approx(1.0, abs=1e-5)
    assert 50 < mean_soft < mean_hard < 80
    assert tube_spectrum(energies, 80.0)[energies >= 80].abs().max() == 0
    # behind more water, a bin's effective attenuation falls
    kappa = mass_attenuation(["water"], energies)
    thin, thick = (
        effective_attenuation(soft[None], kappa, path=torch.tensor([p])) for p in (0.0, 20.0)
    )  # fmt: skip
    assert thick < thin


def test_energy_bins_partition_the_photons() -> None:
    energies = torch.arange(20.0, 121.0)
    response = energy_bins(energies, [0.0, 50.0, 80.0], resolution_kev=4.0)
    assert torch.allclose(response.sum(0), torch.ones(101), atol=1e-5)
    assert response[0, 0] > 0.999
    assert response[1, 30].item() == pytest.approx(0.5, abs=1e-6)  # at the threshold of 50 keV


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_operator_contract(dtype: torch.dtype) -> None:
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5
    beam = ParallelBeam((8, 6), (10.0, 10.0), views=5, bins=11)
    basis = MaterialBasis(["water", "bone", "iodine"], [40.0, 60.0, 80.0, 100.0], (8, 6))
    for operator in (
        basis,
        ChannelMixing(torch.tensor([[1.0, -2.0]]), (2, 4, 3)),
        SpectralProjector(beam, 3),
        SpectralProjector(beam, 4) @ basis,
    ):
        check_operator(operator.to(dtype), tolerance=tolerance)


def test_projector_acts_channel_by_channel_and_has_subsets() -> None:
    beam = ParallelBeam((8, 8), (10.0, 10.0), views=6, bins=11)
    operator = SpectralProjector(beam, 2)
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(operator(x)[:, 1:], beam(x[:, 1:]), atol=1e-5)
    assert torch.allclose(operator.subset(1, 3)(x), operator(x)[:, :, 1::3], atol=1e-5)


def test_material_images_are_recovered_from_bins() -> None:
    basis = MaterialBasis(["water", "bone"], [50.0, 80.0, 110.0], (4, 4)).double()
    rho = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(basis.pseudo_inverse(basis(rho)), rho, atol=1e-9)


def test_effective_attenuation_is_the_slope_of_the_log_signal() -> None:
    energies = torch.arange(25.0, 121.0, 5.0)
    spectrum = energy_bins(energies, [25.0, 65.0]) * tube_spectrum(energies, 120.0) * 1e5
    kappa = mass_attenuation(["water", "bone"], energies)
    likelihood = PolyenergeticPoisson(spectrum, kappa).double()
    path = torch.tensor([15.0, 1.0], dtype=torch.float64)
    z = path.reshape(1, 2, 1)
    slope = -(likelihood.jacobian(z) / likelihood.mean(z)[:, :, None])[0, :, :, 0]
    mixing = effective_attenuation(likelihood.spectrum, likelihood.attenuation, path=path)
    assert torch.allclose(slope, mixing, rtol=1e-10)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="materials"):
        mass_attenuation(["plutonium"], [60.0])
    with pytest.raises(ValueError, match="energies_kev"):
        mass_attenuation(["water"], [5.0])
    with pytest.raises(ValueError, match="kvp"):
        tube_spectrum([60.0, 80.0], 50.0)
    with pytest.raises(ValueError, match="thresholds_kev"):
        energy_bins([60.0], [50.0, 40.0])
    with pytest.raises(ValueError, match="matrix"):
        ChannelMixing(torch.ones(2, 3), (2, 4, 4))
    with pytest.raises(ValueError, match="projector"):
        SpectralProjector(ParallelBeam((4, 4), (1.0, 1.0), views=2, bins=5, channels=2), 2)
