"""Bytes of valid files changed at random: a reader returns something sound, or raises ValueError with one line."""

import warnings

import h5py
import numpy as np
import pytest
import raw_files as raw
import scipy.io
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multirecon.blocks import Blocks
from multirecon.conversion import describe
from multirecon.data import io
from multirecon.data.io.castor import read_crystals
from multirecon.likelihoods import BlockLikelihood, Gaussian
from multirecon.measurement import Measurement
from multirecon.operators import BlockDiagonal, Identity
from multirecon.space import ImageSpace

READERS = {
    "nifti": (raw.nifti, io.read_nifti),
    "nifti packed": (lambda d: raw.nifti(d, name="image.nii.gz"), io.read_nifti),
    "dicom": (lambda d: raw.dicom_slice(d / "a.dcm", 0, position=(0, 0, 0)), io.read_dicom),
    "npy": (lambda d: np.save(d / "a.npy", np.ones((2, 4, 4), "c8")) or d / "a.npy", io.read_kspace_array),
    "fastmri": (lambda d: raw.fastmri(d, slices=1, single=True), io.read_fastmri),
    "ismrmrd": (lambda d: raw.ismrmrd_file(d, acquisitions=_few()), io.read_ismrmrd),
    "exchange": (lambda d: raw.exchange(d, views=4, bins=20, axis=9, radius=4, frames=2), io.read_data_exchange),
    "matlab": (raw.matlab, io.read_matlab),
    "matlab73": (raw.matlab73, io.read_matlab),
    "interfile image": (raw.interfile_image, io.read_interfile_image),
    "interfile sinogram": (raw.interfile_sinogram, io.read_interfile_sinogram),
    "castor list": (raw.castor_list, io.read_castor),
    "castor histogram": (raw.castor_histogram, io.read_castor),
    "castor normalization": (lambda d: raw.castor(d, LINES, b"\x00\x00\x80?" * 2 + bytes(range(8))), io.read_castor),
    "crystal table": (raw.crystal_table, read_crystals),
    "hdf5 array": (lambda d: _hdf5(d), io.read_kspace_array),
    "matlab4": (
        lambda d: scipy.io.savemat(d / "a.mat", {"a": np.ones((3, 4))}, format="4") or d / "a.mat",
        io.read_matlab,
    ),
    "measurement": (lambda d: _measurement(d), Measurement.load),
    "info": (raw.interfile_image, describe),
}
LINES = {"Number of events": 1, "Data mode": "normalization", "Data type": "PET", "Attenuation correction flag": 1,
         "Normalization correction flag": 1}  # fmt: skip


def _hdf5(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["kspace"] = np.ones((2, 4, 4), np.complex64)
    return folder / "a.h5"


def _measurement(folder):
    space = ImageSpace(["t1"], (4, 4), (1.0, 1.0))
    operator = BlockDiagonal(space, {"t1": Identity((1, 4, 4))})
    return Measurement(Blocks({"t1": torch.ones(1, 1, 4, 4)}), operator, BlockLikelihood({"t1": Gaussian(0.1)})).save(
        folder / "m.h5"
    )


def _few():
    return [raw.acquisition(np.ones((2, raw.NX), np.complex64), y) for y in range(2)]


@pytest.fixture(scope="module", params=READERS)
def target(request, tmp_path_factory):
    make, reader = READERS[request.param]
    path = make(tmp_path_factory.mktemp("fuzz"))
    return path, path.read_bytes(), reader


# positions lean towards the start, where headers are
PLACE = st.one_of(st.integers(0, 600), st.integers(0, 1 << 20))
CHANGE = st.tuples(PLACE, st.integers(0, 255))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGE, min_size=1, max_size=6), keep=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_no_crash_without_a_message(target, changes, keep):
    path, valid, reader = target
    data = bytearray(valid)
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(bytes(data[: int(len(data) * keep)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = reader(path)
        except ValueError as error:
            text = str(error)
            assert ": expected " in text
            assert "\n" not in text
            return
    for name in ("values", "data", "events"):
        array = getattr(result, name, None)
        if isinstance(array, np.ndarray) and array.dtype.kind in "fc":
            assert np.isfinite(array).all()
