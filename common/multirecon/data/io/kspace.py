"""Multi-coil Cartesian k-space of any source: the common form, and plain arrays (``.npy``, HDF5) of stated layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...hdf5 import check_numbers, member, read_numbers
from .checks import check_finite, open_hdf5, refusal
from .npy import is_npy, read_npy

__all__ = ["KSpace", "choose_array", "crop_readout", "find_arrays", "member_at", "read_kspace_array", "to_axes"]

_AXES = {
    "s": "slice",
    "c": "coil",
    "x": "first image axis",
    "y": "second",
    "z": "third",
    "r": "real and imaginary part",
}
_DEFAULT = {2: "xy", 3: "cxy", 4: "cxyz"}


@dataclass(frozen=True, eq=False)
class KSpace:
    """Sampled Cartesian k-space, the zero frequency at index ``N // 2`` of every spatial axis.

    Args:
        data: complex64 ``(slices, coils, *spatial)``, zero where not sampled, arbitrary unit.
        mask: bool ``(slices, *spatial)`` or ``(1, *spatial)``, true where sampled.
        spacing_mm: voxel size along each spatial axis in mm, or None where the file does not say.
        affines: ``(slices, 4, 4)`` voxel-to-RAS matrices in mm, or None where the file does not say.
        notes: what the reader noticed and did, one line each.
        metadata: plain values for provenance.

    Raises:
        ValueError: if shapes disagree, values are not finite, or nothing was sampled.
    """

    data: NDArray[np.complex64]
    mask: NDArray[np.bool_]
    spacing_mm: tuple[float, ...] | None = None
    affines: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.data.shape
        if self.data.ndim not in (4, 5) or 0 in shape:
            raise refusal("data", "shape (slices, coils, *spatial)", shape)
        if self.mask.shape[1:] != shape[2:] or self.mask.shape[0] not in (1, shape[0]):
            raise refusal("mask", f"shape ({shape[0]}, {shape[2:]}) for data {shape}", self.mask.shape)
        if not self.mask.any():
            raise refusal("data", "at least one sample", "zeros only")
        if not np.isfinite(self.data).all():
            raise refusal("data", "finite complex64 samples", "NaN, Inf or numbers too large")

    @property
    def spatial(self) -> tuple[int, ...]:
        """Spatial shape."""
        return self.data.shape[2:]

    def select(self, slices: Sequence[int]) -> KSpace:
        """Return the named slices.

        Raises:
            ValueError: if there is no such slice.
        """
        count = self.data.shape[0]
        if not slices or any(not 0 <= s < count for s in slices):
            raise refusal("slices", f"some of 0 to {count - 1}", list(slices))
        index = list(slices)
        mask = self.mask if len(self.mask) == 1 else self.mask[index]
        affines = None if self.affines is None else self.affines[index]
        return replace(self, data=self.data[index], mask=mask, affines=affines)


def read_kspace_array(
    path: str | os.PathLike[str],
    *,
    layout: str = "",
    dataset: str = "",
    centred: bool = True,
    array: NDArray[Any] | None = None,
) -> KSpace:
    """Read k-space from a plain array; entries that are zero in every coil were not sampled.

    Args:
        path: ``.npy``, or HDF5 with one array of complex numbers (or of real and imaginary parts).
        layout: meaning of the axes, one letter each: ``s`` slice, ``c`` coil, ``x`` ``y`` ``z`` image axes, ``r`` real
            and imaginary part; by default ``xy``, ``cxy`` or ``cxyz`` by the number of axes.
        dataset: name of the HDF5 dataset; needed only where the file has several that fit.
        centred: whether the zero frequency is at index ``N // 2`` (else at index 0).
        array: the content, where the file was read already (MATLAB).

    Raises:
        ValueError: naming what does not fit.
    """
    name = ""
    if array is not None:
        pass
    elif is_npy(path):
        array = read_npy(path)
    else:
        with open_hdf5(path, "an array of complex numbers") as file:
            name = choose_array(file, dataset, path)
            array = read_numbers(member_at(file, name), f"{path}:{name}", limit=None)
    array = to_axes(array, layout or _default_layout(array.ndim), path=path, allowed="scxyzr", order="scxyz")
    if not np.iscomplexobj(array):
        raise refusal("path", "complex numbers (or layout with r: real and imaginary part)",
                      f"{array.dtype} {array.shape} in {str(path)!r}")  # fmt: skip
    check_finite(array, path)
    volume = layout.count("z") == 1 or (not layout and array.shape[-1] > 1)
    array = array if volume else array[..., 0]  # (slices, coils, x, y[, z])
    if not centred:
        array = np.fft.fftshift(array, axes=tuple(range(2, array.ndim)))
    with np.errstate(over="ignore"):  # what is too large for complex64 is refused below
        data = np.ascontiguousarray(array, dtype=np.complex64)
    facts = {"source": os.path.basename(path), "format": "array", **({"dataset": name} if name else {})}
    return KSpace(data, (data != 0).any(axis=1), metadata=facts)


def to_axes(
    array: NDArray[Any], layout: str, *, path: str | os.PathLike[str], allowed: str, order: str
) -> NDArray[Any]:
    """Return the array with its axes in ``order``, axes that the layout lacks having size one.

    Args:
        array: any array.
        layout: meaning of its axes, one letter each.
        path: the file it comes from, for errors.
        allowed: letters that the layout may hold; ``r`` (real and imaginary part) is joined to complex numbers.
        order: letters of the result.

    Raises:
        ValueError: if the layout does not fit the array.
    """
    letters = layout.lower().replace(",", "").replace(" ", "")
    if len(letters) != array.ndim or len(set(letters)) != len(letters) or set(letters) - set(allowed):
        expected = f"{array.ndim} different letters of {allowed!r} for the shape {array.shape} in {str(path)!r}"
        raise refusal("layout", expected, repr(layout))
    if "r" in letters:
        axis = letters.index("r")
        if array.shape[axis] != 2 or np.iscomplexobj(array):
            raise refusal(
                "layout", "an axis of two real numbers for r", f"{array.dtype} {array.shape} in {str(path)!r}"
            )
        array = np.take(array, 0, axis) + 1j * np.take(array, 1, axis)
        letters = letters.replace("r", "")
    present = [letter for letter in order if letter in letters]
    array = array.transpose([letters.index(letter) for letter in present])
    return array.reshape([array.shape[present.index(a)] if a in present else 1 for a in order])


def _default_layout(axes: int) -> str:
    if axes not in _DEFAULT:
        raise refusal("layout", f"letters of {''.join(_AXES)!r}, one for each of {axes} axes", "none")
    return _DEFAULT[axes]


def find_arrays(file: h5py.File, *, smallest: int = 2, deepest: int = 4) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return ``name -> (shape, dtype)`` of the numeric datasets of at least two axes, links left out."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}

    def walk(group: h5py.Group, prefix: str, depth: int) -> None:
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            item = group[name]
            if isinstance(item, h5py.Group) and depth < deepest:
                walk(item, f"{prefix}{name}/", depth + 1)
            elif isinstance(item, h5py.Dataset) and item.dtype.kind in "iufc" and item.ndim >= smallest:
                found[prefix + name] = (tuple(item.shape), item.dtype.newbyteorder("=").name)

    walk(file, "", 0)
    return found


def choose_array(file: h5py.File, name: str, path: str | os.PathLike[str]) -> str:
    """Return the name of the only array of complex numbers (or else of any numbers), or of the one asked for.

    Raises:
        ValueError: if there is none, or several and no name.
    """
    found = find_arrays(file)
    if name:
        if name.strip("/") not in found:
            raise refusal("dataset", f"one of {sorted(found)} in {str(path)!r}", repr(name))
        return name.strip("/")
    fitting = [n for n, (_, dtype) in found.items() if dtype.startswith("complex")] or list(found)
    if len(fitting) != 1:
        raise refusal("dataset", f"the name of one array of {str(path)!r}", f"none, and there are {sorted(found)}")
    return fitting[0]


def member_at(file: h5py.File, name: str) -> Any:
    """Return the dataset at a path of plain (hard) links."""
    item: Any = file
    for part in name.strip("/").split("/"):
        item = member(item, part)
    check_numbers(item, name, limit=None)
    return item


def crop_readout(kspace: KSpace, size: int) -> KSpace:
    """Remove readout oversampling: keep the central ``size`` pixels of the first spatial axis of the image.

    Where lines are sampled in part (asymmetric echoes), a new sample counts as sampled if the old one nearest to its
    frequency was; next to the edge of the sampled part it then holds a little of what was not.

    Args:
        kspace: the data.
        size: pixels to keep.

    Raises:
        ValueError: if the size is larger than the axis.
    """
    width = kspace.spatial[0]
    if not 1 <= size <= width:
        raise refusal("size", f"1 to {width}", size)
    if size == width:
        return kspace
    with np.errstate(over="ignore", invalid="ignore"):  # sums too large for complex64 are refused by KSpace
        line = np.fft.ifftshift(kspace.data, axes=2)
        image = np.fft.fftshift(np.fft.ifft(line, axis=2, norm="ortho"), axes=2)
        start = width // 2 - size // 2
        cut = np.fft.ifftshift(image[:, :, start : start + size], axes=2)
        data = np.fft.fftshift(np.fft.fft(cut, axis=2, norm="ortho"), axes=2).astype(np.complex64)
    nearest = width // 2 + np.rint((np.arange(size) - size // 2) * width / size).astype(int)
    mask = kspace.mask[:, np.clip(nearest, 0, width - 1)]
    # transforms leave rounding errors of lines that were not sampled
    data = np.where(np.expand_dims(mask, 1), data, 0)
    note = f"readout oversampling removed: {width} to {size} pixels"
    return replace(kspace, data=np.ascontiguousarray(data), mask=mask, notes=(*kspace.notes, note))
