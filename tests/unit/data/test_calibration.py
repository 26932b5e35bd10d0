"""Simulated contrast and texture lie where real images do (intervals around docs/data.md's real values)."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from multirecon.data.anatomies import list_anatomies
from multirecon.data.calibration import contrast_ratios, spectrum_slope, tissue_modes
from multirecon.data.phantoms import PhantomConfig, simulate

# around three real MS patients; GM of the real masks is diluted, a true MPRAGE ratio is 0.6 to 0.75
RATIOS = {
    "t1": {"gm": (0.60, 0.82), "csf": (0.08, 0.35), "lesion": (0.68, 0.88)},
    "t2": {"gm": (1.05, 1.38), "csf": (2.0, 3.1), "lesion": (1.3, 1.8)},
    "flair": {"gm": (1.0, 1.25), "csf": (0.1, 0.6), "lesion": (1.25, 1.65)},
}
SLOPES = {"t1": (-3.6, -2.7), "t2": (-3.0, -2.1), "flair": (-3.0, -2.1)}
TYPICAL = PhantomConfig(
    spacing_mm=(1.0, 1.0, 1.0),
    matrix=240,
    z_mm=(-2.0, 38.0),
    deformation=0.4,
    parameter_spread=0.0,
    sequence_jitter=0.0,
    bias=(0.0, 0.02),
    ms_probability=1.0,
    infarct_probability=0.0,
)


def _check(ratios, slopes):
    for name, intervals in RATIOS.items():
        for tissue, (low, high) in intervals.items():
            assert low < ratios[name][tissue] < high, f"{name} {tissue}/WM = {ratios[name][tissue]:.2f}"
    for name, (low, high) in SLOPES.items():
        assert low < slopes[name] < high, f"{name} slope = {slopes[name]:.2f}"


def _measure_phantom(anatomy):
    phantom = simulate(anatomy, 3, config=TYPICAL)
    images = {name: phantom.volumes[name].double().numpy() for name in RATIOS}
    brain = phantom.masks["brain"].numpy()
    ratios = contrast_ratios(images, brain, phantom.masks["ms"].numpy() > 0.5)
    z = range(4, 40, 7)
    return ratios, {name: spectrum_slope(image, brain, z) for name, image in images.items()}


def test_embedded_anatomy_looks_like_real_images():
    _check(*_measure_phantom("mni152"))


@pytest.mark.realdata
@pytest.mark.parametrize("anatomy", ["13"])
def test_label_maps_look_like_real_images(anatomy):
    if anatomy not in list_anatomies():
        pytest.skip("MULTIRECON_ANATOMIES is not set")
    _check(*_measure_phantom(anatomy))


@pytest.mark.realdata
def test_a_real_patient_lies_in_the_same_intervals():
    folder = Path(os.environ["MULTIRECON_REAL_DATA"]) / "ms_mni"

    def read(name):
        image = nib.as_closest_canonical(nib.load(folder / f"patient07_{name}.nii.gz"))
        return np.asarray(image.dataobj, float)

    images = {"t1": read("T1"), "t2": read("T2"), "flair": read("FLAIR")}
    brain = (images["t1"] > 0.02 * np.percentile(images["t1"], 99)) & (images["t2"] > 0) & (images["flair"] > 0)
    ratios = contrast_ratios(images, brain, read("lesions") > 0.5)
    _check(ratios, {name: spectrum_slope(image, brain, range(72, 112, 7)) for name, image in images.items()})


def test_modes_of_two_gaussians_are_found():
    rng = np.random.default_rng(0)
    t1 = np.zeros((60, 60, 20))
    t1[:30] = 70 + 4 * rng.standard_normal((30, 60, 20))
    t1[30:] = 100 + 3 * rng.standard_normal((30, 60, 20))
    grey, white = tissue_modes(t1, np.ones(t1.shape, bool))
    assert grey == pytest.approx(70, abs=1.5)
    assert white == pytest.approx(100, abs=1.5)


def test_slope_of_power_law_noise_is_its_exponent():
    rng = np.random.default_rng(1)
    frequency = np.fft.fftfreq(180) * 180
    radius = np.maximum(np.hypot(frequency[:, None], frequency[None, :]), 1)
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((180, 180))) * radius**-1.4).real[..., None]
    assert spectrum_slope(noise, np.ones(noise.shape, bool), [0]) == pytest.approx(-2.8, abs=0.1)


def test_contrast_needs_a_t1_image():
    with pytest.raises(ValueError, match="t1"):
        contrast_ratios({"t2": np.ones((2, 2, 2))}, np.ones((2, 2, 2), bool))
