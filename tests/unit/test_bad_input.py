"""Everything a user can hand over, broken: one line that names it, says what was expected and what came; no file left.

The table covers task files, measurement files, what measurements are made of, folders of images, weights, tuned
settings, guests, claims, bundle overrides and the command line. Raw data files have a table of their own of the same
form, ``data/io/test_malformed.py``.
"""

import functools
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import raw_files as raw
import torch
from contract.stock import arguments, environment
from contract.tiny_bundle import write_tiny
from harness.test_faults import run_apart

from multirecon import tasks
from multirecon.__main__ import main
from multirecon.blocks import Blocks
from multirecon.bundle import load, read_weights
from multirecon.bundle.guard import root_cause
from multirecon.bundle.weights import check_weights
from multirecon.harness.claims import parse_claim
from multirecon.harness.guests import read_guest
from multirecon.inputs import InputFolder, LoadInputd
from multirecon.likelihoods import BlockLikelihood, Gaussian, Poisson, TransmissionPoisson
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Identity, MaskedFourier, ParallelBeam, Resample
from multirecon.reconstruction import ImageSource, Tuning
from multirecon.space import ImageSpace, Modality

ROOT = Path(__file__).resolve().parents[2]
EYE = np.eye(4)


# --- task files -------------------------------------------------------------------------------------------------------


@functools.cache
def task_text(name="flair_x4_t1"):
    return (ROOT / "common/multirecon/tasks" / f"{name}.json").read_text(encoding="utf-8")


