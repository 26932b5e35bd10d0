"""Malformed files: every reader refuses with one line that names the argument, what was expected and what came."""

import re
import struct
import tracemalloc

import h5py
import numpy as np
import pytest
import raw_files as raw

from multirecon.data import io
from multirecon.data.io.castor import read_crystals


def _cut(path, keep=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def _text(path, content="hello"):
    path.write_text(content)
    return path


def _npy(folder, array, **more):
    np.save(folder / "a.npy", array, **more)
    return folder / "a.npy"


def _npy_header(folder, shape, dtype="<c8", data=b"\0" * 64):
    """Write a header that promises more than there is."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    (folder / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)
    return folder / "a.npy"


def _hdf5(folder, **arrays):
    with h5py.File(folder / "a.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return folder / "a.h5"


def _huge(folder, name, shape, dtype="f4", **chunks):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset(name, shape, dtype, **chunks)
    return folder / "a.h5"


def _external(folder, name):
    (folder / "secret.bin").write_bytes(b"\0" * 4096)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset(name, (4, 8, 8), "f4", external=[(str(folder / "secret.bin"), 0, 1024)])
    return folder / "a.h5"


def _soft(folder, name):
    with h5py.File(folder / "a.h5", "w") as file:
        file[name] = h5py.ExternalLink("/etc/passwd", "/x")
    return folder / "a.h5"


def _nifti_header(folder, edit):
    path = raw.nifti(folder)
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(bytes(data))
    return path


def _dims(*dims):
    return lambda data: data.__setitem__(slice(40, 56), struct.pack("<8h", len(dims), *dims, *[1] * (7 - len(dims))))


def _flat_rows(data):
    data[252:256] = struct.pack("<2h", 0, 1)  # qform_code, sform_code
    data[280:328] = struct.pack("<12f", *[0.0, 0, 0, 1] * 3)


def _dicom(folder, **more):
    return raw.dicom_slice(folder / "a.dcm", 0, position=(0, 0, 0), **more)


def _second(folder, **more):
    return raw.dicom_slice(_dicom(folder).parent / "b.dcm", 1, position=(0, 0, 4), **more).parent


def _without(*names):
    return lambda ds: [delattr(ds, name) for name in names]


def _lines(lines, *changes, drop=()):
    """Return header lines with some replaced (by the text before :=) or dropped."""
    result = [line for line in lines if not any(d in line for d in drop)]
    for change in changes:
        key = change.split(":=")[0].strip()
        result = [change if line.split(":=")[0].strip() == key else line for line in result]
        result += [] if change in result else [change]
    return result


def _image(folder, *changes, drop=(), data=None):
    return raw.interfile_image(folder, _lines(raw.INTERFILE_IMAGE, *changes, drop=drop), data)


def _sino(folder, *changes, drop=(), data=None):
    return raw.interfile_sinogram(folder, _lines(raw.INTERFILE_SINOGRAM, *changes, drop=drop), data)


def _events(folder, amount, first, second):
    event = struct.pack("<IfffffII", 0, 2.0, 0.0, 1.0, amount, 0.0, first, second)
    return raw.castor_histogram(folder, event + raw.CASTOR_HISTOGRAM_DATA[32:])


def _fast(folder, **more):
    return raw.fastmri(folder, slices=1, **more)


def _exchange(folder, edit):
    return raw.exchange(folder, edit=edit, views=4)


def _swap(name, value):
    def edit(file):
        del file[name]
        if value is not None:
            file[name] = value

    return edit


def _mr(folder, **changes):
    return raw.ismrmrd_file(folder, header=raw.xml(oversampling=1, **changes), acquisitions=_few())


def _few(coils=(4, 4), samples=raw.NX):
    return [raw.acquisition(np.ones((c, samples), np.complex64), y) for y, c in enumerate(coils)]


def _renamed(path):
    """Damage the name of a field in the type of the acquisitions."""
    path.write_bytes(path.read_bytes().replace(b"kspace_encode_step_2", b"kspace_encode_step_9"))
    return path


def _nan_lines():
    lines = _few()
    lines[0].data[0, 0] = np.nan
    return lines


NAN_KSPACE = np.full((2, 8, 8), np.nan, np.complex64)
CASES = {
    # NIfTI
    "nifti missing": (io.read_nifti, lambda d: d / "none.nii", "path: expected an existing file"),
    "nifti empty": (io.read_nifti, lambda d: _text(d / "a.nii", ""), "path: expected a file with content"),
    "nifti foreign": (io.read_nifti, lambda d: _text(d / "a.nii"), "path: expected a NIfTI image"),
    "nifti cut": (io.read_nifti, lambda d: _cut(raw.nifti(d)), "path: expected 592 bytes"),
    "nifti gz cut": (io.read_nifti, lambda d: _cut(raw.nifti(d, name="a.nii.gz"), 0.8), "path: expected a NIfTI image"),
    "nifti nan": (io.read_nifti, lambda d: raw.nifti(d, values=np.full((2, 2, 2), np.nan, "f4")), "NaN or Inf"),
    "nifti inf": (io.read_nifti, lambda d: raw.nifti(d, values=np.full((2, 2, 2), np.inf, "f4")), "NaN or Inf"),
    "nifti complex": (io.read_nifti, lambda d: raw.nifti(d, values=np.ones((2, 2, 2), "c8")), "expected real values"),
    "nifti huge": (io.read_nifti, lambda d: _nifti_header(d, _dims(30000, 30000, 3)), "expected 10800000352 bytes"),
    "nifti five axes": (
        io.read_nifti,
        lambda d: raw.nifti(d, values=np.ones((1, 2, 1, 1, 3), "f4")),
        "two to four axes",
    ),
    "nifti singular": (io.read_nifti, lambda d: _nifti_header(d, _flat_rows), "affine: expected"),
    # DICOM
    "dicom empty folder": (io.read_dicom, lambda d: d, "path: expected a folder with DICOM files"),
    "dicom foreign": (io.read_dicom, lambda d: _text(d / "a.dcm", "x" * 300), "path: expected a DICOM file"),
    "dicom cut": (io.read_dicom, lambda d: _cut(_dicom(d), 0.97), "path: expected .*in"),
    "dicom cut header": (io.read_dicom, lambda d: _cut(_dicom(d), 0.5), "path: expected"),
    "dicom no position": (
        io.read_dicom,
        lambda d: _dicom(d, edit=_without("ImagePositionPatient")),
        "the tags ImagePositionPatient",
    ),
    "dicom no orientation": (
        io.read_dicom,
        lambda d: _dicom(d, edit=_without("ImageOrientationPatient", "PixelSpacing")),
        "the tags PixelSpacing, ImageOrientationPatient",
    ),
    "dicom no slope": (io.read_dicom, lambda d: _dicom(d, edit=_without("RescaleSlope")), "tag RescaleSlope of CT"),
    "dicom no pixels": (io.read_dicom, lambda d: _dicom(d, edit=_without("PixelData")), "expected 6 x 5 pixels"),
    "dicom rows": (io.read_dicom, lambda d: _dicom(d, Rows=7), "expected 70 bytes of pixels"),
    "dicom 8 GB": (io.read_dicom, lambda d: _dicom(d, Rows=65535, Columns=65535), "expected 65535 x 65535 pixels"),
    "dicom frames": (io.read_dicom, lambda d: _dicom(d, NumberOfFrames="3"), "one image a file"),
    "dicom colour": (io.read_dicom, lambda d: _dicom(d, PhotometricInterpretation="RGB"), "grey values"),
    "dicom spacing": (io.read_dicom, lambda d: _dicom(d, PixelSpacing=[0.0, 1.0]), "pixel spacing > 0"),
    "dicom oblique": (io.read_dicom, lambda d: _dicom(d, orientation=(1, 0, 0, 1, 0, 0)), "orthonormal orientation"),
    "dicom sizes differ": (
        io.read_dicom,
        lambda d: _second(d, pixels=np.ones((4, 5), "i2")),
        "one Rows in a series",
    ),
    "dicom turned slice": (
        io.read_dicom,
        lambda d: _second(d, orientation=(0, 1, 0, 0, 0, 1)),
        "one orientation in a series",
    ),
    "dicom two series": (
        io.read_dicom,
        lambda d: _second(d, series="1.9"),
        "series: expected one series, got",
    ),
    "dicom missing slice": (io.read_dicom, lambda d: raw.dicom(d, heights=(0, 4, 12)), r"missing at \[8.0\] mm"),
    # arrays
    "npy empty": (io.read_npy, lambda d: _text(d / "a.npy", ""), "file with content"),
    "npy foreign": (io.read_npy, lambda d: _text(d / "a.npy"), "no pickle, no archive"),
    "npy pickled": (io.read_npy, lambda d: _npy(d, np.array([{}], object), allow_pickle=True), "Python objects"),
    "npy records": (io.read_npy, lambda d: _npy(d, np.zeros(3, [("a", "f4")])), "expected numbers"),
    "npy text": (io.read_npy, lambda d: _npy(d, np.array(["a"])), "expected numbers"),
    "npy cut": (io.read_npy, lambda d: _cut(_npy(d, np.ones(100)), 0.7), "800 bytes of data"),
    "npy huge": (io.read_npy, lambda d: _npy_header(d, (8, 40000, 40000)), "102400000000 bytes"),
    "npy negative size": (io.read_npy, lambda d: _npy_header(d, (-8, 1)), "bytes of data for shape"),
    "npy header code": (io.read_npy, lambda d: _npy_header(d, "__import__('os').getcwd()"), "path: expected"),
    "npz": (
        io.read_npy,
        lambda d: np.savez(d / "a.npz", a=np.ones(3)) or d / "a.npz",
        "no pickle, no archive",
    ),
    "k-space real": (io.read_kspace_array, lambda d: _npy(d, np.ones((2, 8, 8))), "complex numbers"),
    "k-space nan": (io.read_kspace_array, lambda d: _npy(d, NAN_KSPACE), "NaN or Inf"),
    "k-space zeros": (io.read_kspace_array, lambda d: _npy(d, np.zeros((2, 8, 8), "c8")), "at least one sample"),
    "k-space axes": (io.read_kspace_array, lambda d: _npy(d, np.ones((1, 1, 2, 8, 8), "c8")), "layout: expected"),
    "k-space flat": (io.read_kspace_array, lambda d: _npy(d, np.ones(8, "c8")), "layout: expected letters"),
    "hdf5 foreign": (io.read_kspace_array, lambda d: _text(d / "a.h5"), "HDF5"),
    "hdf5 cut": (io.read_kspace_array, lambda d: _cut(_hdf5(d, k=np.ones((2, 8, 8), "c8"))), "got damage"),
    "hdf5 no array": (io.read_kspace_array, lambda d: _hdf5(d, k=np.ones(3)), "dataset: expected the name"),
    "hdf5 two": (
        io.read_kspace_array,
        lambda d: _hdf5(d, a=np.ones((2, 8, 8), "c8"), b=np.ones((2, 8, 8), "c8")),
        r"there are \['a', 'b'\]",
    ),
    "hdf5 10 GB": (io.read_kspace_array, lambda d: _huge(d, "k", (8, 12500, 12500), "c8"), "declared but empty"),
    "hdf5 text": (io.read_kspace_array, lambda d: _hdf5(d, k="text"), "dataset: expected the name"),
    # fastMRI
    "fastmri foreign": (io.read_fastmri, lambda d: _hdf5(d, x=np.ones(3)), "dataset 'kspace'"),
    "fastmri real": (io.read_fastmri, lambda d: _fast(d, data=np.ones((1, 4, 8, 8))), "expected numbers, got dtype"),
    "fastmri axes": (io.read_fastmri, lambda d: _fast(d, data=np.ones((8, 8), "c8")), r"kspace \(slices"),
    "fastmri nan": (io.read_fastmri, lambda d: _fast(d, data=NAN_KSPACE[None]), "NaN or Inf"),
    "fastmri too large": (
        io.read_fastmri,
        lambda d: _fast(d, data=np.full((1, 2, 64, 24), 3e38, "c8")),
        "finite complex64 samples",
    ),
    "k-space too large": (
        io.read_kspace_array,
        lambda d: _npy(d, np.full((2, 8, 8), 1e300, "c16")),
        "finite complex64 samples",
    ),
    "fastmri mask": (io.read_fastmri, lambda d: _fast(d, mask=np.ones(7)), "a mask of 24 columns"),
    "fastmri 10 GB": (io.read_fastmri, lambda d: _huge(d, "kspace", (9, 15, 640, 15000), "c8"), "declared but empty"),
    "fastmri 10 GB chunks": (
        io.read_fastmri,
        lambda d: _sparse(d, "kspace", (9, 15, 640, 15000), "c8"),
        "stored",
    ),
    "fastmri external": (io.read_fastmri, lambda d: _soft(d, "kspace"), "got a link"),
    "fastmri header": (
        io.read_fastmri,
        lambda d: _hdf5(d, kspace=np.ones((1, 2, 8, 8), "c8"), ismrmrd_header=b"<x/>"),
        "ISMRMRD header",
    ),
    # ISMRMRD
    "ismrmrd foreign": (io.read_ismrmrd, lambda d: _hdf5(d, x=np.ones(3)), "ISMRMRD 'xml' and 'data'"),
    "ismrmrd radial": (io.read_ismrmrd, lambda d: _mr(d, trajectory="radial"), "a Cartesian trajectory"),
    "ismrmrd no xml": (
        io.read_ismrmrd,
        lambda d: raw.ismrmrd_file(d, header="not xml", acquisitions=_few()),
        "ISMRMRD header",
    ),
    "ismrmrd matrix": (io.read_ismrmrd, lambda d: _mr(d, ex=0), "positive matrix sizes"),
    "ismrmrd 10 GB matrix": (
        io.read_ismrmrd,
        lambda d: _mr(d, ex=60000, ny=60000, efov=99, fov_x=99, fov_y=99),
        "a matrix .* that the data fill",
    ),
    "ismrmrd coils": (
        io.read_ismrmrd,
        lambda d: raw.ismrmrd_file(d, acquisitions=_few((4, 5))),
        r"one number of coils, got \[4, 5\]",
    ),
    "ismrmrd samples": (
        io.read_ismrmrd,
        lambda d: raw.ismrmrd_file(d, acquisitions=_few(samples=200)),
        "lines within the encoded matrix",
    ),
    "ismrmrd nan": (io.read_ismrmrd, lambda d: raw.ismrmrd_file(d, acquisitions=_nan_lines()), "NaN or Inf"),
    "ismrmrd fields": (io.read_ismrmrd, lambda d: _renamed(raw.ismrmrd_file(d, acquisitions=_few())), "got damage"),
    "ismrmrd noise only": (
        io.read_ismrmrd,
        lambda d: raw.ismrmrd_file(d, acquisitions=raw.standard_lines(slices=0)),
        "imaging acquisitions",
    ),
    # Data Exchange
    "exchange foreign": (io.read_data_exchange, lambda d: _hdf5(d, x=np.ones(3)), "exchange/data"),
    "exchange negative": (
        io.read_data_exchange,
        lambda d: _exchange(d, _swap("exchange/data", -np.ones((4, 2, 80)))),
        "counts >= 0, got -1",
    ),
    "exchange nan": (
        io.read_data_exchange,
        lambda d: _exchange(d, _swap("exchange/data", np.full((4, 2, 80), np.nan))),
        "NaN or Inf",
    ),
    "exchange axes": (
        io.read_data_exchange,
        lambda d: _exchange(d, _swap("exchange/data", np.ones((4, 80)))),
        "views, rows, bins",
    ),
    "exchange white": (
        io.read_data_exchange,
        lambda d: _exchange(d, _swap("exchange/data_white", np.ones((3, 2, 79)))),
        r"exchange/data_white \(frames, 2, 80\)",
    ),
    "exchange no white": (
        io.read_data_exchange,
        lambda d: _exchange(d, _swap("exchange/data_white", None)),
        "flat fields",
    ),
    "exchange dim white": (
        io.read_data_exchange,
        lambda d: _exchange(d, _swap("exchange/data_white", np.ones((3, 2, 80)))),
        "white: expected flat fields brighter",
    ),
    "exchange theta": (
        io.read_data_exchange,
        lambda d: _exchange(d, _swap("exchange/theta", np.ones(3))),
        "4 finite angles",
    ),
    "exchange external": (io.read_data_exchange, lambda d: _external(d, "exchange/data"), "external or virtual"),
    "exchange 10 GB": (
        io.read_data_exchange,
        lambda d: _huge(d, "exchange/data", (2000, 1000, 1300)),
        "declared but empty",
    ),
    # MATLAB
    "matlab foreign": (io.read_matlab, lambda d: _text(d / "a.mat"), "path: expected a MATLAB file"),
    "matlab cut": (io.read_matlab, lambda d: _cut(raw.matlab(d)), "path: expected"),
    "matlab cell": (io.read_matlab, lambda d: raw.matlab(d, c=np.array([[1, "a"]], object)), "dataset: expected"),
    "matlab text": (io.read_matlab, lambda d: raw.matlab(d, c="text"), "dataset: expected"),
    "matlab nan": (io.read_matlab, lambda d: raw.matlab(d, c=np.full((2, 2), np.nan)), "NaN or Inf"),
    "matlab two": (io.read_matlab, lambda d: raw.matlab(d, a=np.ones((2, 2)), b=np.ones((2, 2))), r"\['a', 'b'\]"),
    "matlab complex": (io.read_matlab_sinogram, lambda d: raw.matlab(d, c=np.ones((2, 2)) * 1j), "real numbers"),
    # Interfile
    "interfile foreign": (io.read_interfile_image, lambda d: _text(d / "a.hdr"), "Interfile header"),
    "interfile kind": (io.read_interfile_image, raw.interfile_sinogram, "an Interfile image, got a sinogram"),
    "interfile other kind": (io.read_interfile_sinogram, raw.interfile_image, "an Interfile sinogram, got an image"),
    "interfile short": (io.read_interfile_image, lambda d: _image(d, data=b"\0" * 22), "24 bytes of data .*got 22"),
    "interfile long": (io.read_interfile_image, lambda d: _image(d, data=b"\0" * 26), "24 bytes of data .*got 26"),
    "interfile 10 GB": (
        io.read_interfile_image,
        lambda d: _image(d, "!matrix size [1] := 2000000000"),
        "16000000000 bytes",
    ),
    "interfile no size": (
        io.read_interfile_image,
        lambda d: _image(d, drop=["matrix size [1]"]),
        r"'matrix size\[1\]'",
    ),
    "interfile negative": (io.read_interfile_image, lambda d: _image(d, "!matrix size [1] := -3"), "whole number >= 1"),
    "interfile words": (io.read_interfile_image, lambda d: _image(d, "!matrix size [1] := many"), "a number for"),
    "interfile format": (io.read_interfile_image, lambda d: _image(d, "!number format := ascii"), "a number format of"),
    "interfile order": (io.read_interfile_image, lambda d: _image(d, "imagedata byte order := MIDDLE"), "byte order"),
    "interfile width": (io.read_interfile_image, lambda d: _image(d, "!number of bytes per pixel := 3"), "a size of"),
    "interfile no data": (
        io.read_interfile_image,
        lambda d: (raw.interfile_image(d), (d / "image.img").unlink())[0],
        "the data file 'image.img' beside",
    ),
    "interfile nan": (io.read_interfile_sinogram, lambda d: _sino(d, data=np.full(80, np.nan, "<f4").tobytes()), "NaN"),
    "interfile segments": (
        io.read_interfile_sinogram,
        lambda d: _sino(d, "!matrix size [4] := 2"),
        "2 numbers of planes",
    ),
    "interfile rings": (
        io.read_interfile_sinogram,
        lambda d: _sino(d, "minimum ring difference per segment := { 0 }"),
        "3 ring differences",
    ),
    # CASToR
    "castor foreign": (io.read_castor, lambda d: _text(d / "a.cdh"), "CASToR data header"),
    "castor cut": (
        io.read_castor,
        lambda d: raw.castor_list(d, raw.CASTOR_LIST_DATA[:-1]),
        r"2 events of 32 bytes \(64",
    ),
    "castor 10 GB": (io.read_castor, lambda d: raw.castor_list(d, **{"Number of events": 400_000_000}), "12800000000"),
    "castor mode": (
        io.read_castor,
        lambda d: raw.castor_list(d, **{"Data mode": "calibration"}),
        "data mode list-mode",
    ),
    "castor type": (io.read_castor, lambda d: raw.castor_list(d, **{"Data type": "SPECT"}), "data type PET"),
    "castor flag": (io.read_castor, lambda d: raw.castor_list(d, **{"TOF information flag": 2}), "0 or 1 for"),
    "castor wrong flag": (
        io.read_castor,
        lambda d: raw.castor_list(d, **{"TOF information flag": 0}),
        "2 events of 28",
    ),
    "castor negative": (
        io.read_castor,
        lambda d: _events(d, -1.0, 0, 4),
        "amount >= 0, got -1",
    ),
    "castor nan": (
        io.read_castor,
        lambda d: _events(d, np.nan, 0, 4),
        "NaN or Inf",
    ),
    "castor one crystal": (
        io.read_castor,
        lambda d: _events(d, 1.0, 4, 4),
        "two different crystals",
    ),
    "castor no data": (
        io.read_castor,
        lambda d: raw.castor_list(d, **{"Data filename": "none.cdf"}),
        "the data file 'none.cdf'",
    ),
    "castor table": (read_crystals, lambda d: _text(d / "a.lut", "x" * 23), "scanner: expected six float32"),
    # detection
    "detect nothing": (io.detect_format, lambda d: _text(d / "a.xyz"), "path: expected one of"),
    "detect binary": (
        io.detect_format,
        lambda d: (d / "a").write_bytes(bytes(range(256))) and d / "a",
        "expected one of",
    ),
    "detect folder": (io.detect_format, lambda d: d, "a folder without"),
}


def _sparse(folder, name, shape, dtype):
    """Write one chunk of many."""
    with h5py.File(folder / "a.h5", "w") as file:
        dataset = file.create_dataset(name, shape, dtype, chunks=(1, 1, 64, 64), compression="gzip")
        dataset[0, 0, :64, :64] = 1
    return folder / "a.h5"


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line_without_allocating(tmp_path, case):
    reader, make, message = CASES[case]
    path = make(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            reader(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert "\n" not in text
    assert re.search(r": expected .+, got ", text), text
    assert peak < 64e6


def test_the_table_is_long():
    assert len(CASES) >= 100
