"""An EM program that runs by files inside plug-and-play ADMM, with a small stand-in for CASToR's executable."""

import shlex
import stat
import sys

import numpy as np
import pytest
import torch

from multirecon.data.io.interfile import write_interfile_image
from multirecon.data.io.volume import Volume
from multirecon.interop.castor import ExternalEM, castor_command
from multirecon.likelihoods import Poisson
from multirecon.operators import PETProjector
from multirecon.reconstruction.plug_and_play import plug_and_play
from multirecon.solvers.em_engine import TorchEM

N, PIXEL = 12, 10.0
# reads the options of castor-recon that it needs, Interfile headers by itself, and a dense system matrix as "data file"
STAND_IN = """import sys
import numpy as np

options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
assert options["-opti"] == "MLEM" and options["-it"] == "1:1", options
keys = dict(line.lstrip("!").split(":=") for line in open(options["-img"]) if ":=" in line)
keys = {{name.strip(): value.strip() for name, value in keys.items()}}
shape = tuple(int(keys[f"matrix size [{{i}}]"]) for i in (3, 2, 1))
assert ",".join(str(n) for n in reversed(shape)) == options["-dim"], (shape, options)
raw = options["-img"].rsplit(".", 1)[0] + ".img"
x = np.fromfile(raw, "<f4").astype(float)
scan = np.load(options["-df"])
A, y, b = scan["A"], scan["y"], scan["b"]
s = A.sum(0)
em = np.where(s > 0, x * (A.T @ (y / np.maximum(A @ x + b, 1e-12))) / np.where(s > 0, s, 1), 0)
em.astype("<f4").tofile(options["-fout"] + "_it1.img")
header = open(options["-img"]).read().replace("start.img", options["-fout"].rsplit("/", 1)[1] + "_it1.img")
open(options["-fout"] + "_it1.hdr", "w").write(header)
"""
AFFINE = torch.diag(torch.tensor([PIXEL, PIXEL, PIXEL, 1.0]))


def flips(image):
    """Voxels in the order of the file: x fastest, to the left; y to the back."""
    return image.flip(0, 1).T.reshape(-1)


@pytest.fixture
def scan():
    A = PETProjector((N, N), (PIXEL, PIXEL), views=10, bins=17, efficiency=4.0)
    place = (torch.arange(N) - (N - 1) / 2).abs()
    truth = ((place[:, None] < 4) & (place < 3)).float()[None, None] + 0.3 * (place < 5)
    truth[..., 3, 4] = 3.0
    likelihood = Poisson(torch.full((1, 1, 10, 17), 2.0))
    y = likelihood.sample(A(truth), torch.Generator().manual_seed(0))
    return A, likelihood, y


@pytest.fixture
def program(scan, tmp_path):
    """A folder with the executable, its data file and its sensitivity."""
    A, likelihood, y = scan
    columns = torch.stack([A(one.reshape(1, 1, N, N))[0, 0].reshape(-1) for one in torch.eye(N * N)], dim=1)
    order = flips(torch.arange(N * N).reshape(N, N))
    np.savez(tmp_path / "scan.npz", A=columns[:, order].double(), y=y.double().reshape(-1),
             b=likelihood.background.double().reshape(-1))  # fmt: skip
    path = tmp_path / "castor-recon"
    script = tmp_path / "castor-recon.py"
    script.write_text(STAND_IN.format())
    # a shebang cannot name an interpreter whose path has blanks
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def external(program, scan, **options):
    A, likelihood, y = scan
    command = castor_command(program / "scan.npz", shape=(N, N, 1), spacing_mm=(PIXEL,) * 3,
                             program=str(program / "castor-recon"))  # fmt: skip
    return ExternalEM(command, sensitivity=TorchEM(A, likelihood, y).sensitivity, affine=AFFINE, **options)


def test_one_iteration_is_ours(program, scan):
    x = 0.5 + torch.rand(1, 1, N, N, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        external(program, scan, counts=float(scan[2].sum())).update(x), TorchEM(*scan).update(x), rtol=1e-4, atol=1e-5
    )