def task(edit, name="flair_x4_t1"):
    """Return a case: the task's JSON, changed."""

    def build(folder):
        config = json.loads(task_text(name))
        config = edit(config) or config
        (folder / "task.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
        return lambda: tasks.load(folder / "task.json")

    return build


def put(path, value):
    """Return an edit of one key, ``acquisition.scans.flair.sigma`` for example."""

    def edit(config):
        *above, last = path.split(".")
        for key in above:
            config = config[key]
        config[last] = value

    return edit


CLEAN = {"_target_": "multirecon.acquisition.CleanImage"}


def scan(**changes):
    return lambda config: config["acquisition"]["scans"]["flair"].update(changes)


def sampled(set_name):
    def build(folder):
        return lambda: tasks.load("flair_x4").samples(set_name)

    return build


TASKS = {
    "no JSON": (task(lambda c: "{'name': 1}"), "expected JSON"),
    "empty file": (task(lambda c: " "), "expected JSON"),
    "a list": (task(lambda c: "[]"), "task: expected a value of type object"),
    "number that is none": (task(put("acquisition.scans.flair.sigma", float("nan"))), "expected finite numbers"),
    "no name": (task(lambda c: c.pop("name") and c), "task: expected the keys"),
    "name": (task(put("name", "FLAIR x4")), "name: expected text that matches"),
    "unknown key": (task(put("targetts", ["flair"])), "task: expected some of the keys .* got .*targetts"),
    "no targets": (task(put("targets", [])), "targets: expected a list of at least 1"),
    "targets as text": (task(put("targets", "flair")), "targets: expected a value of type array"),
    "target twice": (task(put("targets", ["flair", "flair"])), "targets: expected different items"),
    "foreign target": (task(put("targets", ["ct"])), "targets: expected some of"),
    "no metrics": (task(put("metrics", [])), "metrics: expected a list of at least 1"),
    "repeats": (task(put("repeats", 0)), "repeats: expected a number >= 1"),
    "repeats as text": (task(put("repeats", "two")), "repeats: expected a value of type integer"),
    "sets": (task(put("sets", {"huge": {}})), "sets: expected the keys"),
    "family": (task(put("family", "xray")), "family: expected one of"),
    "sweep": (task(put("sweeps", [{"name": "a"}])), r"sweeps\.0: expected the keys"),
    "no modalities": (task(put("space.modalities", [])), "modalities: expected at least one"),
    "modality twice": (task(put("space.modalities", ["flair", "flair"])), "modalities: expected"),
    "modality name": (task(put("space.modalities", ["FLAIR", "t1"])), "name: expected a lower-case identifier"),
    "shape": (task(put("space.shape", [128, 0])), "shape: expected two or three positive sizes"),
    "one axis": (task(put("space.shape", [128])), "shape: expected two or three"),
    "spacing": (task(put("space.spacing_mm", [1.875])), "spacing_mm: expected 2 positive numbers"),
    "negative spacing": (task(put("space.spacing_mm", [1.0, -1.0])), "spacing_mm: expected 2 positive"),
    "affine": (task(put("space.affine", [[0] * 4] * 3 + [[0, 0, 0, 1]])), "affine: expected a finite, invertible"),
    "shape as text": (task(put("space.shape", "large")), "shape, spacing_mm: expected lists of numbers"),
    "unknown field of the space": (task(put("space.colour", "red")), "ImageSpace: expected arguments that fit"),
    "code": (task(scan(sigma="$__import__('os').system('true')")), "sigma: expected a plain value"),
    "macro": (task(scan(sigma="%other.json::x")), "sigma: expected a plain value"),
    "reference": (task(scan(sigma="@dataset")), "sigma: expected a plain value"),
    "foreign class": (task(put("acquisition.scans.t1._target_", "os.system")), "_target_: expected one of"),
    "class as a number": (task(put("acquisition.scans.t1._target_", 3)), "_target_: expected one of"),
    "no scans": (task(put("acquisition.scans", {})), "scans: expected at least 1 keys"),
    "scan of a stranger": (task(put("acquisition.scans.ct", CLEAN)), "modality: expected one of"),
    "oversample": (task(put("acquisition.oversample", 0)), "oversample: expected a number >= 1"),
    "pattern": (task(scan(pattern="spiral")), "pattern: expected one of"),
    "acceleration": (task(scan(acceleration=-4)), "acceleration: expected a number >= 0"),
    "no accelerations": (task(scan(acceleration=[])), "acceleration: expected a number >= 0 or a list"),
    "sigma": (task(scan(sigma=-0.1)), "sigma: expected"),
    "maps": (task(scan(maps="guessed")), "maps: expected one of"),
    "maps without lines": (task(scan(maps="estimated")), "center_lines: expected at least 12"),
    "coils": (task(scan(coils=0)), "coils: expected"),
    "unknown option of a scan": (task(scan(speed=4)), "Acquisition: expected arguments that fit .*speed"),
    "views": (task(put("acquisition.scans.ct.views", 0), "ct_sparse60"), "views, photons, scatter: expected"),
    "photons": (task(put("acquisition.scans.ct.photons", 0.0), "ct_sparse60"), "views, photons, scatter: expected"),
    "scatter": (task(put("acquisition.scans.ct.scatter_ratio", -0.1), "ct_sparse60"), "scatter_ratio.*expected >= 0"),
    "counts": (task(put("acquisition.scans.pet_fdg.counts", -5.0), "pet_counts_5"), "counts"),
    "unknown set": (sampled("huge"), "set of task 'flair_x4': expected one of"),
    "no such task": (lambda d: lambda: tasks.load("flair_x5"), "task: expected one of"),
    "no such file": (lambda d: lambda: tasks.load(d / "none.json"), "task: expected one of"),
}  # fmt: skip


# --- measurement files and what they are made of ----------------------------------------------------------------------


def scanned():
    space = ImageSpace(["flair", Modality("ct", unit="1/cm", scale=0.2)], (8, 8), (2.0, 2.0))
    maps = torch.ones(2, 8, 8, dtype=torch.complex64) / 2**0.5
    operator = BlockDiagonal(
        space,
        {"flair": MaskedFourier(torch.ones(8, 8), maps), "ct": ParallelBeam((8, 8), (2.0, 2.0), views=4, bins=12)},
    )
    likelihood = BlockLikelihood({"flair": Gaussian(0.1), "ct": TransmissionPoisson(100.0)})
    y = Blocks({"flair": torch.ones(1, 2, 8, 8, dtype=torch.complex64), "ct": torch.full((1, 1, 4, 12), 90.0)})
    return y, operator, likelihood


@functools.cache
def file_bytes():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return Measurement(*scanned()).save(Path(folder) / "m.h5").read_bytes()


def stored(edit=None, keep=1.0):
    """Return a case: a measurement file, edited or cut."""

    def build(folder):
        path = folder / "m.h5"
        path.write_bytes(file_bytes()[: int(len(file_bytes()) * keep)])
        if edit is not None:
            with h5py.File(path, "r+") as file:
                edit(file)
        return lambda: Measurement.load(path)

    return build


def replace(name, value=None, **options):
    def edit(file):
        del file[name]
        if value is None:
            file.create_dataset(name, **options)
        else:
            file[name] = value

    return edit


def attribute(place, name, value):
    return lambda file: file[place].attrs.__setitem__(name, value)


def spaced(**changes):
    def edit(file):
        file.attrs["space"] = json.dumps({**json.loads(file.attrs["space"]), **changes})

    return edit


FLAT = np.array([1, 0, 0, 0, 0, 0, 0, 0], np.float32)
FILES = {
    "cut": (stored(keep=0.5), "expected a readable measurement"),
    "one byte": (stored(keep=1e-5), "expected a readable measurement"),
    "foreign": (stored(attribute("/", "format", "other")), "format: expected"),
    "newer": (stored(attribute("/", "version", 99)), "version: expected 1, got 99 .written by a newer"),
    "version as text": (stored(attribute("/", "version", "one")), "expected a readable measurement"),
    "space is no JSON": (stored(attribute("/", "space", "{")), "expected a readable measurement"),
    "space of a stranger": (
        stored(attribute("/", "space", '{"_target_": "os.system"}')),
        "expected a readable measurement",
    ),
    "grid": (stored(spaced(shape=[8, 9])), r"operators\['flair'\]: expected domain"),
    "affine": (stored(spaced(affine=[[0] * 4] * 4)), "affine: expected"),
    "channels": (stored(spaced(modalities=["flair", {"name": "ct", "channels": 2}])), r"operators\['ct'\]: expected"),
    "modality gone": (stored(spaced(modalities=["flair"])), "modality: expected one of"),
    "block gone": (stored(lambda f: f["y"].__delitem__("ct")), "expected a member 'ct'"),
    "operator gone": (stored(lambda f: f["operator"].__delitem__("flair")), "expected a member 'flair'"),
    "nan": (stored(replace("y/ct", np.full((1, 1, 4, 12), np.nan, "f4"))), "expected finite data"),
    "inf": (stored(replace("y/ct", np.full((1, 1, 4, 12), np.inf, "f4"))), "expected finite data"),
    "negative counts": (stored(replace("y/ct", np.full((1, 1, 4, 12), -1, "f4"))), r"y\['ct'\]: expected counts >= 0"),
    "coils": (stored(replace("y/flair", np.ones((1, 3, 8, 8), "c8"))), r"y\['flair'\]: expected shape \(B, 2, 8, 8\)"),
    "views": (stored(replace("y/ct", np.ones((1, 1, 5, 12), "f4"))), r"y\['ct'\]: expected shape"),
    "maps of other coils": (stored(replace("operator/flair/maps", np.ones((5, 8, 8), "c8"))), "expected"),
    "maps of another grid": (stored(replace("operator/flair/maps", np.ones((2, 8, 9), "c8"))), "expected"),
    "real maps": (stored(replace("operator/flair/maps", np.ones((2, 8, 8), "f4"))), "maps: expected a complex dtype"),
    "mask": (stored(replace("operator/flair/mask", np.full((8, 8), 0.5, "f4"))), "mask: expected values 0 and 1"),
    "objects": (stored(replace("y/ct", shape=(2,), dtype=h5py.string_dtype())), "expected numbers"),
    "10 GB": (stored(replace("y/ct", shape=(1, 1, 50_000, 50_000), dtype="f4", chunks=(1, 1, 64, 64))), "at most"),
    "declared and empty": (stored(replace("y/ct", shape=(1, 1, 4, 12), dtype="f4", chunks=True)), "declared but empty"),
    "a group for an array": (stored(lambda f: (f.__delitem__("y/ct"), f.create_group("y/ct"))), "expected a dataset"),
    "unknown kind": (stored(attribute("operator/ct", "kind", "os.system")), "expected a kind of"),
    "likelihood for operator": (stored(attribute("operator/ct", "kind", "gaussian")), "expected|do not fit"),
    "payload": (stored(attribute("operator/ct", "plain", '{"_target_": "os.system"}')), "do not fit kind"),
    "arguments are a list": (stored(attribute("operator/ct", "plain", "[1]")), "expected a JSON object of arguments"),
    "external link": (
        stored(lambda f: (f.__delitem__("y/ct"), f.__setitem__("y/ct", h5py.ExternalLink("/etc/passwd", "/x")))),
        "expected data inside the file",
    ),
    "text": (
        lambda d: ((d / "m.h5").write_text("no"), lambda: Measurement.load(d / "m.h5"))[1],
        "expected a readable measurement",
    ),
    "missing": (lambda d: lambda: Measurement.load(d / "none.h5"), "expected an existing file"),
}


def made(function):
    """Return a case that needs no file."""
    return lambda folder: function


def measurement(**changes):
    y, operator, likelihood = scanned()
    parts = {"y": y, "operator": operator, "likelihood": likelihood}
    return Measurement(**{**parts, **{k: v(parts) for k, v in changes.items()}})


IMAGES = ImageSpace(["flair", "t1"], (8, 8), (2.0, 2.0))
OBJECTS = {
    "names": (made(lambda: measurement(y=lambda p: p["y"].select(["ct"]))), "blocks: expected the same names"),
    "unknown modality": (made(lambda: BlockDiagonal(IMAGES, {"ct": Identity((1, 8, 8))})), "modality: expected one of"),
    "grid of a block": (made(lambda: BlockDiagonal(IMAGES, {"t1": Identity((1, 8, 9))})), "expected domain"),
    "stack of another grid": (made(lambda: IMAGES.check(torch.ones(1, 2, 8, 9))), r"image: expected shape \(B, 2"),
    "channel missing": (
        made(lambda: ImageSource(IMAGES)(torch.ones(1, 1, 8, 8))), "image: expected 2 channels .* got 1"
    ),
    "channel too many": (
        made(lambda: ImageSource(IMAGES)(torch.ones(1, 3, 8, 8))), "image: expected 2 channels .* got 3"
    ),
    "channel of NaN for missing": (
        made(lambda: ImageSource(IMAGES)(torch.stack([torch.ones(8, 8), torch.full((8, 8), torch.nan)])[None])),
        "expected finite",
    ),
    "available stranger": (made(lambda: ImageSource(IMAGES, available=["ct"])), "modality: expected one of"),
    "percentile": (made(lambda: ImageSource(IMAGES, percentile=0.0)), "percentile: expected"),
    "larger stack of another grid": (
        made(lambda: measurement().embed(ImageSpace(["flair", "ct"], (8, 8), (1.0, 1.0)))), "space: expected the grid"
    ),
    "larger stack without the measured": (
        made(lambda: measurement().embed(ImageSpace(["flair"], (8, 8), (2.0, 2.0)))), "space: expected modalities"
    ),
    "negative background": (made(lambda: Poisson(-1.0)), "background: expected"),
    "no photons": (made(lambda: TransmissionPoisson(0.0)), "I0: expected"),
    "negative noise": (made(lambda: Gaussian(-1.0)), "sigma: expected"),
    "affine of three rows": (made(lambda: ImageSpace(["t1"], (8, 8), (1, 1), EYE[:3])), "affine: expected shape"),
    "last row of the affine": (made(lambda: ImageSpace(["t1"], (8, 8), (1, 1), 2 * EYE)), "affine: expected the last"),
    "grids in different planes": (
        made(lambda: Resample((1, 8, 8), (4, 4), source_affine=EYE, target_affine=EYE + np.eye(4, k=1).T * 0.3)),
        "target_affine: expected the plane",
    ),
    "profile": (
        made(lambda: Resample((1, 8, 8), (4, 4), source_affine=EYE, target_affine=EYE, profile="sinc")),
        "profile: expected",
    ),
}  # fmt: skip


# --- folders of images ------------------------------------------------------------------------------------------------


def folder_of(*images):
    """Return a case: one sample of several images, loaded as a bundle loads them."""

    def build(folder):
        (folder / "case").mkdir()
        for k, (shape, affine, value) in enumerate(images):
            nib.save(nib.Nifti1Image(np.full(shape, value, np.float32), affine), folder / "case" / f"{k}.nii.gz")
        return lambda: InputFolder(folder, transform=LoadInputd("image"))[0]

    return build


def lone(name, data):
    def build(folder):
        (folder / name).write_bytes(data)
        return lambda: InputFolder(folder, transform=LoadInputd("image"))[0]

    return build


PLAIN = ((4, 4, 4), EYE, 1.0)
FOLDERS = {
    "empty folder": (lambda d: lambda: InputFolder(d), "dataset_dir: expected measurement files .* got none"),
    "no folder": (lambda d: lambda: InputFolder(d / "none"), "dataset_dir: expected an existing folder"),
    "a file for a folder": (
        lambda d: ((d / "a").touch(), lambda: InputFolder(d / "a"))[1], "dataset_dir: expected an existing folder"
    ),
    "nothing": (lambda d: lambda: InputFolder(""), "dataset_dir: expected a folder"),
    "other files": (lone("a.txt", b"hello"), "dataset_dir: expected measurement files"),
    "no image": (lone("a.nii.gz", b"hello"), "expected a readable image"),
    "empty image": (lone("a.nii", b""), "expected a readable image"),
    "no measurement": (lone("a.h5", b"hello"), "expected a readable measurement"),
    "NaN": (folder_of(((4, 4, 4), EYE, np.nan)), "image: expected finite values"),
    "Inf": (folder_of(PLAIN, ((4, 4, 4), EYE, np.inf)), "image: expected finite values"),
    "two shapes": (folder_of(PLAIN, ((4, 4, 5), EYE, 1.0)), "image: expected files on one grid"),
    "two affines": (folder_of(PLAIN, ((4, 4, 4), np.diag([2, 1, 1, 1]), 1.0)), "image: expected files on one grid"),
    "five axes": (folder_of(((2, 2, 2, 2, 2), EYE, 1.0)), "expected 2 to 4 axes|expected a readable image"),
}  # fmt: skip


# --- weights, tuned settings, guests, claims --------------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def weights(content=None, data=None):
    def build(folder):
        if data is not None:
            (folder / "model.pt").write_bytes(data)
        elif content is not None:
            torch.save(content, folder / "model.pt")
        return lambda: check_weights(folder / "model.pt", torch.nn.Linear(2, 2))

    return build


def cut_weights(folder):
    torch.save(torch.nn.Linear(50, 50).state_dict(), folder / "model.pt")
    raw_bytes = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(raw_bytes[: len(raw_bytes) // 2])
    return lambda: read_weights(folder / "model.pt")


GOOD = torch.nn.Linear(2, 2).state_dict()
WEIGHTS = {
    "missing": (weights(), "checkpoint: expected an existing file"),
    "empty": (weights(data=b""), "model.pt: expected a checkpoint"),
    "corrupt": (weights(data=b"PK\x03\x04" + b"\0" * 100), "model.pt: expected a checkpoint"),
    "cut": (cut_weights, "model.pt: expected a checkpoint"),
    "pickled code": (weights(data=pickle.dumps({"weight": Payload()})), "weights_only=True"),
    "code in a checkpoint": (weights({"weight": Payload()}), "weights_only=True"),
    "a module": (weights(torch.nn.Linear(2, 2)), "weights_only=True"),
    "a list": (weights([torch.ones(2)]), "expected a state dict, got list"),
    "nested": (weights({"model": GOOD}), "expected tensors only"),
    "NaN": (weights({**GOOD, "bias": torch.tensor([1.0, torch.nan])}), "expected finite values"),
    "name missing": (weights({"weight": GOOD["weight"]}), r"expected the weights of Linear, got none for \['bias'\]"),
    "name unknown": (weights({**GOOD, "scale": torch.ones(1)}), r"unknown ones for \['scale'\]"),
    "shape": (weights({**GOOD, "bias": torch.ones(3)}), r"bias: expected shape \(2,\), got \(3,\)"),
}


def settings(content):
    def build(folder):
        (folder / "tuning.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return lambda: Tuning({"weight": 1.0}, path=folder / "tuning.json")

    return build


def tuned(values):
    return settings({"format": 1, "settings": values})


TUNING = {
    "no JSON": (settings("{"), "expected a JSON file of tuned settings"),
    "a list": (settings([]), "format: expected 1"),
    "newer": (settings({"format": 2, "settings": {}}), "format: expected 1, got 2"),
    "no settings": (settings({"format": 1}), "settings: expected kinds with settings, got NoneType"),
    "unknown name": (tuned({"pet/poisson": {"wieght": 1.0}}), r"expected some of \['weight'\], got \['wieght'\]"),
    "kind": (tuned({"pet": {"weight": 1.0}}), "expected '<operator kind>/<likelihood kind>'"),
    "text": (tuned({"pet/poisson": {"weight": "1"}}), "weight: expected a finite number, got '1'"),
    "infinite": (tuned({"pet/poisson": {"weight": float("inf")}}), "weight: expected a finite number"),
    "no number": (tuned({"pet/poisson": 1.0}), "expected names with numbers"),
}

GUEST = json.loads((ROOT / "docs/guests/deepinv_admm_tv.json").read_text())


def guest(**changes):
    def build(folder):
        content = {k: v for k, v in {**GUEST, **changes}.items() if v is not None}
        (folder / "guest.json").write_text(json.dumps(content))
        return lambda: read_guest(folder / "guest.json")

    return build


def model(**changes):
    return guest(model={**GUEST["model"], **changes})


def claim(**changes):
    return made(lambda: parse_claim({"name": "A1", "sentence": "a sentence", "source": "here", "tests": [], **changes}))


OTHERS = {
    "guest missing": (lambda d: lambda: read_guest(d / "none.json"), "guest: expected an existing JSON file"),
    "guest without model": (guest(model=None), "expected the keys .* missing"),
    "guest with a stranger": (guest(colour="red"), "expected the keys .* unknown"),
    "guest's name": (guest(name="A B"), "name: expected lower-case"),
    "guest's noise": (guest(clean_sigma=-1), "clean_sigma: expected a number > 0"),
    "guest's payload": (guest(model={"_target_": "os.system"}), "_target_: expected"),
    "guest's argument": (model(prior={"_target_": "deepinv.optim.L2", "colour": 1}), "expected an argument of L2"),
    "guest's nested payload": (model(prior={"_target_": "builtins.eval"}), "_target_: expected"),
    "guest's capability": (guest(capability={"ndim": 2}), "capability.ndim: expected a list"),
    "claim without tests": (claim(tests=[]), "tests: expected a list of at least 1"),
    "claim's sentence": (claim(sentence=3), "sentence: expected a value of type string"),
    "claim's test": (claim(tests=[{"kind": "worse"}]), r"tests\.0"),
}

LIBRARY = {"task": TASKS, "file": FILES, "object": OBJECTS, "folder": FOLDERS, "weights": WEIGHTS, "tuning": TUNING,
           "other": OTHERS}  # fmt: skip


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize(
    ("group", "case"), [pytest.param(g, c, id=f"{g}: {c}") for g, table in LIBRARY.items() for c in table]
)
def test_refused_in_one_line(group, case, tmp_path, monkeypatch):
    build, message = LIBRARY[group][case]
    monkeypatch.chdir(tmp_path)
    call = build(tmp_path)
    before = listing(tmp_path)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        call()
    # MONAI wraps what a transform raises; its commands show the cause
    error = caught.value if isinstance(caught.value, ValueError) else root_cause(caught.value)
    assert isinstance(error, ValueError)
    text = str(error)
    assert re.search(message, text), text
    assert "\n" not in text
    assert re.search(r"expected .*(got|found|has)", text), text
    assert listing(tmp_path) == before


# --- the command line -------------------------------------------------------------------------------------------------

COMMANDS = [
    ("convert {d}/k.npy {d}/o.h5 --slices 4", 1, "slices: expected"),
    ("convert {d}/k.npy {d}/o.h5 --modality T1", 1, "name: expected a lower-case identifier"),
    ("convert {d}/k.npy {d}/o.h5 --calibration 0", 1, "calibration: expected > 0"),
    ("convert {d}/k.npy {d}/o.h5 --spacing-mm 1,x", 1, "spacing_mm: expected numbers"),
    ("convert {d}/k.npy {d}/o.h5 --spacing-mm 1,-1", 1, "spacing_mm: expected numbers > 0"),
    ("convert {d}/k.npy {d}/o.h5 --every 0", 1, "every: expected > 0"),
    ("convert {d}/k.npy {d}/o.h5 --every two", 2, "--every: expected a whole number"),
    ("convert {d}/k.npy {d}/o.h5 --coils 8", 2, "unknown flag '--coils'"),
    ("convert {d}/k.npy", 2, "missing argument OUTPUT"),
    ("convert {d}/k.npy {d}/o.h5 --subject 01", 1, "subject: expected no such option"),
    ("convert {d}/list.cdh {d}/o.h5", 1, "scanner: expected the crystal table"),
    ("convert {d}/list.cdh {d}/o.h5 --scanner {d}/k.npy", 1, "scanner: expected"),
    ("convert {d}/list.cdh {d}/o.h5 --scanner {d}/ring.lut", 1, "path: expected no scatter rates beside time of"),
    ("convert {d}/list.cdh {d}/o.h5 --scanner {d}/ring.lut --normalization {d}/text", 1, "path: expected a CASToR"),
    ("convert {d}/list.cdh {d}/o.h5 --scanner {d}/ring.lut --oblique", 1, "oblique: expected no such option"),
    ("convert {d}/sino.hs {d}/o.h5 --oblique", 1, "oblique: expected a header with number of rings"),
    ("convert {d}/sino.hs {d}/o.h5 --oblique --slices 0", 1, "slices: expected no such option"),
    ("info {d}", 1, "file: expected a folder with measurement files"),
    ("info {d}/none", 1, "path: expected an existing file"),
    ("info {d}/text", 1, "path: expected one of"),
    ("reconstruct {d}/none.h5 {d}/o", 1, "measurement file: expected an existing file"),
    ("reconstruct {d}/text {d}/o", 1, "expected a readable measurement"),
    ("reconstruct {d}/m.h5 {d}/o --timeout 0", 1, "timeout: expected > 0"),
    ("reconstruct {d}/m.h5 {d}/o --device tpu:9", 1, "device: expected a device"),
    ("reconstruct {d}/m.h5 {d}/o --device cuda:7", 1, "device: expected a CUDA device"),
    ("reconstruct {d}/m.h5 {d}/o --method none", 1, "expected one of"),
    ("reconstruct {d}/m.h5 {d}/o --subject a/b --method sense_mr", 1, "subject: expected letters and digits"),
    ("evaluate {d}/o --tasks none", 1, "task: expected one of"),
    ("evaluate {d}/o --bundles none", 1, "bundle: expected one of"),
    ("evaluate {d}/o --tasks flair_x4 --bundles sense_mr:none", 1, "variant of 'sense_mr': expected one of"),
    ("evaluate {d}/o --timeout 0", 1, "timeout: expected > 0"),
    ("evaluate {d}/o --repeats -1", 1, "repeats: expected > 0"),
    ("evaluate {d}/o --limit 0", 1, "limit: expected > 0"),
    ("evaluate {d}/o --samples 1", 1, "samples: expected 0 or at least 2"),
    ("evaluate {d}/o --shard 3/2", 1, "shard: expected i/n"),
    ("evaluate {d}/o --shard one", 1, "shard: expected i/n"),
    ("evaluate {d}/o --device cuda", 1, "device: expected a CUDA device for 'cuda', this machine has none"),
    ("evaluate {d}/o --folder {d}/none", 1, "bundles: expected"),
    ("evaluate {d}/o --guests {d}/none.json", 1, "guest: expected an existing JSON file"),
    ("evaluate", 2, "missing argument OUTPUT"),
    ("simulate none {d}/o", 1, "task: expected one of"),
    ("simulate flair_x4 {d}/o --limit 0 --noprogress", 1, "limit: expected at least one sample"),
    ("simulate flair_x4 {d}/o --set-name huge --noprogress", 1, "expected one of"),
    ("report", 1, "folders: expected at least one"),
    ("report {d}", 1, "records: expected an existing file"),
    ("merge {d}/o", 1, "folders: expected at least one"),
    ("new Bad-Name --like sense_mr", 1, "name: expected"),
    ("new os --like sense_mr", 1, "name: expected"),
    ("dataset build {d}/o --split none", 1, "split: expected"),
    ("dataset build {d}/o --split train --size 0", 1, "size: expected > 0"),
    ("dataset info {d}", 1, "expected"),
    ("dataset", 2, "unknown command"),
    ("anatomies download {d}/o --names none --noprogress", 1, "names: expected some of"),
    ("reconstrcut {d}/m.h5", 2, "unknown command 'reconstrcut'"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "message"), COMMANDS, ids=[c[0].replace("{d}/", "") for c in COMMANDS])
def test_commands_say_what_is_wrong_in_one_line(line, code, message, tmp_path, capsys, monkeypatch):
    if "cuda" in line and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    monkeypatch.chdir(ROOT)
    np.save(tmp_path / "k.npy", raw.coil_data()[0])
    (tmp_path / "text").write_text("hello")
    (tmp_path / "m.h5").write_bytes(file_bytes())
    raw.castor_list(tmp_path).rename(tmp_path / "list.cdh")
    raw.crystal_table(tmp_path, 400)
    raw.interfile_sinogram(tmp_path)
    if line.startswith("info {d}") and line == "info {d}":
        (tmp_path / "m.h5").unlink()
    before = listing(tmp_path)
    assert main([word.format(d=tmp_path) for word in line.split()]) == code
    captured = capsys.readouterr()
    assert re.search(message, captured.err), captured.err
    assert captured.err.startswith("multirecon: ")
    assert captured.err.count("\n") == 1
    assert listing(tmp_path) == before


# --- output that cannot be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["k.h5", "image.nii.gz", "image.hdr"])
def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, name):
    source = np.save(tmp_path / "in.npy", raw.coil_data()[0]) or "in.npy"
    if name != "k.h5":
        noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
        source = raw.nifti(tmp_path, values=noise, name="in.nii").name
    before = listing(tmp_path)
    words = ["convert", str(tmp_path / source), str(tmp_path / name)]
    assert run_apart(words, tmp_path.with_suffix(".errors"), file_limit=4000) == 1
    errors = tmp_path.with_suffix(".errors").read_text().strip().splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("multirecon: ")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["o.h5", "deep/er/o.h5"])
def test_an_output_below_a_file_is_one_line(tmp_path, name, capsys):
    np.save(tmp_path / "k.npy", raw.coil_data()[0])
    assert main(["convert", str(tmp_path / "k.npy"), str(tmp_path / "k.npy" / name)]) == 1
    error = capsys.readouterr().err
    assert "expected a file or folder that can be read and written, got" in error
    assert error.count("\n") == 1


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="another user can only be asked for by root")
def test_an_output_of_another_user_is_one_line(tmp_path):
    np.save(tmp_path / "k.npy", raw.coil_data()[0])
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "k.npy").chmod(0o644)
    before = listing(tmp_path)
    words = ["convert", str(tmp_path / "k.npy"), str(tmp_path / "o.h5")]
    assert run_apart(words, tmp_path.with_suffix(".errors"), user=65534) == 1
    errors = tmp_path.with_suffix(".errors").read_text().strip().splitlines()
    assert len(errors) == 1, errors
    assert "o.h5" in errors[0] or str(tmp_path) in errors[0]
    assert "expected a file or folder that can be read and written, got 'Permission denied'" in errors[0]
    assert listing(tmp_path) == before


