"""Bytes of valid files changed at random: a reader returns something sound, or raises ValueError with one line."""

import warnings

import numpy as np
import pytest
import raw_files as raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multirecon.data import io

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
}


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
