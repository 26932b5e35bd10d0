import pytest
import torch
from synthetic_head import fine_maps, pearson

from multirecon.acquisition import (
    Acquisition,
    CachedSpectralSlices,
    InverseCrime,
    PolyenergeticCT,
    ScanContext,
    SpectralSlices,
    block_mean,
)
from multirecon.data.cached_slices import build
from multirecon.likelihoods import PolyenergeticPoisson, log_transform
from multirecon.measurement import Measurement
from multirecon.operators import mass_attenuation
from multirecon.space import ImageSpace, Modality

BINS = {"kvp": 120.0, "thresholds_kev": [20.0, 50.0, 80.0]}
ENERGIES = [44.0, 64.0, 92.0]
MATERIALS = fine_maps(96)["materials"]
KAPPA = mass_attenuation(("water", "bone"), ENERGIES)
BINNED = torch.einsum("mk,bmhw->bkhw", KAPPA, MATERIALS)


def space(name, channels, size=48):
    return ImageSpace([Modality(name, channels=channels, unit="1/cm")], (size, size), (240 / size, 240 / size))


def effective(scan, image=BINNED, materials=MATERIALS):
    fine = {"ct_bins": image, "materials": materials}
    return Acquisition(space("ct_bins", image.shape[1]), {"ct_bins": scan}, key="t", oversample=2)(fine, ["a"])


def test_counts_are_shared_among_the_bins():
    measurement = effective(PolyenergeticCT(24, **BINS, photons=1e5, energies_kev=ENERGIES))
    y = measurement.y["ct_bins"]
    assert y.shape[:3] == (1, 3, 24)
    assert torch.equal(y, y.round())
    assert float(y[..., 0].sum(1).mean()) == pytest.approx(1e5, rel=0.01)
    # the beam hardens: the lowest bin loses most behind the head
    middle = y.shape[-1] // 2
    share = y[..., middle].mean(-1) / y[..., 0].mean(-1)
    assert share[0, 0] < share[0, 1] < share[0, 2]


