"""Small valid files of every format, written without the readers under test: by other packages or byte by byte."""

import struct

import h5py
import ismrmrd
import nibabel as nib
import numpy as np
import pydicom
import scipy.io
from pydicom.dataset import FileMetaDataset

COILS, NX, NY = 4, 32, 24


def kspace_of(maps, image):
    """Centred orthonormal transform of the coil images."""
    axes = tuple(range(1, 1 + image.ndim))
    spectrum = np.fft.fftn(np.fft.ifftshift(maps * image, axes), axes=axes, norm="ortho")
    return np.fft.fftshift(spectrum, axes).astype(np.complex64)


def coil_data(nx=NX, ny=NY, coils=COILS, seed=0, sigma=1e-3):
    """Return k-space ``(coils, nx, ny)`` and the real image it belongs to, smooth maps, a little noise."""
    x, y = np.meshgrid(np.linspace(-1, 1, nx), np.linspace(-1, 1, ny), indexing="ij")
    image = ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1) * (1.0 + 0.5 * ((x - 0.2) ** 2 + y**2 < 0.05))
    angles = 2 * np.pi * np.arange(coils) / coils
    maps = np.stack([np.exp(-((x - np.cos(a)) ** 2 + (y - np.sin(a)) ** 2) / 3 + 0.5j * a) for a in angles])
    maps = maps / np.sqrt((np.abs(maps) ** 2).sum(0))
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=maps.shape) + 1j * rng.normal(size=maps.shape)
    return (kspace_of(maps, image) + sigma * noise).astype(np.complex64), image


def nifti(folder, *, values=None, affine=None, name="image.nii", big_endian=False):
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5) if values is None else values
    header = nib.Nifti1Header(endianness=">" if big_endian else "<")
    header.set_data_dtype(values.dtype)
    image = nib.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine, header)
    nib.save(image, folder / name)
    return folder / name


def dicom_slice(path, k, *, position, pixels=None, series="1.2.3.4", orientation=(1, 0, 0, 0, 1, 0), edit=None, **tags):
    """Write one CT slice by hand; ``edit`` changes the dataset before it is saved."""
    pixels = np.full((6, 5), 10 * k, np.int16) if pixels is None else pixels
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{series}.{k + 1}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", series, "1.2.9"
    ds.Modality, ds.InstanceNumber, ds.PatientID = "CT", k + 1, "anyone"
    ds.Rows, ds.Columns = pixels.shape
    ds.PixelSpacing, ds.SliceThickness = [2.0, 3.0], "4"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [float(p) for p in position], list(map(float, orientation))
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = "2", "-1024"
    ds.PixelData = pixels.astype("<i2").tobytes()
    for name, value in tags.items():
        setattr(ds, name, value)
    if edit is not None:
        edit(ds)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, f"{series}.{k + 1}"
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def dicom(folder, heights=(0, 4, 8, 12), name="series", **more):
    """Write a series whose file names run against the order of the slices."""
    for k, z in enumerate(heights):
        dicom_slice(folder / name / f"{99 - k}.dcm", k, position=(-10, -20, z), **more)
    return folder / name


XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <experimentalConditions><H1resonanceFrequency_Hz>128000000</H1resonanceFrequency_Hz></experimentalConditions>
 <encoding>
  <encodedSpace><matrixSize><x>{ex}</x><y>{ny}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>{efov}</x><y>{fov_y}</y><z>5</z></fieldOfView_mm></encodedSpace>
  <reconSpace><matrixSize><x>{nx}</x><y>{ny}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>{fov_x}</x><y>{fov_y}</y><z>5</z></fieldOfView_mm></reconSpace>
  <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{centre}</center>
   </kspace_encoding_step_1></encodingLimits>
  <trajectory>{trajectory}</trajectory>
 </encoding>
