import pytest
import torch

from multirecon.data.materials import CT_KNOTS_HU, attenuation_511, hu_to_unit, materials_from_hu, unit_to_hu


def test_compressed_scale_is_inverted_without_loss_even_beyond_its_ends():
    hu = torch.linspace(-1500, 4000, 2001, dtype=torch.float64)
    assert torch.allclose(unit_to_hu(hu_to_unit(hu)), hu, atol=1e-9)
    assert (hu_to_unit(hu).diff() > 0).all()


def test_compressed_scale_spends_its_range_on_the_brain():
    unit = hu_to_unit(torch.tensor(CT_KNOTS_HU, dtype=torch.float64))
    assert unit[2] - unit[1] == pytest.approx(0.65)
    assert unit.tolist() == pytest.approx([0.0, 0.1, 0.75, 1.0])


def test_half_precision_keeps_a_quarter_unit_in_the_brain_and_two_in_bone():
    hu = torch.linspace(-100, 1900, 4001, dtype=torch.float64)
    error = (unit_to_hu(hu_to_unit(hu).half().double()) - hu).abs()
    assert error[hu <= 200].max() < 0.25
    assert error.max() < 2.0


def test_attenuation_at_511_kev_matches_reference_values():
    hu = torch.tensor([-1000.0, -95.0, 0.0, 35.0, 1150.0])
    expected = torch.tensor([0.0, 0.0869, 0.096, 0.0976, 0.1478])
    assert torch.allclose(attenuation_511(hu), expected, atol=5e-4)


def test_materials_reproduce_ct_numbers_of_water_and_soft_tissue():
    water, bone = materials_from_hu(torch.tensor([-1000.0, 0.0, 50.0, 1480.0]))
    assert torch.allclose(water, torch.tensor([0.0, 1.0, 1.05, 0.3]))
    assert torch.allclose(bone, torch.tensor([0.0, 0.0, 0.0, 1.45]))
    hu = torch.linspace(-500, 2500, 3001)
    water, bone = materials_from_hu(hu)
    assert (bone.diff() >= 0).all()
    assert (water.diff().abs() < 0.04).all()
