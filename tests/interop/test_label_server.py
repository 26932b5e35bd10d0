"""A real MONAI Label server on loopback serves every bundle that takes images, and gives what `monai.bundle run` gives.

Needs MONAI Label's own environment: `ci/interop_env.sh label`, and MULTIRECON_LABEL_PYTHON (`make label` does both).
"""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
import zipfile

import nibabel as nib
import numpy as np
import pytest
from contract.promises import BUNDLES
from interop.programs import AFFINE, drawn, head, interpreter, run_stock

from multirecon.bundle import Bundle, discover
from multirecon.interop.label import application_of, options, prepare, refusal, servable, start_command
from multirecon.zoo.pack import pack

pytestmark = [pytest.mark.label, pytest.mark.timeout(1800)]
SEED = 5
# Every folder that offers to choose what is simulated: it estimates the rest. One without weights is no bundle yet.
SYNTHESISERS = [b for b in map(Bundle, sorted(p.parents[1] for p in BUNDLES.glob("*/configs/inference.json")))
                if "simulate" in options(b)]  # fmt: skip


def modalities(bundle):
    """Names of the stack of a bundle, in order."""
    names = json.loads((bundle.configs / "inference.json").read_text())["space"]["modalities"]
    return [n if isinstance(n, str) else n["name"] for n in names]


def pairs(bundle):
    """What is handed in and what is asked for: CT and FLAIR of T1 where the stack has them, else all pairs."""
    names = modalities(bundle)
    if "t1" in names:
        return [("t1", target) for target in ("ct", "flair") if target in names]
    return [(given, target) for given in names for target in names if given != target]


SYNTHESES = [pytest.param(b, *pair, id="-".join((b.name, *pair))) for b in SYNTHESISERS for pair in pairs(b)]
STARTS_IN, ANSWERS_IN = 600, 900  # seconds, on a busy machine