</ismrmrdHeader>"""


def xml(*, nx=NX, ny=NY, oversampling=2, trajectory="cartesian", **changes):
    facts = {"ex": nx * oversampling, "nx": nx, "ny": ny, "efov": 2.0 * nx * oversampling, "fov_x": 2.0 * nx,
             "fov_y": 3.0 * ny, "last": ny - 1, "centre": ny // 2, "trajectory": trajectory}  # fmt: skip
    return XML.format(**{**facts, **changes})


def oversampled(kspace):
    """Return the k-space of a view twice as wide along the readout."""
    axes = (1,)
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, axes), axis=1, norm="ortho"), axes)
    n = kspace.shape[1]
    wide = np.zeros((kspace.shape[0], 2 * n, kspace.shape[2]), np.complex64)
    start = n - n // 2
    wide[:, start : start + n] = image
    return np.fft.fftshift(np.fft.fft(np.fft.ifftshift(wide, axes), axis=1, norm="ortho"), axes).astype(np.complex64)


def acquisition(line, y, *, slice_=0, flags=(), centre=None, **index):
    acq = ismrmrd.Acquisition.from_array(np.ascontiguousarray(line))
    acq.center_sample = line.shape[1] // 2 if centre is None else centre
    acq.idx.kspace_encode_step_1, acq.idx.slice = y, slice_
    for name, value in index.items():
        setattr(acq.idx, name, value)
    acq.position[:] = (10.0, 20.0, 30.0 + 5 * slice_)
    acq.read_dir[:], acq.phase_dir[:], acq.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    for flag in flags:
        acq.set_flag(flag)
    return acq


def ismrmrd_file(folder, *, header=None, acquisitions=None, name="raw.h5", slices=1):
    """Write a file by the ISMRMRD package: two-fold readout oversampling, noise lines first, one line reversed."""
    path = folder / name
    with ismrmrd.Dataset(str(path), "dataset", create_if_needed=True) as file:
        file.write_xml_header((header or xml()).encode())
        for acq in acquisitions if acquisitions is not None else standard_lines(slices):
            file.append_acquisition(acq)
    return path


def standard_lines(slices=1, skipped=()):
    rng = np.random.default_rng(3)
    noise = (rng.normal(size=(COILS, 64)) + 1j * rng.normal(size=(COILS, 64))).astype(np.complex64)
    lines = [acquisition(noise, 0, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])]
    for s in range(slices):
        wide = oversampled(coil_data(seed=s)[0])
        for y in range(NY):
            if y in skipped:
                continue
            line = wide[:, :, y]
            if y == 3:  # an even readout reversed about its centre N // 2 loses its first sample
                turned = line[:, ::-1][:, : 2 * NX - 1]
                lines.append(acquisition(turned, y, slice_=s, flags=[ismrmrd.ACQ_IS_REVERSE], centre=NX - 1))
            else:
                lines.append(acquisition(line, y, slice_=s))
    return lines


def fastmri(folder, *, slices=3, single=False, mask=None, header=True, name="file.h5", data=None):
    wide = np.stack([oversampled(coil_data(seed=s)[0]) for s in range(slices)])
    wide = wide[:, 0] if single else wide
    with h5py.File(folder / name, "w") as file:
        file["kspace"] = wide if data is None else data
        if header:
            file["ismrmrd_header"] = xml().encode()
        if mask is not None:
            file["mask"] = mask
        file.attrs["acquisition"] = "AXT2"
    return folder / name


def disc_projections(views=60, bins=80, rows=2, axis=43.3, radius=12.0, centre=(9.0, -4.0), last=180.0):
    """Return exact line integrals ``(rows, views, bins)`` of a disc off the axis, and the angles in radians."""
    angles = np.deg2rad(np.arange(views) * last / views)
    s = np.arange(bins) - axis
    at = centre[0] * np.cos(angles) + centre[1] * np.sin(angles)
    chord = 2 * np.sqrt(np.maximum(radius**2 - (s[None] - at[:, None]) ** 2, 0))
    return np.repeat(0.04 * chord[None], rows, axis=0), angles


def exchange(folder, *, edit=None, views=60, white=20000.0, dark=100.0, gain=2.0, frames=10, name="scan.h5", **more):
    lines, angles = disc_projections(views=views, **more)
    rng = np.random.default_rng(1)
    rows, _, bins = lines.shape
    data = gain * rng.poisson(white / gain * np.exp(-lines)) + dark
    with h5py.File(folder / name, "w") as file:
        group = file.create_group("exchange")
        group["data"] = data.transpose(1, 0, 2).astype(np.float32)
        group["data_white"] = (gain * rng.poisson(white / gain, (frames, rows, bins)) + dark).astype(np.float32)
        group["data_dark"] = np.full((frames, rows, bins), dark, np.float32)
        group["theta"] = np.degrees(angles)
        group["theta"].attrs["units"] = "degrees"
        if edit is not None:
            edit(file)
    return folder / name


def matlab(folder, name="sino.mat", **arrays):
    arrays = arrays or {"counts": np.arange(60, dtype=np.float64).reshape(10, 6)}
    scipy.io.savemat(folder / name, arrays)
    return folder / name


def matlab73(folder, name="v73.mat"):
    """Write what MATLAB 7.3 writes: HDF5 behind 512 bytes of text, axes in reverse."""
    path = folder / name
    with h5py.File(path, "w", userblock_size=512) as file:
        file["counts"] = np.arange(60, dtype=np.float64).reshape(10, 6).T
        file["counts"].attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def interfile(folder, lines, data, name="image.hdr", raw="image.img"):
    (folder / raw).write_bytes(data)
    (folder / name).write_text(
        "\n".join(["!INTERFILE :=", f"!name of data file := {raw}", *lines, "!END OF INTERFILE :="])
    )
    return folder / name


INTERFILE_IMAGE = [
    "!number format := signed integer",
    "!number of bytes per pixel := 2",
    "imagedata byte order := BIGENDIAN",
    "number of dimensions := 3",
    "!matrix size [1] := 3",
    "!matrix size [2] := 2",
    "!matrix size [3] := 2",
    "scaling factor (mm/pixel) [1] := 2",
    "scaling factor (mm/pixel) [2] := 3",
    "scaling factor (mm/pixel) [3] := 4",
    "image scaling factor [1] := 0.5",
]


def interfile_image(folder, lines=None, data=None):
    return interfile(folder, lines or INTERFILE_IMAGE, struct.pack(">12h", *range(-2, 10)) if data is None else data)


INTERFILE_SINOGRAM = [
    "imagedata byte order := LITTLEENDIAN",
    "!number format := float",
    "!number of bytes per pixel := 4",
    "!PET data type := Emission",
    "applied corrections := {arc correction}",
    "number of dimensions := 4",
    "matrix axis label [4] := segment",
    "!matrix size [4] := 3",
    "matrix axis label [3] := view",
    "!matrix size [3] := 4",
    "matrix axis label [2] := axial coordinate",
    "!matrix size [2] := { 1, 2, 1 }",
    "matrix axis label [1] := tangential coordinate",
    "!matrix size [1] := 5",
    "minimum ring difference per segment := { -1, 0, 1 }",
    "maximum ring difference per segment := { -1, 0, 1 }",
    "Default bin size (cm) := 0.25",
    "Distance between rings (cm) := 0.6",
]


def interfile_sinogram(folder, lines=None, data=None):
    data = np.arange(80, dtype="<f4").tobytes() if data is None else data
    return interfile(folder, lines or INTERFILE_SINOGRAM, data, "sino.hs", "sino.s")


def castor(folder, header, data, name="scan.cdh", raw="scan.cdf"):
    (folder / raw).write_bytes(data)
    (folder / name).write_text("".join(f"{key}: {value}\n" for key, value in {"Data filename": raw, **header}.items()))
    return folder / name


CASTOR_LIST = {"Scanner name": "TEST_RING", "Number of events": 2, "Data mode": "list-mode", "Data type": "PET",
               "Start time (s)": 0, "Duration (s)": 60, "Attenuation correction flag": 1, "Scatter correction flag": 1,
               "Random correction flag": 1, "Normalization correction flag": 1, "TOF information flag": 1,
               "TOF resolution (ps)": 400, "List TOF measurement range (ps)": 2000}  # fmt: skip
# time, attenuation, scatter, randoms, normalisation, time of flight, crystal 1, crystal 2
CASTOR_LIST_DATA = (struct.pack("<IfffffII", 100, 2.5, 0.125, 0.25, 1.5, -75.0, 7, 300)
                    + struct.pack("<IfffffII", 2000, 1.25, 0.5, 0.75, 0.875, 33.5, 301, 8))  # fmt: skip

CASTOR_HISTOGRAM = {"Scanner name": "TEST_RING", "Number of events": 2, "Data mode": "histogram", "Data type": "PET",
                    "Start time (s)": 0, "Duration (s)": 10, "Attenuation correction flag": 1,
                    "Scatter correction flag": 1, "Random correction flag": 1,
                    "Normalization correction flag": 1}  # fmt: skip
# time, attenuation, randoms, normalisation, amount, scatter, crystal 1, crystal 2
CASTOR_HISTOGRAM_DATA = (struct.pack("<IfffffII", 0, 2.0, 0.25, 1.0, 12.0, 0.5, 0, 4)
                         + struct.pack("<IfffffII", 0, 4.0, 0.125, 0.5, 3.0, 0.25, 1, 5))  # fmt: skip


def castor_list(folder, data=CASTOR_LIST_DATA, **changes):
    return castor(folder, {**CASTOR_LIST, **changes}, data)


def castor_histogram(folder, data=CASTOR_HISTOGRAM_DATA, **changes):
    return castor(folder, {**CASTOR_HISTOGRAM, **changes}, data)


def crystal_table(folder, crystals=8, radius=100.0):
    angles = 2 * np.pi * np.arange(crystals) / crystals
    table = np.zeros((crystals, 6), "<f4")
    table[:, 0], table[:, 1] = radius * np.cos(angles), radius * np.sin(angles)
    (folder / "ring.lut").write_bytes(table.tobytes())
    return folder / "ring.lut"
