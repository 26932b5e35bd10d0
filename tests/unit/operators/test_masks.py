import pytest
import torch

from multirecon.operators import acceleration, equispaced_mask, poisson_disc_mask, random_mask


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("width", [64, 128, 192, 256])
@pytest.mark.parametrize("axis", [-1, -2])
def test_equispaced_is_exactly_four(width, axis):
    shape = (width, width + 4)
    mask = equispaced_mask(shape, 4, axis=axis)
    assert acceleration(mask) == 4.0
    assert mask.select(axis, shape[axis] // 2).all()
    lines = mask.select(-1 if axis == -2 else -2, 0).nonzero().flatten()
    assert (lines.diff() == 4).all()


@pytest.mark.parametrize("size", [9, 11, 30, 127])
@pytest.mark.parametrize("rate", [2, 3, 4])
def test_equispaced_on_any_size_holds_the_zero_frequency(size, rate):
    mask = equispaced_mask((5, size), rate)
    assert mask[0, size // 2] == 1
    assert set(mask[0].nonzero().flatten().diff().tolist()) == {rate}
    assert not torch.equal(equispaced_mask((5, size), rate, offset=1), mask)


def test_centre_block_and_kept_rate():
    plain = equispaced_mask((8, 128), 4, center_lines=24)
    assert plain[:, 52:76].all()
    assert plain[:, :52].sum() == 8 * 13
    assert acceleration(plain) == pytest.approx(128 / (32 + 18))
    kept = equispaced_mask((8, 128), 4, center_lines=10, keep_rate=True)
    assert kept[:, 59:69].all()
    assert acceleration(kept) == pytest.approx(4, rel=0.05)
    with pytest.raises(ValueError, match="center_lines"):
        equispaced_mask((8, 128), 4, center_lines=32, keep_rate=True)


@pytest.mark.parametrize("power", [0.0, 3.0])
def test_random_lines(power):
    masks = torch.stack([random_mask((6, 120), 4, _generator(s), center_lines=8, power=power) for s in range(40)])
    assert (masks.sum((-1, -2)) == 6 * 30).all()
    assert masks[..., 56:64].all()
    assert torch.equal(masks[0], random_mask((6, 120), 4, _generator(0), center_lines=8, power=power))
    inner, outer = masks[:, 0, 30:56].mean(), masks[:, 0, :30].mean()
    if power:
        assert inner > 2 * outer
    else:
        assert abs(inner - outer) < 0.05
    with pytest.raises(ValueError, match="center_lines"):
        random_mask((6, 120), 4, _generator(), center_lines=31)


def _spacing(rows, columns, radius):
    points = torch.stack([rows, columns], 1).double()
    ratio = torch.cdist(points, points).fill_diagonal_(1e9) / torch.minimum(radius[:, None], radius[None, :])
    return ratio.min().item(), ratio.amin(1).median().item()


@pytest.mark.parametrize("rate", [3.0, 6.0, 12.0])
def test_poisson_disc_rate_and_distance(rate):
    shape, calibration, slope = (96, 81), (13, 12), 4.0
    mask = poisson_disc_mask(shape, rate, _generator(), calibration=calibration, slope=slope)
    assert mask.sum() == round(96 * 81 / rate)
    assert mask[42:55, 34:46].all()
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(81), indexing="ij")
    radius = 1 + slope * torch.hypot((rows - 48) / 48, (columns - 40) / 40.5)
    outside = mask.bool().clone()
    outside[42:55, 34:46] = False
    # no two points lie nearer than a scale times the smaller of their radii, and the scale is nearly the typical one
    least, typical = _spacing(rows[outside], columns[outside], radius[outside])
    assert least > 0.8 * typical
    drawn = torch.multinomial((1 / radius**2).flatten(), int(outside.sum()), generator=_generator(1))
    least, typical = _spacing(rows.flatten()[drawn], columns.flatten()[drawn], radius.flatten()[drawn])
    assert least < 0.6 * typical  # points drawn without the discs fail the same test
    inner = mask[24:72, 20:60].mean()
    assert inner > 2 * (mask.sum() - mask[24:72, 20:60].sum()) / (96 * 81 - 48 * 40)
    assert torch.equal(mask, poisson_disc_mask(shape, rate, _generator(), calibration=calibration, slope=slope))


def test_poisson_disc_corners_and_errors():
    mask = poisson_disc_mask((64, 64), 5, _generator(), crop_corners=True)
    assert mask[:6, :6].sum() == 0
    assert mask.sum() == round(64 * 64 / 5)
    with pytest.raises(ValueError, match="calibration"):
        poisson_disc_mask((32, 32), 8, _generator(), calibration=(20, 20))
    with pytest.raises(ValueError, match="acceleration"):
        equispaced_mask((8, 8), 0.5)
    with pytest.raises(ValueError, match="mask"):
        acceleration(torch.zeros(3, 3))
