"""The example applications under the real SDK, on the CPU: one a family, each equal to `monai.bundle run`.

Needs the SDK's own environment: `ci/interop_env.sh deploy`, and MULTIRECON_DEPLOY_PYTHON (`make deploy` does both).
"""

import json
import os
import subprocess
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from contract.promises import BUNDLES
from interop.programs import drawn, head, interpreter, run_stock
from synthetic_head import item

from multirecon.acquisition import Acquisition, CartesianMR, ParallelCT, PETScan, PolyenergeticCT
from multirecon.bundle import Bundle, find
from multirecon.data.io import Volume, read_dicom, scan_dicom, write_dicom, write_nifti
from multirecon.measurement import Measurement
from multirecon.space import ImageSpace, Modality
from multirecon.zoo.pack import pack

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "deploy"
AFFINE = torch.tensor([[0, -5.0, 0, 110], [5.0, 0, 0, -120], [0, 0, 5, 7], [0, 0, 0, 1]], dtype=torch.float64)
CT, PET = Modality("ct", unit="1/cm", scale=0.2), Modality("pet_fdg", scale=0.6)
BINS = {"ct_bins": [44.0, 64.0, 92.0]}
RAW = {
    "mr": (["flair"], {"flair": CartesianMR(3)}, None),
    "petct": ([CT, PET], {"ct": ParallelCT(40), "pet_fdg": PETScan(50.0, views=40, attenuation="ct")}, None),
    "spectral": (
        [Modality("ct_bins", channels=3, unit="1/cm", scale=0.25)],
        {"ct_bins": PolyenergeticCT(40, kvp=120.0, photons=1e4, thresholds_kev=[20.0, 50.0, 80.0],
                                    energies_kev=BINS["ct_bins"])},
        BINS,
    ),
}  # fmt: skip
METHODS = {"mr": "sense_mr", "petct": "tikhonov_petmrct", "spectral": "tikhonov_petmrct"}


def measure(family, folder):
    """Write one raw measurement of a synthetic head, of a few thousand unknowns."""
    modalities, scans, energies = RAW[family]
    space = ImageSpace(modalities, (48, 48), (5.0, 5.0))
    sample = item(list(space.names), 48, energies)
    stack = sample["fine"][None]
    fine = {n: stack[:, space.channels(n)] for n in space.names}
    fine |= {key: sample[f"{key}_fine"][None] for key in ("attenuation", "materials")}
    acquisition = Acquisition(space, scans, key=family, oversample=2)
    acquisition(fine, ["head"], affine=AFFINE).save(folder / f"{family}.h5")
    return folder


def run_app(family, data, output, model, *, options=None, cwd=None):
    """Run an example as a user does; its settings may come from a file of the test's own."""
    python = interpreter("MULTIRECON_DEPLOY_PYTHON", "ci/interop_env.sh deploy")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    if options is not None:
        config = output.parent / f"{output.name}.yaml"
        config.write_text(json.dumps({"reconstruction": {"device": "cpu", **options}}))  # JSON is YAML
        environment["HOLOSCAN_CONFIG_PATH"] = str(config)
    words = [python, EXAMPLES / family, "-i", data, "-o", output, "-m", model]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.mkdir(exist_ok=True)
    return subprocess.run(
        [str(w) for w in words], env=environment, cwd=cwd or output.parent, capture_output=True, text=True, check=False
    )


def images(folder):
    return {p.name: nib.load(p) for p in sorted(folder.glob("*.nii.gz")) if not p.name.endswith("_trust.nii.gz")}


def assert_equal(ours, expected):
    """Same files, float32, affines; voxels within 1e-5 of the largest."""
    expected = {name: image for name, image in expected.items() if not name.endswith("_trust.nii.gz")}
    assert ours.keys() == expected.keys()
    assert expected
    for name, image in expected.items():
        one, other = ours[name].get_fdata(), image.get_fdata()
        assert ours[name].get_data_dtype() == np.float32
        np.testing.assert_allclose(ours[name].affine, image.affine, atol=1e-4)
        assert np.ptp(other) > 0
        difference = np.abs(one - other).max() / np.abs(other).max()
        print(f"{name}: shape {one.shape}, largest difference {difference:.1e} of the largest value")
        assert difference <= 1e-5


