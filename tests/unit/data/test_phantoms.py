import pytest
import torch

from multirecon.data.phantoms import MR_HEADROOM, VOLUMES, PhantomConfig, brain_tissue, simulate
from multirecon.data.tissues import REGIONS


def region(phantom, *names):
    return torch.isin(phantom.regions, torch.tensor([REGIONS.index(n) for n in names], dtype=torch.uint8))


def median(phantom, volume, *names):
    return float(phantom.volumes[volume][region(phantom, *names)].median())


def test_every_volume_is_there_finite_and_on_one_grid(phantom):
    assert tuple(phantom.volumes) == VOLUMES
    for name, volume in phantom.volumes.items():
        assert volume.shape == phantom.shape == phantom.labels.shape == phantom.regions.shape, name
        assert volume.dtype == torch.float32
        assert torch.isfinite(volume).all()
        assert volume.max() > volume.min()
    assert phantom.spacing_mm == (0.9375, 0.9375, 0.9375)


def test_deterministic_in_anatomy_seed_and_config(coarse):
    first, again, other = (simulate("mni152", s, config=coarse) for s in (3, 3, 4))
    for name in VOLUMES:
        assert torch.equal(first.volumes[name], again.volumes[name]), name
    assert first.parameters == again.parameters
    assert not torch.equal(first.volumes["t1"], other.volumes["t1"])
    plain = simulate("mni152", 3, config=PhantomConfig(spacing_mm=(3.75,) * 3, matrix=64, texture=0.0))
    assert not torch.equal(first.volumes["t1"], plain.volumes["t1"])


def test_does_not_touch_the_global_random_state(coarse):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    simulate("mni152", 1, config=coarse)
    assert torch.equal(torch.rand(3), expected)


def test_ct_numbers_of_tissues(phantom):
    assert 24 < median(phantom, "ct", "white_matter") < 34
    assert 33 < median(phantom, "ct", "cortical_gm") < 43
    assert median(phantom, "ct", "csf") < median(phantom, "ct", "white_matter") + 15
    assert median(phantom, "ct", "bone") > 400
    assert float(phantom.volumes["ct"][0, 0, 0]) == -1000


def test_mr_scale_is_the_stated_percentile(phantom):
    tissue = brain_tissue(phantom.regions)
    for name, headroom in MR_HEADROOM.items():
        values = phantom.volumes[name][tissue]
        assert float(values.kthvalue(int(0.9 * len(values)))[0]) == pytest.approx(1 / headroom, rel=1e-3)


def test_fdg_is_relative_to_cortex_and_low_in_white_matter(phantom):
    # texture and blur at the borders dilute the label medians
    ratio = median(phantom, "pet_fdg", "cortical_gm") / median(phantom, "pet_fdg", "white_matter")
    assert 2.2 < ratio < 4.5
    assert 0.6 < median(phantom, "pet_fdg", "cortical_gm") < 1.2


def test_derived_maps_follow_the_ct(phantom):
    from multirecon.data.materials import attenuation_511, materials_from_hu

    ct = phantom.volumes["ct"]
    assert torch.allclose(phantom.volumes["attenuation_511"], attenuation_511(ct))
    water, bone = materials_from_hu(ct)
    assert torch.allclose(phantom.volumes["water"], water)
    assert torch.allclose(phantom.volumes["bone"], bone)
    assert 0.0970 < median(phantom, "attenuation_511", "white_matter") < 0.0985


def test_iodine_is_where_blood_is(phantom):
    assert median(phantom, "iodine", "vessel") > 1e-3
    assert median(phantom, "iodine", "white_matter") == 0


def test_amyloid_patterns_differ_between_negative_and_positive_subjects():
    def cortex_to_white(probability):
        config = PhantomConfig(z_mm=(10.0, 16.0), amyloid_positive_probability=probability, parameter_spread=0.0)
        p = simulate("mni152", 2, config=config)
        frontal = region(p, "cortical_gm")
        frontal[:, :160] = False
        cortex = p.volumes["pet_amyloid"][frontal].median()
        return float(cortex) / median(p, "pet_amyloid", "white_matter")

    assert cortex_to_white(0.0) < 0.8
    assert cortex_to_white(1.0) > cortex_to_white(0.0) + 0.15


