"""ISMRMRD raw data: Cartesian acquisitions sorted into k-space, with the geometry of every slice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...hdf5 import member
from .checks import check_finite, open_hdf5, refusal
from .kspace import KSpace, crop_readout
from .mr_header import Encoding, read_encoding

__all__ = ["find_ismrmrd", "read_ismrmrd"]

# bits of the acquisition flags, counted from one in the format's documentation
_NOISE, _CALIBRATION_ONLY, _REVERSED = 19, 20, 22
_NOT_IMAGING = (_NOISE, _CALIBRATION_ONLY, 23, 24, 26, 27, 28, 29)  # navigator, phase correction, feedback, dummy, ...
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_MAX_BYTES = 16 * 1024**3


def find_ismrmrd(file: h5py.File) -> str:
    """Return the name of the group that holds ISMRMRD acquisitions, or an empty name."""
    for name in file:
        if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Group):
            group = file[name]
            data = group["data"] if "data" in group and "xml" in group else None
            if isinstance(data, h5py.Dataset) and "head" in (data.dtype.names or ()):
                return str(name)
    return ""


def read_ismrmrd(
    path: str | os.PathLike[str], *, slices: Sequence[int] | None = None, frame: int = 0, crop: bool = True,
    whiten: bool = True
) -> KSpace:  # fmt: skip
    """Sort the imaging acquisitions of an ISMRMRD file into Cartesian k-space.

    Lines are placed so that the sample the header calls the centre falls on index ``N // 2``; averages are averaged,
    reversed lines turned round; noise, navigator and calibration-only scans are left out. With a noise scan the coils
    are decorrelated and brought to equal noise (their mean variance is kept).

    Args:
        path: the HDF5 file.
        slices: numbers of the slices to keep; the default is all.
        frame: number of the combination of contrast, phase, repetition and set, in that order of counting.
        crop: whether readout oversampling is removed, as the header describes it.
        whiten: whether a noise scan is used.

    Raises:
        ValueError: if it is no such file, is damaged, is not Cartesian, or acquisitions disagree with the header.
    """
    with open_hdf5(path, "an ISMRMRD file") as file:
        name = find_ismrmrd(file)
        if not name:
            raise refusal("path", "a group with ISMRMRD 'xml' and 'data'", f"{sorted(file)} in {str(path)!r}")
        group = member(file, name)
        encoding = read_encoding(_xml(member(group, "xml"), path), path)
        if encoding.trajectory != "cartesian":
            raise refusal("path", "a Cartesian trajectory", f"{encoding.trajectory!r} in {str(path)!r}")
        dataset = member(group, "data")
        heads, lines = _acquisitions(dataset, path)
        kept = [i for i, head in enumerate(heads) if not _flagged(head, *_NOT_IMAGING)]
        if not kept:
            raise refusal("path", "imaging acquisitions", f"none among {len(heads)} in {str(path)!r}")
        frames = sorted({_frame(heads[i]) for i in kept})
        if not 0 <= frame < len(frames):
            raise refusal("frame", f"0 to {len(frames) - 1} (contrast, phase, repetition, set of {frames[:8]})", frame)
        kept = [i for i in kept if _frame(heads[i]) == frames[frame]]
        present = sorted({int(heads[i]["idx"]["slice"]) for i in kept})
        wanted = present if slices is None else list(slices)
        if not wanted or set(wanted) - set(present):
            raise refusal("slices", f"some of {present}", wanted)
        notes: list[str] = []
        data, mask = _sort(heads, lines, kept, wanted, encoding, path)
        noise = [lines[i] for i, head in enumerate(heads) if _flagged(head, _NOISE)]
        if noise and whiten:
            data = _whitened(data, noise, path)
            notes.append(f"coils decorrelated by {len(noise)} noise lines")
        if len(frames) > 1:
            notes.append(f"frame {frame} of {len(frames)}: contrast, phase, repetition, set {frames[frame]}")
        affines = _affines([next(heads[i] for i in kept if heads[i]["idx"]["slice"] == s) for s in wanted], encoding)
        if affines is None:
            notes.append("no orientation in the acquisitions: the affine is the centred one")
        if encoding.matrix[2] == 1:
            data, mask = data[..., 0], mask[..., 0]
        spacing = encoding.pixel_mm[: data.ndim - 2]
        facts = {"source": os.path.basename(path), "format": "ismrmrd", "slices": wanted, **encoding.metadata}
        kspace = KSpace(data, mask, spacing, affines, tuple(notes), facts)
        if not crop or encoding.readout_size == encoding.matrix[0]:
            return kspace
        return _cropped(kspace, encoding.readout_size)


def _xml(dataset: Any, path: str | os.PathLike[str]) -> bytes | str:
    text = dataset[0] if isinstance(dataset, h5py.Dataset) and dataset.shape == (1,) else None
    if not isinstance(text, bytes | str):
        raise refusal("path", "one XML header", f"{dataset} in {str(path)!r}")
    return text


def _acquisitions(dataset: Any, path: str | os.PathLike[str]) -> tuple[NDArray[Any], list[NDArray[np.complex64]]]:
    """Return headers and samples ``(coils, samples)`` of all acquisitions."""
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or not len(dataset):
        raise refusal("path", "a list of acquisitions", f"{dataset} in {str(path)!r}")
    size = os.path.getsize(path)
    if len(dataset) * dataset.dtype.itemsize > size * 1100 or dataset.id.get_storage_size() == 0:
        raise refusal("path", f"{len(dataset)} acquisitions", f"a file of {size} bytes: {str(path)!r}")
    rows = dataset[()]
    heads, lines = rows["head"], []
    for head, values in zip(heads, rows["data"], strict=True):
        coils, samples = int(head["active_channels"]), int(head["number_of_samples"])
        if values.dtype != np.float32 or values.size != 2 * coils * samples or not values.size:
            raise refusal("path", f"2 x {coils} coils x {samples} samples in every acquisition",
                          f"{values.size} numbers in {str(path)!r}")  # fmt: skip
        lines.append(values.view(np.complex64).reshape(coils, samples))
    return heads, lines


def _flagged(head: Any, *bits: int) -> bool:
    return any(int(head["flags"]) >> (bit - 1) & 1 for bit in bits)


def _frame(head: Any) -> tuple[int, int, int, int]:
    index = head["idx"]
    return int(index["contrast"]), int(index["phase"]), int(index["repetition"]), int(index["set"])


def _sort(
    heads: NDArray[Any],
    lines: list[NDArray[np.complex64]],
    kept: list[int],
    wanted: list[int],
    encoding: Encoding,
    path: str | os.PathLike[str],
) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    """Return k-space ``(slices, coils, x, y, z)`` and its mask."""
    counts = {lines[i].shape[0] for i in kept}
    if len(counts) != 1:
        raise refusal("path", "one number of coils", f"{sorted(counts)} in {str(path)!r}")
    coils = counts.pop()
    nx, ny, nz = encoding.matrix
    needed = len(wanted) * coils * nx * ny * nz * 8
    if needed > _MAX_BYTES or needed > 2000 * os.path.getsize(path):
        raise refusal(
            "path", f"a matrix {encoding.matrix} that the data fill", f"{os.path.getsize(path)} bytes in {str(path)!r}"
        )
    data = np.zeros((len(wanted), coils, nx, ny, nz), np.complex64)
    hits = np.zeros((len(wanted), nx, ny, nz), np.int32)
    centres = tuple(n // 2 if c is None else c for n, c in zip((ny, nz), encoding.centres, strict=True))
    for i in kept:
        head, line = heads[i], lines[i]
        index = head["idx"]
        if int(index["slice"]) not in wanted:
            continue
        first, last = int(head["discard_pre"]), line.shape[1] - int(head["discard_post"])
        line, centre = line[:, first:last], int(head["center_sample"]) - first
        if _flagged(head, _REVERSED):
            line, centre = line[:, ::-1], line.shape[1] - 1 - centre
        x = nx // 2 - centre
        y = int(index["kspace_encode_step_1"]) - centres[0] + ny // 2
        z = int(index["kspace_encode_step_2"]) - centres[1] + nz // 2
        if x < 0 or x + line.shape[1] > nx or not 0 <= y < ny or not 0 <= z < nz:
            raise refusal("path", f"lines within the encoded matrix {encoding.matrix}",
                          f"{line.shape[1]} samples at ({x}, {y}, {z}) in {str(path)!r}")  # fmt: skip
        place = (wanted.index(int(index["slice"])), slice(None), slice(x, x + line.shape[1]), y, z)
        data[place] += line
        hits[place[0], place[2], y, z] += 1
    check_finite(data.view(np.float32), path)
    data /= np.maximum(hits, 1)[:, None]
    return data, hits > 0


def _whitened(
    data: NDArray[np.complex64], noise: list[NDArray[np.complex64]], path: str | os.PathLike[str]
) -> NDArray[np.complex64]:
    """Return the data with coils of uncorrelated noise of equal variance, the mean of what it was."""
    coils = data.shape[1]
    if any(line.shape[0] != coils for line in noise):
        raise refusal(
            "path", f"noise scans of {coils} coils", f"{sorted({n.shape[0] for n in noise})} in {str(path)!r}"
        )
    samples = np.concatenate(noise, axis=1).astype(np.complex128)
    if samples.shape[1] <= coils:
        return data
    covariance = samples @ samples.conj().T / samples.shape[1]
    try:
        root = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        raise refusal("path", "noise in every coil", f"a singular noise covariance in {str(path)!r}") from None
    level = np.sqrt(np.trace(covariance).real / coils)
    mixing = level * np.linalg.inv(root)
    return np.einsum("cd,sdxyz->scxyz", mixing, data).astype(np.complex64)


def _affines(heads: list[Any], encoding: Encoding) -> NDArray[np.float64] | None:
    """Return voxel-to-RAS matrices, the centre of the encoded view at each slice's position (patient coordinates)."""
    result = []
    for head in heads:
        axes = np.stack([head["read_dir"], head["phase_dir"], head["slice_dir"]], axis=1).astype(np.float64)
        position = np.asarray(head["position"], np.float64)
        if not np.isfinite(axes).all() or not np.isfinite(position).all():
            return None
        if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-2:
            return None
        spacing = np.array(encoding.pixel_mm)
        centre = np.array([n // 2 for n in encoding.matrix], np.float64)  # index of the zero position of the transform
        affine = np.eye(4)
        affine[:3, :3] = _LPS_TO_RAS @ axes * spacing
        affine[:3, 3] = _LPS_TO_RAS @ position - affine[:3, :3] @ centre
        result.append(affine)
    return np.stack(result)


def _cropped(kspace: KSpace, size: int) -> KSpace:
    before = kspace.spatial[0]
    cut = crop_readout(kspace, size)
    if cut.affines is None or cut.spatial[0] == before:
        return cut
    shift = before // 2 - size // 2  # pixels removed in front
    affines = cut.affines.copy()
    affines[:, :3, 3] += shift * affines[:, :3, 0]
    return replace(cut, affines=affines)