class Server:
    """The running server and its studies."""

    def __init__(self, url, studies, log, bundles):
        self.url, self.studies, self.log = url, studies, log
        self.bundles = {b.name: b for b in bundles}

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.loads(answer.read())

    def infer(self, model, image, file, /, **params):
        """Return the image that the server answers with, through the endpoint that 3D Slicer uses."""
        boundary = uuid.uuid4().hex
        form = f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n\r\n{json.dumps(params)}\r\n'
        request = urllib.request.Request(
            f"{self.url}/infer/{model}?image={image}&output=image",
            data=f"{form}--{boundary}--\r\n".encode(),
            headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        with urllib.request.urlopen(request, timeout=ANSWERS_IN) as answer:
            file.write_bytes(answer.read())
        return nib.load(file)


def channels(bundle):
    """Names of the channels that a bundle's defaults ask for, in order."""
    default = options(bundle).get("available")
    return default.split(", ") if default else modalities(bundle)


def short(bundle, **more):
    """Options with which three slices take seconds, the seed among them."""
    own = options(bundle)
    wanted = {"seed": SEED, "steps": 6, "acceleration": 3, "views": 40, **more}
    return {key: value for key, value in wanted.items() if key in own or key in more}


def as_overrides(params):
    return {f"displayable_configs#{key}": value for key, value in params.items()}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def as_archive(bundle, folder):
    """The bundle as a user downloads it, unpacked: with its own copy of multirecon."""
    pack([bundle], folder / "zoo")
    with zipfile.ZipFile(next((folder / "zoo").glob("*.zip"))) as archive:
        archive.extractall(folder / "unpacked")
    assert (folder / "unpacked" / bundle.name / "multirecon").is_dir()
    return Bundle(folder / "unpacked" / bundle.name)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    python = interpreter("MULTIRECON_LABEL_PYTHON", "ci/interop_env.sh label")
    place = tmp_path_factory.mktemp("label")
    served = [as_archive(b, place) if b.name == "sense_mr" else b for b in servable(folder=BUNDLES)]
    served += [drawn(b, place) for b in SYNTHESISERS if not b.weights.is_file()]
    app = prepare(place / "app", served, template=application_of(python))
    (place / "studies").mkdir()
    for names in {tuple(channels(b)) for b in served} | {(p.values[1],) for p in SYNTHESES} | {("flair",)}:
        nib.save(head(names), place / "studies" / f"{'-'.join(names)}.nii.gz")
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    words = start_command(app, place / "studies", port=port, python=python)
    with (place / "server.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=place, env=environment, stdout=log, stderr=log)
        running = Server(f"http://127.0.0.1:{port}", place / "studies", place / "server.log", served)
        try:
            deadline = time.monotonic() + STARTS_IN
            while True:
                assert process.poll() is None, running.log.read_text(errors="replace")[-3000:]
                with contextlib.suppress(OSError):
                    running.get("/info/")
                    break
                assert time.monotonic() < deadline, running.log.read_text(errors="replace")[-3000:]
                time.sleep(1)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def study(server, names, folder):
    """Copy a study into a folder of its own, for `monai.bundle run`; return its id."""
    name = "-".join(names)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.nii.gz").write_bytes((server.studies / f"{name}.nii.gz").read_bytes())
    return name


def assert_equal(answer, expected):
    """Same voxels within 1e-5 of the largest, on the grid and orientation of the input."""
    np.testing.assert_allclose(answer.affine, AFFINE, atol=1e-4)
    np.testing.assert_allclose(expected.affine, AFFINE, atol=1e-4)
    assert answer.shape == expected.shape == (112, 120, 3)
    assert answer.get_data_dtype() == np.float32
    largest = np.abs(expected.get_fdata()).max()
    assert largest > 0
    assert np.abs(answer.get_fdata() - expected.get_fdata()).max() <= 1e-5 * largest


def resemblance(one, other):
    """Correlation of two images; one that came back flipped or shifted does not reach 0.8."""
    return float(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1])


def test_four_axes_of_modalities_go_in(server, stock, tmp_path):
    """The first thing to prove: one 4-D file with its modalities on the last axis."""
    several = next(b for b in servable(folder=BUNDLES) if len(channels(b)) > 1)
    name = study(server, channels(several), tmp_path / "data")
    assert nib.load(server.studies / f"{name}.nii.gz").shape == (112, 120, 3, len(channels(several)))
    params = short(several)
    answer = server.infer(several.name, name, tmp_path / "answer.nii.gz", **params)
    images = run_stock(stock, several, tmp_path / "data", tmp_path / "out", **as_overrides(params))
    assert_equal(answer, images[f"{name}_{options(several)['target']}.nii.gz"])


def test_every_bundle_is_served_or_says_why_not(server, bundle):
    models = server.get("/info/")["models"]
    reason = refusal(bundle)
    print(f"{bundle.name}: {reason or 'served'}")
    assert (bundle.name in models) == (reason is None)
    if reason is None:
        shown = models[bundle.name]["config"]
        assert {key: shown[key] for key in options(bundle)} == options(bundle)
    else:
        assert "measurement" in reason or "no weights" in reason


def test_reconstruction_of_a_simulated_acquisition(server, stock, bundle, tmp_path):
    if refusal(bundle):
        with pytest.raises(ValueError, match="expected bundles that take images"):
            servable([str(bundle.root)])
        return
    names, params = channels(bundle), short(bundle)
    name = study(server, names, tmp_path / "data")
    answer = server.infer(bundle.name, name, tmp_path / "answer.nii.gz", **params)
    images = run_stock(stock, bundle, tmp_path / "data", tmp_path / "out", **as_overrides(params))
    target = options(bundle).get("target") or names[0]
    assert_equal(answer, images[f"{name}_{target}.nii.gz"])
    given = nib.load(server.studies / f"{name}.nii.gz").get_fdata()
    given = given if len(names) == 1 else given[..., names.index(target)]
    assert not np.array_equal(given, answer.get_fdata()), "a scan was simulated and reconstructed"
    assert resemblance(given, answer.get_fdata()) > 0.8


@pytest.mark.parametrize(("synthesiser", "given", "target"), SYNTHESES)
def test_synthesis(server, stock, synthesiser, given, target, tmp_path):
    """One modality goes in, another comes out; until a prior has its weights, with drawn ones (mere noise)."""
    bundle = server.bundles[synthesiser.name]
    print(f"{bundle.name}: {'own' if bundle.root == synthesiser.root else 'no weights yet, drawn'} weights")
    assert refusal(bundle) is None
    name = study(server, [given], tmp_path / "data")
    params = short(bundle, available=given, simulate="", target=target)
    answer = server.infer(bundle.name, name, tmp_path / "answer.nii.gz", **params)
    images = run_stock(stock, bundle, tmp_path / "data", tmp_path / "out", **as_overrides(params))
    assert_equal(answer, images[f"{name}_{target}.nii.gz"])


def test_two_bundles_side_by_side(server, stock, tmp_path):
    """Bundles with modules of their own in one process: each keeps its network, its options and its seed."""
    pair = [b for b in servable(folder=BUNDLES) if (b.root / f"{b.name}.py").is_file() and len(channels(b)) == 2][:2]
    assert len(pair) == 2
    asked = [(b, seed) for seed in (SEED, SEED + 1) for b in pair]
    answers = {}
    for number, (b, seed) in enumerate([*asked, asked[0]]):
        name = study(server, channels(b), tmp_path / b.name)
        answer = server.infer(b.name, name, tmp_path / f"{number}.nii.gz", **short(b, seed=seed))
        answers.setdefault((b.name, seed), []).append(answer.get_fdata())
        last = answer
    assert np.array_equal(*answers[pair[0].name, SEED]), "the same request, the same image"
    assert not np.array_equal(answers[pair[0].name, SEED][0], answers[pair[0].name, SEED + 1][0])
    assert not np.array_equal(answers[pair[0].name, SEED][0], answers[pair[1].name, SEED][0])
    images = run_stock(stock, pair[0], tmp_path / pair[0].name, tmp_path / "out", **as_overrides(short(pair[0])))
    assert_equal(last, images[f"{name}_{options(pair[0])['target']}.nii.gz"])


@pytest.mark.parametrize(
    ("image", "params"),
    [("flair", {"acceleration": "many"}), ("nowhere", {}), ("flair", {"noise": -1.0})],
    ids=["option", "image", "range"],
)
def test_a_wrong_request_is_an_error_and_the_server_serves_on(server, image, params, tmp_path):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.infer("sense_mr", image, tmp_path / "answer.nii.gz", **params)
    assert refused.value.code >= 400
    good = server.infer("sense_mr", "flair", tmp_path / "answer.nii.gz", seed=1)
    assert np.isfinite(good.get_fdata()).all()


def test_text_from_an_option_panel_is_enough(server, tmp_path):
    """3D Slicer's panel hands numbers over as text."""
    numbers = server.infer("sense_mr", "flair", tmp_path / "a.nii.gz", acceleration=3, noise=0.02, seed=2)
    texts = server.infer("sense_mr", "flair", tmp_path / "b.nii.gz", acceleration="3", noise="0.02", seed="2")
    assert np.array_equal(numbers.get_fdata(), texts.get_fdata())


def test_the_collection_has_both_kinds():
    """Guards the scan above: if nothing were served, everything would pass."""
    reasons = {b.name: refusal(b) for b in discover(BUNDLES)}
    assert sum(r is None for r in reasons.values()) >= 6
    assert {"osem_pet", "map_pet"} <= {name for name, reason in reasons.items() if reason}