def test_lesions_show_where_their_physics_says(phantom):
    white = region(phantom, "white_matter")
    ms = phantom.masks["ms"] > 0.9
    assert ms.sum() > 50
    for name, low, high in (("t1", 0.6, 0.9), ("flair", 1.2, 2.2), ("t2", 1.2, 2.0)):
        ratio = float(phantom.volumes[name][ms].median() / phantom.volumes[name][white].median())
        assert low < ratio < high, name
    infarct = (phantom.masks["infarct"] > 0.9) & region(phantom, "lesion")
    assert (
        phantom.volumes["pet_fdg"][infarct].median()
        < 0.5 * phantom.volumes["pet_fdg"][region(phantom, "cortical_gm")].median()
    )


def test_microbleeds_are_darkest_in_t2star_and_spin_echoes_do_not_see_them():
    base = {"z_mm": (5.0, 20.0), "ms_probability": 0.0, "infarct_probability": 0.0, "pet_lesion_probability": 0.0}
    config = PhantomConfig(microbleed_probability=1.0, microbleed_count=(5, 5), **base)
    p = simulate("mni152", 11, config=config)
    # the core of the largest; neighbours of the same tissue
    bleed = (p.masks["microbleed"] > 0.6) & region(p, "white_matter")
    near = (p.masks["microbleed"] == 0) & region(p, "white_matter")
    assert bleed.any()

    def drop(name):
        return float(p.volumes[name][bleed].median() / p.volumes[name][near].median())

    assert drop("t2star") < 0.5
    assert drop("t1") > 1.3 * drop("t2star")  # its short echo loses less
    assert 0.9 < drop("t2") < 1.1  # spin echoes refocus


def test_pet_only_foci_change_nothing_but_tracer_uptake():
    """The same subject with and without foci."""
    options = {"z_mm": (0.0, 10.0), "ms_probability": 1.0}
    healthy = simulate("mni152", 5, config=PhantomConfig(pet_lesion_probability=0.0, **options))
    ill = simulate("mni152", 5, config=PhantomConfig(pet_lesion_probability=1.0, **options))
    kinds = [k for k in ("pet_hot", "pet_cold") if k in ill.masks]
    assert kinds
    for name in VOLUMES:
        if not name.startswith("pet"):
            assert torch.equal(healthy.volumes[name], ill.volumes[name]), name
    factor = torch.ones(ill.shape)
    for kind, gain in (("pet_hot", 1.2), ("pet_cold", -0.5)):
        factor = factor * (1 + gain * ill.masks.get(kind, torch.zeros(ill.shape)))
    assert (factor - 1).abs().max() > 0.4
    assert torch.allclose(ill.volumes["pet_fdg"], healthy.volumes["pet_fdg"] * factor, atol=1e-6)


def test_lesions_do_not_move_the_rest_of_the_subject():
    options = {"z_mm": (0.0, 6.0), "infarct_probability": 0.0}
    healthy = simulate("mni152", 5, config=PhantomConfig(ms_probability=0.0, **options))
    ill = simulate("mni152", 5, config=PhantomConfig(ms_probability=1.0, **options))
    untouched = ill.masks["ms"] == 0
    ratio = (ill.volumes["t2"] / healthy.volumes["t2"].clamp_min(1e-3))[untouched & (healthy.volumes["t2"] > 0.05)]
    assert float(ratio.std()) < 1e-4  # only the common scale may change


def test_iron_makes_the_pallidum_dark_in_t2star(phantom):
    pallidum = torch.isin(phantom.labels, torch.tensor([13, 52], dtype=torch.int16))
    assert pallidum.any()
    white = region(phantom, "white_matter")
    assert phantom.volumes["t2star"][pallidum].median() < 0.75 * phantom.volumes["t2star"][white].median()


def test_mirrored_subjects_swap_labels_and_stay_anatomical(coarse):
    seen = set()
    for seed in range(6):
        p = simulate("mni152", seed, config=coarse)
        seen.add(p.parameters["mirrored"])
        x = torch.arange(p.shape[0]).float()
        left, right = ((p.labels == label).float().sum((1, 2)) for label in (2, 41))
        assert (x * left).sum() / left.sum() + 5 < (x * right).sum() / right.sum()
    assert seen == {0.0, 1.0}


def test_skull_stripping_leaves_the_brain_alone():
    options = {"z_mm": (0.0, 4.0)}
    whole = simulate("mni152", 4, config=PhantomConfig(**options))
    stripped = simulate("mni152", 4, config=PhantomConfig(skull_stripped=True, **options))
    brain = whole.masks["brain"]
    for name in VOLUMES:
        outside = -1000.0 if name == "ct" else 0.0
        assert torch.equal(stripped.volumes[name][brain], whole.volumes[name][brain])
        assert (stripped.volumes[name][~brain] == outside).all()
    assert (brain & region(whole, "bone", "air")).sum() == 0
    tissue = region(whole, "white_matter", "deep_gm")
    assert (brain & tissue).sum() > 0.99 * tissue.sum()