# --- bundles ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = list(sys.path)
    yield write_tiny(tmp_path_factory.mktemp("bundles"), "bad_input_mr")
    sys.path[:] = path


@pytest.fixture
def damaged(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled.pt").write_bytes(pickle.dumps({"layer.weight": Payload()}))
    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pt")
    return tmp_path


OVERRIDES = {
    "mistyped key": ({"datasetdir": "x"}, r"unknown key 'datasetdir' .did you mean 'dataset_dir'"),
    "mistyped nested key": ({"inferer#sorce": 1}, "sorce"),
    "empty data": ({"dataset_dir": "{d}/empty"}, "dataset_dir: expected measurement files"),
    "no data": ({"dataset_dir": "{d}/none"}, "dataset_dir: expected an existing folder"),
    "no samples": ({"dataset#default#count": 0}, "dataset: expected at least one sample, got none"),
    "no weights": ({"ckpt_path": "{d}/none.pt"}, "checkpoint: expected an existing file"),
    "corrupt weights": ({"ckpt_path": "{d}/text.pt"}, "text.pt: expected a checkpoint"),
    "pickled weights": ({"ckpt_path": "{d}/pickled.pt"}, "pickled.pt: expected a checkpoint"),
    "weights of another network": ({"ckpt_path": "{d}/other.pt"}, "other.pt: expected the weights of Network"),
    "no CUDA": ({"device": "$torch.device('cuda:63')"}, "device: expected one of this machine"),
    "no CUDA, as text": ({"device": "cuda:63"}, "device: expected one of this machine"),
    "no device": ({"device": "tpu"}, "device: expected a device such as cpu or cuda:0, got 'tpu'"),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_bundles_refuse_before_they_compute(bundle, damaged, case, monkeypatch):
    overrides, message = OVERRIDES[case]
    filled = {k: v.format(d=damaged) if isinstance(v, str) else v for k, v in overrides.items()}
    monkeypatch.chdir(damaged)
    before = listing(damaged)
    with pytest.raises((ValueError, RuntimeError, KeyError)) as caught:
        load(bundle, output_dir=str(damaged / "out"), **filled).run()
    error = root_cause(caught.value)
    assert re.search(message, str(error)), error
    assert listing(damaged) == before


@pytest.mark.parametrize("case", ["pickled weights", "no CUDA, as text"])
def test_the_stock_command_ends_in_one_line(bundle, damaged, case):
    overrides, message = OVERRIDES[case]
    filled = {k: v.format(d=damaged) for k, v in overrides.items()}
    words = arguments("run", config_file=str(bundle.configs / "inference.json"), bundle_root=str(bundle.root),
                      output_dir=str(damaged / "out"), **filled)  # fmt: skip
    before = listing(damaged)
    done = subprocess.run([sys.executable, "-m", "monai.bundle", *words], cwd=damaged, env=environment(),
                          capture_output=True, encoding="utf-8", check=False)  # fmt: skip
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last)
    assert "Traceback" not in done.stderr
    assert listing(damaged) == before


def test_the_table_is_long():
    assert sum(map(len, LIBRARY.values())) + len(COMMANDS) + len(OVERRIDES) >= 200
