"""Planted fakes: whatever a bundle does, the harness records it and finishes the others."""

import pytest
from harness.conftest import write_bundle
from harness.fake_task import FakeTask

from multirecon.harness.methods import find_methods
from multirecon.harness.records import FAILED, NOT_APPLICABLE, OK, RecordFile
from multirecon.harness.runner import evaluate

pytestmark = pytest.mark.timeout(900)  # seven processes that import torch and MONAI

# Faults that a process survives: one bundle that shows another face at every call.
FACES = {
    "looks around": (
        """
import gc, inspect
assert not [n for n in os.environ if n.startswith("MULTIRECON") and n != "MULTIRECON_CACHE"], "a setting leads to data"
assert "noise16" not in map(str, m.metadata.values()), "the noise could be drawn again"
assert not [f for f in os.listdir("/proc/self/fd") if "records" in os.path.realpath(f"/proc/self/fd/{f}")]
data = [t.flatten() for t in m.y.values()]
here = m.back_projection()
found = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.numel() == 256 and t is not here]
for frame in inspect.stack():
    for value in frame.frame.f_locals.values():
        found += [value] if isinstance(value, torch.Tensor) and value.numel() == 256 else []
others = [t for t in found if t.is_floating_point() and not any(torch.equal(t.flatten(), d) for d in data)]
assert not others, "something else of the image's size is in reach"
return here
""",
        "",
    ),
    "nan": ("return m.back_projection() * float('nan')", "finite values"),
    "wrong grid": ("return m.back_projection()[..., ::2]", "expected shape (1, 1, 16, 16)"),
    "error": ("raise ValueError('step: expected > 0,\\ngot -1')", "step: expected > 0, got -1"),
    "no tensor": ("return 'done'", "expected a tensor, got str"),
    "opens": ("next(embedded.glob('*.nii.gz')).read_bytes()", "refused"),
    "opens and swallows": (
        """
try:
    import nibabel
    nibabel.load(next(embedded.glob("*.nii.gz"))).get_fdata()
except OSError:
    return m.back_projection()""",
        "refused",
    ),
    "shell": (
        "import subprocess\nsubprocess.run(['cat', str(embedded / 'mni152.nii.gz')])\nreturn m.back_projection()",
        "refused",
    ),
    "truth of the panels": (
        "import numpy\nreturn torch.from_numpy(numpy.load(next(output.glob('images/*/*_truth_*.npy'))))[None]",
        "refused",
    ),
    "data setting": (
        "import h5py\nreturn torch.from_numpy(h5py.File(output.parent / 'anatomies' / 'truth.h5')['truth'][()])",
        "refused",
    ),
    "honest after all": ("return m.back_projection()", ""),
}
# Faults that the process does not survive, and the process that is started after each.
ENDS = {
    "crash": ("import signal\nos.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    "hang": ("import time\nwhile True: time.sleep(1)", "timeout"),
    "honest after all": ("return m.back_projection()", ""),
}


def by_turns(faults):
    """Code of a method that does the next thing at every call; the count survives its process."""
    bodies = []
    for number, (code, _) in enumerate(faults.values()):
        body = "\n".join("        " + line for line in code.strip().splitlines())
        bodies.append(f"    if turn == {number}:\n{body}")
    return (
        "import os, pathlib\n"
        "def reconstruct(m):\n"
        "    import multirecon\n"
        "    embedded = pathlib.Path(multirecon.__file__).parent / 'data' / 'embedded'\n"
        "    output = pathlib.Path.cwd().parents[2]\n"
        "    count = pathlib.Path('count')\n"
        "    turn = len(count.read_text()) if count.exists() else 0\n"
        "    count.write_text('x' * (turn + 1))\n" + "\n".join(bodies) + "\n    return m.back_projection()\n"
    )


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """One run of honest and dishonest bundles; bundle -> its records in the order in which they were made."""
    folder = tmp_path_factory.mktemp("fakes with a space")
    bundles = folder / "bundles"
    write_bundle(bundles, "a_honest")  # runs first, so that the truths of its panels lie in the output folder
    write_bundle(bundles, "ends", by_turns(ENDS))
    write_bundle(bundles, "faces", by_turns(FACES))
    write_bundle(bundles, "mr_only", capability="Capability(operators=frozenset({'masked_fourier'}))")
    h5py = pytest.importorskip("h5py")
    (folder / "anatomies").mkdir()
    with h5py.File(folder / "anatomies" / "truth.h5", "w") as file:
        file["truth"] = [[1.0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MULTIRECON_ANATOMIES", str(folder / "anatomies"))
        patch.setenv("MULTIRECON_REAL_DATA", str(folder / "anatomies"))
        evaluate([FakeTask(count=len(FACES))], find_methods(bundles), folder / "out", progress=False, timeout=15.0)
    assert list((folder / "out" / "images").rglob("*_truth_*.npy"))
    assert not list((folder / "out" / ".work").glob("run-*"))
    rows = {}
    for record in RecordFile(folder / "out" / "records.jsonl").records():
        rows.setdefault(record.bundle, []).append(record)
    return rows


def test_every_bundle_has_every_record(records):
    assert {name: len(rows) for name, rows in records.items()} == dict.fromkeys(
        ["a_honest", "ends", "faces", "mr_only"], len(FACES)
    )
    assert len({r.key for rows in records.values() for r in rows}) == 4 * len(FACES)
    for rows in zip(*records.values(), strict=True):
        assert len({(r.sample, r.fingerprint) for r in rows}) == 1


def test_the_honest_bundle_is_measured(records):
    for record in records["a_honest"]:
        assert record.status == OK
        assert 15 < record.metrics["t1"]["psnr"] < 25
        assert {"ssim", "nrmse", "psnr@centre"} <= set(record.metrics["t1"])
        assert 0 < record.seconds < 5
        assert record.peak_mb > 50
        assert record.device == "cpu, 1 thread"
        assert record.versions["bundle"] == "0.1.0"


@pytest.mark.parametrize(("bundle", "faults"), [("faces", FACES), ("ends", ENDS)])
def test_faults_become_failures_and_the_rest_goes_on(records, bundle, faults):
    expected = list(faults.values()) + [("", "")] * (len(FACES) - len(faults))
    for record, (_, reason) in zip(records[bundle], expected, strict=True):
        assert record.status == (FAILED if reason else OK), record.reason
        assert reason in record.reason
        assert "\n" not in record.reason
        assert bool(record.metrics) == (not reason)


def test_what_a_method_cannot_take_is_not_applicable(records):
    for record in records["mr_only"]:
        assert record.status == NOT_APPLICABLE
        assert "masked_fourier" in record.reason
