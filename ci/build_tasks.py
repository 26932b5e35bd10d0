"""Write the task files of the package: one table of what is asked, many JSON files that say it in full.

    python ci/build_tasks.py           # write common/multirecon/tasks/*.json and the table of docs/tasks.md
    python ci/build_tasks.py --check   # only tell whether they are as this script would write them

Tasks of one `key` share the noise of what they measure in common: flair_x4 and flair_x4_t1 have the same k-space.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "common" / "multirecon" / "tasks"
PAGE = ROOT / "docs" / "tasks.md"

Scan = dict[str, Any]

MODALITIES: dict[str, Any] = {
    "ct": {"name": "ct", "unit": "1/cm", "scale": 0.2},
    "pet_fdg": {"name": "pet_fdg", "scale": 0.6},
    "ct_low": {"name": "ct_low", "unit": "1/cm", "scale": 0.25},
    "ct_high": {"name": "ct_high", "unit": "1/cm", "scale": 0.2},
    "ct_bins": {"name": "ct_bins", "channels": 3, "unit": "1/cm", "scale": 0.25},
    "materials": {"name": "materials", "channels": 2, "unit": "g/cm^3", "scale": 1.0},
}
# energy at which water behind a head attenuates as the whole spectrum of the bin does
ENERGIES = {"ct_low": [53.0], "ct_high": [72.0], "ct_bins": [44.0, 64.0, 92.0]}
METRICS = {"mr": ["psnr", "ssim", "nrmse", "hfer"], "ct": ["psnr", "ssim", "nrmse", "mae", "hfer"]}
# lesions show in these; the contrast recovery of one that a modality does not show is left out sample by sample
SHOWS_LESIONS = {"t1", "flair", "t2star", "pet_fdg"}
# families of tasks that differ in one number: name -> label of the axis, its scale, task -> number
SWEEPS: dict[str, tuple[str, str, dict[str, float]]] = {
    "flair_acceleration": (
        "Acceleration of the FLAIR k-space (with a clean T1)",
        "linear",
        {"flair_x2_t1": 2, "flair_x4_t1": 4, "flair_x6_t1": 6, "flair_x8_t1": 8},
    ),
    "flair_inputs": (
        "Clean images given beside 4x FLAIR k-space (T1; T2*; CT and PET)",
        "linear",
        {"flair_x4": 0, "flair_x4_t1": 1, "flair_x4_t1_t2star": 2, "flair_x4_all": 4},
    ),
    "flair_inputs_clinical": (
        "Clean images given beside 4x FLAIR k-space with 24 centre lines",
        "linear",
        {"flair_x4c": 0, "flair_x4c_t1": 1, "flair_x4c_t1_t2star": 2, "flair_x4c_all": 4},
    ),
    "flair_noise": (
        "Noise of the FLAIR k-space (standard deviation, with a clean T1)",
        "log",
        {"flair_x4_t1": 0.01, "flair_x4_t1_noise3": 0.03, "flair_x4_t1_noise10": 0.1},
    ),
    "flair_t1_shift": (
        "Shift of the T1 beside 4x FLAIR k-space (mm, and half as many degrees)",
        "linear",
        {"flair_x4_t1": 0, "flair_x4_t1_shift1": 1, "flair_x4_t1_shift2": 2, "flair_x4_t1_shift3": 3},
    ),
    "pet_counts": (
        "FDG PET counts (trues a pixel)",
        "log",
        {"pet_counts_2p5": 2.5, "pet_counts_5": 5, "pet_counts_10": 10, "pet_counts_50": 50},
    ),
    "petct_counts": (
        "FDG PET counts beside a CT of one dose (trues a pixel)",
        "log",
        {"petct_counts_2p5": 2.5, "petct_lowdose": 5, "petct_counts_20": 20},
    ),
    "pet_mr_counts": (
        "FDG PET counts beside 4x k-space of T1 (trues a pixel)",
        "log",
        {"pet_mr_counts_2p5": 2.5, "pet_mr_lowdose": 5, "pet_mr_counts_20": 20},
    ),
    "ct_synthesis_inputs": (
        "Clean MR images that CT is made from (T1; T2*; FLAIR)",
        "linear",
        {"ct_from_t1": 1, "ct_from_t1_t2star": 2, "ct_from_mr": 3},
    ),
    "pet_synthesis_inputs": (
        "Clean MR images that FDG PET is made from (T1; FLAIR and T2*)",
        "linear",
        {"pet_from_t1": 1, "pet_from_mr": 3},
    ),
}


def scan(name: str, /, **settings: Any) -> Scan:
    return {"_target_": f"multirecon.acquisition.{name}", **settings}


CLEAN = scan("CleanImage")


def mr(acceleration: float = 4, sigma: float = 0.01, coils: int = 8, **settings: Any) -> Scan:
    return scan("CartesianMR", acceleration=acceleration, coils=coils, sigma=sigma, **settings)


def clinical(acceleration: float = 4) -> Scan:
    return mr(acceleration, center_lines=24, maps="estimated")


def ct(views: int, photons: float, **settings: Any) -> Scan:
    return scan("ParallelCT", views=views, photons=photons, **settings)


def fan(views: int, photons: float, **settings: Any) -> Scan:
    return scan("FanCT", views=views, photons=photons, source_mm=570.0, detector_mm=470.0, **settings)


def pet(counts: float, attenuation: str = "known", **settings: Any) -> Scan:
    first = {"views": 120, "bin_spacing_mm": 3.0, "psf_fwhm_mm": 5.0, "model_psf_fwhm_mm": 4.5}
    return scan("PETScan", counts=counts, **{**first, **settings}, attenuation=attenuation)


def spectral(views: int, photons: float, kvp: float, **settings: Any) -> Scan:
    return scan("PolyenergeticCT", views=views, kvp=kvp, photons=photons, **settings)


SCATTERED = {"scatter_ratio": 0.05, "scatter_error": 0.1, "detector_fwhm_mm": 1.0}
PET_B = {"views": 96, "bin_spacing_mm": 4.0, "psf_fwhm_mm": 6.5, "model_psf_fwhm_mm": 6.0, "scatter_fraction": 0.4}
T1 = {"t1": CLEAN}
T1_T2STAR = {"t1": CLEAN, "t2star": CLEAN}
ALL = {"t1": CLEAN, "t2star": CLEAN, "ct": CLEAN, "pet_fdg": CLEAN}
MR = {"t1": CLEAN, "flair": CLEAN, "t2star": CLEAN}


def task(
    name: str,
    description: str,
    family: str,
    scans: dict[str, Scan],
    *,
    targets: list[str] | None = None,
    missing: list[str] | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    """One task; by default the modalities that are measured, not given clean, are the targets."""
    wanted = targets or missing or [n for n, s in scans.items() if s != CLEAN and "scan" not in s]
    modalities = [*scans, *(missing or [])]
    of_energies = any(m in ENERGIES or m == "materials" for m in modalities)
    dataset = {
        "_target_": "multirecon.acquisition.SpectralSlices"
        if of_energies
        else "multirecon.data.datasets.PhantomSlices",
        "split": "test",
        "modalities": modalities,
        **({"energies_kev": {m: ENERGIES[m] for m in modalities if m in ENERGIES}} if of_energies else {"fine": True}),
        "seeds": 1,
        "slices": 8,
    }
    metrics = METRICS["mr" if all(t in MR for t in wanted) else "ct"]
    metrics = [*metrics, "crc"] if SHOWS_LESIONS & set(wanted) else metrics
    places = [
        {"name": sweep, "label": label, "value": members[name], "scale": scale}
        for sweep, (label, scale, members) in SWEEPS.items()
        if name in members
    ]
    return {
        "name": name,
        "description": description,
        "family": family,
        "space": {
            "_target_": "multirecon.space.ImageSpace",
            "modalities": [MODALITIES.get(m, m) for m in modalities],
            "shape": [128, 128],
            "spacing_mm": [1.875, 1.875],
        },
        "dataset": dataset,
        "sets": {"small": {}, "full": {"seeds": 2, "slices": 24}},
        "acquisition": {
            "_target_": "multirecon.acquisition.Acquisition",
            "space": "@space",
            "key": key or name,
            "oversample": 2,
            "scans": scans,
        },
        "targets": wanted,
        "metrics": metrics,
        "repeats": 1,
        **({"sweeps": places} if places else {}),
    }


def moved(shift_mm: float) -> Scan:
    return scan("Misregistered", scan=CLEAN, shift_mm=shift_mm, rotation_deg=shift_mm / 2)


def paper_mr() -> list[dict[str, Any]]:
    nothing = "FLAIR from 4x equispaced k-space of 8 coils (sigma 0.01, true maps), nothing else measured"
    start = "FLAIR from 4x equispaced k-space (8 coils, sigma 0.01, true maps)"
    key = "flair_x4"
    tasks = [
        task("flair_x4", nothing, "mr", {"flair": mr()}),
        task("flair_x4_t1", f"{start} with a clean T1", "mr", {"flair": mr(), **T1}, key=key),
        task("flair_x4_t1_t2star", f"{start} with clean T1 and T2*", "mr", {"flair": mr(), **T1_T2STAR}, key=key),
        task("flair_x4_all", f"{start} with clean T1, T2*, CT and FDG PET", "mr", {"flair": mr(), **ALL}, key=key),
    ]
    for rate in (2, 6, 8):
        words = f"FLAIR from {rate}x equispaced k-space (8 coils, sigma 0.01, true maps) with a clean T1"
        tasks.append(task(f"flair_x{rate}_t1", words, "mr", {"flair": mr(rate), **T1}, key=key))
    for percent in (3, 10):
        words = f"FLAIR from 4x equispaced k-space (8 coils, sigma 0.{percent:02d}, true maps) with a clean T1"
        scans = {"flair": mr(4, percent / 100), **T1}
        tasks.append(task(f"flair_x4_t1_noise{percent}", words, "mr", scans, key=key))
    for shift in (1, 2, 3):
        words = f"{start} with a clean T1 that lies {shift} mm and {shift / 2:g} degrees off"
        scans = {"flair": mr(), "t1": moved(float(shift))}
        tasks.append(task(f"flair_x4_t1_shift{shift}", words, "mr", scans, key=key))
    other = mr(4, 0.01, 12, radius=1.3, pattern="poisson_disc", center_lines=24, maps="estimated")
    words = "FLAIR from 4x Poisson-disc k-space of 12 other coils (24 x 24 centre, estimated maps) with a clean T1"
    tasks.append(task("flair_x4_t1_scanner_b", words, "mr", {"flair": other, **T1}))
    words = f"{start} with a clean T1, sequence timings spread over 20 % in place of 6 %"
    timings = task("flair_x4_t1_timings_b", words, "mr", {"flair": mr(), **T1}, key=key)
    # a thin slab in the small set: subjects of other settings than the default are simulated, not read
    timings["dataset"]["config"] = {"sequence_jitter": 0.2, "z_mm": [0.0, 18.0]}
    timings["sets"]["full"]["config"] = {"sequence_jitter": 0.2}
    return [*tasks, timings]


def second_contrast() -> list[dict[str, Any]]:
    """The questions about FLAIR, of T2: what was learned for one contrast need not hold for another."""
    start = "T2 from 4x equispaced k-space (8 coils, sigma 0.01, true maps) with a clean T1"
    centre = "T2 from k-space of every 4th line and 24 centre lines (rate 2.6, 8 coils, estimated maps) with a clean T1"
    return [
        task("t2_x4_t1", start, "mr", {"t2": mr(), **T1}),
        task("t2_x4c_t1", centre, "mr", {"t2": clinical(), **T1}),
    ]


def clinical_mr() -> list[dict[str, Any]]:
    start = "FLAIR from k-space of every 4th line and 24 centre lines (rate 2.6, 8 coils, estimated maps)"
    parts = {"": ({}, ""), "_t1": (T1, " with a clean T1"), "_t1_t2star": (T1_T2STAR, " with clean T1 and T2*"),
             "_all": (ALL, " with clean T1, T2*, CT and FDG PET")}  # fmt: skip
    return [
        task(f"flair_x4c{name}", f"{start}{words}", "mr", {"flair": clinical(), **others}, key="flair_x4c")
        for name, (others, words) in parts.items()
    ]


def transmission() -> list[dict[str, Any]]:
    return [
        task("ct_sparse60", "CT from 60 parallel views of 1e5 photons", "ct", {"ct": ct(60, 1e5)}),
        task(
            "ct_lowdose",
            "CT from 180 parallel views of 5e3 photons, with 5 % scatter known to 10 % and a detector blur of 1 mm",
            "ct",
            {"ct": ct(180, 5e3, **SCATTERED)},
        ),
        task(
            "ct_sparse60_scanner_b",
            "CT from 60 fan-beam views of 1e5 photons over a full turn, coarser bins, detector blur of 1.2 mm",
            "ct",
            {"ct": fan(60, 1e5, bin_spacing_mm=4.0, detector_fwhm_mm=1.2)},
        ),
    ]


def patterns() -> list[dict[str, Any]]:
    """The benchmark of the lecture: 333 patterns of a single-pixel camera for 64 x 64 pixels."""
    camera = task(
        "hadamard_8pct",
        "T1 of 64 x 64 pixels from the 333 Hadamard patterns (8 %) of largest variance",
        "mr",
        {"t1": scan("HadamardCamera", patterns=333, sigma=0.01, blur_mm=2.0)},
    )
    camera["space"] |= {"shape": [64, 64], "spacing_mm": [3.75, 3.75]}
    camera["dataset"] |= {
        "shape": [64, 64],
        "spacing_mm": 3.75,
        "config": {"spacing_mm": [1.875, 1.875, 1.875], "matrix": 128},
    }
    return [camera]


def emission() -> list[dict[str, Any]]:
    tasks = [
        task(
            f"pet_counts_{f'{counts:g}'.replace('.', 'p')}",
            f"FDG PET from {counts:g} trues a pixel, attenuation known, background known to 5 %",
            "pet",
            {"pet_fdg": pet(counts)},
        )
        for counts in (2.5, 5.0, 10.0, 50.0)
    ]
    # the CT of petct_lowdose, with half and with four times its PET counts
    fixed = ct(120, 1e4, **SCATTERED)
    degraded = [
        task(
            f"petct_counts_{f'{counts:g}'.replace('.', 'p')}",
            f"FDG PET from {counts:g} trues a pixel and CT from 120 views of 1e4 photons, attenuation from that CT",
            "pet_ct",
            {"ct": fixed, "pet_fdg": pet(counts, "ct")},
            key="petct_lowdose",
        )
        for counts in (2.5, 20.0)
    ]
    beside_mr = [
        task(
            f"pet_mr_counts_{f'{counts:g}'.replace('.', 'p')}",
            f"FDG PET from {counts:g} trues a pixel and T1 from 4x k-space, attenuation from classes of the MR image",
            "pet_mr",
            {"t1": clinical(), "pet_fdg": pet(counts, "t1")},
            key="pet_mr_lowdose",
        )
        for counts in (2.5, 20.0)
    ]
    return [
        *tasks,
        task(
            "pet_counts_5_t1",
            "FDG PET from 5 trues a pixel with a clean T1, attenuation known, background known to 5 %",
            "pet_mr",
            {"pet_fdg": pet(5.0), **T1},
            key="pet_counts_5",
        ),
        *degraded,
        *beside_mr,
        task(
            "pet_mr_lowdose",
            "FDG PET from 5 trues a pixel and T1 from 4x k-space, attenuation from classes of the MR image",
            "pet_mr",
            {"t1": clinical(), "pet_fdg": pet(5.0, "t1")},
        ),
        task(
            "petct_lowdose",
            "FDG PET from 5 trues a pixel and CT from 120 views of 1e4 photons, attenuation from that CT",
            "pet_ct",
            {"ct": ct(120, 1e4, **SCATTERED), "pet_fdg": pet(5.0, "ct")},
        ),
        task(
            "petct_lowdose_scanner_b",
            "FDG PET from 5 trues a pixel (coarser scanner) and CT from 120 fan-beam views, attenuation from it",
            "pet_ct",
            {"ct": fan(120, 1e4, **SCATTERED), "pet_fdg": pet(5.0, "ct", **PET_B)},
        ),
    ]


def synthesis() -> list[dict[str, Any]]:
    measured = {name: mr() for name in MR}
    mixed = {"t1": CLEAN, "flair": mr(), "t2star": CLEAN}
    rows = [
        ("ct_from_t1", "CT from a clean T1", T1, "ct"),
        ("ct_from_t1_t2star", "CT from clean T1 and T2*", T1_T2STAR, "ct"),
        ("ct_from_mr", "CT from clean T1, FLAIR and T2*", MR, "ct"),
        ("pet_from_t1", "FDG PET from a clean T1", T1, "pet_fdg"),
        ("pet_from_mr", "FDG PET from clean T1, FLAIR and T2*", MR, "pet_fdg"),
        ("flair_from_t1", "FLAIR from a clean T1", T1, "flair"),
        ("ct_from_flair_kspace", "CT from 4x k-space of FLAIR alone", {"flair": mr()}, "ct"),
        ("ct_from_kspace", "CT from 4x k-space of T1, FLAIR and T2*", measured, "ct"),
        ("ct_from_mixed", "CT from clean T1 and T2* and 4x k-space of FLAIR", mixed, "ct"),
    ]
    return [
        task(name, words, "synthesis", scans, missing=[target], key="synthesis") for name, words, scans, target in rows
    ]


def energies() -> list[dict[str, Any]]:
    bins = {"kvp": 120.0, "thresholds_kev": [20.0, 50.0, 80.0]}
    return [
        task(
            "dect_sparse",
            "Attenuation at 53 and 72 keV from 60 views each at 80 and 140 kV (5e4 photons)",
            "spectral_ct",
            {
                "ct_low": spectral(60, 5e4, 80.0, energies_kev=ENERGIES["ct_low"]),
                "ct_high": spectral(60, 5e4, 140.0, energies_kev=ENERGIES["ct_high"]),
            },
        ),
        task(
            "spectralct_lowdose",
            "Attenuation at 44, 64 and 92 keV from 120 views in three energy bins (1e4 photons together)",
            "spectral_ct",
            {"ct_bins": spectral(120, 1e4, **bins, energies_kev=ENERGIES["ct_bins"])},
        ),
        task(
            "materials_lowdose",
            "Water and bone densities from 120 views in three energy bins (2e4 photons together)",
            "spectral_ct",
            {"materials": spectral(120, 2e4, **bins, model="polyenergetic")},
        ),
        *(
            task(
                name,
                f"Attenuation at 53 and 72 keV from {views} views over a full turn ({words}), settings of MCAOL",
                "spectral_ct",
                {
                    modality: spectral(views, photons, kvp, energies_kev=ENERGIES[modality], arc=2 * math.pi)
                    for modality, kvp in (("ct_low", 80.0), ("ct_high", 140.0))
                },
            )
            for name, views, photons, words in (
                ("dect_views63", 63, 1e5, "1e5 photons"),
                ("dect_counts_5e3", 126, 5e3, "5e3 photons"),
            )
        ),
    ]


def other_spectra() -> list[dict[str, Any]]:
    """The questions about energies, of a scanner whose tube, detector and geometry no weights were trained on."""
    beam = {"source_mm": 570.0, "detector_mm": 470.0, "bin_spacing_mm": 4.0, "filter_mm": 7.0, "model_filter_mm": 6.0}
    drifted = {**beam, "calibrated": False}
    bins = {"thresholds_kev": [25.0, 55.0, 85.0], "resolution_kev": 4.0}
    return [
        task(
            "dect_sparse_scanner_b",
            "Attenuation at 53 and 72 keV from 60 fan-beam views each at 90 and 150 kV (3e4 photons), tube drifted",
            "spectral_ct",
            {
                "ct_low": spectral(60, 3e4, 90.0, energies_kev=ENERGIES["ct_low"], **drifted),
                "ct_high": spectral(60, 3e4, 150.0, energies_kev=ENERGIES["ct_high"], **drifted),
            },
        ),
        task(
            "spectralct_lowdose_scanner_b",
            "Attenuation at 44, 64 and 92 keV from 90 fan-beam views in three other energy bins (1e4 photons together)",
            "spectral_ct",
            {"ct_bins": spectral(90, 1e4, 140.0, **bins, energies_kev=ENERGIES["ct_bins"], **drifted)},
        ),
        task(
            "materials_lowdose_scanner_b",
            "Water and bone densities from 90 fan-beam views in three other energy bins (2e4 photons together)",
            "spectral_ct",
            {"materials": spectral(90, 2e4, 140.0, **bins, model="polyenergetic", **beam)},
        ),
    ]


def contrast() -> list[dict[str, Any]]:
    """Heads of which some were given iodine, a material that no prior was trained on.

    Behind a head, iodine looks like bone and little water where all energies lie above its K-edge: the lowest bin ends
    just above it. There a wrong blur of the energies costs most; the model knows three quarters of it.
    """
    edge = {"kvp": 120.0, "thresholds_kev": [20.0, 34.0, 60.0], "resolution_kev": 2.0, "model_resolution_kev": 1.5,
            "model_step_kev": 3.0}  # fmt: skip
    bins = {"kvp": 120.0, "thresholds_kev": [20.0, 50.0, 80.0], "energies_kev": ENERGIES["ct_bins"]}
    three = {"materials": ["water", "bone", "iodine"]}
    tasks = [
        task(
            "materials_iodine",
            "Water, bone and iodine densities from 120 views in three bins about the K-edge (1e5 photons together)",
            "spectral_ct",
            {"materials": spectral(120, 1e5, **edge, **three, model="polyenergetic")},
        ),
        task(
            "spectralct_iodine",
            "Attenuation at 44, 64 and 92 keV of heads with iodine, 120 views in three bins (1e4 photons together)",
            "spectral_ct",
            {"ct_bins": spectral(120, 1e4, **bins, **three)},
        ),
    ]
    for made in tasks:
        made["dataset"]["contrast"] = {"share": 0.75, "blood_mg_ml": [3.0, 10.0], "insert_mg_ml": [2.0, 5.0, 10.0]}
    tasks[0]["space"]["modalities"] = [{**MODALITIES["materials"], "channels": 3}]
    return tasks


def volumes() -> list[dict[str, Any]]:
    """PET and CT of a slab: 16 slices of 64 x 64 voxels of 3.75 mm, four times the in-plane area of a 2D pixel."""
    slab = task(
        "petct3d_lowdose",
        "FDG PET of a 60 mm slab from direct and oblique planes at 20 trues a voxel, and its CT from 120 views a slice",
        "pet_ct",
        {
            "ct": scan("StackedCT", scan=ct(120, 1e4, **SCATTERED)),
            "pet_fdg": scan(
                "PETScan3D",
                counts=20.0,
                radius_mm=420.0,
                max_difference=5,
                views=60,
                psf_fwhm_mm=5.0,
                model_psf_fwhm_mm=4.5,
                attenuation="ct",
            ),
        },
    )
    slab["space"] |= {"shape": [64, 64, 16], "spacing_mm": [3.75, 3.75, 3.75]}
    slab["dataset"] = {
        "_target_": "multirecon.data.slabs.PhantomSlabs",
        "split": "test",
        "modalities": ["ct", "pet_fdg"],
        "fine": True,
        "seeds": 1,
        "shape": [64, 64],
        "depth": 16,
        "spacing_mm": 3.75,
        "config": {"spacing_mm": [1.875, 1.875, 1.875], "matrix": 128},
    }
    slab["sets"] = {"small": {}, "full": {"seeds": 4}}
    slab["metrics"] = [*slab["metrics"], "tvz", "psnr_axial", "psnr_sagittal"]
    return [slab]


def catalogue() -> dict[str, str]:
    """Return file name -> content."""
    groups = (
        paper_mr(),
        clinical_mr(),
        second_contrast(),
        patterns(),
        transmission(),
        emission(),
        synthesis(),
        energies(),
        other_spectra(),
        contrast(),
        volumes(),
    )
    return {f"{t['name']}.json": json.dumps(t, indent=2) + "\n" for group in groups for t in group}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a file differs")
    check = parser.parse_args().check
    wanted = catalogue()
    held = {p.name: p.read_text(encoding="utf-8") for p in FOLDER.glob("*.json") if p.name != "task.schema.json"}
    stale = sorted(n for n in {*wanted, *held} if wanted.get(n) != held.get(n))
    if not check:
        for name in stale:
            if name in wanted:
                (FOLDER / name).write_text(wanted[name], encoding="utf-8")
            else:
                (FOLDER / name).unlink()
    from multirecon.tasks import replace_table

    page = PAGE.read_text(encoding="utf-8")
    fresh = replace_table(page)
    if fresh != page:
        stale.append(PAGE.name)
        if not check:
            PAGE.write_text(fresh, encoding="utf-8")
    print(f"{len(wanted)} tasks; {'differing' if check else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