def test_no_deformation_keeps_the_labels_of_the_anatomy():
    from multirecon.data.anatomies import load_anatomy

    head = load_anatomy("mni152")
    config = PhantomConfig(spacing_mm=(1.0, 1.0, 1.0), matrix=240, deformation=0.0, mirror=False, z_mm=(0.0, 5.0))
    p = simulate("mni152", 0, config=config)
    share = float((p.regions == REGIONS.index("white_matter")).sum()) / (p.shape[2])
    low, high = head.brain_box[:, 2].tolist()
    z = (low + high) // 2
    expected = torch.isin(head.labels[..., z : z + 6], torch.tensor([2, 41], dtype=torch.int16)).sum() / 6
    lesions = float((p.regions == REGIONS.index("lesion")).sum()) / p.shape[2]
    assert share + lesions == pytest.approx(float(expected), rel=0.05)


def test_the_head_fits_the_field_of_view():
    """The largest scale is limited so that no scalp is cut at the levels of the brain."""
    config = PhantomConfig(spacing_mm=(3.75, 3.75, 3.75), matrix=64, scale=(1.3, 1.3), rotation_deg=0.0, shear=0.0)
    for seed in range(3):
        p = simulate("mni152", seed, config=config)
        head = p.labels[..., p.shape[2] // 2 :] > 0
        border = torch.cat([head[0], head[-1], head[:, 0], head[:, -1]])
        assert not border.any()


def test_noise_and_blur_are_options():
    base = {"z_mm": (0.0, 8.0)}
    clean = simulate("mni152", 4, config=PhantomConfig(**base))
    noisy = simulate("mni152", 4, config=PhantomConfig(mr_noise=0.02, ct_noise_hu=3.0, pet_fwhm_mm=5.0, **base))
    white = region(clean, "white_matter")
    difference = (noisy.volumes["t1"] - clean.volumes["t1"])[white]
    assert float(difference.std()) == pytest.approx(0.02, rel=0.1)
    hu = (noisy.volumes["ct"] - clean.volumes["ct"])[white]
    assert float(hu.std()) == pytest.approx(3.0, rel=0.15)
    assert torch.equal(noisy.volumes["attenuation_511"], clean.volumes["attenuation_511"])
    pet = [v.volumes["pet_fdg"][60:-60, 60:-60, 4] for v in (clean, noisy)]
    assert pet[1].std() < pet[0].std()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("coverage", "neck"),
        ("ms_probability", 1.5),
        ("spacing_mm", (1.0, 0.0, 1.0)),
        ("matrix", 4),
        ("bias", (0.2, 0.1)),
        ("texture", -1.0),
    ],
)
def test_config_refuses_values_without_meaning(field, value):
    with pytest.raises(ValueError, match=field):
        PhantomConfig(**{field: value})


def test_bad_requests_are_named(phantom):
    with pytest.raises(ValueError, match="seed"):
        simulate("mni152", -1)
    with pytest.raises(ValueError, match="names"):
        phantom.slices([0], names=["t3"])
    with pytest.raises(ValueError, match="z_indices"):
        phantom.slices([phantom.shape[2]])
    with pytest.raises(ValueError, match="oversample"):
        phantom.slices([0], oversample=3)


@pytest.mark.slow
def test_a_hundred_slice_slab_takes_less_than_thirty_seconds_on_two_cores():
    import time

    from multirecon.data.anatomies import load_anatomy

    head = load_anatomy("mni152")
    assert head.distances.shape[0] == 4
    start = time.process_time()  # all threads together: an upper bound of the time on a machine with nothing else to do
    p = simulate(head, 0, config=PhantomConfig(spacing_mm=(1.0, 1.0, 1.0), matrix=240, z_mm=(-40.0, 60.0)))
    assert p.shape == (240, 240, 101)
    assert time.process_time() - start < 30


@pytest.mark.gpu
def test_gpu_agrees_with_cpu_in_everything_but_fine_texture():
    config = PhantomConfig(z_mm=(0.0, 10.0), texture=0.0, vessels=0.0)
    cpu, gpu = simulate("mni152", 3, config=config), simulate("mni152", 3, config=config, device="cuda")
    assert (cpu.labels != gpu.labels.cpu()).float().mean() < 1e-3
    for name in ("t1", "ct", "pet_fdg"):
        difference = (cpu.volumes[name] - gpu.volumes[name].cpu()).abs()
        assert difference.median() < 1e-4 * cpu.volumes[name].abs().max()