def test_water_behind_a_polyenergetic_beam_looks_monoenergetic_after_correction():
    water = torch.zeros_like(MATERIALS)
    water[:, 0] = (MATERIALS[:, 0] > 0.2).float()
    image = torch.einsum("mk,bmhw->bkhw", KAPPA, water)
    scan = PolyenergeticCT(24, **BINS, photons=1e9, energies_kev=ENERGIES)
    measurement = effective(scan, image, water)
    likelihood = measurement.likelihood["ct_bins"]
    lines, _ = log_transform(measurement.y["ct_bins"], likelihood.I0, likelihood.scatter)
    model = measurement.operator["ct_bins"](block_mean(image, 2))
    uncorrected = torch.log(scan.spectrum.sum(1).reshape(1, -1, 1, 1) / measurement.y["ct_bins"])
    whole = model.shape[-1]
    inner = slice(whole // 2 - 8, whole // 2 + 8)  # rays that cross the edge at a slant see the coarse grid instead

    def error(data):
        return float((data - model)[..., inner].norm() / model[..., inner].norm())

    assert error(lines) < 0.015
    assert error(uncorrected) > 2 * error(lines)


def test_bone_still_hardens_the_beam():
    """Against water of the same attenuation, the truth explains less."""
    scan = PolyenergeticCT(24, **BINS, photons=1e7, energies_kev=ENERGIES)
    assert pearson(effective(scan), block_mean(BINNED, 2), "ct_bins")[0] > 5
    ideal, count = pearson(effective(InverseCrime(scan)), block_mean(BINNED, 2), "ct_bins")
    assert abs(ideal - 1) < 6 * (2 / count) ** 0.5


def materials_measurement(photons=2e4, wrap=lambda scan: scan):
    scan = wrap(PolyenergeticCT(24, **BINS, photons=photons, model="polyenergetic"))
    fine = {"materials": MATERIALS}
    return Acquisition(space("materials", 2), {"materials": scan}, key="t", oversample=2)(fine, ["a"])


def test_material_unknowns_with_bins_as_data(tmp_path):
    measurement = materials_measurement()
    assert isinstance(measurement.likelihood["materials"], PolyenergeticPoisson)
    assert measurement.operator["materials"].range_shape[0] == 2
    assert measurement.y["materials"].shape[1] == 3
    truth = block_mean(MATERIALS, 2)
    assert pearson(materials_measurement(wrap=InverseCrime), truth, "materials")[0] == pytest.approx(1, abs=0.15)
    assert pearson(materials_measurement(photons=1e7), truth, "materials")[0] > 2
    again = Measurement.load(measurement.save(tmp_path / "m.h5"))
    assert again.fingerprint() == measurement.fingerprint()
    assert torch.allclose(again.data_fidelity(truth), measurement.data_fidelity(truth))


def test_slices_are_linear_in_the_densities_of_the_fine_grid():
    settings = {"config": {"spacing_mm": (7.5, 7.5, 7.5), "matrix": 32}, "shape": (16, 16), "spacing_mm": 15.0}
    data = SpectralSlices("test", modalities=["materials", "ct_low"], energies_kev={"ct_low": [60.0]}, slices=1,
                          anatomies=["mni152"], **settings)  # fmt: skip
    item = data[0]
    assert item["image"].shape == (3, 16, 16)
    assert torch.equal(item["fine"][:2], item["materials_fine"])
    kappa = mass_attenuation(("water", "bone"), [60.0])[:, 0]
    assert torch.allclose(item["fine"][2], kappa[0] * item["fine"][0] + kappa[1] * item["fine"][1], atol=1e-6)
    assert torch.allclose(block_mean(item["fine"][None], 2)[0], item["image"], atol=1e-6)
    assert float(item["image"][1].max()) > 0.1  # bone
    assert len(data) == 1
    with pytest.raises(ValueError, match="modalities: expected 'materials' or keys of energies_kev"):
        SpectralSlices("test", modalities=["ct_low"])


def test_cached_slices_hold_the_same_channels(tmp_path):
    grid = {"shape": (32, 32), "spacing_mm": 7.5}
    knobs = {"spacing_mm": (7.5, 7.5, 7.5), "matrix": 32}
    build(tmp_path / "set", "train", 1, stride=6, anatomies=["mni152"], config=knobs, progress=False, **grid)
    energies = {"ct_bins": [44.0, 92.0]}
    data = CachedSpectralSlices(tmp_path / "set", ["ct_bins", "materials"], energies_kev=energies, split="train")
    item = data[0]
    assert item["image"].shape == (4, 32, 32)
    assert item["brain"].shape == (1, 32, 32)
    mixing = mass_attenuation(["water", "bone"], energies["ct_bins"]).T
    torch.testing.assert_close(item["image"][:2], torch.einsum("km,mhw->khw", mixing, item["image"][2:]))
    assert float(item["image"][2].max()) > 0.8
    assert float(item["image"].min()) >= -1e-3
    with pytest.raises(ValueError, match="keys of energies_kev"):
        CachedSpectralSlices(tmp_path / "set", ["ct_low"])
    with pytest.raises(ValueError, match="split"):
        CachedSpectralSlices(tmp_path / "set", split="validation")


def test_water_curve_of_the_assumed_spectrum_is_another_one():
    """What a scanner that is not calibrated gets wrong: the same counts, other logarithms."""
    settings = {**BINS, "photons": 1e5, "energies_kev": ENERGIES, "filter_mm": 7.0, "model_filter_mm": 4.0}
    own, assumed = (effective(PolyenergeticCT(24, **settings, calibrated=c)) for c in (True, False))
    assert torch.equal(own.y["ct_bins"], assumed.y["ct_bins"])
    lines = [log_transform(m.y["ct_bins"], m.likelihood["ct_bins"].I0, 0.0)[0] for m in (own, assumed)]
    assert float((lines[0] - lines[1]).abs().max()) > 0.01


def test_fan_beam_of_a_scanner_b():
    settings = {"source_mm": 570.0, "detector_mm": 470.0, "bin_spacing_mm": 9.0}
    scan = PolyenergeticCT(24, **BINS, model="polyenergetic", photons=2e4, **settings)
    measurement, usual = (
        Acquisition(space("materials", 2), {"materials": s}, key="t", oversample=2)({"materials": MATERIALS}, ["a"])
        for s in (scan, PolyenergeticCT(24, **BINS, model="polyenergetic", photons=2e4))
    )
    assert measurement.operator["materials"].projector.kind == "fan_beam"
    assert "fan-beam" in scan.describe()
    residual, parallel = (pearson(m, block_mean(MATERIALS, 2), "materials")[0] for m in (measurement, usual))
    assert residual < 3 * parallel
    with pytest.raises(ValueError, match="source_mm, detector_mm: expected both or none"):
        PolyenergeticCT(24, **BINS, model="polyenergetic", source_mm=570.0)


def test_iodine_attenuates_by_its_own_table():
    """Three materials: a rod of iodine is seen below and above the edge as the table says, and the model knows it."""
    materials = torch.cat([MATERIALS, 1e-2 * (MATERIALS[:, 1:] == 0) * (MATERIALS[:, :1] > 0.9)], dim=1)
    bins = {"kvp": 120.0, "thresholds_kev": [20.0, 34.0, 60.0], "resolution_kev": 0.0}
    scan = PolyenergeticCT(24, **bins, model="polyenergetic", photons=1e5, materials=["water", "bone", "iodine"],
                           model_filter_mm=6.0, model_step_kev=2.0)  # fmt: skip
    fine = {"materials": materials}
    measured = Acquisition(space("materials", 3), {"materials": scan}, key="t", oversample=2)(fine, ["a"])
    truth = block_mean(materials, 2)
    blind = truth * torch.tensor([1.0, 1.0, 0.0]).reshape(1, 3, 1, 1)
    fit = {n: pearson(measured, x, "materials")[0] for n, x in (("true", truth), ("blind", blind))}
    assert fit["blind"] > 5 * fit["true"]
    context = ScanContext("materials", space("materials", 3), 2, torch.Generator(), {"materials": MATERIALS})
    with pytest.raises(ValueError, match=r"expected the densities of \['water', 'bone', 'iodine'\], got 2 maps"):
        scan.acquire(MATERIALS, context)


def test_slices_with_contrast_agent():
    settings = {"config": {"spacing_mm": (7.5, 7.5, 7.5), "matrix": 32}, "shape": (16, 16), "spacing_mm": 15.0,
                "slices": 1, "anatomies": ["mni152"]}  # fmt: skip
    plain = SpectralSlices("test", modalities=["materials"], **settings)[0]
    rods = {"insert_radius_mm": 20.0, "insert_mg_ml": [4.0]}
    given = SpectralSlices("test", modalities=["materials", "ct"], energies_kev={"ct": [40.0]},
                           contrast={"share": 1.0, **rods}, **settings)[0]  # fmt: skip
    none = SpectralSlices("test", modalities=["materials"], contrast={"share": 0.0, **rods}, **settings)[0]
    assert torch.equal(given["fine"][:2], plain["fine"])
    assert torch.equal(given["fine"][:3], given["materials_fine"])
    iodine = given["image"][2]
    assert 1e-3 < float(iodine.max()) < 11e-3
    assert float((iodine * (given["brain"][0] == 0)).max()) < 1e-3 * float(iodine.max()) + 3e-3
    kappa = mass_attenuation(("water", "bone", "iodine"), [40.0])[:, 0]
    assert torch.allclose(given["fine"][3], torch.einsum("m,mhw->hw", kappa, given["materials_fine"]), atol=1e-6)
    assert set(given["contrast"]) == set(none["contrast"]) == {"vessel", "insert_4"}
    assert float(given["contrast"]["insert_4"].max()) > 0.5
    assert float(none["materials_fine"][2].abs().max()) == float(none["contrast"]["insert_4"].max()) == 0.0


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="energies_kev: expected one energy a bin"):
        PolyenergeticCT(24, **BINS)
    with pytest.raises(ValueError, match="model: expected one of"):
        PolyenergeticCT(24, kvp=100.0, model="exact")
    scan = PolyenergeticCT(24, kvp=100.0, energies_kev=[60.0])
    with pytest.raises(ValueError, match="materials: expected the true densities"):
        Acquisition(space("ct_low", 1), {"ct_low": scan}, oversample=2)({"ct_low": BINNED[:, :1]}, ["a"])
    with pytest.raises(ValueError, match="expected 1 channels for the effective model, got 3"):
        effective(scan)