@pytest.mark.parametrize("family", list(RAW))
def test_raw_data_applications(family, stock, tmp_path):
    bundle = find(METHODS[family], BUNDLES)
    data = measure(family, tmp_path / "data")
    done = run_app(family, data, tmp_path / "out", bundle.root)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    assert_equal(images(tmp_path / "out"), run_stock(stock, bundle, data, tmp_path / "run"))
    if family == "mr":
        given, kept = (Measurement.load(p / "mr.h5") for p in (data, tmp_path / "out" / "raw"))
        assert kept.fingerprint() == given.fingerprint()
    if family == "spectral":
        assert images(tmp_path / "out")["spectral_ct_bins.nii.gz"].shape == (48, 48, 1, 3)


def test_synthesis_from_dicom_to_dicom(stock, tmp_path):
    """T1 in as a DICOM series, CT out as one of the same study; until the prior has its weights, with drawn ones."""
    bundle = drawn(Bundle(BUNDLES / "wavelet_diffusion_petmrct"), tmp_path / "models")
    values = np.round(head(["t1"]).get_fdata())
    write_dicom(Volume(values, head(["t1"]).affine), tmp_path / "in" / "t1", modality="MR", description="T1w")
    volume = read_dicom(tmp_path / "in" / "t1")
    write_nifti(volume, tmp_path / "data" / "T1w_900.nii.gz")
    options = {"available": "t1", "simulate": "", "target": "ct", "steps": 3, "seed": 5}
    done = run_app("synthesis", tmp_path / "in", tmp_path / "out", bundle.root, options=options)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    overrides = {f"displayable_configs#{key}": value for key, value in options.items()}
    expected = run_stock(stock, bundle, tmp_path / "data", tmp_path / "run", **overrides)
    assert_equal(images(tmp_path / "out"), expected)
    derived = scan_dicom(tmp_path / "out" / "dicom" / "T1w_900_ct")
    given = scan_dicom(tmp_path / "in" / "t1")
    assert derived.headers[0].Modality == "CT"
    assert derived.headers[0].StudyInstanceUID == given.headers[0].StudyInstanceUID
    stored, wanted = derived.volume(), expected["T1w_900_ct.nii.gz"]
    np.testing.assert_allclose(stored.affine, wanted.affine, atol=1e-3)
    np.testing.assert_allclose(stored.values, wanted.get_fdata(), atol=0.51)


def test_an_archive_runs_beside_the_installed_package_or_says_why_not(stock, tmp_path):
    """Its own copy of multirecon is in nobody's way; another one is refused in one line, and nothing is written."""
    bundle = find(METHODS["mr"], BUNDLES)
    data = measure("mr", tmp_path / "data")
    pack([bundle], tmp_path / "zoo")
    with zipfile.ZipFile(next((tmp_path / "zoo").glob("sense_mr_v*.zip"))) as archive:
        archive.extractall(tmp_path / "models")
    root = tmp_path / "models" / "sense_mr"
    assert (root / "multirecon" / "__init__.py").is_file()
    done = run_app("mr", data, tmp_path / "out", root, cwd=root)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    assert_equal(images(tmp_path / "out"), run_stock(stock, bundle, data, tmp_path / "run"))
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["multirecon"]["package"]["sha256"] = "0" * 64
    path.write_text(json.dumps(metadata))
    done = run_app("mr", data, tmp_path / "other", root)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "was packed with version" in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: multirecon: bundle 'sense_mr' was packed with version")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "other").rglob("*.nii.gz"))


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ("empty", {}, "error: "),
        ("data", {"sead": 1}, "sead"),
    ],
    ids=["nothing to load", "unknown option"],
)
def test_mistakes_end_in_one_line_and_code_1(data, options, words, tmp_path):
    measure("mr", tmp_path / "data")
    (tmp_path / "empty").mkdir()
    done = run_app("mr", tmp_path / data, tmp_path / "out", BUNDLES / "sense_mr", options=options)
    assert done.returncode == 1
    assert sum(line.startswith("error: ") and words in line for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_every_example_can_be_packaged():
    """A folder that runs, with the settings and requirements that the packager asks for."""
    found = sorted(p.parent for p in EXAMPLES.glob("*/__main__.py"))
    assert [p.name for p in found] == ["mr", "petct", "spectral", "synthesis"]
    for folder in found:
        assert (folder / "app.yaml").read_text().startswith("%YAML")
        assert (folder / "requirements.txt").read_text().strip()
