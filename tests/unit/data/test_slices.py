import pytest
import torch
from torch.nn.functional import avg_pool2d

from multirecon.data.slices import region_slices, resample_slices


@pytest.mark.parametrize(("shape", "spacing"), [((128, 128), 1.875), ((192, 192), 1.25), ((100, 90), 2.2)])
def test_block_means_of_the_fine_stack_are_the_coarse_stack(phantom, shape, spacing):
    coarse = phantom.slices([3, 9], names=["t1", "ct"], shape=shape, spacing_mm=spacing)
    fine = phantom.slices([3, 9], names=["t1", "ct"], shape=shape, spacing_mm=spacing, oversample=2)
    for name in coarse:
        assert fine[name].shape == (2, 2 * shape[0], 2 * shape[1])
        assert torch.allclose(avg_pool2d(fine[name][:, None], 2)[:, 0], coarse[name], atol=2e-4, rtol=1e-5)


def test_default_fine_grid_is_the_simulated_grid_bit_for_bit(phantom):
    fine = phantom.slices([5], names=["t2"], oversample=2)["t2"][0]
    assert torch.equal(fine, phantom.volumes["t2"][:, :, 5])


def test_resampling_keeps_a_linear_ramp_and_its_centre():
    n = 65
    x = (torch.arange(n) - (n - 1) / 2) * 1.5  # mm
    volume = (x[:, None] + 2 * x[None, :])[..., None].repeat(1, 1, 2).float()
    result = resample_slices(volume, [1], volume_spacing_mm=(1.5, 1.5), shape=(30, 20), spacing_mm=2.0)[0]
    h = (torch.arange(30) - 14.5) * 2.0
    w = (torch.arange(20) - 9.5) * 2.0
    assert torch.allclose(result, (h[:, None] + 2 * w[None, :]).float(), atol=1e-4)


def test_resampling_preserves_the_integral_of_a_compact_object():
    volume = torch.zeros(80, 80, 1)
    volume[30:50, 33:41] = 3.0
    total = float(volume.sum())
    for shape, spacing in (((40, 40), 2.0), ((64, 64), 1.25), ((30, 30), 3.1)):
        result = resample_slices(volume, [0], volume_spacing_mm=(1.0, 1.0), shape=shape, spacing_mm=spacing)
        assert float(result.sum()) * spacing**2 == pytest.approx(total, rel=0.02)


def test_outside_value_fills_a_larger_field():
    volume = torch.full((10, 10, 1), 40.0)
    result = resample_slices(volume, [0], volume_spacing_mm=(1.0, 1.0), shape=(20, 20), spacing_mm=1.0, outside=-1000.0)
    assert result[0, 0, 0] == -1000
    assert result[0, 10, 10] == pytest.approx(40.0)


def test_regions_take_the_commonest_code():
    regions = torch.zeros(8, 8, 1, dtype=torch.uint8)
    regions[:4] = 3
    regions[4:, :4] = 7
    coarse = region_slices(regions, [0], volume_spacing_mm=(1.0, 1.0), shape=(4, 4), spacing_mm=2.0)[0]
    assert coarse.tolist() == [[3, 3, 3, 3], [3, 3, 3, 3], [7, 7, 0, 0], [7, 7, 0, 0]]


def test_slice_affine_agrees_with_the_volume(phantom):
    affine = phantom.slice_affine(6)
    corner = torch.tensor([0.5, 0.5, 6.0, 1.0], dtype=torch.float64)  # between the first two fine voxels
    expected = phantom.affine @ corner
    found = affine @ torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(found, expected)