def test_plug_and_play_runs_around_the_program(program, scan):
    """The same images, residuals and fixed-point error, whoever does the EM iterations."""

    def smooth(image):
        return 0.5 * image + 0.5 * torch.nn.functional.avg_pool2d(image, 3, 1, 1)

    settings = {"scale": torch.tensor([0.7]), "rho": torch.tensor([2.0]), "iterations": 4, "inner_iterations": 3}
    start = torch.ones(1, 1, N, N)
    ours = plug_and_play(TorchEM(*scan), smooth, start, **settings)
    theirs = plug_and_play(external(program, scan), smooth, start, **settings)
    torch.testing.assert_close(theirs.x, ours.x, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(theirs.residuals, ours.residuals, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(theirs.error, ours.error, rtol=1e-2, atol=1e-5)


def test_the_sensitivity_may_be_a_file(program, scan):
    s = TorchEM(*scan).sensitivity
    path = write_interfile_image(Volume(s[0, 0, ..., None].numpy(), AFFINE.numpy()), program / "sens.hdr")
    engine = ExternalEM(["program", "{start}", "{output}"], sensitivity=path, affine=AFFINE)
    torch.testing.assert_close(engine.sensitivity, s)


def test_the_documented_command_line():
    words = castor_command("scan.Cdh", shape=(8, 8, 2), spacing_mm=(2.0, 2.0, 3.27), psf_fwhm_mm=4.5,
                           sensitivity="sens.hdr", options=["-osens"])  # fmt: skip
    assert words[0] == "castor-recon"
    pairs = dict(zip(words[1:-1:2], words[2:-1:2], strict=True))
    assert pairs == {
        "-df": "scan.Cdh", "-opti": "MLEM", "-it": "1:1", "-proj": "joseph", "-dim": "8,8,2", "-vox": "2,2,3.27",
        "-img": "{start}", "-fout": "{output}", "-th": "1", "-vb": "1", "-conv": "gaussian,4.5,4.5,3.5::psf",
        "-sens": "sens.hdr",
    }  # fmt: skip
    assert words[-1] == "-osens"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/no/such/program", "{start}", "{output}"], "expected '/no/such/program' to run"),
        ([sys.executable, "-c", "import sys; sys.exit('no data {start} {output}')"], "got 1: no data"),
        ([sys.executable, "-c", "'{start} {output}'"], "expected the image 'image_it1.hdr' from the program"),
        ([sys.executable, "-c", "import time; time.sleep(9); '{start} {output}'"], "timed out"),
    ],
    ids=["missing", "failing", "silent", "hanging"],
)
def test_a_program_that_fails_is_one_clear_line(words, message):
    engine = ExternalEM(words, sensitivity=torch.ones(1, 1, 4, 4), affine=AFFINE, timeout_s=2.0)
    with pytest.raises(ValueError, match=message) as error:
        engine.update(torch.ones(1, 1, 4, 4))
    assert "\n" not in str(error.value)


def test_other_units_are_found_out(program, scan):
    engine = external(program, scan, counts=float(scan[2].sum()))
    engine._sensitivity = 100 * engine.sensitivity
    with pytest.raises(ValueError, match="not in the program's units"):
        engine.update(torch.ones(1, 1, N, N))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected the places"):
        ExternalEM(["program"], sensitivity=torch.ones(1, 1, 4, 4), affine=AFFINE)
    with pytest.raises(ValueError, match="sensitivity: expected"):
        ExternalEM(["p", "{start}", "{output}"], sensitivity=-torch.ones(1, 1, 4, 4), affine=AFFINE)
    engine = ExternalEM(["p", "{start}", "{output}"], sensitivity=torch.ones(1, 1, 4, 4), affine=AFFINE)
    with pytest.raises(ValueError, match="x: expected one image"):
        engine.update(torch.ones(2, 1, 4, 4))
