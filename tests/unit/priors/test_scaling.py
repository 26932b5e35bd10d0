import pytest
import torch

from multirecon.data.datasets import STACK, to_unit
from multirecon.priors import IntensityScaling
from multirecon.space import ImageSpace
from multirecon.units import hu_to_attenuation


def space(unit="HU"):
    return ImageSpace(["t1", {"name": "ct", "unit": unit}, "pet_fdg"], (4, 4), (1.0, 1.0))


def stack(ct):
    return torch.tensor([0.25, ct, 0.75], dtype=torch.float64).reshape(1, 3, 1, 1)


@pytest.mark.parametrize("hu", [-1500.0, -1000.0, -100.0, 37.0, 200.0, 1150.0, 2000.0, 3500.0])
def test_invertible_everywhere_and_the_same_in_both_units(hu):
    in_hu, in_mu = IntensityScaling(space()), IntensityScaling(space("1/cm"))
    x = in_hu(stack(hu))
    torch.testing.assert_close(in_hu.inverse(x), stack(hu), rtol=0, atol=1e-9)
    mu = stack(float(hu_to_attenuation(torch.tensor(hu, dtype=torch.float64))))
    torch.testing.assert_close(in_mu(mu), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(in_mu.inverse(x), mu, rtol=0, atol=1e-12)


def test_brain_window_is_linear_and_bone_compressed():
    scaling = IntensityScaling(space())
    hu = torch.linspace(-100, 200, 7, dtype=torch.float64)
    x = scaling(torch.cat([stack(float(v)) for v in hu]))[:, 1, 0, 0]
    torch.testing.assert_close(x.diff(), torch.full((6,), 1.3 / 6, dtype=torch.float64))
    assert float(scaling(stack(2000.0))[0, 1]) == pytest.approx(1.0)
    assert float(scaling(stack(-1000.0))[0, 1]) == pytest.approx(-1.0)


def test_the_same_scale_as_the_cached_sets():
    values = {"ct": [-1200.0, -1000.0, -500.0, 30.0, 500.0, 2500.0], "pet_fdg": [0.0, 0.7, 2.5, 1.0, 0.1, 1.5]}
    rows = [torch.tensor(values.get(name, [0.0, 0.3, 0.5, 0.7, 1.0, 1.2]), dtype=torch.float64) for name in STACK]
    unit = torch.stack([to_unit(name, row) for name, row in zip(STACK, rows, strict=True)])
    scaling = IntensityScaling(ImageSpace(list(STACK), (1, 6), (1.0, 1.0)))
    torch.testing.assert_close(
        scaling(torch.stack(rows)[None, :, None]), 2 * unit[None, :, None] - 1, rtol=0, atol=1e-6
    )


def test_affine_modalities_say_so():
    scaling = IntensityScaling(space())
    a, b = scaling.affine("pet_fdg")
    torch.testing.assert_close(a + b * scaling(stack(0.0))[0, 2], stack(0.0)[0, 2])
    assert scaling.affine("ct") is None


def test_channels_of_a_modality_may_have_knots_of_their_own():
    stack = ImageSpace([{"name": "ct_bins", "channels": 2, "unit": "1/cm"}], (1, 1), (1.0, 1.0))
    knots = {"ct_bins": [[[0.0, -1.0], [0.8, 1.0]], [[0.0, -1.0], [0.4, 1.0]]]}
    scaling = IntensityScaling(stack, knots=knots)
    x = torch.tensor([0.4, 0.4]).reshape(1, 2, 1, 1)
    assert scaling(x).flatten().tolist() == pytest.approx([0.0, 1.0])
    torch.testing.assert_close(scaling.inverse(scaling(x)), x)
    assert scaling.affine("ct_bins") is None
    same = IntensityScaling(stack, knots={"ct_bins": [[0.0, -1.0], [0.8, 1.0]]})
    assert same.affine("ct_bins") == pytest.approx((0.4, 0.4))
    with pytest.raises(ValueError, match="one list of pairs or 2, got 3"):
        IntensityScaling(stack, knots={"ct_bins": [knots["ct_bins"][0]] * 3})


def test_own_knots_and_gradient():
    scaling = IntensityScaling(space(), knots={"t1": [[0.0, -1.0], [2.0, 1.0]]})
    assert float(scaling(stack(0.0))[0, 0]) == -0.75
    assert torch.autograd.gradcheck(scaling.inverse, stack(0.3).requires_grad_())


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="flair"):
        IntensityScaling(space(), knots={"flair": [[0, 0], [1, 1]]})
    with pytest.raises(ValueError, match="increasing"):
        IntensityScaling(space(), knots={"t1": [[0, 0], [1, 0]]})
    with pytest.raises(ValueError, match="3 channels"):
        IntensityScaling(space())(torch.zeros(1, 2, 4, 4))


def test_slope_is_the_derivative():
    space = ImageSpace(["t1", "ct"], (1, 5), (1.0, 1.0))
    scaling = IntensityScaling(space)
    values = (
        torch.tensor([[0.1, 0.5, 0.9, 1.4, -0.1], [-1200.0, -500.0, 50.0, 900.0, 2500.0]]).reshape(1, 2, 1, 5).double()
    )
    step = 1e-3
    expected = (scaling(values + step) - scaling(values - step)) / (2 * step)
    torch.testing.assert_close(scaling.slope(values), expected)
