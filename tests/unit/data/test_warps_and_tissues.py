import pytest
import torch

from multirecon.data.emission import amyloid_pattern, fdg_pattern
from multirecon.data.memberships import soft_memberships
from multirecon.data.tissues import REGIONS, TISSUES, label_to_region, label_to_tissue, tissue_index
from multirecon.data.warps import draw_warp, sample_labels, sample_maps, warp_points

RANGES = {
    "rotation_deg": 10.0,
    "scale": (0.9, 1.1),
    "shear": 0.02,
    "elastic_mm": (1.0, 3.0),
    "elastic_sigma_mm": (7.0, 16.0),
    "mirror": True,
    "extent_mm": (160.0, 200.0),
    "field_mm": (240.0, 240.0),
}


def test_strength_zero_is_the_identity():
    g = torch.Generator().manual_seed(0)
    warp = draw_warp(g, strength=0.0, **{**RANGES, "mirror": False})
    points = warp_points(
        warp,
        shape=(5, 4, 3),
        spacing_mm=(1.0, 1.0, 1.0),
        origin_mm=(-2.0, -1.5, -1.0),
        centre=torch.tensor([10.0, 20.0, 30.0]),
        generator=g,
        device="cpu",
    )
    assert torch.allclose(points[:, 0, 0, 0], torch.tensor([8.0, 18.5, 29.0]))
    assert torch.allclose(points[:, 4, 3, 2], torch.tensor([12.0, 21.5, 31.0]))


def test_drawn_scales_stay_in_range_and_fit_the_field():
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        matrix = draw_warp(g, strength=1.0, **RANGES).matrix
        sizes = 1 / torch.linalg.svdvals(matrix)
        assert 0.84 < sizes.min() <= sizes.max() < 1.18
        tight = draw_warp(torch.Generator().manual_seed(seed), strength=1.0, **{**RANGES, "field_mm": (150.0, 240.0)})
        assert (1 / torch.linalg.svdvals(tight.matrix)).min() < 0.96


def test_nearest_lookup_reads_zero_outside():
    labels = torch.arange(1, 28, dtype=torch.int16).view(3, 3, 3)
    points = torch.tensor([[0.4, -0.6, 2.4, 2.6, 1.0], [0.0, 0.0, 2.0, 0.0, 1.4], [0.0, 0.0, 2.0, 0.0, 0.6]])
    found = sample_labels(labels, points.view(3, 5, 1, 1)).flatten()
    assert found.tolist() == [1, 0, 27, 0, 14]


def test_linear_lookup_interpolates_a_ramp():
    ramp = torch.arange(6, dtype=torch.float32)[:, None, None].expand(6, 5, 4)[None]
    points = torch.stack(
        torch.meshgrid(torch.tensor([0.0, 3.5, 9.0]), torch.tensor([2.0]), torch.tensor([2.0]), indexing="ij")
    )
    assert torch.allclose(sample_maps(ramp, points, step=2.0).flatten(), torch.tensor([0.0, 1.75, 4.5]), atol=1e-5)


def test_every_label_has_a_tissue_and_every_tissue_a_region():
    table = label_to_tissue()
    assert table[41] == table[2] == tissue_index("white_matter")[0]
    assert table[515] == tissue_index("cortical_bone")[0]
    regions = label_to_region()
    assert regions[tissue_index("air")[0]] == 0
    assert (regions[1:] > 0).all()
    assert {REGIONS[int(r)] for r in regions} == set(REGIONS)
    with pytest.raises(ValueError, match="names"):
        tissue_index("grey")


def test_memberships_sum_to_one_and_keep_flat_areas_pure():
    tissue = torch.full((20, 20, 20), tissue_index("air")[0], dtype=torch.uint8)
    tissue[5:] = tissue_index("csf")[0]
    tissue[12:] = tissue_index("white_matter")[0]
    total = torch.zeros(8000)
    for part in soft_memberships(tissue, spacing_mm=(1.0, 1.0, 1.0)):
        total[part.index] += part.fraction
        if part.tissue == tissue_index("white_matter")[0]:
            deep = torch.zeros(8000)
            deep[part.index] = part.fraction
            profile = deep.view(20, 20, 20)[:, 10, 10]
            assert profile[16] == pytest.approx(1.0)
            assert profile[11] + profile[12] == pytest.approx(1.0, abs=0.02)
            assert (profile[8:].diff() >= -1e-6).all()
    assert (total > 0.98).all()
    assert (total < 1.001).all()


def test_fdg_falls_in_the_parietal_lobe_and_not_in_the_frontal_one():
    box = torch.tensor([[0.5, 0.4], [-0.45, 0.7], [0.35, 0.2]])
    normal, ill = fdg_pattern(box, hypometabolism=0.0), fdg_pattern(box, hypometabolism=0.3)
    assert normal[0] - ill[0] > 0.2
    assert normal[1] - ill[1] < 0.02
    mirrored = box * torch.tensor([[-1.0], [1.0], [1.0]])
    assert torch.equal(fdg_pattern(mirrored, hypometabolism=0.3), ill)


def test_amyloid_spares_the_occipital_pole():
    box = torch.tensor([[0.1, 0.1], [0.6, -0.95], [0.2, 0.0]])
    frontal, occipital = amyloid_pattern(box, burden=1.0).tolist()
    assert frontal > 1.6
    assert occipital < 1.3
    assert torch.equal(amyloid_pattern(box, burden=0.0), torch.ones(2))


def test_physical_parameters_are_physical():
    for tissue in TISSUES.values():
        assert tissue.t2star <= tissue.t2 <= tissue.t1, tissue.name
        assert 0 <= tissue.proton_density <= 1
