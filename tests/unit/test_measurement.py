import json

import h5py
import numpy as np
import pytest
import torch

from multirecon.blocks import Blocks
from multirecon.likelihoods import BlockLikelihood, Gaussian, TransmissionPoisson
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Identity, MaskedFourier, ParallelBeam
from multirecon.operators.coils import birdcage_maps
from multirecon.space import ImageSpace, Modality


def measurement(batch=2):
    space = ImageSpace(["t1", Modality("ct", unit="1/cm", scale=0.2), "flair", "pet_fdg"], (16, 16), (2.0, 2.0))
    mask = (torch.arange(16) % 4 == 0).float().expand(16, 16)
    operator = BlockDiagonal(
        space,
        {
            "t1": Identity((1, 16, 16)),
            "ct": ParallelBeam((16, 16), (2.0, 2.0), views=12, bins=24),
            "flair": MaskedFourier(mask, birdcage_maps(4, (16, 16))),
        },
    )
    likelihood = BlockLikelihood({"t1": Gaussian(0.0), "ct": TransmissionPoisson(1e4), "flair": Gaussian(0.01)})
    g = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 4, 16, 16, generator=g) * 0.3
    return Measurement(likelihood.sample(operator(x), g), operator, likelihood, {"scanner": "test"}), x


def test_availability():
    m, _ = measurement()
    assert m.available == ("t1", "ct", "flair")
    assert m.clean == ("t1",)
    assert m.missing == ("pet_fdg",)


def test_gradient_is_that_of_the_fidelity():
    m, x = measurement()
    m = m.restrict(["ct", "flair"])
    x = x.double()
    m64 = Measurement(m.y.to(torch.float64), m.operator.double(), m.likelihood.double())
    d = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eps = 1e-5
    numeric = (m64.data_fidelity(x + eps * d) - m64.data_fidelity(x - eps * d)) / (2 * eps)
    assert torch.allclose(numeric, (m64.data_gradient(x) * d).flatten(1).sum(1), rtol=1e-5)


def test_file_round_trip_is_exact(tmp_path):
    m, x = measurement()
    again = Measurement.load(m.save(tmp_path / "a b ü.h5"))
    assert again.fingerprint() == m.fingerprint()
    assert again.metadata == {"scanner": "test"}
    assert again.space.names == m.space.names
    assert again.space["ct"].unit == "1/cm"
    m2, again2 = m.restrict(["ct", "flair"]), again.restrict(["ct", "flair"])
    assert torch.equal(m2.data_fidelity(x), again2.data_fidelity(x))
    assert [p.name for p in tmp_path.iterdir()] == ["a b ü.h5"]


def test_fingerprint_sees_one_changed_value():
    m, _ = measurement()
    changed = m.y["ct"].clone()
    changed[0, 0, 0, 0] += 1
    other = Measurement(Blocks({**dict(m.y), "ct": changed}), m.operator, m.likelihood)
    assert other.fingerprint() != m.fingerprint()


def test_embedding_keeps_the_data():
    m, x = measurement()
    larger = ImageSpace(["pet_fdg", "flair", "ct", "t2", "t1"], (16, 16), (2.0, 2.0))
    e = m.embed(larger)
    index = larger.channel_index(["t1", "ct", "flair", "pet_fdg"])
    stack = torch.zeros(2, 5, 16, 16)
    stack[:, index] = x
    part = ["ct", "flair"]
    assert torch.allclose(e.restrict(part).data_fidelity(stack), m.restrict(part).data_fidelity(x))
    with pytest.raises(ValueError, match="expected modalities"):
        m.embed(ImageSpace(["t1"], (16, 16), (2.0, 2.0)))
    with pytest.raises(ValueError, match="expected the grid"):
        m.embed(ImageSpace(["t1", "ct", "flair", "pet_fdg"], (16, 16), (1.0, 1.0)))


def test_samples_of_a_batch():
    m, x = measurement(3)
    part = ["ct", "flair"]
    whole = m.restrict(part).data_fidelity(x)
    assert torch.allclose(m.restrict(part).samples(1, 2).data_fidelity(x[1:2]), whole[1:2])


def test_names_and_shapes_must_agree():
    m, _ = measurement()
    with pytest.raises(ValueError, match="same names"):
        Measurement(m.y.select(["ct"]), m.operator, m.likelihood)
    with pytest.raises(ValueError, match=r"y\['ct'\]: expected shape"):
        Measurement(Blocks({**dict(m.y), "ct": m.y["ct"][..., :5]}), m.operator, m.likelihood)


def test_nan_is_refused():
    m, _ = measurement()
    bad = m.y["t1"].clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="expected finite data"):
        Measurement(Blocks({**dict(m.y), "t1": bad}), m.operator, m.likelihood)


def _edit(path, edit):
    with h5py.File(path, "r+") as f:
        edit(f)


def _relink(f):
    del f["y/ct"]
    f["y/ct"] = h5py.SoftLink("/y/t1")


def _external(f):
    del f["y/ct"]
    f["y/ct"] = h5py.ExternalLink("other.h5", "/secret")


def _huge(f):
    del f["y/ct"]
    f["y"].create_dataset("ct", shape=(10**5, 10**5), dtype="f4", chunks=(1024, 1024))


def _objects(f):
    del f["y/ct"]
    f["y"].create_dataset("ct", data=np.array(["__import__('os')"], dtype=object), dtype=h5py.string_dtype())


def _kind(f):
    f["operator/ct"].attrs["kind"] = "os.system"


def _arguments(f):
    f["operator/ct"].attrs["plain"] = json.dumps({"shape": [16, 16], "payload": "$__import__('os').getcwd()"})


def _empty(f):
    shape = f["y/ct"].shape
    del f["y/ct"]
    f["y"].create_dataset("ct", shape=shape, dtype="f4", chunks=True)


DAMAGES = {
    "foreign": (lambda f: f.attrs.__setitem__("format", "other"), "format"),
    "newer": (lambda f: f.attrs.__setitem__("version", 99), "newer multirecon"),
    "soft link": (_relink, "link"),
    "external link": (_external, "link"),
    "declared 40 GB": (_huge, "at most"),
    "declared but empty": (_empty, "declared but empty"),
    "objects": (_objects, "expected numbers"),
    "unknown kind": (_kind, "expected a kind"),
    "unknown argument": (_arguments, "do not fit"),
    "missing block": (lambda f: f["likelihood"].__delitem__("ct"), "expected a member 'ct'"),
    "bad space": (lambda f: f.attrs.__setitem__("space", "[1, 2"), "expected a readable measurement"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_with_one_clear_line(tmp_path, damage):
    edit, message = DAMAGES[damage]
    path = measurement()[0].save(tmp_path / "m.h5")
    _edit(path, edit)
    with pytest.raises(ValueError, match=message) as caught:
        Measurement.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_truncated_files_are_refused(tmp_path, keep):
    path = measurement()[0].save(tmp_path / "m.h5")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="expected a readable measurement"):
        Measurement.load(path)


def test_failed_save_leaves_nothing(tmp_path, monkeypatch):
    m, _ = measurement()
    good = m.save(tmp_path / "m.h5").read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("multirecon.measurement.encode", fail)
    with pytest.raises(OSError, match="disk full"):
        m.save(tmp_path / "m.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["m.h5"]
    assert (tmp_path / "m.h5").read_bytes() == good


def test_missing_file():
    with pytest.raises(ValueError, match="expected an existing file"):
        Measurement.load("nowhere.h5")
